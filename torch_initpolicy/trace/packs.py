"""Packed weights: one matrix whose output is cut into q, k and v, or into value and gate.

The output of a weight is followed through views and copies, and through sums with that of others.
Where it is cut and two of its pieces meet, the weight is as many matrices packed into one. Pieces
meet in a product, whatever has become of them on the way there, or where one scales and the other
shifts the same signal. Pieces that only lie side by side, as heads or box coordinates do, are not
matrices of their own.
"""

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import CARRIERS, OpRole, argument
from torch_initpolicy.trace.units import Following, Shown, Units

UnitsByWeight = Mapping[int, Units]
"""Units that a value depends on, by weight; left out where it depends on all or none."""


@dataclass(frozen=True, slots=True)
class Pack:
    """How matrices are packed into one weight, whose `blocks` count units and recur."""

    blocks: tuple[int, ...]
    repeats: int
    shown: Mapping[int, Shown]

    def within(self, axes: Axes, shape: Sequence[int]) -> Axes:
        """Return the axes of the weight with its blocks, along the output axis that they cut."""
        outer = math.prod(shape[axis] for axis in axes.copies)
        inner = math.prod(shape[axis] for axis in axes.outputs)
        for axis in axes.outputs:
            inner //= shape[axis]
            blocks = tuple(units // inner for units in self.blocks)
            repeats, rest = divmod(self.repeats, outer)
            is_even = not rest and not any(units % inner for units in self.blocks)
            if is_even and sum(blocks) * repeats == shape[axis]:
                others = (other for other in axes.outputs if other != axis)
                return replace(axes, outputs=(axis, *others), blocks=blocks, repeats=repeats)
            outer *= shape[axis]
        return axes

    def units(self) -> Iterator[Units]:
        """Yield the units of each matrix."""
        period = sum(self.blocks)
        starts = itertools.accumulate(self.blocks, initial=0)
        once = sum(1 << period * number for number in range(self.repeats))
        for start, size in zip(starts, self.blocks, strict=False):
            yield once * ((1 << size) - 1) << start


class Meeting(NamedTuple):
    """Units of one weight that come together, each side on a way of its own."""

    one: Units
    other: Units

    def joins(self, pieces: Sequence[Units]) -> bool:
        """Say whether two different pieces meet here."""
        return any(self.one & a and self.other & b for a, b in itertools.permutations(pieces, 2))


_PRODUCTS = frozenset(
    {OpRole.CONTRACTS, OpRole.MULTIPLIES, OpRole.ATTENDS, OpRole.PROJECTS_AND_ATTENDS}
)
_SCALED = CARRIERS | {OpRole.ACTIVATES, OpRole.COMPUTES}
"""Roles of operators behind which what has scaled a signal still does."""

_MOST_WEIGHTS = 16
"""Weights, the latest, of which pieces are followed at once."""

_PACKABLE = frozenset(
    {"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "grouped_mm", "einsum", "tensordot"}
)
"""Operators that apply a weight which may be packed, besides convolutions."""


def packs(followed: Following) -> Mapping[int, Pack]:
    """Find the weights that are several matrices packed into one, by their node."""
    nodes = followed.uses.graph.nodes
    sizes = {
        node: size
        for node, size in followed.sizes.items()
        if nodes[node].op in _PACKABLE or nodes[node].op.startswith("conv")
    }
    pieces = _Pieces(followed, sizes)
    for node in nodes:
        pieces.enter(node)
    patterns = {
        node: pattern
        for node, meetings in pieces.met.items()
        if (pattern := _pattern(sizes[node], frozenset(pieces.pieces[node]), frozenset(meetings)))
    }
    shown = followed.of_weights(patterns)
    return {node: Pack(*pattern, shown[node]) for node, pattern in patterns.items()}


@dataclass(frozen=True, slots=True)
class _Pieces:
    """Collects the pieces that outputs of weights are cut into, and where these meet.

    Attributes:
        sizes: How many units a weight has, by weight.
        origins: The units that each value depends on, by value.
        scales: What has scaled a signal on the way to a value, by value.
        pieces: What values show of a weight, by weight.
        met: Which units of a weight meet, by weight.
    """

    followed: Following
    sizes: Mapping[int, int]
    origins: dict[int, UnitsByWeight] = field(default_factory=dict)
    scales: dict[int, UnitsByWeight] = field(default_factory=dict)
    pieces: dict[int, set[Units]] = field(default_factory=dict)
    met: dict[int, set[Meeting]] = field(default_factory=dict)

    def enter(self, node: Node) -> None:
        uses = self.followed.uses
        role, operands = uses.role(node), tuple(dict.fromkeys(uses.carried(node)))
        if role is OpRole.GATES:
            self._gate(node, operands)
        scales: UnitsByWeight = {}
        if not self.origins.keys().isdisjoint(operands):
            scales = self._combine(node, role, operands)
        for output in node.outputs:
            self._derive(output, operands)
            if scales:
                self.scales[output] = scales

    def _combine(self, node: Node, role: OpRole, operands: Sequence[int]) -> UnitsByWeight:
        """Let pieces meet in a product, and return what scales the output."""
        weighs = node.index in self.followed.uses.weighers
        if weighs or role in _PRODUCTS:
            for one, other in itertools.combinations(operands, 2):
                self._meet(self.origins.get(one, {}), self.origins.get(other, {}))
        return {} if weighs else self._scaled(role, operands)

    def _derive(self, output: int, operands: Sequence[int]) -> None:
        """Say what a value depends on: the pieces that it shows, and all that went into it."""
        shown = self._shown(output)
        pieces = {n: here.units for n, here in shown.items() if self._is_part(n, here.units)}
        for node, units in pieces.items():
            self.pieces.setdefault(node, set()).add(units)
        each = [self._besides(value, pieces) for value in operands if value in self.origins]
        joined = _together([pieces, *each]) if each else pieces
        parts = {node: units for node, units in joined.items() if self._is_part(node, units)}
        if parts:
            latest = sorted(parts)[-_MOST_WEIGHTS:]
            self.origins[output] = {weight: parts[weight] for weight in latest}

    def _shown(self, value: int) -> dict[int, Shown]:
        shown = self.followed.shown.get(value, {})
        return {weight: here for weight, here in shown.items() if not here.summed}

    def _is_part(self, node: int, units: Units) -> bool:
        return units.bit_count() < self.sizes.get(node, 0)

    def _besides(self, value: int, pieces: UnitsByWeight) -> UnitsByWeight:
        """Return what an operand brings in, but for the outputs of which it is cut to a piece."""
        cut = self._shown(value).keys() & pieces.keys()
        return {node: units for node, units in self.origins[value].items() if node not in cut}

    def _meet(self, one: UnitsByWeight, other: UnitsByWeight) -> None:
        for node in one.keys() & other.keys():
            meeting = Meeting(one[node] & ~other[node], other[node] & ~one[node])
            if meeting.one and meeting.other:
                self.met.setdefault(node, set()).add(meeting)

    def _scaled(self, role: OpRole, operands: Sequence[int]) -> UnitsByWeight:
        """Say what scales the signal, and let it meet what shifts the signal here."""
        if role is OpRole.ADDS:
            for value, shift in itertools.permutations(operands, 2):
                self._meet(self.scales.get(value, {}), self._pure(shift))
        before = [self.scales[value] for value in operands if value in self.scales]
        multiplies = role is OpRole.MULTIPLIES and len(operands) > 1
        here = [self._factor(value, operands) for value in operands if multiplies]
        return _together((*before, *here)) if role in _SCALED else {}

    def _factor(self, value: int, operands: Sequence[int]) -> UnitsByWeight:
        """Return the pieces that a factor shows, of weights that the other factors are free of."""
        others = [self.origins.get(other, {}) for other in operands if other != value]
        taken = set(itertools.chain(*others))
        return {node: units for node, units in self._pure(value).items() if node not in taken}

    def _pure(self, value: int) -> UnitsByWeight:
        """Return the pieces that a value shows and that nothing else has been multiplied with."""
        shown, scaled = self._shown(value), self.scales.get(value, {})
        origin = self.origins.get(value, {})
        return {n: units for n, units in origin.items() if n in shown and n not in scaled}

    def _gate(self, node: Node, operands: Sequence[int]) -> None:
        """Cut what a gated unit reads into the two halves that it takes apart."""
        for operand in operands:
            axis = argument(node, 1, "dim", -1)
            for weight, shown in self._shown(operand).items():
                one, other = shown.halves(axis)
                if weight in self.sizes and one and other and one != other:
                    self.pieces.setdefault(weight, set()).update((one, other))
                    self.met.setdefault(weight, set()).add(Meeting(one, other))


def _together(origins: Iterable[UnitsByWeight]) -> UnitsByWeight:
    """Put together what several values depend on."""
    found: dict[int, Units] = {}
    for origin in origins:
        for node, units in origin.items():
            found[node] = found.get(node, 0) | units
    return found


@functools.lru_cache(maxsize=256)
def _pattern(
    size: int, pieces: frozenset[Units], meetings: frozenset[Meeting]
) -> tuple[tuple[int, ...], int] | None:
    """Return the sizes of the matrices in a weight and how often they recur; None for one."""
    parts = tuple(_divided((1 << size) - 1, pieces, meetings))
    if len(parts) < 2:
        return None
    runs = list(_runs(parts))
    period = len(parts)
    sizes = tuple(length for _, length in runs[:period])
    recurs = len(runs) % period == 0 and runs == runs[:period] * (len(runs) // period)
    return (sizes, len(runs) // period) if recurs else None


def _divided(whole: Units, pieces: Iterable[Units], meetings: Iterable[Meeting]) -> Iterator[Units]:
    """Divide units into the pieces they are cut into, as far down as pieces meet."""
    parts = _tiles(whole, pieces)
    if len(parts) > 1 and any(meeting.joins(parts) for meeting in meetings):
        for part in parts:
            yield from _divided(part, pieces, meetings)
    else:
        yield whole


def _tiles(whole: Units, pieces: Iterable[Units]) -> tuple[Units, ...]:
    """Return the largest pieces within some units, or nothing where they do not tile them."""
    within = sorted((p for p in pieces if p & whole == p != whole), key=int.bit_count)
    parts: list[Units] = []
    for piece in reversed(within):
        if not any(part & piece == piece for part in parts):
            parts.append(piece)
    tiles = sum(map(int.bit_count, parts)) == whole.bit_count()
    return tuple(parts) if tiles and functools.reduce(int.__or__, parts, 0) == whole else ()


def _runs(parts: Sequence[Units]) -> Iterator[tuple[int, int]]:
    """Yield the runs of units that belong to one part, as `(part, length)`."""
    size = functools.reduce(int.__or__, parts).bit_length()
    owner = [next(i for i, part in enumerate(parts) if part >> unit & 1) for unit in range(size)]
    for part, run in itertools.groupby(owner):
        yield part, sum(1 for _ in run)
