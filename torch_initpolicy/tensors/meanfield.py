"""Mean field theory of wide plain networks: where a settled signal is critical.

For weights of variance `weight / fan_in` and biases of variance `bias`, the mean square of what a
layer gives is `weight * E f(sqrt(q) z)^2 + bias` for that of the layer before, `q`.

Reference:
    Poole et al., *Exponential expressivity in deep neural networks through transient chaos*, 2016,
    arXiv:1606.05340; Schoenholz et al., *Deep Information Propagation*, 2016, arXiv:1611.01232.
"""

import math
from typing import NamedTuple

from torch_initpolicy.tensors.gains import Activation, moments


class Critical(NamedTuple):
    """Variances of weights, times their fan-in, and of biases: differences neither grow nor die."""

    weight: float
    bias: float


def critical_point(activation: Activation | str, q: float) -> Critical:
    """Return the variances that are critical and let the signal settle at a mean square `q`.

    Small ones make saturating activations act nearly linearly, so that depths of thousands of
    layers can be trained.

    Raises:
        ValueError: There are none: at this mean square the activation needs a negative variance.

    Reference:
        Schoenholz et al., 2016, arXiv:1611.01232, section 3; Pennington, Schoenholz and Ganguli,
        *Resurrecting the sigmoid in deep learning through dynamical isometry*, 2017,
        arXiv:1711.04735.

    Examples:
        >>> weight, bias = critical_point("tanh", 1 / 64)
        >>> round(weight, 6), round(bias * 1e6, 2)
        (1.030558, 4.65)
    """
    found = moments(activation, std=math.sqrt(q))
    weight = 1 / found.slope
    bias = q - weight * found.second
    if bias < -1e-9 * q:
        name = activation if isinstance(activation, str) else activation.name
        raise ValueError(
            f"{name} has no critical point at a mean square of {q}: the bias would need the "
            f"variance {bias:.3g}"
        )
    return Critical(weight, max(bias, 0.0))
