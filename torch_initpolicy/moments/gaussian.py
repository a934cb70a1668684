"""Pairs of correlated, nearly normal numbers, and what functions make of them.

The signal of a unit is described by its first three moments, and by the mean product of itself with
the same unit seen elsewhere (at another position, or for another input). Knows functions of one
variable, not layers.

Reference:
    Wilson and Hilferty, *The distribution of chi-square*, 1931, for skewed numbers: the cube of a
    normal one is nearly gamma distributed.
"""

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from torch_initpolicy.tensors.gains import Activation, function_of, moments


@dataclass(frozen=True, slots=True)
class Size:
    """Moments of a signal.

    Attributes:
        mean: `E x`.
        second: `E x^2`.
        shared: `E x x'`, where `x'` is the same unit at another position or for another input.
        near: The same at a neighbouring position; zero padding makes distant ones differ.
        third: `E (x - E x)^3`; sums over many weights have none.
    """

    mean: float = 0.0
    second: float = 1.0
    shared: float = 0.0
    near: float = 0.0
    third: float = 0.0

    @property
    def variance(self) -> float:
        """The variance, `E x^2 - (E x)^2`."""
        return max(self.second - self.mean**2, 0.0)

    @property
    def skewness(self) -> float:
        """The third central moment over the cube of the standard deviation; 0 out of range."""
        cube = self.variance * math.sqrt(self.variance)
        return (
            self.third / cube if _TINY_CUBE < cube < math.inf and math.isfinite(self.third) else 0.0
        )

    @property
    def cube(self) -> float:
        """`E x^3`; infinite or nan where it is out of range."""
        # Products: unlike powers, they do not raise where they overflow.
        return self.third + self.mean * (3 * self.variance + self.mean * self.mean)

    @property
    def correlation(self) -> float:
        """How `x` and `x'` vary together, from 0 to 1."""
        return self._correlation(self.shared)

    @property
    def nearness(self) -> float:
        """How neighbours vary together, from 0 to 1."""
        return self._correlation(self.near)

    def _correlation(self, product: float) -> float:
        covariance = product - self.mean**2
        return min(max(covariance / self.variance, 0.0), 1.0) if self.variance > TINY else 1.0

    def scaled(self, factor: float) -> "Size":
        """Return the moments of `factor * x`."""
        power = factor**2
        return Size(
            self.mean * factor,
            self.second * power,
            self.shared * power,
            self.near * power,
            self.third * power * factor,
        )

    def skewed(self, skewness: float) -> "Size":
        """Return the same moments up to the second, and another skewness."""
        third = skewness * self.variance * math.sqrt(self.variance)
        return Size(self.mean, self.second, self.shared, self.near, third)

    def plus(self, other: "Size") -> "Size":
        """Return the moments of the sum with an independent signal."""
        both = 2 * self.mean * other.mean
        return Size(
            self.mean + other.mean,
            self.second + other.second + both,
            self.shared + other.shared + both,
            self.near + other.near + both,
            self.third + other.third,
        )

    def times(self, other: "Size") -> "Size":
        """Return the moments of the product with an independent signal."""
        return with_cube(
            self.mean * other.mean,
            self.second * other.second,
            self.shared * other.shared,
            self.near * other.near,
            self.cube * other.cube,
        )

    def averaged(self, count: float) -> "Size":
        """Return the moments of the mean over `count` positions, far apart."""
        second = self.shared + (self.second - self.shared) / count
        return Size(self.mean, second, self.shared, self.shared, self.third / count**2)

    def pooled(self, count: int) -> "Size":
        """Return the moments of the mean over a window of `count` neighbours."""
        second = self.near + (self.second - self.near) / count
        return Size(self.mean, second, self.shared, min(self.near, second), self.third / count**2)

    def unshared(self) -> "Size":
        """Return the moments where positions are units of their own, which share only a mean."""
        return Size(self.mean, self.second, self.mean**2, self.mean**2, self.third)

    def weighed(self) -> "Size":
        """Return the moments behind a weight that brings the second moment to 1."""
        power = max(self.second, TINY)
        shared, near = min(self.shared / power, 1.0), min(self.near / power, 1.0)
        return Size(0.0, 1.0, shared, near)


TINY = 1e-12
_TINY_CUBE = 1e-18


def with_cube(mean: float, second: float, shared: float, near: float, cube: float) -> Size:
    """Return the moments of a signal of which `E x^3` is known."""
    third = cube - mean * (3 * second - 2 * mean * mean)
    return Size(mean, second, shared, near, third)


def constant(value: float) -> Size:
    """Return the moments of a number."""
    return Size(value, value**2, value**2, value**2)


def activated(activation: Activation, size: Size, *, largest_of: int = 1) -> Size:
    """Return the moments of a function of a nearly normal signal, or of the largest of several.

    Args:
        activation: The function; it must not decrease where `largest_of` is not 1.
        size: Moments of the signal.
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
    bounded = min(max(size.skewness, -_SKEWEST), _SKEWEST)
    alone = _Alone(round(size.mean, 6), round(size.variance, 6), round(bounded, 4))
    nearby = _activated(activation, alone, round(size.nearness, 5), largest_of)
    if largest_of == 1:
        distant = _activated(activation, alone, round(size.correlation, 5), 1).shared
    else:
        spread = nearby.shared - nearby.mean**2
        distant = nearby.mean**2 + spread * size.correlation / max(size.nearness, 1e-6)
    return Size(
        nearby.mean, nearby.second, min(distant, nearby.second), nearby.shared, nearby.third
    )


def _measured(activation: Activation, size: Size, largest_of: int) -> Size:
    """Return measured moments; they hold for a standard normal input, or nearly so."""
    is_standard = abs(size.mean) < NEAR and abs(size.second - 1) < NEAR
    if activation.moments is None or not is_standard or largest_of != 1:
        raise ValueError(f"{activation.name} was measured under a standard normal alone")
    mean, second, _ = activation.moments
    spread = second - mean**2
    return Size(mean, second, mean**2 + spread * size.correlation, mean**2 + spread * size.nearness)


NEAR = 0.05

_POINTS = 401
_REACH = 8.0
_SKEWEST = 2.0
"""Skewness of an exponential distribution; what is further from normal is taken to be so."""


class _Alone(NamedTuple):
    """What describes one number by itself, rounded."""

    mean: float
    variance: float
    skewness: float


@functools.lru_cache(maxsize=4096)
def _activated(activation: Activation, alone: _Alone, correlation: float, largest_of: int) -> Size:
    """Integrate over what two positions share, and over what each has of its own."""
    mean, std, skewness = alone.mean, math.sqrt(alone.variance), alone.skewness
    function = function_of(activation)
    if std < math.sqrt(TINY):
        return constant(float(function(torch.tensor([mean]).double()).item()))
    with torch.device("cpu"):
        z = torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)
        common = z[:, None] * math.sqrt(correlation)
        own = z * math.sqrt(1 - correlation)
        signal = mean + std * _skewed(common + own, skewness)
        values = function(signal.flatten()).view(_POINTS, -1)
        weights, largest = _density(z), _density_of_largest(z, largest_of)
        given = values @ largest
        first, second, cube = ((weights @ (values**power @ largest)).item() for power in (1, 2, 3))
    shared = (weights @ given.square()).item()
    if largest_of == 1 and not skewness:
        exact = moments(activation, mean=mean, std=std)
        first, second = exact.mean, exact.second
    shared = min(shared, second)
    return with_cube(first, second, shared, shared, cube)


def _skewed(z: Tensor, skewness: float) -> Tensor:
    """Bend normal numbers so that they are skewed: nearly gamma distributed, mean 0, variance 1."""
    if not skewness:
        return z
    sixth = skewness / 6
    activated_at = (1 + sixth * z - sixth**2).clamp_min(0) ** 3
    return (activated_at - 1) / (3 * sixth)


def _density(z: Tensor) -> Tensor:
    density = torch.exp(-z.square() / 2)
    return density / density.sum()


def _density_of_largest(z: Tensor, count: int) -> Tensor:
    """Return the density of the largest of `count` independent normals on a grid."""
    density: Tensor = _density(z) * torch.special.ndtr(z) ** (count - 1)
    return density / density.sum()
