"""Where the units of a weight's output lie in the memory of the values that follow from it.

Knows shapes and strides; of operators only those that reshape.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch_initpolicy.trace.graph import Value


class Digit(NamedTuple):
    """One digit of the number of a unit: units `step` apart lie `pitch` elements apart."""

    pitch: int
    extent: int
    step: int

    def spans(self, stride: int) -> bool:
        """Say whether a step of `stride` elements moves this digit, and none below it."""
        return self.pitch <= stride < self.pitch * self.extent


class Run(NamedTuple):
    """A dimension, or a factor of one: `extent` positions with units `step` apart; 0: the same."""

    extent: int
    step: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the units of a weight's output lie in memory.

    An element at address `a` belongs to the unit `first`, plus `step` times
    `(a - offset) // pitch % extent` for each digit.

    Attributes:
        node: The weight.
        size: Number of its units.
        offset: Address of the unit `first`.
        digits: The digits of a unit's number, in the order of their pitches.
        first: The unit with which the memory begins.
    """

    node: int
    size: int
    offset: int
    digits: tuple[Digit, ...]
    first: int = 0

    def units(self, value: Value) -> int | None:
        """Return the units that a value in this memory shows, as bits; None if unclear."""
        if value.offset < self.offset:  # this is the layout of a part, where something was written
            return None
        first = _first(self, value.offset)
        return _units(self.size, self.digits, first, value.shape, value.stride)

    def along(self, value: Value) -> tuple[bool, ...]:
        """Say which dimensions of a value in this memory run from unit to unit."""
        runs = _dimensions(self.digits, value.shape, value.stride)
        return tuple(any(run.step for run in dim) for dim in runs or ((),) * len(value.shape))

    def halves(self, value: Value, axis: int) -> tuple[int | None, int | None]:
        """Return the units of the two halves of a value along an axis, as bits."""
        half = value.shape[axis] // 2
        shape = (*value.shape[:axis], half, *value.shape[axis + 1 :])
        lower = replace(value, shape=shape)
        upper = replace(lower, offset=value.offset + half * value.stride[axis])
        return self.units(lower), self.units(upper)

    def after(self, before: Value, value: Value, *, reshaped: bool) -> "Layout | None":
        """Return the layout of what an operator makes of a value in this memory.

        Args:
            before: The value.
            value: What is made of it: a view, or new memory.
            reshaped: Whether the operator keeps the order of elements but not the shape.

        Returns:
            The new layout, or None where the units cannot be followed.
        """
        if before.storage == value.storage:
            return self
        runs = _dimensions(self.digits, before.shape, before.stride)
        if runs is None or self.units(before) is None:
            return None
        if reshaped and math.prod(before.shape) == math.prod(value.shape):
            digits = _digits(tuple(itertools.chain(*runs)), 1)
        elif _keeps_units(runs, before, value):
            pairs = zip(runs, value.stride, strict=True)
            digits = itertools.chain(*(_digits(dim, pitch) for dim, pitch in pairs))
        else:
            return None
        first = _first(self, before.offset)
        return Layout(self.node, self.size, value.offset, tuple(sorted(digits)), first)


def of_axis(node: int, value: Value, axis: int) -> Layout | None:
    """Return the layout of a weight's output, its units along one axis, or None without units."""
    stride, size = value.stride[axis], value.shape[axis]
    if not stride or size < 2:
        return None
    return Layout(node, size, value.offset, (Digit(stride, size, 1),))


def bits(first: int, runs: Sequence[Run]) -> int:
    """Return the units `first + sum(i * step)`, as bits.

    Examples:
        >>> f"{bits(1, [Run(2, 4), Run(2, 1)]):b}"
        '1100110'
    """
    found = 1
    for extent, step in runs:
        done = 1
        while done < extent:
            more = min(done, extent - done)
            found |= found << step * more
            done += more
    return found << first


@functools.lru_cache(maxsize=4096)
def _units(
    size: int,
    digits: tuple[Digit, ...],
    first: int,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
) -> int | None:
    runs = _dimensions(digits, shape, stride)
    if runs is None:
        return None
    steps = sorted((run for dim in runs for run in dim if run.step), key=lambda run: run.step)
    found = bits(first, steps)
    # A slice that begins amid a lower digit carries into a higher one, which no run can say.
    exact = found.bit_count() == math.prod(run.extent for run in steps)
    return found if exact and found.bit_length() <= size else None


def _first(layout: Layout, offset: int) -> int:
    distance = offset - layout.offset
    return layout.first + sum(d.step * (distance // d.pitch % d.extent) for d in layout.digits)


@functools.lru_cache(maxsize=4096)
def _dimensions(
    digits: tuple[Digit, ...], shape: tuple[int, ...], stride: tuple[int, ...]
) -> tuple[tuple[Run, ...], ...] | None:
    """Return the factors of each dimension, outermost first, or None where one has no factors."""
    if 0 in shape:
        return None
    dims = tuple(_factors(digits, *dim) for dim in zip(stride, shape, strict=True))
    return None if None in dims else tuple(dim for dim in dims if dim is not None)


def _factors(digits: tuple[Digit, ...], stride: int, size: int) -> tuple[Run, ...] | None:
    if not stride or size == 1:
        return (Run(size, 0),)
    reach = stride * size
    within = {b for d in digits for b in (d.pitch, d.pitch * d.extent) if stride < b < reach}
    edges = sorted((stride, reach, *within))
    pairs = list(itertools.pairwise(edges))
    if any(high % low for low, high in pairs) or not _is_whole(digits, edges[:-1]):
        return None
    return tuple(Run(high // low, _step(digits, low)) for low, high in reversed(pairs))


def _is_whole(digits: tuple[Digit, ...], strides: Sequence[int]) -> bool:
    """Say whether distances in memory are whole steps from unit to unit."""
    return all(s % d.pitch == 0 for s in strides for d in digits if d.spans(s))


def _step(digits: tuple[Digit, ...], stride: int) -> int:
    """Return how many units apart elements `stride` apart are."""
    return sum(stride // d.pitch * d.step for d in digits if d.spans(stride))


def _keeps_units(runs: Sequence[Sequence[Run]], before: Value, value: Value) -> bool:
    """Say whether dimensions correspond one to one and those with units are as long as before."""
    if len(before.shape) != len(value.shape):
        return False
    return all(
        (size == there and stride) or not any(run.step for run in dim)
        for dim, size, there, stride in zip(
            runs, before.shape, value.shape, value.stride, strict=True
        )
    )


def _digits(runs: Sequence[Run], pitch: int) -> Iterator[Digit]:
    """Yield the digits of adjacent factors, the positions of the innermost `pitch` apart."""
    for extent, step in reversed(runs):
        if step:
            yield Digit(pitch, extent, step)
        pitch *= extent
