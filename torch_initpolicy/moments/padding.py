"""How many taps of a convolution's kernel meet the signal, and how many its zero padding.

Knows shapes and the arguments of convolutions, not graphs.
"""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import argument


class Taps(NamedTuple):
    """Fractions of a kernel that meet the input and not zero padding.

    Attributes:
        once: Mean over the positions of the output.
        twice: Mean over pairs of positions: taps that meet the input at both.
        beside: Mean over pairs of neighbours along a diagonal, likewise: as far apart as two
            positions under a small window are on average.
    """

    once: float = 1.0
    twice: float = 1.0
    beside: float = 1.0


def reached(node: Node, shape: Sequence[int], weight: Sequence[int]) -> Taps:
    """Say how much of an operator's fan meets its input.

    For a 3 x 3 kernel with padding 1 on an edge of `n`, `once` is `((3n - 2) / 3n) ** 2`.

    Args:
        node: The operator; all but convolutions reach everything.
        shape: Shape of its input.
        weight: Shape of its weight.
    """
    if not node.op.startswith("conv"):
        return Taps()
    kernel = weight[2:]
    extents = shape[len(shape) - len(kernel) :]
    transposed = node.op.startswith("conv_transpose")
    strides = _each(argument(node, 3, "stride", 1), len(kernel))
    dilations = _each(argument(node, 7 if transposed else 5, "dilation", 1), len(kernel))
    paddings = _paddings(argument(node, 4, "padding", 0), kernel, dilations)
    count = _transposed if transposed else _plain
    dims = [count(*dim) for dim in zip(extents, kernel, strides, dilations, paddings, strict=True)]
    return Taps(*(math.prod(along) for along in zip(*dims, strict=True)))


def _each(value: int | Sequence[int], count: int) -> Sequence[int]:
    if isinstance(value, int):
        return (value,) * count
    return tuple(value) if len(value) == count else tuple(value) * count


Padding = tuple[int, int]
"""Zeros before and behind."""


def _paddings(
    given: int | str | Sequence[int], kernel: Sequence[int], dilations: Sequence[int]
) -> Sequence[Padding]:
    if given == "valid":
        return ((0, 0),) * len(kernel)
    if given == "same":
        totals = [d * (k - 1) for k, d in zip(kernel, dilations, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(p, p) for p in _each(given, len(kernel))]  # type: ignore[arg-type]  # no word is left


def _plain(extent: int, kernel: int, stride: int, dilation: int, padding: Padding) -> Taps:
    """Count for each tap the outputs for which its input exists."""
    before, behind = padding
    outputs = (extent + before + behind - dilation * (kernel - 1) - 1) // stride + 1
    hits = [_within(outputs, stride, tap * dilation - before, extent) for tap in range(kernel)]
    return _fractions(hits, outputs)


def _transposed(extent: int, kernel: int, stride: int, dilation: int, padding: Padding) -> Taps:
    """Count for each tap the inputs for which its output exists; a `stride`-th is the whole fan."""
    before, behind = padding
    outputs = (extent - 1) * stride - before - behind + dilation * (kernel - 1) + 1
    hits = [_within(extent, stride, tap * dilation - before, outputs) for tap in range(kernel)]
    return _fractions(hits, outputs, phases=stride)


def _fractions(hits: Sequence[int], outputs: int, phases: int = 1) -> Taps:
    """Say what the taps' hits, each a run of neighbouring outputs, make of pairs of outputs.

    Args:
        hits: Outputs at which each tap meets the input.
        outputs: How many outputs there are.
        phases: A tap meets every one of `phases` outputs, neighbours meet different taps.
    """
    shares = [hit * phases / max(outputs, 1) for hit in hits]
    once = statistics.fmean(shares)
    twice = statistics.fmean(share**2 for share in shares) / phases
    if outputs < 2:
        return Taps(once, twice, once)
    both = 0.0 if phases > 1 else statistics.fmean(max(hit - 1, 0) for hit in hits)
    return Taps(once, twice, both / (outputs - 1))


def _within(count: int, stride: int, offset: int, extent: int) -> int:
    """Count the `i < count` with `0 <= i * stride + offset < extent`."""
    first = max(0, -(offset // stride))
    last = min(count, -((offset - extent) // stride))
    return max(last - first, 0)
