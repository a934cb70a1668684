"""What the axes of a weight mean, and the fans that follow.

Knows shapes only: no tensor, no layer, no model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Fans(NamedTuple):
    """Connections into one output unit and out of one input unit.

    Whole numbers, except where a transposed convolution's stride does not divide its kernel: there
    the number of taps differs between output positions and the fan is their mean.
    """

    fan_in: float
    fan_out: float


@dataclass(frozen=True, slots=True)
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
        stride: Product of the strides of a transposed convolution: one output meets only one in
            `stride` taps of the kernel. 1 everywhere else.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    copies: tuple[int, ...] = ()
    groups: int = 1
    blocks: tuple[int, ...] = ()
    repeats: int = 1
    stride: int = 1


def fans(shape: Sequence[int], axes: Axes, block: int | None = None) -> Fans:
    """Count a weight's connections from its shape alone."""
    raise NotImplementedError


def conventional(shape: Sequence[int]) -> Axes:
    """Return torch's own layout `(out, in, *kernel)`."""
    raise NotImplementedError


def block_index(shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
    """Say for each position of the packed axis which block it belongs to."""
    raise NotImplementedError
