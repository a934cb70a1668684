"""The search for the scales of weights that are used several times.

The standard deviation over all uses of a weight grows with some unknown power of its scale, about 1
for one use and up to `n` where the output of each of `n` uses goes into the next, and with powers
of the scales of other such weights. On logarithms that is nearly linear, and Broyden's method
learns the powers as it goes: C. G. Broyden, *A Class of Methods for Solving Nonlinear Simultaneous
Equations*, 1965. To take each power for 1, and weights for independent, diverges from
three uses on.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

Key = TypeVar("Key")

_FARTHEST = math.log(8.0)
"""Most that one step changes the logarithm of a scale by."""

_BEYOND = 60.0
"""Stands for the logarithm of a ratio that left what a dtype can hold."""


@dataclass(slots=True)
class ScaleSearch(Generic[Key]):
    """What is known of how standard deviations depend on scales.

    Attributes:
        keys: What is searched for, in the order of the rows and columns below.
        scales: Logarithms of the scales at the last measurement.
        off: Logarithms of what was measured over what is wanted.
        powers: With which power of each scale (column) each standard deviation (row) seems to grow.
    """

    keys: tuple[Key, ...] = ()
    scales: Tensor = field(default_factory=lambda: torch.zeros(0))
    off: Tensor = field(default_factory=lambda: torch.zeros(0))
    powers: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    def step(self, measured: Mapping[Key, tuple[float, float, int]]) -> dict[Key, float]:
        """Return what to multiply each scale by, of each its `(scale, measured / wanted, uses)`.

        Examples:
            >>> search, scale = ScaleSearch(), 3.0
            >>> for _ in range(6):
            ...     scale *= search.step({"w": (scale, scale**4 / 2.0, 4)})["w"]
            >>> round(scale**4, 6)
            2.0
        """
        keys = tuple(measured)
        scales = _vector(math.log(scale) for scale, _, _ in measured.values())
        off = _vector(_logarithm(ratio) for _, ratio, _ in measured.values())
        if keys != self.keys:
            self.powers = torch.diag(_vector(float(uses) for *_, uses in measured.values()))
        else:
            moved = scales - self.scales
            missed = off - self.off - self.powers @ moved
            self.powers += torch.outer(missed, moved) / moved.square().sum().clamp_min(1e-12)
        self.keys, self.scales, self.off = keys, scales, off
        change: Tensor = -torch.linalg.lstsq(self.powers, off[:, None]).solution[:, 0]
        change *= min(1.0, _FARTHEST / max(float(change.abs().max()), 1e-12))
        return dict(zip(keys, change.exp().tolist(), strict=True))


def _vector(numbers: object) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.float64)  # type: ignore[call-overload]


def _logarithm(ratio: float) -> float:
    if math.isnan(ratio) or ratio == math.inf:
        return _BEYOND
    return max(math.log(ratio), -_BEYOND) if ratio > 0 else -_BEYOND
