"""Profiles: what a signal measures at each weight, ready to be drawn over the depth."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch_initpolicy.signal.points import Point


@dataclass(frozen=True, slots=True)
class Profile:
    """One number for each weight, in order of execution.

    Attributes:
        names: Canonical names of the weights.
        heights: Their numbers; None where one is missing, zero or not finite.
    """

    names: tuple[str, ...]
    heights: tuple[float | None, ...]


def forward(points: Sequence[Point]) -> Profile:
    """Return the second moment of each weight's output."""
    weighted = [point for point in points if point.site is not None]
    return Profile(_names(weighted), tuple(_drawable(point.second) for point in weighted))


def backward(points: Sequence[Point]) -> Profile:
    """Return the squared length of the gradient by each weight's output."""
    weighted = [point for point in points if point.site is not None]
    return Profile(_names(weighted), tuple(_drawable(point.length) for point in weighted))


def _names(points: Sequence[Point]) -> tuple[str, ...]:
    return tuple(point.name for point in points)


def _drawable(height: float | None) -> float | None:
    return height if height is not None and 0 < height < math.inf else None
