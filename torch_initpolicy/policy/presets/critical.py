"""Presets by mean field theory: the edge of chaos."""

import math
import types
from collections.abc import Callable, Mapping
from typing import Literal

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.policy.match import fed_by, feeds_output, meets, reads_input, role
from torch_initpolicy.policy.presets.parts import WEIGHT, layers, rule
from torch_initpolicy.policy.rules import InitPolicy, preset
from torch_initpolicy.tensors import initializers as init
from torch_initpolicy.tensors import meanfield

_CRITICAL = ("tanh", "erf", "atan", "softsign", "hardtanh", "sin")
"""Odd activations that act linearly on small signals."""

Drawn = Literal["normal", "orthogonal", "delta_orthogonal"]


_MAKERS: Mapping[str, Callable[[init.Gain], init.Initializer]] = types.MappingProxyType({
    "normal": lambda gain: init.VarianceScaling(1.0, "fan_in", gain=gain),
    "orthogonal": init.Orthogonal,
    "delta_orthogonal": init.DeltaOrthogonal,
})  # fmt: skip


def _matrix(drawn: Drawn, gain: init.Gain) -> init.Initializer:
    if drawn not in _MAKERS:
        raise PolicyError(f"weights is one of {', '.join(map(repr, _MAKERS))}, got {drawn!r}")
    return _MAKERS[drawn](gain)


@preset
def critical(*, q: float = 1 / 64, weights: Drawn = "orthogonal") -> InitPolicy:
    """Start plain networks of any depth on the edge of chaos.

    Behind tanh and its kin, weights and biases have the variances at which the signal settles at
    the mean square `q`, and neither small differences nor gradients grow or die out; the first
    weight brings standard normal inputs there. Behind rectifiers this is He's variance. The
    smaller `q`, the deeper a network can be: about `1 / q` layers.

    Args:
        q: The mean square of what goes into the activations, positive.
        weights: What is drawn: `"orthogonal"` weights keep all directions alike, which is what
            trains at great depth; `"delta_orthogonal"` is for convolutions (odd kernels, no fewer
            outputs than inputs); `"normal"` is the theory's own case.

    Raises:
        PolicyError: `q` is not positive, or `weights` is another word.

    Reference:
        Schoenholz et al., *Deep Information Propagation*, 2016, arXiv:1611.01232; Xiao et al.,
        *Dynamical Isometry and a Mean Field Theory of CNNs*, 2018, arXiv:1806.05393.

    Examples:
        >>> rule = critical().rules[-8]
        >>> rule.matcher, round(rule.initializer.gain ** 2, 6)
        (role('weight') & fed_by('tanh'), 1.030558)
    """
    if not q > 0:
        raise PolicyError(f"q is a positive mean square, got {q}")
    points = {name: meanfield.critical_point(name, q) for name in _CRITICAL}
    others = [
        rule(WEIGHT & fed_by(name), _matrix(weights, math.sqrt(point.weight)))
        for name, point in points.items()
    ]
    biases = [
        rule(role("bias") & meets(name, biases=True), init.Normal(math.sqrt(point.bias)))
        for name, point in points.items()
    ]
    first = rule(
        WEIGHT & reads_input() & meets(*_CRITICAL), _matrix(weights, math.sqrt(q)), "to the edge"
    )
    return layers(
        rule(WEIGHT & feeds_output(), init.xavier_normal()),
        first,
        *others,
        rule(WEIGHT & fed_by("rectifier"), _matrix(weights, "fed_by")),
        rule(WEIGHT, _matrix(weights, 1.0)),
    ).override(InitPolicy(biases))


@preset
def delta_orthogonal(*, q: float = 1 / 64) -> InitPolicy:
    """Start convolutional networks of any depth on the edge of chaos, with orthogonal centres.

    Linear layers get orthogonal weights.

    Args:
        q: The mean square of what goes into the activations, positive.

    Reference:
        Xiao et al., *Dynamical Isometry and a Mean Field Theory of CNNs: How to Train 10,000-Layer
        Vanilla Convolutional Neural Networks*, 2018, arXiv:1806.05393, section 3.

    Examples:
        >>> delta_orthogonal().rules[-1].initializer
        DeltaOrthogonal(gain=1.0)
    """
    return critical(q=q, weights="delta_orthogonal")
