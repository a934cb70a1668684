"""Pairs the tensors of two models: by their names, then by their order and shapes.

Knows names, roles and shapes; reads no values.
"""

import difflib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a model, as far as pairing goes; its role is a site's, or `"buffer"`."""

    names: tuple[str, ...]
    role: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Its first name."""
        return self.names[0]


class Pair(NamedTuple):
    """Tensors that stand for each other.

    Attributes:
        mine: Positions among the first model's entries: one, or several that the other packs.
        reference: Positions among the second's, likewise.
        transposed: Whether one is stored `(in, out)` and the other `(out, in)`.
    """

    mine: tuple[int, ...]
    reference: tuple[int, ...]
    transposed: bool = False


def pairs(mine: Sequence[Entry], reference: Sequence[Entry]) -> list[Pair]:
    """Pair the tensors of two models.

    In this order: tensors of one name and shape; the longest common run of roles and shapes, in
    order of registration; equal roles and shapes that stand in another order; matrices that are
    each other's transposes; several that stand one after the other in one model and are packed
    along the first axis in the other.
    """
    found = list(_by_name(mine, reference))
    for more in (_in_order, _out_of_order, _transposed, _packed):
        left = _rest(mine, (p.mine for p in found))
        right = _rest(reference, (p.reference for p in found))
        found += more(left, right)
    return sorted(found)


Unpaired = dict[int, Entry]
"""Entries without a partner so far, by their position, in order."""


def _rest(entries: Sequence[Entry], used: Iterable[tuple[int, ...]]) -> Unpaired:
    taken = {at for positions in used for at in positions}
    return {at: entry for at, entry in enumerate(entries) if at not in taken}


def _by_name(mine: Sequence[Entry], reference: Sequence[Entry]) -> Iterator[Pair]:
    """Yield equal names of equal shape; tensors tied in one model pair with each of the other."""
    known = {name: at for at, entry in enumerate(mine) for name in entry.names}
    for at, entry in enumerate(reference):
        own = next((known[name] for name in entry.names if name in known), None)
        if own is not None and mine[own].shape == entry.shape:
            yield Pair((own,), (at,))


def _in_order(left: Unpaired, right: Unpaired) -> Iterator[Pair]:
    keys = [[(entry.role, entry.shape) for entry in side.values()] for side in (left, right)]
    matcher = difflib.SequenceMatcher(a=keys[0], b=keys[1], autojunk=False)
    first, second = list(left), list(right)
    for block in matcher.get_matching_blocks():
        for step in range(block.size):
            yield Pair((first[block.a + step],), (second[block.b + step],))


def _out_of_order(left: Unpaired, right: Unpaired) -> Iterator[Pair]:
    keys = [{at: (entry.role, entry.shape) for at, entry in side.items()} for side in (left, right)]
    yield from _matched(*keys)


def _transposed(left: Unpaired, right: Unpaired) -> Iterator[Pair]:
    matrices = {at: entry.shape for at, entry in left.items() if len(entry.shape) == 2}
    turned = {at: entry.shape[::-1] for at, entry in right.items()}
    yield from (pair._replace(transposed=True) for pair in _matched(matrices, turned))


def _matched(left: Mapping[int, object], right: Mapping[int, object]) -> Iterator[Pair]:
    """Yield pairs of equal keys, the first with the first."""
    waiting: dict[object, list[int]] = {}
    for at, key in right.items():
        waiting.setdefault(key, []).append(at)
    for at, key in left.items():
        if waiting.get(key):
            yield Pair((at,), (waiting[key].pop(0),))


def _packed(left: Unpaired, right: Unpaired) -> Iterator[Pair]:
    yield from (Pair((at,), run) for at, run in _packs(left, right))
    yield from (Pair(run, (at,)) for at, run in _packs(right, left))


def _packs(whole: Unpaired, parts: Unpaired) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Yield what is one tensor here and several neighbours of one role there."""
    free = dict(parts)
    for at, entry in whole.items():
        run = _run(entry, free)
        if run:
            yield at, run
            free = {position: part for position, part in free.items() if position not in run}


def _run(whole: Entry, parts: Unpaired) -> tuple[int, ...]:
    """Return the first entries that together have the shape of one, and its role."""
    fitting = {at: part for at, part in parts.items() if part.shape[1:] == whole.shape[1:]}
    sizes = {at: p.shape[0] for at, p in fitting.items() if p.shape and p.role == whole.role}
    places = list(sizes) if whole.shape else []
    for start in range(len(places)):
        totals = itertools.accumulate(sizes[at] for at in places[start:])
        below = [total for total in totals if total <= whole.shape[0]]
        if len(below) > 1 and below[-1] == whole.shape[0]:
            return tuple(places[start : start + len(below)])
    return ()
