"""Activations, their moments under a normal input, and the gains that follow.

A *gain* multiplies a standard deviation: weights of standard deviation `gain / sqrt(fan_in)` behind
the activation keep the second moment of the signal, whatever the depth.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from torch_initpolicy.errors import UnknownNameError, counted, nearest

Function = Callable[[Tensor], Tensor]
"""An element-wise function of one tensor."""

ActivationFamily = Literal["linear", "rectifier", "saturating", "selu"]
"""Which initialisation an activation asks for: `rectifier` He's, `saturating` (bounded, or a
softmax) Xavier's, `selu` LeCun's, `linear` Xavier's for want of an activation."""


class Moments(NamedTuple):
    """Moments of an activation `f` under a normal input `z`."""

    mean: float
    """`E f(z)`"""
    second: float
    """`E f(z)^2`"""
    slope: float
    """`E f'(z)^2`, with `f'` taken almost everywhere: jumps add nothing."""


@dataclass(frozen=True, slots=True)
class Activation:
    """An activation, by its name.

    Attributes:
        name: Its name in `KNOWN` (`"relu"`), or any other name together with `moments`.
        parameter: Its parameters, where it has any and they are not the usual ones (the slope of
            `leaky_relu`, both bounds of `hardtanh`).
        moments: Measured moments, for an activation that is not in `KNOWN`.

    Examples:
        >>> round(gain(Activation("leaky_relu", 0.2)), 6)
        1.38675
    """

    name: str
    parameter: float | tuple[float, ...] | None = None
    moments: Moments | None = None

    def __post_init__(self) -> None:
        if self.moments is not None:  # a file holds three numbers
            object.__setattr__(self, "moments", Moments(*self.moments))


# The table


@dataclass(frozen=True, slots=True)
class Formula:
    """An activation of the table.

    Its `function` is called with the input and the parameters, `usual` where none are named; None
    where it has several variables. Its moments are `exact` in closed form, where the last digits of
    a quadrature would show in a plan.
    """

    function: Callable[..., Tensor] | None
    family: ActivationFamily = "rectifier"
    usual: tuple[float, ...] = ()
    exact: Callable[..., Moments] | None = None


def _leaky(*slopes: float) -> Moments:
    """Return the moments of a ReLU of negative slope drawn from `slopes`."""
    slope = sum(slopes) / len(slopes)
    power = (1 + sum(slope**2 for slope in slopes) / len(slopes)) / 2
    return Moments((1 - slope) / math.sqrt(2 * math.pi), power, power)


def _randomised(lower: float, upper: float) -> Moments:
    """Return the moments of RReLU in training: three slopes with the uniform's mean and square."""
    middle, reach = (lower + upper) / 2, (upper - lower) / math.sqrt(8)
    return _leaky(middle - reach, middle, middle + reach)


def _gated(gate: Callable[[Tensor], Tensor], family: ActivationFamily) -> Formula:
    """Describe `a * gate(b)` of independent halves: its power is that of the gate."""

    def exact() -> Moments:
        power = _integrate(gate, 0.0, 1.0).second
        return Moments(0.0, power, power)

    return Formula(None, family, exact=exact)


KNOWN: Mapping[str, Formula] = MappingProxyType(
    {
        "identity": Formula(torch.clone, "linear", exact=lambda: Moments(0.0, 1.0, 1.0)),
        "relu": Formula(F.relu, exact=lambda: _leaky(0.0)),
        "leaky_relu": Formula(F.leaky_relu, usual=(0.01,), exact=_leaky),
        "prelu": Formula(F.leaky_relu, usual=(0.25,), exact=_leaky),
        "rrelu": Formula(None, usual=(1 / 8, 1 / 3), exact=_randomised),
        "relu6": Formula(F.relu6),
        "relu2": Formula(lambda x: F.relu(x).square(), exact=lambda: Moments(0.5, 1.5, 2.0)),
        "threshold": Formula(F.threshold, usual=(0.0, 0.0)),
        "elu": Formula(F.elu, usual=(1.0,)),
        "celu": Formula(F.celu, usual=(1.0,)),
        "selu": Formula(F.selu, "selu"),
        "gelu": Formula(F.gelu),
        "gelu_tanh": Formula(lambda x: F.gelu(x, approximate="tanh")),
        "quick_gelu": Formula(lambda x: x * torch.sigmoid(1.702 * x)),
        "silu": Formula(F.silu),
        "mish": Formula(F.mish),
        "hardswish": Formula(F.hardswish),
        "softplus": Formula(F.softplus, usual=(1.0,)),
        "logsigmoid": Formula(F.logsigmoid),
        "tanhshrink": Formula(F.tanhshrink),
        "softshrink": Formula(F.softshrink, usual=(0.5,)),
        "hardshrink": Formula(F.hardshrink, usual=(0.5,)),
        "abs": Formula(torch.abs, exact=lambda: Moments(math.sqrt(2 / math.pi), 1.0, 1.0)),
        "square": Formula(torch.square, exact=lambda: Moments(1.0, 3.0, 4.0)),
        "exp": Formula(torch.exp, exact=lambda: Moments(math.exp(0.5), math.exp(2), math.exp(2))),
        "tanh": Formula(torch.tanh, "saturating"),
        "sigmoid": Formula(torch.sigmoid, "saturating"),
        "hardtanh": Formula(F.hardtanh, "saturating", usual=(-1.0, 1.0)),
        "hardsigmoid": Formula(F.hardsigmoid, "saturating"),
        "softsign": Formula(F.softsign, "saturating"),
        "erf": Formula(torch.erf, "saturating"),
        "atan": Formula(torch.atan, "saturating"),
        "sin": Formula(torch.sin, "saturating"),
        "cos": Formula(torch.cos, "saturating"),
        "softmax": Formula(None, "saturating"),
        "log_softmax": Formula(None, "saturating"),
        "glu": _gated(torch.sigmoid, "saturating"),
        "reglu": _gated(F.relu, "rectifier"),
        "geglu": _gated(F.gelu, "rectifier"),
        "swiglu": _gated(F.silu, "rectifier"),
    }
)
"""The activations known by name. Names are those of `torch.nn.functional` where it has one;
`relu2` is the squared ReLU; `glu` and its variants are a product of two independent halves."""


def _row_of(activation: Activation) -> tuple[Formula, tuple[float, ...]]:
    if activation.name not in KNOWN:
        raise UnknownNameError(
            f"no activation is called {activation.name!r}{nearest(activation.name, KNOWN)}; "
            "measure another one: Activation(name, moments=moments(function))"
        )
    known, given = KNOWN[activation.name], activation.parameter
    if given is None:
        return known, known.usual
    parameters = given if isinstance(given, tuple) else (given,)
    if len(parameters) != len(known.usual):
        takes = counted(len(known.usual), "parameter")
        raise ValueError(f"{activation}: {activation.name} takes {takes}")
    return known, tuple(map(float, parameters))


def family(activation: Activation | str) -> ActivationFamily:
    """Say which initialisation an activation asks for.

    That is He's for one that is known by its moments alone: with its own gain it keeps the signal
    whatever its shape.

    Examples:
        >>> family("gelu"), family("tanh"), family("selu")
        ('rectifier', 'saturating', 'selu')
    """
    name = activation if isinstance(activation, str) else activation.name
    return KNOWN[name].family if name in KNOWN else "rectifier"


# Quadrature

_OUT_TO = 12  # standard deviations; what lies beyond has probability 4e-33
_PANELS = 4 * _OUT_TO  # half a standard deviation wide, so that the usual kinks lie on their edges
_NODES = 12
_BISECTIONS = 24  # bisections around a kink or jump: the last panel is 3e-8 wide
_BUSIEST = 2048  # rough panels, halved each round down to 128; more are noise, not kinks
_TOLERANCE = 1e-9


@functools.cache
def _quadrature() -> tuple[Tensor, Tensor, Tensor]:
    """Return Gauss-Legendre nodes and weights on `[-1, 1]` and the matrix that differentiates.

    Reference:
        Golub and Welsch, *Calculation of Gauss Quadrature Rules*, 1969; Wang, Huybrechs and
        Vandewalle, *Explicit barycentric weights for polynomial interpolation*, 2014,
        arXiv:1202.0154, theorem 3.1.
    """
    order = torch.arange(1, _NODES, dtype=torch.float64)
    beside = order / (4 * order**2 - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(torch.diag(beside, 1) + torch.diag(beside, -1))
    weights = 2 * vectors[0].square()
    signs = (-1.0) ** torch.arange(_NODES, dtype=torch.float64)
    barycentric = signs * ((1 - nodes**2) * weights).sqrt()
    gaps = (nodes[:, None] - nodes).fill_diagonal_(1)
    derivative = (barycentric / barycentric[:, None] / gaps).fill_diagonal_(0)
    return nodes, weights, derivative - torch.diag(derivative.sum(1))


def _panel_moments(
    function: Function, mean: float, std: float, low: Tensor, width: float
) -> Tensor:
    """Integrate `f`, `f^2` and `f'^2` over panels `[low, low + width]`, shape `(panels, 3)`."""
    nodes, weights, derivative = _quadrature()
    z = low[:, None] + width / 2 * (1 + nodes)
    value = function((mean + std * z).flatten()).to(torch.float64)
    if value.shape != (z.numel(),):
        raise ValueError(f"not an element-wise function: {z.numel()} values became {value.shape}")
    value = value.view_as(z)
    slope = value @ derivative.mT / (width / 2 * std)
    density = weights * torch.exp(-z.square() / 2) * (width / 2 / math.sqrt(2 * math.pi))
    return (torch.stack((value, value.square(), slope.square()), -1) * density[..., None]).sum(1)


def _tolerances(estimate: Tensor, std: float) -> Tensor:
    """Return the error that one panel may have in each moment."""
    mean, second, _ = estimate.tolist()
    # The slope's own estimate explodes at a jump. Poincare's inequality bounds it from below.
    # A product, which is infinite where a power would raise.
    variance = max(second - mean * mean, 1e-5 * second)
    return _TOLERANCE * torch.tensor((math.sqrt(second), second, variance / std**2)).double()


@torch.inference_mode(mode=False)
@torch.no_grad()
def _integrate(function: Function, mean: float, std: float) -> Moments:
    """Integrate by Gauss-Legendre on panels, bisecting those that a kink or a jump makes rough."""
    with torch.device("cpu"):
        width = 2 * _OUT_TO / _PANELS
        low = torch.arange(_PANELS, dtype=torch.float64) * width - _OUT_TO
        whole = _panel_moments(function, mean, std, low, width)
        allowed = _tolerances(whole.sum(0), std)
        total = torch.zeros(3, dtype=torch.float64)
        for depth in range(_BISECTIONS):
            if not len(low):
                break
            width /= 2
            halves = torch.stack((low, low + width), 1)
            parts = _panel_moments(function, mean, std, halves.flatten(), width).view(-1, 2, 3)
            rough = ((whole - parts.sum(1)).abs() > allowed).any(1)
            if rough.sum() > max(_BUSIEST >> depth, 128):
                rough.zero_()
            total += parts[~rough].sum((0, 1))
            low, whole = halves[rough].flatten(), parts[rough].flatten(0, 1)
        # What is still rough holds a jump, whose difference quotient is no slope.
        total[:2] += whole.sum(0)[:2]
    return Moments(*total.tolist())


@functools.lru_cache(maxsize=256)
def _known_moments(activation: Activation, mean: float, std: float) -> Moments:
    known, parameters = _row_of(activation)
    if known.exact is not None and (mean, std) == (0.0, 1.0):
        return known.exact(*parameters)
    return _integrate(function_of(activation), mean, std)


def function_of(activation: Activation) -> Function:
    """Return an activation of the table as a function of a tensor, with its own parameters."""
    known, parameters = _row_of(activation)
    function = known.function
    if function is None:
        raise ValueError(f"{activation.name} is no function of one variable")
    return lambda x: function(x, *parameters)


def moments(
    function: Activation | str | Function, *, mean: float = 0.0, std: float = 1.0
) -> Moments:
    """Integrate an activation and its slope over a normal input.

    The relative error is below 1e-5, with kinks and jumps wherever they lie (plain Gauss-Hermite
    quadrature is off by up to 7e-3 at a kink). A function that is not finite everywhere gives
    moments that are not either.

    Args:
        function: An activation, its name, or any element-wise function of a float64 tensor.
        mean: Mean of the input.
        std: Standard deviation of the input, positive.

    Raises:
        UnknownNameError: If no activation has that name.
        ValueError: If the function is not element-wise, or was measured under another input.

    Examples:
        >>> [round(moment, 6) for moment in moments("silu")]
        [0.206621, 0.355776, 0.379482]
    """
    if not (std > 0 and math.isfinite(std) and math.isfinite(mean)):
        raise ValueError(f"a normal input has a finite mean and a positive std, got {mean}, {std}")
    if not isinstance(function, (str, Activation)):
        return _integrate(function, float(mean), float(std))
    activation = Activation(function) if isinstance(function, str) else function
    if activation.moments is None:
        return _known_moments(activation, float(mean), float(std))
    if (mean, std) != (0.0, 1.0):
        raise ValueError(
            f"{activation.name} was measured under a standard normal; pass its function"
        )
    return activation.moments


# Gains


def gain(activation: Activation | str) -> float:
    """Return the factor of the standard deviation that keeps the signal's second moment.

    For ReLU and leaky ReLU these are torch's numbers, `sqrt(2 / (1 + slope^2))`; for any other
    function `1 / sqrt(E f(z)^2)`. They differ from `torch.nn.init.calculate_gain` for tanh (there
    5/3), sigmoid (there 1) and selu (there 3/4, which is not self-normalising). A softmax has no
    moments of its own; its gain is 1.

    Raises:
        UnknownNameError: If no activation has that name.
        ValueError: If its second moment is zero or not finite.

    Reference:
        He et al., *Delving Deep into Rectifiers*, 2015, arXiv:1502.01852, eq. 10 and 15;
        Klambauer et al., *Self-Normalizing Neural Networks*, 2017, arXiv:1706.02515.

    Examples:
        >>> [round(gain(name), 6) for name in ("relu", "gelu", "tanh", "softmax")]
        [1.414214, 1.53353, 1.592537, 1.0]
    """
    name = activation if isinstance(activation, str) else activation.name
    if name in ("softmax", "log_softmax"):
        return 1.0
    power = moments(activation).second
    if not 0 < power < math.inf:
        raise ValueError(
            f"{name} has no gain: its second moment under a standard normal is {power}"
        )
    return 1 / math.sqrt(power)


# Recognition

CUSTOM = "custom"
"""Name of an activation that the table does not have, where no other says more."""

_LIKENESS = 1e-6  # of values; the two GELUs differ by 4e-4, constants of 8 digits by 1e-8


def _fitted(function: Function) -> Iterator[Activation]:
    """Yield activations whose parameters are read off the function itself."""
    probe = torch.tensor((-1e3, -1.0, 0.0, 1e3), dtype=torch.float64)
    left, minus_one, zero, right = function(probe).tolist()
    yield Activation("leaky_relu", -minus_one)
    if left < 0:
        yield Activation("elu", -left)
        yield Activation("celu", -left)
    if left < right:
        yield Activation("hardtanh", (left, right))
    if zero > 0:
        yield Activation("softplus", math.log(2) / zero)


def _candidates(function: Function) -> Iterator[tuple[Activation, Tensor]]:
    """Yield activations of the table with their values on the grid, the usual ones first."""
    for activation in itertools.chain(map(Activation, KNOWN), _fitted(function)):
        known, parameters = _row_of(activation)
        if known.function is not None and all(map(math.isfinite, parameters)):
            yield activation, known.function(_grid(), *parameters)


def _grid() -> Tensor:
    return torch.linspace(-8.0, 8.0, 122, dtype=torch.float64)


def _is_alike(values: Tensor, others: Tensor) -> bool:
    return bool(((values - others).abs() <= _LIKENESS * (1 + others.abs())).all())


@torch.inference_mode(mode=False)
@torch.no_grad()
def recognise(function: Function, *, name: str = CUSTOM) -> Activation | None:
    """Find an element-wise function in the table of activations.

    Args:
        function: An element-wise function of a float64 tensor.
        name: What to call it where the table does not have it; `"custom"` in place of one that
            saturates, where the function does not.

    Returns:
        The activation of the table, with its parameters where they are not the usual ones; or one
        called `name` with measured moments; or None where the function is affine.

    Raises:
        ValueError: If the function is not element-wise.

    Examples:
        >>> recognise(lambda x: torch.maximum(x, 0.2 * x))
        Activation(name='leaky_relu', parameter=0.2, moments=None)
    """
    with torch.device("cpu"):
        grid = _grid()
        values = function(grid.clone()).to(torch.float64)
        if values.shape != grid.shape:
            raise ValueError(f"{name} is not element-wise: {grid.shape} became {values.shape}")
        line = torch.lerp(values[0], values[-1], (grid - grid[0]) / (grid[-1] - grid[0]))
        if _is_alike(values, line):
            return None
        found = (known for known, others in _candidates(function) if _is_alike(values, others))
        known = next(found, None)
        if known is None and family(name) == "saturating" and not _is_bounded(function):
            name = CUSTOM
        return known or Activation(name, moments=moments(function))


def _is_bounded(function: Function) -> bool:
    """Say whether a function has stopped growing a thousand standard deviations out."""
    far = function(torch.tensor((-1e3, 1e3, -1e6, 1e6), dtype=torch.float64)).abs()
    return bool(far[2:].max() <= 2 * far[:2].max())
