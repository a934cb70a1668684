"""Pairs the tensors of two models: by their names, then by their order and shapes.

Knows names, roles and shapes; reads no values.
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a model, as far as pairing goes.

    Attributes:
        names: All its names; several where it is tied.
        role: What it does: a site's role, or `"buffer"`.
        shape: Its logical shape.
    """

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

    Args:
        mine: The first model's tensors, in order of registration.
        reference: The second's.

    Returns:
        The pairs, in the order of the first model. What has no partner is in none of them.

    Examples:
        >>> q, k, v = (Entry((f"{n}.weight",), "weight", (8, 8)) for n in "qkv")
        >>> pairs([Entry(("qkv.weight",), "weight", (24, 8))], [q, k, v])
        [Pair(mine=(0,), reference=(0, 1, 2), transposed=False)]
    """
    found = list(_by_name(mine, reference))
    for more in (_in_order, _out_of_order, _transposed, _packed):
        left, right = (
            _rest(mine, (p.mine for p in found)),
            _rest(reference, (p.reference for p in found)),
        )
        found += more(mine, reference, left, right)
    return sorted(found)


def _rest(entries: Sequence[Entry], used: Iterable[tuple[int, ...]]) -> list[int]:
    taken = {at for positions in used for at in positions}
    return [at for at in range(len(entries)) if at not in taken]


def _by_name(mine: Sequence[Entry], reference: Sequence[Entry]) -> Iterator[Pair]:
    """Yield equal names of equal shape; tensors tied in one model pair with each of the other."""
    known = {name: at for at, entry in enumerate(mine) for name in entry.names}
    for at, entry in enumerate(reference):
        own = next((known[name] for name in entry.names if name in known), None)
        if own is not None and mine[own].shape == entry.shape:
            yield Pair((own,), (at,))


def _in_order(
    mine: Sequence[Entry], reference: Sequence[Entry], left: list[int], right: list[int]
) -> Iterator[Pair]:
    keys = [_key(mine[at]) for at in left], [_key(reference[at]) for at in right]
    matcher = difflib.SequenceMatcher(a=keys[0], b=keys[1], autojunk=False)
    for block in matcher.get_matching_blocks():
        for step in range(block.size):
            yield Pair((left[block.a + step],), (right[block.b + step],))


def _key(entry: Entry) -> tuple[str, tuple[int, ...]]:
    return entry.role, entry.shape


def _out_of_order(
    mine: Sequence[Entry], reference: Sequence[Entry], left: list[int], right: list[int]
) -> Iterator[Pair]:
    yield from _matched(
        [(_key(mine[at]), at) for at in left], [(_key(reference[at]), at) for at in right]
    )


def _transposed(
    mine: Sequence[Entry], reference: Sequence[Entry], left: list[int], right: list[int]
) -> Iterator[Pair]:
    matrices = [(entry.shape, at) for at in left if len((entry := mine[at]).shape) == 2]
    turned = [(reference[at].shape[::-1], at) for at in right]
    yield from (pair._replace(transposed=True) for pair in _matched(matrices, turned))


def _matched(
    left: Iterable[tuple[object, int]], right: Iterable[tuple[object, int]]
) -> Iterator[Pair]:
    """Yield pairs of equal keys, the first with the first."""
    waiting: dict[object, list[int]] = {}
    for key, at in right:
        waiting.setdefault(key, []).append(at)
    for key, at in left:
        if waiting.get(key):
            yield Pair((at,), (waiting[key].pop(0),))


def _packed(
    mine: Sequence[Entry], reference: Sequence[Entry], left: list[int], right: list[int]
) -> Iterator[Pair]:
    yield from _packs(mine, reference, left, right)
    swapped = _packs(reference, mine, right, left)
    yield from (Pair(pair.reference, pair.mine) for pair in swapped)


def _packs(
    whole: Sequence[Entry], parts: Sequence[Entry], left: list[int], right: list[int]
) -> Iterator[Pair]:
    """Yield what is one tensor here and several neighbours of one role there."""
    free = list(right)
    for at in left:
        run = _run(whole[at], parts, free)
        if run:
            yield Pair((at,), run)
            free = [position for position in free if position not in run]


def _run(whole: Entry, parts: Sequence[Entry], free: Sequence[int]) -> tuple[int, ...]:
    """Return the first free entries that together have the shape of one, and its role."""
    fitting = (
        [
            at
            for at in free
            if parts[at].role == whole.role and parts[at].shape[1:] == whole.shape[1:]
        ]
        if whole.shape
        else []
    )
    for start in range(len(fitting)):
        size = 0
        run: list[int] = []
        for at in fitting[start:]:
            size += parts[at].shape[0]
            run.append(at)
            if size >= whole.shape[0]:
                break
        if size == whole.shape[0] and len(run) > 1:
            return tuple(run)
    return ()
