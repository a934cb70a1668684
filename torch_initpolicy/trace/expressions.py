"""Parameters on their way to the operator that consumes them.

A weight may be transposed, standardised, scaled, sliced or multiplied by another before it meets
the signal. What has happened to it there says what it is; where its elements have gone is for
`coordinates` to count.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch_initpolicy.trace.graph import Node, Value
from torch_initpolicy.trace.operators import Op, OpRole

Dims = tuple[tuple[int, ...], ...]
"""For each dimension of a value, marks of what runs along it."""


@dataclass(frozen=True, slots=True)
class Source:
    """A parameter inside an expression of parameters.

    Attributes:
        site: Canonical name of the parameter.
        size: Its number of elements.
        at: The value that is the parameter itself.
        contracted: Whether it has been multiplied with another parameter and summed.
        shift: What has been added to it: 1.0 for `1 + weight`.
        gated: Whether an activation has been applied to it.
        bent: Whether any function of one number has: an activation, an exponential, a root.
        indexed: Whether rows have been picked out of it by a table of indices.
        routed: Whether whole matrices have been picked out of it by the signal.
        scales: Whether it has been multiplied with a larger parameter, element by element.
        noisy: Whether it has been multiplied by noise.
    """

    site: str
    size: int
    at: int
    contracted: bool = False
    shift: float = 0.0
    gated: bool = False
    bent: bool = False
    indexed: bool = False
    routed: bool = False
    scales: bool = False
    noisy: bool = False

    def marked(self, **marks: bool) -> "Source":
        """Return the source with more that has happened to it."""
        new: dict[str, Any] = {mark: True for mark, holds in marks.items() if holds}
        return replace(self, **new) if new else self


def whole(value: Value) -> Source:
    """Return the expression that is the parameter itself."""
    return Source(value.parameter or "", math.prod(value.shape), value.index)


def through(source: Source, node: Node, op: Op) -> Source:
    """Follow a parameter through an operator that reads parameters and constants only."""
    if op.role is OpRole.ADDS:
        return replace(source, shift=source.shift + _added_number(node))
    gates, bends = op.role is OpRole.ACTIVATES, op.role in (OpRole.ACTIVATES, OpRole.COMPUTES)
    return replace(source, gated=source.gated or gates, bent=source.bent or bends)


def _added_number(node: Node) -> float:
    numbers = [arg for arg in node.args if isinstance(arg, (int, float))]
    return float(numbers[0]) if len(numbers) == 1 else 0.0


def moved(dims: Dims, op: Op, before: Value, after: Value) -> Dims:
    """Say where the axes are after an operator that makes `after` of `before`."""
    if len(dims) != len(before.shape):
        return ()  # lost on the way
    if before.shape == after.shape and op.role is not OpRole.MOVES:
        return dims
    if before.storage == after.storage:
        return _overlaps(dims, _extents(before), _extents(after))
    if op.role is OpRole.MOVES and math.prod(before.shape) == math.prod(after.shape):
        return _overlaps(dims, _dense_extents(before.shape), _dense_extents(after.shape))
    missing = len(after.shape) - len(dims)
    return ((),) * missing + dims if missing >= 0 else ()


Extent = tuple[int, int]
"""The half-open interval of distances, in elements, that a dimension spans: `(stride, reach)`."""


def _extents(value: Value) -> tuple[Extent, ...]:
    return tuple((s, s * n) for s, n in zip(value.stride, value.shape, strict=True))


def _dense_extents(shape: Sequence[int]) -> tuple[Extent, ...]:
    reaches = list(itertools.accumulate(reversed(shape), lambda a, b: a * b, initial=1))[::-1]
    return tuple((inner, outer) for outer, inner in itertools.pairwise(reaches))


def _overlaps(dims: Dims, before: Sequence[Extent], after: Sequence[Extent]) -> Dims:
    """Two views of the same memory run along the same axis where their extents intersect."""
    return tuple(
        tuple(
            axis
            for axes, (low, high) in zip(dims, before, strict=True)
            if max(low, stride) < min(high, reach)
            for axis in axes
        )
        for stride, reach in after
    )
