"""Along which dimensions of a signal the units of its last weight lie, and copies of that weight.

What varies along these alone adds a number to each unit: a bias. What varies along others has to do
with the places of the signal: a position.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.expressions import moved
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OPS, UNKNOWN, OpRole, argument

Dims = frozenset[int]
"""Dimensions, counted from the last one: -1, -2, ..."""

_NONE: Dims = frozenset()

_FARTHEST = 32
"""Operators behind a weight up to which its units are followed."""

_REDUCES = frozenset({"sum", "mean", "nansum", "nanmean", "amax", "amin", "max", "min"})


@dataclass(frozen=True, slots=True)
class Units:
    """Follows units from a value back to the weight that makes them.

    Attributes:
        uses: The data flow.
        known: What has been found, by value.
    """

    uses: Uses
    known: dict[int, Dims] = field(default_factory=dict)

    def of(self, value: int, within: int = _FARTHEST) -> Dims:
        """Return the dimensions along which the units lie; none where nobody knows."""
        if value not in self.known:
            producer = self.uses.graph.values[value].producer
            node = None if producer is None else self.uses.graph.nodes[producer]
            self.known[value] = _NONE if node is None else self._made(node, value, within)
        return self.known[value]

    def _made(self, node: Node, value: int, within: int) -> Dims:
        if node.index in self.uses.weighers:
            return frozenset(self._of_weight(node, len(self.uses.graph.values[value].shape)))
        if not within:
            return _NONE
        if self.uses.role(node) is OpRole.CONTRACTS:
            return self._of_product(node, within)
        found = (self._through(node, read, value, within) for read in self.uses.carried(node))
        return _NONE.union(*found)

    def _of_weight(self, node: Node, ndim: int) -> Iterator[int]:
        """Yield the dimensions of a weight's output that are not the signal's own."""
        if node.op.startswith("conv"):
            yield -1 - int(node.op[-2])
            return
        yield -1
        stacks = [
            len(self.uses.graph.values[value].shape) - 2
            for slot, value in self.uses.slots(node)
            if slot in ("left", "right") and value in self.uses.sources
        ]
        yield from (-3 - dim for dim in range(min(max(stacks, default=0), ndim - 2)))

    def _of_product(self, node: Node, within: int) -> Dims:
        """An aggregation `a @ h` keeps the columns of `h`, and the rows of `a`."""
        sides = {slot: self.of(v, within - 1) for slot, v in self.uses.slots(node)}
        left, right = sides.get("left", _NONE), sides.get("right", _NONE)
        return (left - {-1}) | (right - {-2})

    def _through(self, node: Node, read: int, value: int, within: int) -> Dims:
        before, after = (self.uses.graph.values[index] for index in (read, value))
        units = self.of(read, within - 1)
        ndim = len(before.shape)
        if node.op in _REDUCES and len(after.shape) < ndim:
            summed = argument(node, 1, "dim", None)
            dims = summed if isinstance(summed, (tuple, list)) else (summed,)
            gone = {dim % ndim - ndim for dim in dims if isinstance(dim, int)}
            return frozenset(dim + sum(dim < out for out in gone) for dim in units - gone)
        if len(after.shape) == ndim and OPS.get(node.op, UNKNOWN).role is not OpRole.MOVES:
            return units
        marks = tuple((1,) if dim - ndim in units else () for dim in range(ndim))
        there = moved(marks, OPS.get(node.op, UNKNOWN), before, after)
        return frozenset(dim - len(there) for dim, mark in enumerate(there) if mark)


def varying(shape: tuple[int, ...]) -> Dims:
    """Return the dimensions of more than one element.

    Examples:
        >>> sorted(varying((3, 1, 4)))
        [-3, -1]
    """
    return frozenset(dim - len(shape) for dim, size in enumerate(shape) if size > 1)
