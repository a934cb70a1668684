"""Pairs of correlated, nearly normal numbers, and what functions make of them.

The signal of a unit is described by its first two moments, and by the mean product of itself with
the same unit seen elsewhere (at another position, or for another input). Knows functions of one
variable, not layers.
"""

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_initpolicy.tensors.gains import Activation, function_of, moments

TINY_VARIANCE = 1e-12


@dataclass(frozen=True, slots=True)
class Size:
    """Moments of a signal.

    Attributes:
        mean: `E x`.
        second: `E x^2`.
        shared: `E x x'`, where `x'` is the same unit at another position or for another input.
        near: The same at a neighbouring position; zero padding makes distant ones differ.
    """

    mean: float = 0.0
    second: float = 1.0
    shared: float = 0.0
    near: float = 0.0

    @property
    def variance(self) -> float:
        """The variance, `E x^2 - (E x)^2`."""
        return max(self.second - self.mean**2, 0.0)

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
        return (
            min(max(covariance / self.variance, 0.0), 1.0) if self.variance > TINY_VARIANCE else 1.0
        )

    def scaled(self, factor: float) -> "Size":
        return self.times(constant_size(factor))

    def plus(self, other: "Size") -> "Size":
        """Return the moments of the sum with an independent signal."""
        both = 2 * self.mean * other.mean
        return Size(
            self.mean + other.mean,
            self.second + other.second + both,
            self.shared + other.shared + both,
            self.near + other.near + both,
        )

    def times(self, other: "Size") -> "Size":
        """Return the moments of the product with an independent signal."""
        return Size(
            self.mean * other.mean,
            self.second * other.second,
            self.shared * other.shared,
            self.near * other.near,
        )

    def averaged(self, count: float) -> "Size":
        """Return the moments of the mean over `count` positions, far apart."""
        second = self.shared + (self.second - self.shared) / count
        return Size(self.mean, second, self.shared, self.shared)

    def pooled(self, count: int) -> "Size":
        """Return the moments of the mean over a window of `count` neighbours."""
        second = self.near + (self.second - self.near) / count
        return Size(self.mean, second, self.shared, min(self.near, second))

    def unshared(self) -> "Size":
        """Return the moments where positions are units of their own, which share only a mean."""
        return Size(self.mean, self.second, self.mean**2, self.mean**2)

    def weighed(self) -> "Size":
        """Return the moments behind a weight that brings the second moment to 1."""
        power = max(self.second, TINY_VARIANCE)
        return Size(0.0, 1.0, min(self.shared / power, 1.0), min(self.near / power, 1.0))


def constant_size(value: float) -> Size:
    """Return the moments of a number."""
    return Size(value, value**2, value**2, value**2)


def mixture(parts: Iterable[tuple[Size, float]]) -> Size:
    """Return the moments of signals side by side, each with how much of the whole it is."""
    each = [(size, share) for size, share in parts]
    return Size(
        sum(size.mean * share for size, share in each),
        sum(size.second * share for size, share in each),
        sum(size.shared * share for size, share in each),
        sum(size.near * share for size, share in each),
    )


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
    alone = round(size.mean, 6), round(size.variance, 6)
    nearby = _activated(activation, *alone, round(size.nearness, 5), largest_of)
    if largest_of == 1:
        distant = _activated(activation, *alone, round(size.correlation, 5), 1).shared
    else:
        spread = nearby.shared - nearby.mean**2
        distant = nearby.mean**2 + spread * size.correlation / max(size.nearness, 1e-6)
    return Size(nearby.mean, nearby.second, min(distant, nearby.second), nearby.shared)


_NEAR = 0.05
"""How far from standard a signal may be for measured moments to hold."""


def _measured(activation: Activation, size: Size, largest_of: int) -> Size:
    is_standard = abs(size.mean) < _NEAR and abs(size.second - 1) < _NEAR
    if activation.moments is None or not is_standard or largest_of != 1:
        raise ValueError(f"{activation.name} was measured under a standard normal alone")
    mean, second, _ = activation.moments
    spread = second - mean**2
    return Size(mean, second, mean**2 + spread * size.correlation, mean**2 + spread * size.nearness)


_POINTS = 401
_REACH = 8.0


@functools.lru_cache(maxsize=4096)
def _activated(
    activation: Activation, mean: float, variance: float, correlation: float, largest_of: int
) -> Size:
    """Integrate over what two positions share, and over what each has of its own."""
    std, function = math.sqrt(variance), function_of(activation)
    if std < math.sqrt(TINY_VARIANCE):
        return constant_size(float(function(torch.tensor([mean]).double()).item()))
    with torch.device("cpu"):
        z = torch.linspace(-_REACH, _REACH, _POINTS, dtype=torch.float64)
        common, own = z[:, None] * math.sqrt(correlation), z * math.sqrt(1 - correlation)
        values = function((mean + std * (common + own)).flatten()).view(_POINTS, -1)
        weights, largest = _density(z), _density_of_largest(z, largest_of)
        given = values @ largest
        first, second = ((weights @ (values**power @ largest)).item() for power in (1, 2))
    shared = (weights @ given.square()).item()
    if largest_of == 1:
        exact = moments(activation, mean=mean, std=std)
        first, second = exact.mean, exact.second
    return Size(first, second, min(shared, second), min(shared, second))


def _density(z: Tensor) -> Tensor:
    density = torch.exp(-z.square() / 2)
    return density / density.sum()


def _density_of_largest(z: Tensor, count: int) -> Tensor:
    """Return the density of the largest of `count` independent normals on a grid."""
    density: Tensor = _density(z) * torch.special.ndtr(z) ** (count - 1)
    return density / density.sum()
