"""Packed weights: one matrix whose output is cut into q, k and v, or into value and gate.

The output of a weight is followed through views, and through sums with that of others; where two
of its parts meet in a product, the weight is as many matrices packed into one.
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch_initpolicy.trace.graph import Node, Value
from torch_initpolicy.trace.ops import OpRole, argument
from torch_initpolicy.trace.uses import Uses
from torch_initpolicy.trace.walks import CARRIERS


class Pack(NamedTuple):
    """Sizes of the matrices along the output axis, and how often the pattern recurs."""

    blocks: tuple[int, ...]
    repeats: int = 1


@dataclass(frozen=True, slots=True)
class _Part:
    """Some of the channels of a weight's output, as bits."""

    node: int
    channels: int


@dataclass(frozen=True, slots=True)
class _View:
    """Where the channels of a weight's output lie in memory.

    Attributes:
        node: The weight.
        size: Number of its channels.
        stride: Distance between two channels, in elements.
        offset: Where the output begins.
    """

    node: int
    size: int
    stride: int
    offset: int

    def part(self, value: Value) -> _Part:
        """Return the channels that a view of the output shows."""
        first = (value.offset - self.offset) // self.stride % self.size
        runs = sorted(
            (stride // self.stride, size)
            for stride, size in zip(value.stride, value.shape, strict=True)
            if self.stride <= stride < self.stride * self.size and size > 1
        )
        return _Part(self.node, _bits(first, tuple(runs)) & ((1 << self.size) - 1))

    def after(self, before: Value, value: Value) -> "_View | None":
        """Return the view that an operator which reads `before` makes of it, or None."""
        if before.storage == value.storage:
            return self
        axis = self.axis(before)
        if axis is None or before.shape != value.shape or not value.stride[axis]:
            return None
        return _View(self.node, self.size, value.stride[axis], value.offset)

    def axis(self, value: Value) -> int | None:
        """Return the dimension along which a value has all channels, or None."""
        return next(
            (
                axis
                for axis, (stride, size) in enumerate(zip(value.stride, value.shape, strict=True))
                if (stride, size) == (self.stride, self.size)
            ),
            None,
        )


@functools.lru_cache(maxsize=4096)
def _bits(first: int, runs: tuple[tuple[int, int], ...]) -> int:
    """Return the channels `first + sum(i * stride)`, as bits."""
    bits = 1
    for stride, size in runs:
        bits = sum(bits << (stride * i) for i in range(size)) if stride > 1 else _ones(bits, size)
    return bits << first


def _ones(bits: int, size: int) -> int:
    return (1 << size) - 1 if bits == 1 else sum(bits << i for i in range(size))


_PRODUCTS = frozenset({OpRole.CONTRACTS, OpRole.MULTIPLIES, OpRole.ATTENDS})
_KEEPS_CHANNELS = CARRIERS | {OpRole.ACTIVATES, OpRole.COMPUTES}
_MOST_PARTS = 12

_MOST_SUMMANDS = 3
"""Weights whose outputs are followed through one sum: an input's, a state's and one more. The sums
of residual streams are longer."""


def packs(uses: Uses) -> Mapping[int, Pack]:
    """Find the weights that are several matrices packed into one, by their node."""
    follower = _Follower(uses)
    for node in uses.graph.nodes:
        follower.enter(node)
    sizes = {view.node: view.size for views in follower.views.values() for view in views}
    found = {
        node: _pattern(tuple(sorted(_largest(parts))), sizes[node])
        for node, parts in follower.met.items()
    }
    return {node: pack for node, pack in found.items() if pack is not None}


class _Follower:
    """Follows the outputs of weights through views and carriers."""

    def __init__(self, uses: Uses) -> None:
        self.uses = uses
        self.views: dict[int, tuple[_View, ...]] = {}  # by value: the outputs it is a view of
        self.parts: dict[int, frozenset[_Part]] = {}  # by value: what it is made of
        self.met: dict[int, set[int]] = {}  # by weight: channels that meet in a product

    def enter(self, node: Node) -> None:
        """Follow one node."""
        if node.index in self.uses.weighers:
            self._start(node)
            return
        role = self.uses.role(node)
        operands = [parts for parts in self._operands(node) if parts]
        several = role in _PRODUCTS and len(operands) > 1
        if role is OpRole.GATES:
            self._meet(self._halves(node))
        if several or role is OpRole.CONTRACTS:
            self._meet(part for parts in operands for part in _united(parts))
        if not several and (role in _KEEPS_CHANNELS or role in _PRODUCTS):
            for output in node.outputs:
                self._follow(node, output, frozenset().union(*operands))

    def _start(self, node: Node) -> None:
        value = self.uses.graph.values[node.outputs[0]]
        axis = _channel_axis(node, value)
        if axis is not None and value.stride:
            stride, size = value.stride[axis], value.shape[axis]
            if stride and size > 1:
                self.views[value.index] = (_View(node.index, size, stride, value.offset),)

    def _operands(self, node: Node) -> Iterator[frozenset[_Part]]:
        """Yield what each signal that a node reads is made of."""
        for value in dict.fromkeys(self.uses.carried(node)):
            seen = self.uses.graph.values[value]
            views = self.views.get(value, ()) if 0 not in seen.shape else ()
            yield self.parts.get(value, frozenset()) | {view.part(seen) for view in views}

    def _follow(self, node: Node, output: int, parts: frozenset[_Part]) -> None:
        values = self.uses.graph.values
        views = tuple(
            seen
            for value in dict.fromkeys(self.uses.carried(node))
            for view in self.views.get(value, ())
            if (seen := view.after(values[value], values[output])) is not None
        )
        if views:
            self.views[output] = views if len(views) <= _MOST_SUMMANDS else views[:1]
        elif 0 < len(parts) <= _MOST_PARTS:
            self.parts[output] = parts

    def _halves(self, node: Node) -> Iterator[_Part]:
        """Yield the two halves of each weight's output that a gated unit takes apart."""
        values = self.uses.graph.values
        for value in self.uses.carried(node):
            axis = argument(node, 1, "dim", -1) % len(values[value].shape)
            for view in self.views.get(value, ()):
                if view.axis(values[value]) == axis:
                    yield _Part(view.node, _ones(1, view.size // 2))
                    yield _Part(view.node, _ones(1, view.size // 2) << view.size // 2)

    def _meet(self, parts: Iterable[_Part]) -> None:
        for part in parts:
            self.met.setdefault(part.node, set()).add(part.channels)


def _channel_axis(node: Node, value: Value) -> int | None:
    """Return the axis of a weight's output along which its units lie."""
    if node.op.startswith("conv"):
        return 1 if len(value.shape) > 2 else 0
    return len(value.shape) - 1 if node.op in _UNITS_LAST else None


_UNITS_LAST = frozenset({"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "grouped_mm"})


def _united(parts: Iterable[_Part]) -> Iterator[_Part]:
    """Put together what one operand is made of: a rotary embedding takes its halves apart."""
    channels: dict[int, int] = {}
    for part in parts:
        channels[part.node] = channels.get(part.node, 0) | part.channels
    yield from (_Part(*item) for item in channels.items())


def _largest(parts: set[int]) -> list[int]:
    """Leave out what is contained in another part."""
    return [p for p in parts if not any(p != other and p & other == p for other in parts)]


@functools.lru_cache(maxsize=256)
def _pattern(parts: tuple[int, ...], size: int) -> Pack | None:
    """Return the pattern of parts along the axis, or None where they do not tile it."""
    disjoint = sum(part.bit_count() for part in parts) == size
    if len(parts) < 2 or not disjoint or functools.reduce(int.__or__, parts) != (1 << size) - 1:
        return None
    runs = list(_runs(parts, size))
    period = len(parts)
    sizes = tuple(length for _, length in runs[:period])
    recurs = len(runs) % period == 0 and runs == runs[:period] * (len(runs) // period)
    return Pack(sizes, len(runs) // period) if recurs else None


def _runs(parts: Sequence[int], size: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of channels that belong to one part, as `(part, length)`."""
    owner = [next(i for i, part in enumerate(parts) if part >> c & 1) for c in range(size)]
    for part, run in itertools.groupby(owner):
        yield part, sum(1 for _ in run)
