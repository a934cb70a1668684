"""Mean field theory of wide plain networks: where the signal settles, and where it is critical.

For weights of variance `weight / fan_in` and biases of variance `bias`, the mean square of what a
layer gives is `weight * E f(sqrt(q) z)^2 + bias` for that of the layer before, `q`. Knows functions
of one variable, not layers.

Reference:
    Poole et al., *Exponential expressivity in deep neural networks through transient chaos*, 2016,
    arXiv:1606.05340; Schoenholz et al., *Deep Information Propagation*, 2016, arXiv:1611.01232.
"""

import math
from typing import NamedTuple

from torch_initpolicy.tensors.gains import Activation, moments

TOLERANCE = 1e-12
ITERATIONS = 10_000


class Critical(NamedTuple):
    """Variances at which small differences neither grow nor die out.

    Attributes:
        weight: Variance of a weight times its fan-in.
        bias: Variance of a bias.
    """

    weight: float
    bias: float


def slope(activation: Activation | str, weight: float, q: float) -> float:
    """Return by how much a layer multiplies a small difference, squared: `chi`.

    Below 1 inputs become equal and gradients vanish; above 1 both explode.

    Args:
        activation: The activation or its name.
        weight: Variance of a weight times its fan-in.
        q: Mean square of what goes into the activation.

    Reference:
        Schoenholz et al., 2016, arXiv:1611.01232, eq. 5.

    Examples:
        >>> slope("relu", 2.0, 1.0)
        1.0
    """
    return weight * moments(activation, std=math.sqrt(q)).slope


def fixed_point(activation: Activation | str, weight: float, bias: float = 0.0) -> float:
    """Return the mean square at which the signal settles, far from the input.

    Args:
        activation: The activation or its name.
        weight: Variance of a weight times its fan-in.
        bias: Variance of a bias.

    Returns:
        The mean square of what goes into the activation; 0 where the signal dies out, `inf` where
        it explodes.

    Reference:
        Poole et al., 2016, arXiv:1606.05340, eq. 3.

    Examples:
        Torch's gain of 5/3 for tanh settles well inside the chaotic phase:

        >>> q = fixed_point("tanh", (5 / 3) ** 2)
        >>> round(q, 3), round(slope("tanh", (5 / 3) ** 2, q), 2)
        (1.178, 1.21)
    """
    q = 1.0
    for _ in range(ITERATIONS):
        after = weight * moments(activation, std=math.sqrt(q)).second + bias
        if abs(after - q) <= TOLERANCE * max(q, TOLERANCE) or after > 1e12:
            return math.inf if after > 1e12 else after
        q = _further(q, after)
        if q < 1e-9:
            return 0.0
    return q


def _further(q: float, after: float) -> float:
    """Take the step the map takes; near a critical point, where steps shrink, two of them."""
    return max(q + 2 * (after - q), after / 2) if abs(after - q) < 1e-3 * q else after


def critical(activation: Activation | str, q: float) -> Critical:
    """Return the variances that are critical and let the signal settle at a mean square.

    Args:
        activation: The activation or its name.
        q: The mean square at which the signal shall settle; small ones make saturating activations
            act nearly linearly, so that depths of thousands of layers can be trained.

    Raises:
        ValueError: There are none: at this mean square the activation needs a negative variance.

    Reference:
        Schoenholz et al., 2016, arXiv:1611.01232, section 3; Pennington, Schoenholz and Ganguli,
        *Resurrecting the sigmoid in deep learning through dynamical isometry*, 2017,
        arXiv:1711.04735.

    Examples:
        >>> weight, bias = critical("tanh", 1 / 64)
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
