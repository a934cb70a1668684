"""Pairs of correlated normal numbers, and what functions make of them.

The signal of a unit is described by three moments: its mean, its mean square, and the mean product
of itself with the same unit seen elsewhere (at another position, or for another input). Knows
functions of one variable; has never heard of layers.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_initpolicy.tensors.gains import KNOWN, Activation, function_of, moments


@dataclass(frozen=True, slots=True)
class Size:
    """Moments of a signal.

    Attributes:
        mean: `E x`.
        second: `E x^2`.
        shared: `E x x'`, where `x'` is the same unit at another position or for another input.
    """

    mean: float = 0.0
    second: float = 1.0
    shared: float = 0.0

    @property
    def variance(self) -> float:
        """The variance, `E x^2 - (E x)^2`."""
        return max(self.second - self.mean**2, 0.0)

    @property
    def correlation(self) -> float:
        """How `x` and `x'` vary together, from 0 to 1."""
        covariance = self.shared - self.mean**2
        return min(max(covariance / self.variance, 0.0), 1.0) if self.variance > TINY else 1.0

    @property
    def likeness(self) -> float:
        """`E x x' / E x^2`, from 0 to 1."""
        return min(max(self.shared / self.second, 0.0), 1.0) if self.second > TINY else 0.0

    def scaled(self, factor: float) -> "Size":
        """Return the moments of `factor * x`."""
        power = factor**2
        return Size(self.mean * factor, self.second * power, self.shared * power)

    def plus(self, other: "Size") -> "Size":
        """Return the moments of the sum with an independent signal."""
        both = 2 * self.mean * other.mean
        return Size(
            self.mean + other.mean,
            self.second + other.second + both,
            self.shared + other.shared + both,
        )

    def times(self, other: "Size") -> "Size":
        """Return the moments of the product with an independent signal."""
        return Size(
            self.mean * other.mean, self.second * other.second, self.shared * other.shared
        )

    def averaged(self, count: float) -> "Size":
        """Return the moments of the mean over `count` positions."""
        return Size(self.mean, self.shared + (self.second - self.shared) / count, self.shared)


TINY = 1e-12


def constant(value: float) -> Size:
    """Return the moments of a number."""
    return Size(value, value**2, value**2)


def activated(activation: Activation, size: Size, *, largest_of: int = 1) -> Size:
    """Return the moments of a function of a normal signal, or of the largest of several.

    Args:
        activation: The function; it must not decrease where `largest_of` is not 1.
        size: Moments of the normal signal.
        largest_of: How many positions compete, each as correlated with the others as with all
            further ones.

    Raises:
        ValueError: If the function was measured under another input than this.

    Examples:
        The ReLU of a standard normal, and the correlation that it makes of none:

        >>> size = activated(Activation("relu"), Size())
        >>> round(size.second, 6), round(size.shared / size.second, 3)
        (0.5, 0.318)
    """
    if activation.moments is not None:
        return _measured(activation, size, largest_of)
    key = (round(size.mean, 6), round(size.variance, 6), round(size.correlation, 3))
    return _activated(activation, *key, largest_of)


def _measured(activation: Activation, size: Size, largest_of: int) -> Size:
    """Return measured moments; they hold for a standard normal input, and of its nearest kin."""
    is_standard = abs(size.mean) < NEAR and abs(size.second - 1) < NEAR
    if activation.moments is None or not is_standard or largest_of != 1:
        raise ValueError(f"{activation.name} was measured under a standard normal alone")
    mean, second, _ = activation.moments
    return Size(mean, second, mean**2 + (second - mean**2) * size.correlation)


NEAR = 0.05

_POINTS = 401
_REACH = 8.0


@functools.lru_cache(maxsize=4096)
def _activated(
    activation: Activation, mean: float, variance: float, correlation: float, largest_of: int
) -> Size:
    """Integrate over what two positions share, and over what each has of its own."""
    std = math.sqrt(variance)
    if std < math.sqrt(TINY):
        return constant(float(function_of(activation)(torch.tensor([mean]).double()).item()))
    with torch.device("cpu"):
        z = torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)
        common = z[:, None] * math.sqrt(correlation)
        own = z * math.sqrt(1 - correlation)
        values = function_of(activation)((mean + std * (common + own)).flatten()).view(_POINTS, -1)
        weights, largest = _density(z), _density_of_largest(z, largest_of)
        given = values @ largest
        first, second = (weights @ given).item(), (weights @ (values.square() @ largest)).item()
    shared = (weights @ given.square()).item()
    if largest_of == 1:
        exact = moments(activation, mean=mean, std=std)
        first, second = exact.mean, exact.second
    return Size(first, second, min(shared, second))


def _density(z: Tensor) -> Tensor:
    density = torch.exp(-z.square() / 2)
    return density / density.sum()


def _density_of_largest(z: Tensor, count: int) -> Tensor:
    """Return the density of the largest of `count` independent normals on a grid."""
    density = _density(z) * torch.special.ndtr(z) ** (count - 1)
    return density / density.sum()


def is_function(activation: Activation) -> bool:
    """Say whether an activation is a function of one variable that can be evaluated."""
    return activation.name in KNOWN and KNOWN[activation.name].function is not None
