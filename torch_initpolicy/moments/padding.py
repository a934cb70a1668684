"""How many taps of a convolution's kernel meet the signal, and how many its zero padding.

Ones are sent through the convolution, one dimension at a time and each tap on its own.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

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
    """
    if not node.op.startswith("conv"):
        return Taps()
    kernel, transposed = weight[2:], node.op.startswith("conv_transpose")
    convolve = F.conv_transpose1d if transposed else F.conv1d
    given = (
        argument(node, 3, "stride", 1),
        argument(node, 4, "padding", 0),
        argument(node, 7 if transposed else 5, "dilation", 1),
    )
    dims = [
        _along(convolve, extent, taps, tuple(_at(value, dim) for value in given))
        for dim, (extent, taps) in enumerate(zip(shape[-len(kernel) :], kernel, strict=True))
    ]
    return Taps(*(math.prod(along) for along in zip(*dims, strict=True)))


def _at(value: int | str | Sequence[int], dim: int) -> int | str:
    """Return what holds for one dimension: numbers may be given for each, words for all."""
    if isinstance(value, (int, str)):
        return value
    return value[dim] if len(value) > 1 else value[0]


@functools.lru_cache(maxsize=1024)
def _along(convolve: Callable[..., Tensor], extent: int, taps: int, options: Any) -> Taps:
    """Count along one dimension; a transposed convolution is met by one of `stride` taps."""
    stride, padding, dilation = options
    transposed = convolve is F.conv_transpose1d
    with torch.device("cpu"):
        ones, each = torch.ones(1, 1, extent), torch.eye(taps)
    each = each[None] if transposed else each[:, None]
    hits = convolve(ones, each, stride=stride, padding=padding, dilation=dilation)[0]
    phases = stride if transposed else 1
    shares = hits.mean(1) * phases
    once, twice = shares.mean().item(), shares.square().mean().item() / phases
    beside = (hits[:, 1:] * hits[:, :-1]).mean().item() if hits.shape[1] > 1 else once
    return Taps(once, twice, beside)
