"""What the axes of a weight mean, and the fans that follow."""

import functools
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple


class Fans(NamedTuple):
    """Connections into one output unit and out of one input unit.

    Whole numbers, except where a convolution's stride does not divide its kernel: there the number
    of taps differs between positions and the fan is their mean.
    """

    fan_in: float
    fan_out: float


@dataclass(frozen=True, slots=True, repr=False)
class Axes:
    """Which axes of a weight face its inputs and which face its outputs.

    Axes named nowhere are the kernel's extent (the receptive field).

    Attributes:
        inputs: Axes that are summed over, e.g. `(1,)` for a Linear's `(out, in)`.
        outputs: Axes along which the output units lie, e.g. `(0,)`.
        copies: Axes that index independent copies: experts, ensemble members, the rows of a
            lookup table.
        groups: Groups of a convolution; axis 0 spans all of them.
        blocks: Sizes of matrices packed along the first output axis (q, k and v; the gates of an
            LSTM). Empty when nothing is packed. They sum to the axis' size over `repeats`.
        repeats: How often the pattern of `blocks` recurs along the axis: 1 for `[q | k | v]`, the
            number of heads for `[q1 k1 v1 | q2 k2 v2 | ...]`.
        stride: Product of the strides of a convolution. An input of a strided convolution meets
            one in `stride` taps of the kernel, as does an output of a transposed one.
        transposed: Whether it is the outputs that meet one in `stride` taps.
        view: Shape as which the parameter is read, where one of its own axes holds more than one
            thing (experts side by side in one matrix, a flat vector); axes are counted in it. Empty
            where it is read as it is.
        counted: Fans as a trace has counted them, where they do not follow from the shape: the
            parameter is summed, joined with others, used more than once, or masked.

    Raises:
        ValueError: If an axis is negative or named twice, a count is less than one, or blocks are
            named without an output axis to lie along.

    Examples:
        The packed `(3 * dim, dim)` projection of q, k and v:

        >>> Axes(inputs=(1,), outputs=(0,), blocks=(64, 64, 64)).packed
        0
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    copies: tuple[int, ...] = ()
    groups: int = 1
    blocks: tuple[int, ...] = ()
    repeats: int = 1
    stride: int = 1
    transposed: bool = False
    view: tuple[int, ...] = ()
    counted: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        named = Counter((*self.inputs, *self.outputs, *self.copies))
        if any(axis < 0 or times > 1 for axis, times in named.items()):
            raise ValueError(f"{self}: name each axis once, counted from 0")
        if min(self.groups, self.repeats, self.stride) < 1:
            raise ValueError(f"{self}: groups, repeats and stride are whole numbers from 1")
        if self.blocks and (not self.outputs or min(self.blocks) < 0):
            raise ValueError(
                f"{self}: blocks are sizes along the first output axis, which must be named"
            )

    def __repr__(self) -> str:
        """Write the call that makes it, without what is left at its default."""
        stated = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return f"Axes({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in stated)})"

    @property
    def packed(self) -> int | None:
        """The axis along which the blocks lie, or None where nothing is packed."""
        return self.outputs[0] if self.blocks else None


def conventional(shape: Sequence[int]) -> Axes:
    """Return torch's own layout of a weight of two or more dimensions, `(out, in, *kernel)`."""
    if len(shape) < 2:
        raise ValueError(
            f"a tensor of shape {tuple(shape)} has no inputs and outputs by convention; "
            "pass its Axes, or use an initializer that needs no fans, e.g. Zeros() or Normal(0.02)"
        )
    return Axes(inputs=(1,), outputs=(0,))


def check_axes(shape: Sequence[int], axes: Axes) -> None:
    """Raise a ValueError where `axes` cannot belong to a weight of `shape`."""
    if axes.view and math.prod(axes.view) != math.prod(shape):
        raise ValueError(f"a tensor of shape {tuple(shape)} cannot be read as {axes.view}")
    shape = axes.view or shape
    if max((*axes.inputs, *axes.outputs, *axes.copies), default=-1) >= len(shape):
        raise ValueError(f"{axes} names an axis that shape {tuple(shape)} does not have")
    if axes.groups > 1 and (not shape or shape[0] % axes.groups):
        raise ValueError(f"{axes.groups} groups do not divide axis 0 of shape {tuple(shape)}")
    if axes.packed is not None and sum(axes.blocks) * axes.repeats != shape[axes.packed]:
        raise ValueError(
            f"blocks {axes.blocks}, repeated {axes.repeats} times, do not fill axis {axes.packed} "
            f"of shape {tuple(shape)}"
        )


def part(shape: Sequence[int], axes: Axes, block: int) -> tuple[tuple[int, ...], Axes]:
    """Return one packed block as a weight of its own: its shape and its axes.

    Examples:
        >>> shape, axes = part((96, 32), Axes((1,), (0,), blocks=(16, 16, 16), repeats=2), block=1)
        >>> shape, axes.blocks
        ((32, 32), ())
    """
    check_axes(shape, axes)
    if axes.packed is None:
        raise ValueError(f"{axes} has no blocks")
    shape = axes.view or shape
    size = axes.blocks[block] * axes.repeats
    sizes = (*shape[: axes.packed], size, *shape[axes.packed + 1 :])
    groups = axes.groups
    # Either each group holds whole patterns `[q k v]`, or each block holds whole groups.
    if axes.packed == 0 and axes.repeats % groups:
        per_group = shape[0] // groups
        if any(units % per_group for units in axes.blocks):
            raise ValueError(f"{groups} groups and blocks {axes.blocks} cut one another")
        groups = max(size // per_group, 1)
    view = sizes if axes.view else ()
    counted = None
    if axes.counted is not None:
        fan_in, fan_out = axes.counted
        counted = (fan_in, fan_out * size / shape[axes.packed])
    return sizes, replace(axes, blocks=(), repeats=1, groups=groups, view=view, counted=counted)


def fans(shape: Sequence[int], axes: Axes, block: int | None = None) -> Fans:
    """Count the connections of a weight, or of one of its packed blocks, from the shape alone.

    An interior unit is counted: padding is not (a 3x3 kernel sees fewer inputs at the rim). The
    stride of a convolution divides `fan_out`, because an input meets one in `stride` taps; that of
    a transposed convolution divides `fan_in`. torch keeps the whole kernel in both, and so gives a
    ViT's patches of 16x16 pixels a `fan_out` 256 times too large.

    Raises:
        ValueError: If the axes do not fit the shape, or blocks differ and none was named.

    Reference:
        He et al., *Delving Deep into Rectifiers*, 2015, arXiv:1502.01852, sections 2.2 and 2.3
        (`n_l` and `n_l hat`).

    Examples:
        >>> fans((32, 1, 3, 3), Axes(inputs=(1,), outputs=(0,), groups=32))
        Fans(fan_in=9, fan_out=9)
        >>> fans((64, 32, 4, 4), Axes(inputs=(0,), outputs=(1,), stride=4, transposed=True))
        Fans(fan_in=256, fan_out=512)
        >>> fans((384, 256), Axes(inputs=(1,), outputs=(0,), blocks=(256, 64, 64)), block=1)
        Fans(fan_in=256, fan_out=64)
    """
    return _counted_fans(tuple(shape), axes, block)


@functools.lru_cache(maxsize=1024)  # a plan asks several times about each of many equal layers
def _counted_fans(shape: tuple[int, ...], axes: Axes, block: int | None) -> Fans:
    if axes.packed is not None:
        if block is None and len(set(axes.blocks)) > 1:
            raise ValueError(f"blocks {axes.blocks} have fans of their own; name one: block=0")
        return _counted_fans(*part(shape, axes, block or 0), None)
    check_axes(shape, axes)
    if axes.counted is not None:
        return Fans(*(int(fan) if fan == int(fan) else fan for fan in axes.counted))
    shape = axes.view or shape
    sizes = (shape[0] // axes.groups, *shape[1:]) if shape else ()
    named = {*axes.inputs, *axes.outputs, *axes.copies}
    extent = math.prod(size for axis, size in enumerate(sizes) if axis not in named)
    taps = math.prod(sizes[axis] for axis in axes.inputs) * extent
    reach = math.prod(sizes[axis] for axis in axes.outputs) * extent
    if axes.transposed:
        return Fans(_per_tap(taps, axes.stride), reach)
    return Fans(taps, _per_tap(reach, axes.stride))


def block_fans(shape: Sequence[int], axes: Axes | None) -> tuple[Fans, ...]:
    """Count the fans of each packed block; nothing where the axes are unknown or connect nothing.

    Examples:
        >>> block_fans((384, 256), Axes(inputs=(1,), outputs=(0,), blocks=(256, 128)))
        (Fans(fan_in=256, fan_out=256), Fans(fan_in=256, fan_out=128))
    """
    if axes is None or not (axes.inputs or axes.copies or axes.counted):
        return ()
    blocks = range(len(axes.blocks)) if axes.blocks else (None,)
    return tuple(fans(shape, axes, block) for block in blocks)


def _per_tap(taps: int, stride: int) -> float:
    return taps / stride if taps % stride else taps // stride


def block_ranges(shape: Sequence[int], axes: Axes) -> tuple[tuple[range, ...], ...]:
    """List the positions along the packed axis that each block takes, `repeats` ranges for each.

    Examples:
        >>> heads = Axes(inputs=(1,), outputs=(0,), blocks=(3, 3, 3), repeats=2)
        >>> block_ranges((18, 8), heads)[0]
        (range(0, 3), range(9, 12))
    """
    check_axes(shape, axes)
    turns = range(0, sum(axes.blocks) * axes.repeats, sum(axes.blocks) or 1)
    starts = itertools.accumulate(axes.blocks, initial=0)
    return tuple(
        tuple(range(turn + start, turn + start + size) for turn in turns)
        for start, size in zip(starts, axes.blocks, strict=False)
    )
