"""Packed weights: one matrix whose output is cut into q, k and v, or into value and gate.

The output of a weight is followed through views and copies, and through sums with that of others.
Where it is cut and two of its pieces meet, the weight is as many matrices packed into one. Pieces
meet in a product, whatever has become of them on the way there, or where one scales and the other
shifts the same signal. Pieces that only lie side by side, as heads or box coordinates do, are not
matrices of their own.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.layouts import Layout, Run, bits, of_axis
from torch_initpolicy.trace.operators import OpRole, argument
from torch_initpolicy.trace.walks import CARRIERS

Units = int
"""Some of the units of a weight, as bits."""

Origin = Mapping[int, Units]
"""Units that a value depends on, by weight; left out where it depends on all or none."""


@dataclass(frozen=True, slots=True)
class Pack:
    """How matrices are packed into one weight.

    Attributes:
        blocks: Their sizes along the output axis.
        repeats: How often the pattern recurs.
        layouts: Where the units lie in the values that show some of them, by value.
    """

    blocks: tuple[int, ...]
    repeats: int
    layouts: Mapping[int, Layout]

    def units(self) -> Iterator[Units]:
        """Yield the units of each matrix."""
        period = sum(self.blocks)
        starts = itertools.accumulate(self.blocks, initial=0)
        for start, size in zip(starts, self.blocks, strict=False):
            yield bits(start, [Run(self.repeats, period), Run(size, 1)])


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
_KEEPS_UNITS = CARRIERS | {OpRole.ACTIVATES, OpRole.COMPUTES}
_RESHAPES = frozenset(
    {"reshape", "view", "flatten", "unflatten", "ravel", "contiguous", "reshape_as", "view_as"}
)

_MOST_SUMMANDS = 3
"""Weights whose outputs are followed through one sum: an input's, a state's and one more. The sums
of residual streams are longer."""


def packs(follower: "Follower") -> Mapping[int, Pack]:
    """Find the weights that are several matrices packed into one, by their node."""
    found = {
        node: _pattern(tuple(_divided(whole, follower.pieces[node], meetings)))
        for node, meetings in follower.met.items()
        if (whole := (1 << follower.sizes[node]) - 1)
    }
    shown = follower.by_weight()
    return {
        node: Pack(*pattern, shown[node]) for node, pattern in found.items() if pattern is not None
    }


class Follower:
    """Follows the outputs of weights, to the pieces they are cut into and to where these meet."""

    def __init__(self, uses: Uses) -> None:
        self.uses = uses
        self.sizes: dict[int, int] = {}  # by weight: number of its units
        self.layouts: dict[int, tuple[Layout, ...]] = {}  # by value: the outputs that it shows
        self.origins: dict[int, Origin] = {}  # by value
        self.scales: dict[int, Origin] = {}  # by value: what has scaled a signal on the way to it
        self.pieces: dict[int, set[Units]] = {}  # by weight: what views of its output show
        self.met: dict[int, set[Meeting]] = {}  # by weight

    @classmethod
    def through(cls, uses: Uses) -> "Follower":
        """Follow all weights of a graph."""
        follower = cls(uses)
        for node in uses.graph.nodes:
            follower.enter(node)
        return follower

    def enter(self, node: Node) -> None:
        """Follow one node."""
        weighs = node.index in self.uses.weighers
        role = self.uses.role(node)
        operands = tuple(dict.fromkeys(self.uses.carried(node)))
        if weighs or role in _PRODUCTS:
            self._multiply(operands)
        if role is OpRole.GATES:
            self._gate(node, operands)
        scales = {} if weighs else self._scaled(role, operands)
        shown = () if weighs else self._shown(role, operands)
        for output in node.outputs:
            self._follow(node, output, shown)
            self._derive(output, operands)
            if scales:
                self.scales[output] = scales
        if weighs:
            self._start(node)

    def by_weight(self) -> dict[int, dict[int, Layout]]:
        """Return for each weight where its units lie in the values that show some of them."""
        found: dict[int, dict[int, Layout]] = {}
        for value, layouts in self.layouts.items():
            for layout in layouts:
                found.setdefault(layout.node, {})[value] = layout
        return found

    def _start(self, node: Node) -> None:
        value = self.uses.graph.values[node.outputs[0]]
        axis = _unit_axis(node, len(value.shape))
        layout = of_axis(node.index, value, axis) if axis is not None and value.stride else None
        if layout is not None:
            self.layouts[value.index] = (layout,)
            self.sizes[node.index] = layout.size

    def _shown(self, role: OpRole, operands: Sequence[int]) -> tuple[int, ...]:
        """Return the operands whose units lie in the output as they lay before."""
        showing = tuple(value for value in operands if value in self.layouts)
        mixes = role not in _KEEPS_UNITS or (role is OpRole.MULTIPLIES and len(showing) > 1)
        return () if mixes else showing

    def _follow(self, node: Node, output: int, shown: Sequence[int]) -> None:
        """Follow the outputs of weights into what an operator makes of them."""
        values = self.uses.graph.values
        reshaped = node.op in _RESHAPES
        found = {
            layout.after(values[value], values[output], reshaped=reshaped): None
            for value in shown
            for layout in self.layouts[value]
        }
        layouts = [layout for layout in found if layout is not None]
        # Where pieces of one weight are added up, it is none of them that lies there.
        weights = [layout.node for layout in layouts]
        kept = tuple(layout for layout in layouts if weights.count(layout.node) == 1)
        if kept:
            self.layouts[output] = kept if len(kept) <= _MOST_SUMMANDS else kept[:1]

    def _derive(self, output: int, operands: Sequence[int]) -> None:
        """Say what a value depends on: the pieces that it shows, and all that went into it."""
        pieces = self._pieces(output)
        for node, units in pieces.items():
            self.pieces.setdefault(node, set()).add(units)
        joined = _joined([pieces, *(self._besides(value, pieces) for value in operands)])
        self.origins[output] = {
            node: units for node, units in joined.items() if units.bit_count() < self.sizes[node]
        }

    def _pieces(self, value: int) -> Origin:
        seen = self.uses.graph.values[value]
        shown = {layout.node: layout.units(seen) for layout in self.layouts.get(value, ())}
        return {node: units for node, units in shown.items() if units is not None}

    def _besides(self, value: int, pieces: Origin) -> Origin:
        """Return what an operand brings in, but for the outputs of which it is cut to a piece."""
        cut = {layout.node for layout in self.layouts.get(value, ())} & pieces.keys()
        origin = self.origins.get(value, {})
        return {node: units for node, units in origin.items() if node not in cut}

    def _multiply(self, operands: Sequence[int]) -> None:
        """Let the operands of a product meet, two by two."""
        for one, other in itertools.combinations(operands, 2):
            self._meet(self.origins.get(one, {}), self.origins.get(other, {}))

    def _meet(self, one: Origin, other: Origin) -> None:
        for node in one.keys() & other.keys():
            meeting = Meeting(one[node] & ~other[node], other[node] & ~one[node])
            if meeting.one and meeting.other:
                self.met.setdefault(node, set()).add(meeting)

    def _scaled(self, role: OpRole, operands: Sequence[int]) -> Origin:
        """Say what scales the signal, and let it meet what shifts the signal here."""
        if role is OpRole.ADDS:
            for value, shift in itertools.permutations(operands, 2):
                self._meet(self.scales.get(value, {}), self._pure(shift))
        before = [self.scales[value] for value in operands if value in self.scales]
        multiplies = role is OpRole.MULTIPLIES and len(operands) > 1
        here = [self._factor(value, operands) for value in operands if multiplies]
        return _joined((*before, *here)) if role in _KEEPS_UNITS else {}

    def _factor(self, value: int, operands: Sequence[int]) -> Origin:
        """Return the pieces that a factor shows, of weights that the other factors are free of."""
        others = [self.origins.get(other, {}) for other in operands if other != value]
        taken = set(itertools.chain(*others))
        return {node: units for node, units in self._pure(value).items() if node not in taken}

    def _pure(self, value: int) -> Origin:
        """Return the pieces that a value shows and that nothing else has been multiplied with."""
        shown = {layout.node for layout in self.layouts.get(value, ())}
        origin = self.origins.get(value, {})
        scaled = self.scales.get(value, {})
        return {n: units for n, units in origin.items() if n in shown and n not in scaled}

    def _gate(self, node: Node, operands: Sequence[int]) -> None:
        """Cut what a gated unit reads into the two halves that it takes apart."""
        for operand in operands:
            value = self.uses.graph.values[operand]
            axis = argument(node, 1, "dim", -1) % len(value.shape)
            for layout in self.layouts.get(operand, ()):
                one, other = layout.halves(value, axis)
                if one and other and one != other:
                    self.pieces.setdefault(layout.node, set()).update((one, other))
                    self.met.setdefault(layout.node, set()).add(Meeting(one, other))


def _unit_axis(node: Node, dims: int) -> int | None:
    """Return the axis of a weight's output along which its units lie."""
    if node.op.startswith("conv"):
        return dims - 1 - int(node.op[-2])
    return dims - 1 if node.op in _UNITS_LAST else None


_UNITS_LAST = frozenset({"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "grouped_mm"})


def _joined(origins: Iterable[Origin]) -> Origin:
    """Put together what several values depend on."""
    found: dict[int, Units] = {}
    for origin in origins:
        for node, units in origin.items():
            found[node] = found.get(node, 0) | units
    return found


def _divided(whole: Units, pieces: Iterable[Units], meetings: Iterable[Meeting]) -> Iterator[Units]:
    """Divide units into the pieces they are cut into, as far down as pieces meet."""
    parts = _parts(whole, pieces)
    if len(parts) > 1 and any(meeting.joins(parts) for meeting in meetings):
        for part in parts:
            yield from _divided(part, pieces, meetings)
    else:
        yield whole


def _parts(whole: Units, pieces: Iterable[Units]) -> tuple[Units, ...]:
    """Return the largest pieces within some units, or nothing where they do not tile them."""
    within = sorted((p for p in pieces if p & whole == p != whole), key=int.bit_count)
    parts: list[Units] = []
    for piece in reversed(within):
        if not any(part & piece == piece for part in parts):
            parts.append(piece)
    tiles = sum(map(int.bit_count, parts)) == whole.bit_count()
    return tuple(parts) if tiles and functools.reduce(int.__or__, parts, 0) == whole else ()


@functools.lru_cache(maxsize=256)
def _pattern(parts: tuple[Units, ...]) -> tuple[tuple[int, ...], int] | None:
    """Return the sizes of parts that tile an axis and how often they recur, or None."""
    if len(parts) < 2:
        return None
    runs = list(_runs(parts))
    period = len(parts)
    sizes = tuple(length for _, length in runs[:period])
    recurs = len(runs) % period == 0 and runs == runs[:period] * (len(runs) // period)
    return (sizes, len(runs) // period) if recurs else None


def _runs(parts: Sequence[Units]) -> Iterator[tuple[int, int]]:
    """Yield the runs of units that belong to one part, as `(part, length)`."""
    size = functools.reduce(int.__or__, parts).bit_length()
    owner = [next(i for i, part in enumerate(parts) if part >> unit & 1) for unit in range(size)]
    for part, run in itertools.groupby(owner):
        yield part, sum(1 for _ in run)
