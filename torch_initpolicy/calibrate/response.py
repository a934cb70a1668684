"""How the standard deviation of an operator's output responds to the scale of its weight.

Measured over the inputs of all processes together.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, distributed

from torch_initpolicy.writing.ranks import Groups

ROUNDING = 1e-12
"""Variances that are smaller parts of a second moment are rounding: numbers are all the same."""

TOLERANCE = 1e-4
"""Relative deviation from the wanted standard deviation at which iterating ends."""

ITERATIONS = 50
"""Times that a recurrent layer runs until its gates have settled."""


@dataclass(frozen=True, slots=True)
class Line:
    """The response of an output that is linear in the scale `s` of its weight, but for an offset.

    Its variance is `weight * s ** 2 + 2 * both * s + offset`.

    Attributes:
        count: Number of elements.
        weight: Variance of what grows with the weight.
        both: Covariance of the two.
        offset: Variance of what does not grow.
    """

    count: float
    weight: float
    both: float
    offset: float

    @classmethod
    def of(cls, count: float, *sums: float) -> "Line":
        """Make one of the sums of `a`, `a ** 2`, `b`, `b ** 2` and `a * b` (offset `b`)."""
        a, aa, b, bb, ab = (total / max(count, 1.0) for total in sums)
        weight = aa - a**2
        return cls(count, 0.0 if weight <= ROUNDING * aa else weight, ab - a * b, bb - b**2)

    def __add__(self, other: "Line") -> "Line":
        """Return the line of pairs of numbers, as complex ones are: their variances add up."""
        pairs = (self.weight + other.weight, self.both + other.both, self.offset + other.offset)
        return Line(self.count, *pairs)

    def std(self, scale: float) -> float:
        """Return the standard deviation at a scale."""
        variance = self.weight * scale**2 + 2 * self.both * scale + self.offset
        return math.sqrt(max(variance, 0.0))

    def solve(self, std: float) -> float | str:
        """Return the positive scale that gives a standard deviation, or why there is none."""
        if not self.count:
            return "its operator saw no inputs"
        if not math.isfinite(self.weight + self.both + self.offset):
            return "its operator's output is not finite"
        if self.weight <= 0:
            return "its operator's output is the same for all units and inputs"
        missing = std**2 - self.offset
        if missing <= 0:
            return f"the bias alone has a standard deviation of {math.sqrt(self.offset):.3g}"
        root = math.sqrt(self.both**2 + self.weight * missing)
        return (root - self.both) / self.weight


@dataclass(frozen=True, slots=True)
class Feedback:
    """How the standard deviation of a layer's gates, `count` numbers, goes with that of weights."""

    count: float
    std: Callable[[float], float]

    def solve(self, std: float) -> float | str:
        scale = 1.0
        for _ in range(ITERATIONS):
            found = self.std(scale)
            if not (found > 0 and math.isfinite(found)):
                return f"its gates have a standard deviation of {found:.3g}"
            if abs(found / std - 1) < TOLERANCE / 10:
                return scale
            scale *= std / found
        return f"its gates do not settle within {ITERATIONS} runs"


Response: TypeAlias = Line | Feedback
"""How the standard deviation of something depends on the scale of a weight."""


def measure(weighted: Tensor, offset: Tensor | None, groups: Groups) -> Line:
    """Measure how the variance of `weighted * s + offset` depends on `s`.

    The variance of complex numbers is `E |z - E z| ** 2`.
    """
    if weighted.is_complex():
        whole = None if offset is None else offset.to(weighted.dtype)
        real, imaginary = (None, None) if whole is None else (whole.real, whole.imag)
        return measure(weighted.real, real, groups) + measure(weighted.imag, imaginary, groups)
    return Line.of(*_over_processes(_sums(weighted, offset), groups).tolist())


def means(tensor: Tensor, shape: Sequence[int], groups: Groups) -> Tensor:
    """Return the means over all dimensions along which a shape has one element or none."""
    shape = (*(1,) * (tensor.ndim - len(shape)), *shape)
    double = torch.complex128 if tensor.is_complex() else torch.float64
    dims = [dim for dim, size in enumerate(shape) if size == 1]
    total = tensor.sum(dims, keepdim=True, dtype=double)
    count = total.new_tensor([tensor.numel() / max(total.numel(), 1)])
    sums = _over_processes(torch.cat((total.flatten(), count)), groups)
    return (sums[:-1] / sums[-1].abs().clamp_min(1)).to(tensor.dtype).reshape(shape)


def _over_processes(sums: Tensor, groups: Groups) -> Tensor:
    """Add up over all processes, in place."""
    for group in groups:
        distributed.all_reduce(sums, group=group)
    return sums


def _sums(tensor: Tensor, offset: Tensor | None) -> Tensor:
    """Return count, sums of both, of their squares and of their products, in float64.

    They are taken piece by piece: a copy of a large output would take as much memory as the output.
    """
    offset = tensor.new_zeros(()) if offset is None else offset
    wide = offset.double().expand_as(tensor)
    sums = tensor.new_zeros(6, dtype=torch.float64)
    for part, b in zip(_cut(tensor), _cut(wide), strict=True):
        a = part.double()
        products = a.sum(), (a * a).sum(), b.sum(), (b * b).sum(), (a * b).sum()
        sums += torch.stack((a.new_tensor(a.numel()), *products))
    return sums


_PIECE = 2**16
"""Elements that are summed at a time."""


def _cut(tensor: Tensor) -> Sequence[Tensor]:
    """Cut a tensor along its longest axis into pieces of at most about `_PIECE` elements."""
    axis = max(range(tensor.ndim), key=lambda dim: tensor.shape[dim], default=None)
    return (tensor,) if axis is None else tensor.chunk(tensor.numel() // _PIECE + 1, dim=axis)
