"""Recipes: what a rule may hold in place of an initializer where the site decides the numbers.

Knows layers one at a time, not rules. A recipe is asked once for each site and
answers with an initializer.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.sites import Site
from torch_initpolicy.tensors import initializers as init
from torch_initpolicy.tensors.axes import Fans, block_fans
from torch_initpolicy.tensors.base import take_number
from torch_initpolicy.tensors.layers import NORMS
from torch_initpolicy.trace.facts import Facts


@runtime_checkable
class Recipe(Protocol):
    """Anything that chooses an initializer for a site."""

    def for_site(self, site: Site, facts: Facts) -> init.Initializer:
        """Choose the initializer of one site."""


@dataclass(frozen=True, slots=True)
class UnitScale:
    """Let a normalisation's scale start at one in total: 0 where the operator adds 1 to it."""

    def for_site(self, site: Site, facts: Facts) -> init.Initializer:
        return {0.0: init.Ones(), 1.0: init.Zeros()}.get(
            facts.offset, init.Constant(1.0 - facts.offset)
        )


@dataclass(frozen=True, slots=True)
class EmbeddingScale:
    """Draw rows as large as what reads them asks for.

    Where the table is the head, too, logits start with the variance of what it reads:
    `N(0, 1 / width)`. Before a recurrent layer, or on a residual stream that normalisations read,
    rows start with mean square 1, else at `N(0, 0.02)`. Known constants on the way are taken out.
    """

    def for_site(self, site: Site, facts: Facts) -> init.Initializer:
        if facts.head_multiplier is not None and site.shape:
            return init.Normal(1 / (math.sqrt(site.shape[-1] or 1) * facts.head_multiplier))
        return init.Normal(1 / facts.multiplier.output) if facts.reader else init.Normal(0.02)


@dataclass(frozen=True, slots=True)
class SirenScale:
    """Draw the weights of sine networks, uniformly.

    First layers within `1 / fan_in`, all others within `sqrt(6 / fan_in) / w0`, where `sin(w0 * x)`
    follows, whatever constants the code multiplies by.
    """

    w0: float = 30.0

    def __post_init__(self) -> None:
        take_number(self, "w0")
        if not self.w0 > 0:
            raise PolicyError(f"SirenScale: w0 must be a positive factor, got {self.w0}")

    def for_site(self, site: Site, facts: Facts) -> init.Initializer:
        fan_in = max((fan.fan_in for fan in _fans(site, facts)), default=0.0) or 1.0
        bound = 1 / fan_in if facts.reads_input else math.sqrt(6 / fan_in) / self.w0
        return init.Uniform(-bound, bound)


@dataclass(frozen=True, slots=True)
class AspectScale:
    """Draw normally with the standard deviation `min(1, sqrt(fan_out / fan_in)) / sqrt(fan_in)`."""

    def for_site(self, site: Site, facts: Facts) -> init.Initializer:
        fan_in, fan_out = next(iter(_fans(site, facts)), (1.0, 1.0))
        return init.Normal(min(1.0, math.sqrt(fan_out / fan_in)) / math.sqrt(fan_in))


def _fans(site: Site, facts: Facts) -> Sequence[Fans]:
    return block_fans(site.shape, facts.axes or site.axes)


@dataclass(frozen=True, slots=True)
class Frequencies:
    """Draw what a sine makes of the coordinates that a network reads.

    Where the code multiplies by a frequency `w0`, as `sin(w0 * (W x))`, that is meant: weights from
    `U(-1 / n, 1 / n)` for `n` coordinates spread the phases over many periods. Without one the sine
    reads a variance of 1, as it does in the layers behind.

    Reference:
        Sitzmann et al., *Implicit Neural Representations with Periodic Activation Functions*, 2020,
        arXiv:2006.09661, section 3.2 and supplement, section 1.5.
    """

    def for_site(self, site: Site, facts: Facts) -> init.Initializer:
        counted = block_fans(site.shape, facts.axes)
        if facts.multiplier.output <= 1 or len(counted) != 1:
            return init.VarianceScaling(2.0, "fan_in", "uniform")
        return init.Uniform(-1 / counted[0].fan_in, 1 / counted[0].fan_in)


@dataclass(frozen=True, slots=True)
class Phases:
    """Spread the phases of sines over one period: `U(-pi, pi)` in total.

    The mean square of `sin(z + phase)` is then 1/2 whatever `z` is, and what a network makes of its
    inputs is no odd function at the start. SIREN's hidden biases come close to it: `30 / sqrt(n)`.

    Reference:
        Rahimi and Recht, *Random Features for Large-Scale Kernel Machines*, 2007, algorithm 1.
    """

    def for_site(self, site: Site, facts: Facts) -> init.Initializer:
        half = math.pi / (facts.multiplier.output or 1.0)
        return init.Uniform(-half, half)


@dataclass(frozen=True, slots=True)
class TorchDefault:
    """Draw what the constructor of torch's own layer draws; keep what no such layer holds."""

    def for_site(self, site: Site, facts: Facts) -> init.Initializer:
        inside = any(isinstance(parent, nn.Transformer) for parent in site.parents)
        if inside and len(site.shape) > 1:  # nn.Transformer fills again what its layers have filled
            extent = math.prod(site.shape[2:])
            return _xavier(site.shape[1] * extent, site.shape[0] * extent)
        return default_of(site.owner, site.attribute)


RECIPES = (
    UnitScale, EmbeddingScale, SirenScale, AspectScale, Frequencies, Phases, TorchDefault,
)  # fmt: skip
"""The recipes that a file may hold."""


# What torch's constructors draw


def _within(fan: float) -> init.Initializer:
    """Return `U(-1/sqrt(fan), 1/sqrt(fan))`, which is He's uniform at a slope of sqrt(5)."""
    bound = 1 / math.sqrt(fan) if fan else 0.0
    return init.Uniform(-bound, bound)


def _xavier(fan_in: int, fan_out: int) -> init.Initializer:
    bound = math.sqrt(6 / (fan_in + fan_out)) if fan_in + fan_out else 0.0
    return init.Uniform(-bound, bound)


@functools.singledispatch
def default_of(module: nn.Module, name: str) -> init.Initializer:
    """Say how the constructor of one of torch's layers fills a parameter; `Keep()` for any other.

    Torch counts its own fans there: a transposed convolution's `fan_in` is `out / groups * kernel`,
    and packed projections are one matrix. So does this.

    Examples:
        >>> default_of(nn.Linear(4, 8), "bias")
        Uniform(low=-0.5, high=0.5)
    """
    return init.Keep()


def _affine(fan: Callable[[Any], int], module: nn.Module, name: str) -> init.Initializer:
    return _within(fan(module)) if name in ("weight", "bias") else init.Keep()


_FANS: Mapping[type[nn.Module], Callable[[Any], int]] = MappingProxyType({
    nn.Linear: lambda layer: layer.in_features,
    nn.Bilinear: lambda layer: layer.in1_features,
    _ConvNd: lambda layer: layer.in_channels // layer.groups * math.prod(layer.kernel_size),
    _ConvTransposeNd: lambda layer: (
        layer.out_channels // layer.groups * math.prod(layer.kernel_size)
    ),
})  # fmt: skip
"""What torch counts as the fan-in of a layer, whose weight and bias it draws by that alone."""

for _kind, _fan in _FANS.items():
    default_of.register(_kind, functools.partial(_affine, _fan))


@default_of.register(NonDynamicallyQuantizableLinear)
def _(module: nn.Linear, name: str) -> init.Initializer:
    # The output projection of nn.MultiheadAttention, which sets its bias to zero.
    return init.Zeros() if name == "bias" else _affine(_FANS[nn.Linear], module, name)


@default_of.register(nn.RNNBase)
@default_of.register(nn.RNNCellBase)
def _(module: nn.RNNBase, name: str) -> init.Initializer:
    return _within(module.hidden_size)


@default_of.register(nn.Embedding)
@default_of.register(nn.EmbeddingBag)
def _(module: nn.Embedding, name: str) -> init.Initializer:
    return init.Normal(1.0) if name == "weight" else init.Keep()


_NORM: Mapping[str, init.Initializer] = MappingProxyType(
    {"weight": init.Ones(), "bias": init.Zeros()}
)


for _kind in NORMS:
    default_of.register(_kind, lambda _, name: _NORM.get(name, init.Keep()))


@default_of.register(nn.PReLU)
def _(module: nn.PReLU, name: str) -> init.Initializer:
    return init.Constant(module.init) if name == "weight" else init.Keep()


@default_of.register(nn.MultiheadAttention)
def _(module: nn.MultiheadAttention, name: str) -> init.Initializer:
    width = module.embed_dim
    fillings: dict[str, init.Initializer] = {
        "in_proj_weight": _xavier(width, 3 * width),
        "q_proj_weight": _xavier(width, width),
        "k_proj_weight": _xavier(module.kdim, width),
        "v_proj_weight": _xavier(module.vdim, width),
        "in_proj_bias": init.Zeros(),
        "bias_k": init.Normal(1 / math.sqrt(width)),
        "bias_v": init.Normal(1 / math.sqrt(width)),
    }
    return fillings.get(name, init.Keep())
