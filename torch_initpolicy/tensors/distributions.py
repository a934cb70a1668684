"""Initializers whose elements are independent, and the recipes of the papers."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.tensors.axes import Axes, Fans
from torch_initpolicy.tensors.base import (
    Context,
    Distribution,
    Gain,
    Mode,
    Shared,
    known,
    plain_number,
    require_word,
    take_gain,
    take_number,
)
from torch_initpolicy.tensors.initializer import Initializer, register
from torch_initpolicy.tensors.samplers import Draw, Independent
from torch_initpolicy.tensors.standards import Standard, StandardNormal, StandardUniform, Zero


@register
@dataclass(frozen=True, slots=True)
class Constant(Initializer):
    """Set every element to `value`.

    A weight whose units are all equal keeps them equal; use it for biases, scales and norms.

    Examples:
        >>> import torch
        >>> weight = torch.empty(2)
        >>> Constant(0.5)(weight)
        >>> weight
        tensor([0.5000, 0.5000])
    """

    sizes = ("value",)

    value: float

    def __post_init__(self) -> None:
        take_number(self, "value")

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> Independent:
        return Independent((Draw(Zero(), self.value),))


@register
@dataclass(frozen=True, slots=True)
class Zeros(Initializer):
    """Set every element to 0.

    Examples:
        >>> import torch
        >>> weight = torch.ones(2)
        >>> Zeros()(weight)
        >>> weight
        tensor([0., 0.])
    """

    def scaled(self, factor: float) -> "Zeros":
        return self

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> Independent:
        return Independent((Draw(Zero()),))


@register
@dataclass(frozen=True, slots=True)
class Ones(Initializer):
    """Set every element to 1.

    Examples:
        >>> import torch
        >>> weight = torch.zeros(2)
        >>> Ones()(weight)
        >>> weight
        tensor([1., 1.])
    """

    def scaled(self, factor: float) -> Constant:
        return Constant(factor)

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> Independent:
        return Independent((Draw(Zero(), 1.0),))


@register
@dataclass(frozen=True, slots=True)
class Uniform(Initializer):
    """Draw uniformly between `low` and `high`.

    Examples:
        >>> import torch
        >>> weight = torch.empty(10000)
        >>> Uniform(-1.0, 3.0)(weight, generator=torch.Generator().manual_seed(0))
        >>> bool(weight.min() >= -1), bool(weight.max() <= 3), round(float(weight.mean()), 1)
        (True, True, 1.0)
    """

    sizes = ("low", "high")

    low: float
    high: float

    def __post_init__(self) -> None:
        take_number(self, "low")
        take_number(self, "high", self.low)

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> Independent:
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        return Independent((Draw(StandardUniform(), middle, half),))


@register
@dataclass(frozen=True, slots=True)
class Normal(Initializer):
    """Draw from a normal distribution of standard deviation `std`.

    Examples:
        >>> import torch
        >>> weight = torch.empty(10000)
        >>> Normal(0.02)(weight, generator=torch.Generator().manual_seed(0))
        >>> round(float(weight.std()), 3)
        0.02
    """

    sizes = ("std", "mean")

    std: float
    mean: float = 0.0

    def __post_init__(self) -> None:
        take_number(self, "std", 0.0)
        take_number(self, "mean")

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> Independent:
        return Independent((Draw(StandardNormal(), self.mean, self.std),))


@register
@dataclass(frozen=True, slots=True)
class TruncatedNormal(Initializer):
    """Draw from a normal distribution that is cut on both sides.

    Unlike the bounds of `torch.nn.init.trunc_normal_`, which are absolute (with `std=0.02` its
    usual bounds of 2 cut nothing, a hundred standard deviations out), the cut counts standard
    deviations of the normal that is cut. That normal is drawn so much wider that `std` is the
    standard deviation of what is left: numbers lie within `cut * std / truncation(cut)` of the
    mean, `2.27 * std` for a cut at 2.

    Args:
        std: Standard deviation of the numbers drawn.
        mean: Their mean.
        cut: Where the normal is cut, in its own standard deviations; from 8 on nothing is.

    Examples:
        >>> round(TruncatedNormal(0.02).spread((10, 10), None).high, 6)
        0.045474
    """

    sizes = ("std", "mean")

    std: float
    mean: float = 0.0
    cut: float = 2.0

    def __post_init__(self) -> None:
        take_number(self, "std", 0.0)
        take_number(self, "mean")
        cut = plain_number(self.cut)
        if cut is None or not cut > 0:  # infinity cuts nothing
            raise PolicyError(f"TruncatedNormal: cut must be positive, got {self.cut!r}; try 2.0")
        object.__setattr__(self, "cut", cut)

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> Independent:
        standard = StandardNormal(self.cut)
        return Independent((Draw(standard, self.mean, self.std / standard.std),))


_FANS: Mapping[Mode, Callable[[Fans], float]] = MappingProxyType(
    {
        "fan_in": lambda fans: fans.fan_in,
        "fan_out": lambda fans: fans.fan_out,
        "fan_avg": lambda fans: (fans.fan_in + fans.fan_out) / 2,
        "fan_geo": lambda fans: math.sqrt(fans.fan_in * fans.fan_out),
    }
)

_STANDARDS: Mapping[Distribution, Standard] = MappingProxyType(
    {
        "normal": StandardNormal(),
        "uniform": StandardUniform(),
        "truncated_normal": StandardNormal(cut=2.0),
    }
)


@register
@dataclass(frozen=True, slots=True)
class VarianceScaling(Initializer):
    """Draw with mean zero and variance `gain^2 * scale / fan`.

    Fans are counted from the axes, and of packed blocks each has its own. A weight without any
    connection is filled with zeros.

    Args:
        scale: Multiplies the variance; positive.
        mode: Which fan divides it.
        distribution: What is drawn.
        gain: Multiplies the standard deviation; `"meets"` or `"fed_by"` for that of the
            activation behind or before the weight.

    Reference:
        Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural
        networks*, 2010, eq. 16 (`fan_avg`, `uniform`); He et al., *Delving Deep into Rectifiers*,
        2015, arXiv:1502.01852, eq. 10 (`scale=2`, `fan_in`) and 14 (`fan_out`).

    Examples:
        >>> VarianceScaling(2.0).spread((32, 50), None).std
        0.2
    """

    sizes = ("gain",)

    scale: float = 1.0
    mode: Mode = "fan_in"
    distribution: Distribution = "normal"
    gain: Gain = 1.0

    def __post_init__(self) -> None:
        take_number(self, "scale", 0.0)
        require_word(self, "mode", self.mode, tuple(_FANS))
        require_word(self, "distribution", self.distribution, tuple(_STANDARDS))
        take_gain(self, self.gain)

    def resolve(self, context: Context) -> "VarianceScaling":
        gain = context.gain(self.gain)
        return replace(self, gain=_part_of(self, gain, context.shared) if context.shared else gain)

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> Independent:
        return _per_block(self, tuple(shape), axes)


def _part_of(scaling: VarianceScaling, gain: float, shared: Shared) -> float:
    """Return the gain with which each of several factors makes its part of a weight in use.

    All have the same standard deviation, so that gradient steps of one size move all equally.
    """
    used, own = _FANS[scaling.mode](shared.used), _FANS[scaling.mode](shared.own)
    if not (used and own and scaling.scale):
        return gain
    whole = gain * math.sqrt(scaling.scale / used) / shared.growth
    return math.pow(whole, 1 / shared.factors) * math.sqrt(own / scaling.scale)


@functools.lru_cache(maxsize=4096)
def _per_block(scaling: VarianceScaling, shape: tuple[int, ...], axes: Axes | None) -> Independent:
    """Work out the distribution of each packed block; models repeat their layers."""
    fans = map(_FANS[scaling.mode], scaling.fans(shape, axes))
    stds = [known(scaling.gain) * math.sqrt(scaling.scale / fan) if fan else 0.0 for fan in fans]
    standard = _STANDARDS[scaling.distribution]
    return Independent(tuple(Draw(standard, 0.0, std / standard.std) for std in stds))


# Recipes


def _he(gain: Gain | None, mode: Mode, distribution: Distribution) -> VarianceScaling:
    if gain is None:
        return VarianceScaling(2.0, mode, distribution)
    return VarianceScaling(1.0, mode, distribution, gain)


def he_normal(gain: Gain | None = None, mode: Mode = "fan_in") -> VarianceScaling:
    """Draw from a normal of variance `2 / fan_in`, for weights whose output meets a ReLU.

    Args:
        gain: The gain of another activation, which then replaces ReLU's: variance
            `gain^2 / fan_in`. `"meets"` for that of the activation the weight meets.
        mode: `"fan_out"` keeps the gradients' variance instead.

    Reference:
        He et al., *Delving Deep into Rectifiers*, 2015, arXiv:1502.01852, eq. 10 and 14.

    Examples:
        >>> he_normal() == VarianceScaling(2.0, "fan_in")
        True
    """
    return _he(gain, mode, "normal")


def he_uniform(gain: Gain | None = None, mode: Mode = "fan_in") -> VarianceScaling:
    """Draw uniformly with variance `2 / fan_in`, within `sqrt(6 / fan_in)`; else as `he_normal`.

    Examples:
        >>> spread = he_uniform().spread((20, 150), None)
        >>> round(spread.high, 6), round(spread.std**2 * 150, 6)
        (0.2, 2.0)
    """
    return _he(gain, mode, "uniform")


def xavier_normal(gain: Gain = 1.0) -> VarianceScaling:
    """Draw from a normal of variance `gain^2 * 2 / (fan_in + fan_out)`.

    Reference:
        Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural
        networks*, 2010, eq. 12.

    Examples:
        >>> round(xavier_normal().spread((20, 30), None).std, 6)
        0.2
    """
    return VarianceScaling(1.0, "fan_avg", "normal", gain)


def xavier_uniform(gain: Gain = 1.0) -> VarianceScaling:
    """Draw uniformly within `gain * sqrt(6 / (fan_in + fan_out))`: Glorot and Bengio, eq. 16.

    Examples:
        >>> round(xavier_uniform().spread((70, 80), None).high, 6)
        0.2
    """
    return VarianceScaling(1.0, "fan_avg", "uniform", gain)


def lecun_normal(gain: Gain = 1.0) -> VarianceScaling:
    """Draw from a normal of variance `gain^2 / fan_in`, which SELU asks for.

    Reference:
        LeCun et al., *Efficient BackProp*, 1998, eq. 16; Klambauer et al., *Self-Normalizing
        Neural Networks*, 2017, arXiv:1706.02515.

    Examples:
        >>> round(lecun_normal().spread((10, 25), None).std, 6)
        0.2
    """
    return VarianceScaling(1.0, "fan_in", "normal", gain)


def lecun_uniform(gain: Gain = 1.0) -> VarianceScaling:
    """Draw uniformly with variance `gain^2 / fan_in`: within `gain * sqrt(3 / fan_in)`.

    Examples:
        >>> round(lecun_uniform().spread((10, 75), None).high, 6)
        0.2
    """
    return VarianceScaling(1.0, "fan_in", "uniform", gain)
