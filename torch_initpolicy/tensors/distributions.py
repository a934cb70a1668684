"""Initializers whose elements are independent, and the recipes of the papers.

Knows distributions and fans; any piece of a tensor can be drawn alone.
"""

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.tensors.axes import Axes, Fans, fans
from torch_initpolicy.tensors.base import (
    Context,
    Distribution,
    Draw,
    Elementwise,
    Gain,
    Layout,
    Mode,
    Spreads,
    alike,
    fitting,
    known,
    parts,
    require_gain,
    require_number,
    require_word,
    resolved,
    unchanged,
    working_dtype,
)
from torch_initpolicy.tensors.samplers import Standard, StandardNormal, StandardUniform, Zero

#
# Drawing
#


def _spread(self: Elementwise, shape: Sequence[int], axes: Layout) -> Spreads:
    """Say what the numbers will be."""
    return alike([draw.spread for draw in self.draws(shape, axes)])


def _standard_(standard: Standard, flat: Tensor, generator: torch.Generator | None) -> Tensor:
    """Fill with a standard distribution; complex numbers have half the variance in each part."""
    if not flat.is_complex():
        return standard.fill_(flat, generator)
    standard.fill_(torch.view_as_real(flat).view(-1), generator)
    return flat.mul_(math.sqrt(0.5))


def _draw_(draw: Draw, flat: Tensor, generator: torch.Generator | None) -> None:
    """Fill with one distribution."""
    if flat.is_complex():
        _standard_(draw.standard, flat, generator).mul_(draw.scale).add_(draw.loc)
    else:
        draw.standard.fill_(flat, generator, draw.loc, draw.scale)


def _runs(shape: Sequence[int], axes: Axes, start: int, flat: Tensor) -> tuple[Tensor, Tensor]:
    """Cut the elements from `start` on into runs of one packed block each.

    Returns:
        The number of each run's block, and its length.
    """
    axis, stop = cast("int", axes.packed), start + flat.numel()
    inner = math.prod(shape[axis + 1 :])
    first, last = start // inner, -(-stop // inner)
    positions = torch.arange(first, last, device=flat.device)
    edges = torch.tensor(list(itertools.accumulate(axes.blocks)), device=flat.device)
    lengths = torch.full_like(positions, inner)
    lengths[0] -= start - first * inner
    lengths[-1] -= last * inner - stop
    return torch.bucketize(positions % sum(axes.blocks), edges, right=True), lengths


def _mix_(
    draws: Sequence[Draw],
    flat: Tensor,
    runs: tuple[Tensor, Tensor],
    generator: torch.Generator | None,
) -> None:
    """Fill each run with the distribution of its block."""
    blocks, lengths = runs

    def each(values: Sequence[float]) -> Tensor:
        column = torch.tensor(values, dtype=flat.real.dtype, device=flat.device)
        return column[blocks].repeat_interleave(lengths, output_size=flat.numel())

    first, *others = dict.fromkeys(draw.standard for draw in draws)
    _standard_(first, flat, generator)
    for standard in others:
        drawn = _standard_(standard, torch.empty_like(flat), generator)
        theirs = each([draw.standard == standard for draw in draws])
        flat.copy_(torch.where(theirs == 1, drawn, flat))
    flat.mul_(each([draw.scale for draw in draws])).add_(each([draw.loc for draw in draws]))


def fill_with(
    draws: Sequence[Draw],
    flat: Tensor,
    shape: Sequence[int],
    axes: Layout,
    *,
    start: int = 0,
    generator: torch.Generator | None = None,
) -> None:
    """Fill `flat` as `fill_` does, with distributions that are known already."""
    if not flat.numel():
        return
    if draws.count(draws[0]) == len(draws):
        _draw_(draws[0], flat, generator)
    else:
        _mix_(draws, flat, _runs(shape, cast("Axes", axes), start, flat), generator)


def fill_(
    self: Elementwise,
    flat: Tensor,
    shape: Sequence[int],
    axes: Layout,
    *,
    start: int = 0,
    generator: torch.Generator | None = None,
) -> None:
    """Fill `flat` with elements `start, start + 1, ...` of the flattened tensor of `shape`.

    Args:
        self: The initializer.
        flat: Contiguous, one-dimensional, of a dtype that `working_dtype` returns.
        shape: Shape of the whole tensor.
        axes: Its axes.
        start: Where in the flattened tensor `flat` begins.
        generator: Where random numbers come from; None for torch's own.
    """
    draws = self.draws(shape, axes)
    fill_with(draws, flat, shape, axes, start=start, generator=generator)


@torch.no_grad()
def write_(
    self: Elementwise,
    tensor: Tensor,
    axes: Layout = None,
    *,
    generator: torch.Generator | None = None,
) -> None:
    """Fill `tensor` in place.

    Args:
        self: The initializer.
        tensor: Any floating-point or complex tensor. Nothing is drawn on the meta device.
        axes: What its axes mean; None for torch's own layout, `(out, in, *kernel)`.
        generator: Where random numbers come from; None for torch's own.

    Raises:
        PolicyError: If the initializer fits neither the tensor's shape and axes nor its dtype.
    """
    dtype = working_dtype(tensor.dtype)
    self.draws(tensor.shape, axes)
    if tensor.is_meta or not tensor.numel():
        return
    if tensor.dtype == dtype and tensor.is_contiguous():
        self.fill_(tensor.detach().view(-1), tensor.shape, axes, generator=generator)
        return
    flat = torch.empty(tensor.numel(), dtype=dtype, device=tensor.device)
    self.fill_(flat, tensor.shape, axes, generator=generator)
    tensor.copy_(flat.view(tensor.shape))


#
# Distributions
#


@dataclass(frozen=True, slots=True)
class Constant:
    """Set every element to `value`.

    A weight whose units are all alike stays so; use it for biases, scales and norms.

    Examples:
        >>> weight = torch.empty(2)
        >>> Constant(0.5)(weight)
        >>> weight
        tensor([0.5000, 0.5000])
    """

    value: float

    def __post_init__(self) -> None:
        require_number(self, "value", self.value)

    def scaled(self, factor: float) -> "Constant":
        """Return the constant `factor` times as large."""
        return Constant(self.value * factor)

    def draws(self, shape: Sequence[int], axes: Layout) -> tuple[Draw, ...]:
        """Return the one value there is."""
        return (Draw(Zero(), self.value),)

    resolve = unchanged
    spread = _spread
    fill_ = fill_
    __call__ = write_


@dataclass(frozen=True, slots=True)
class Zeros:
    """Set every element to 0.

    Examples:
        >>> weight = torch.ones(2)
        >>> Zeros()(weight)
        >>> weight
        tensor([0., 0.])
    """

    def scaled(self, factor: float) -> "Zeros":
        """Return zeros."""
        return self

    def draws(self, shape: Sequence[int], axes: Layout) -> tuple[Draw, ...]:
        """Return the one value there is."""
        return (Draw(Zero()),)

    resolve = unchanged
    spread = _spread
    fill_ = fill_
    __call__ = write_


@dataclass(frozen=True, slots=True)
class Ones:
    """Set every element to 1.

    Examples:
        >>> weight = torch.zeros(2)
        >>> Ones()(weight)
        >>> weight
        tensor([1., 1.])
    """

    def scaled(self, factor: float) -> Constant:
        """Return the constant `factor`."""
        return Constant(factor)

    def draws(self, shape: Sequence[int], axes: Layout) -> tuple[Draw, ...]:
        """Return the one value there is."""
        return (Draw(Zero(), 1.0),)

    resolve = unchanged
    spread = _spread
    fill_ = fill_
    __call__ = write_


@dataclass(frozen=True, slots=True)
class Uniform:
    """Draw uniformly between `low` and `high`.

    Args:
        low: The least value.
        high: The greatest value.

    Examples:
        >>> weight = torch.empty(10000)
        >>> Uniform(-1.0, 3.0)(weight, generator=torch.Generator().manual_seed(0))
        >>> bool(weight.min() >= -1), bool(weight.max() <= 3), round(float(weight.mean()), 1)
        (True, True, 1.0)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        require_number(self, "low", self.low)
        require_number(self, "high", self.high, self.low)

    def scaled(self, factor: float) -> "Uniform":
        """Return the interval `factor` times as large."""
        return Uniform(*sorted((self.low * factor, self.high * factor)))

    def draws(self, shape: Sequence[int], axes: Layout) -> tuple[Draw, ...]:
        """Return the distribution."""
        middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
        return (Draw(StandardUniform(), middle, half),)

    resolve = unchanged
    spread = _spread
    fill_ = fill_
    __call__ = write_


@dataclass(frozen=True, slots=True)
class Normal:
    """Draw from a normal distribution.

    Args:
        std: Its standard deviation.
        mean: Its mean.

    Examples:
        >>> weight = torch.empty(10000)
        >>> Normal(0.02)(weight, generator=torch.Generator().manual_seed(0))
        >>> round(float(weight.std()), 3)
        0.02
    """

    std: float
    mean: float = 0.0

    def __post_init__(self) -> None:
        require_number(self, "std", self.std, 0.0)
        require_number(self, "mean", self.mean)

    def scaled(self, factor: float) -> "Normal":
        """Return the normal `factor` times as wide, its mean as much further out."""
        return Normal(self.std * abs(factor), self.mean * factor)

    def draws(self, shape: Sequence[int], axes: Layout) -> tuple[Draw, ...]:
        """Return the distribution."""
        return (Draw(StandardNormal(), self.mean, self.std),)

    resolve = unchanged
    spread = _spread
    fill_ = fill_
    __call__ = write_


@dataclass(frozen=True, slots=True)
class TruncatedNormal:
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

    std: float
    mean: float = 0.0
    cut: float = 2.0

    def __post_init__(self) -> None:
        require_number(self, "std", self.std, 0.0)
        require_number(self, "mean", self.mean)
        if not self.cut > 0:  # infinity cuts nothing
            raise PolicyError(f"TruncatedNormal: cut must be positive, got {self.cut!r}; try 2.0")

    def scaled(self, factor: float) -> "TruncatedNormal":
        """Return the distribution `factor` times as wide, its mean as much further out."""
        return TruncatedNormal(self.std * abs(factor), self.mean * factor, self.cut)

    def draws(self, shape: Sequence[int], axes: Layout) -> tuple[Draw, ...]:
        """Return the distribution."""
        standard = StandardNormal(self.cut)
        return (Draw(standard, self.mean, self.std / standard.std),)

    resolve = unchanged
    spread = _spread
    fill_ = fill_
    __call__ = write_


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


@dataclass(frozen=True, slots=True)
class VarianceScaling:
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

    scale: float = 1.0
    mode: Mode = "fan_in"
    distribution: Distribution = "normal"
    gain: Gain = 1.0

    def __post_init__(self) -> None:
        require_number(self, "scale", self.scale, 0.0)
        require_word(self, "mode", self.mode, tuple(_FANS))
        require_word(self, "distribution", self.distribution, tuple(_STANDARDS))
        require_gain(self, self.gain)

    def resolve(self, context: Context) -> "VarianceScaling":
        """Replace `gain="meets"` or `"fed_by"` by the number of a site."""
        return replace(self, gain=resolved(self.gain, context))

    def scaled(self, factor: float) -> "VarianceScaling":
        """Return the distribution with `factor` times the gain."""
        return replace(self, gain=known(self.gain) * abs(factor))

    def draws(self, shape: Sequence[int], axes: Layout) -> tuple[Draw, ...]:
        """Return the distribution of each packed block."""
        return _scaled(self, tuple(shape), axes)

    spread = _spread
    fill_ = fill_
    __call__ = write_


@functools.lru_cache(maxsize=4096)
def _scaled(scaling: VarianceScaling, shape: tuple[int, ...], axes: Layout) -> tuple[Draw, ...]:
    """Work out the distribution of each packed block; models repeat their layers."""
    blocks = parts(shape, fitting(scaling, shape, axes))
    return tuple(_of_fans(scaling, fans(*block)) for block in blocks)


def _of_fans(scaling: VarianceScaling, counted: Fans) -> Draw:
    fan = _FANS[scaling.mode](counted)
    std = known(scaling.gain) * math.sqrt(scaling.scale / fan) if fan else 0.0
    standard = _STANDARDS[scaling.distribution]
    return Draw(standard, 0.0, std / standard.std)


#
# Recipes
#


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
    """Draw uniformly with variance `2 / fan_in`: within `sqrt(6 / fan_in)`.

    Args:
        gain: The gain of another activation, as in `he_normal`.
        mode: `"fan_out"` keeps the gradients' variance instead.

    Reference:
        He et al., *Delving Deep into Rectifiers*, 2015, arXiv:1502.01852, eq. 10 and 14.

    Examples:
        >>> spread = he_uniform().spread((20, 150), None)
        >>> round(spread.high, 6), round(spread.std**2 * 150, 6)
        (0.2, 2.0)
    """
    return _he(gain, mode, "uniform")


def xavier_normal(gain: Gain = 1.0) -> VarianceScaling:
    """Draw from a normal of variance `gain^2 * 2 / (fan_in + fan_out)`.

    Args:
        gain: Multiplies the standard deviation.

    Reference:
        Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural
        networks*, 2010, eq. 12.

    Examples:
        >>> round(xavier_normal().spread((20, 30), None).std, 6)
        0.2
    """
    return VarianceScaling(1.0, "fan_avg", "normal", gain)


def xavier_uniform(gain: Gain = 1.0) -> VarianceScaling:
    """Draw uniformly within `gain * sqrt(6 / (fan_in + fan_out))`.

    Args:
        gain: Multiplies the standard deviation.

    Reference:
        Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural
        networks*, 2010, eq. 16.

    Examples:
        >>> round(xavier_uniform().spread((70, 80), None).high, 6)
        0.2
    """
    return VarianceScaling(1.0, "fan_avg", "uniform", gain)


def lecun_normal(gain: Gain = 1.0) -> VarianceScaling:
    """Draw from a normal of variance `gain^2 / fan_in`, which SELU asks for.

    Args:
        gain: Multiplies the standard deviation.

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

    Args:
        gain: Multiplies the standard deviation.

    Reference:
        LeCun et al., *Efficient BackProp*, 1998, eq. 16.

    Examples:
        >>> round(lecun_uniform().spread((10, 75), None).high, 6)
        0.2
    """
    return VarianceScaling(1.0, "fan_in", "uniform", gain)
