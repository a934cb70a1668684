"""Activations and the gains that follow from their Gaussian moments."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Moments(NamedTuple):
    """Moments of an activation `f` of a normal variable `z`."""

    mean: float
    second: float
    slope: float


@dataclass(frozen=True, slots=True)
class Activation:
    """An activation, by its name.

    Attributes:
        name: Its name in the table (`"relu"`), or any other name together with `moments`.
        parameter: Its parameter where it has one (the slope of `leaky_relu`).
        moments: Measured moments, for activations that are not in the table.
    """

    name: str
    parameter: float | tuple[float, ...] | None = None
    moments: Moments | None = None


def moments(
    function: Activation | str | Callable[[Tensor], Tensor], *, mean: float = 0.0, std: float = 1.0
) -> Moments:
    """Integrate an activation over a normal input."""
    raise NotImplementedError


def gain(activation: Activation | str) -> float:
    """Return the factor of the standard deviation that keeps the second moment forward."""
    raise NotImplementedError


def backward_gain(activation: Activation | str) -> float:
    """Return the factor of the standard deviation that keeps the second moment of gradients."""
    raise NotImplementedError


def recognise(
    function: Callable[[Tensor], Tensor], *, name: str = "custom"
) -> Activation | None:
    """Find an element-wise function in the table; None where it is merely affine."""
    raise NotImplementedError
