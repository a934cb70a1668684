"""MMEngine: its `init_cfg` dictionaries as policies; needs no MMEngine."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from torch import nn

from torch_initpolicy.errors import PolicyError, UnknownNameError, nearest
from torch_initpolicy.policy import match
from torch_initpolicy.policy.matchers import Matcher
from torch_initpolicy.policy.rules import InitPolicy, Rule
from torch_initpolicy.tensors import initializers as init

__all__ = ["policy_of"]

Config: TypeAlias = Mapping[str, Any]


def policy_of(init_cfg: Config | Sequence[Config]) -> InitPolicy:
    """Return the policy that an `init_cfg` stands for; what it does not name is kept.

    Of several dictionaries the last has the last word, as in MMEngine; fans are counted, where
    MMEngine takes them from the shape.

    Raises:
        UnknownNameError: There is no such `type`.
        PolicyError: A dictionary lacks what its type needs, or holds what that does not know.

    Examples:
        >>> policy_of(dict(type="Xavier", layer="Linear", bias=0.1)).rules[0].initializer
        VarianceScaling(scale=1.0, mode='fan_avg', distribution='normal', gain=1.0)
    """
    given = [init_cfg] if isinstance(init_cfg, Mapping) else list(init_cfg)
    rules = [rule for config in reversed(given) for rule in _rules(config)]
    return InitPolicy(rules, name="init_cfg").otherwise(init.Keep())


def _rules(config: Config) -> Iterator[Rule]:
    """Yield the rules of one dictionary, those of its overrides first."""
    own = dict(config)
    overrides, layers = own.pop("override", ()), own.pop("layer", ())
    for override in [overrides] if isinstance(overrides, Mapping) else reversed(overrides):
        stated = dict(override)
        if "name" not in stated:
            raise PolicyError(f"an override needs a name: {override}")
        yield from _pair(match.name(f"{stated.pop('name')}.*"), stated or own)
    if layers:
        names = [layers] if isinstance(layers, str) else layers
        yield from _pair(match.kind(*names), own)


def _pair(where: Matcher, config: Config) -> Iterator[Rule]:
    """Yield the rules for the weights and biases of some layers."""
    kind, arguments = str(config.get("type")), {k: v for k, v in config.items() if k != "type"}
    bias, probability = arguments.pop("bias", 0.0), arguments.pop("bias_prob", None)
    if probability is not None:
        bias = -math.log((1 - probability) / probability)
    if kind == "Pretrained":
        raise PolicyError("Pretrained loads a checkpoint: load it, then initialize_missing(...)")
    if kind not in _FILLS:
        known = ", ".join(_FILLS)
        raise UnknownNameError(f"no init_cfg has type {kind!r}{nearest(kind, _FILLS)}; {known}")
    try:
        filling = _FILLS[kind](**arguments)
    except TypeError as error:
        raise PolicyError(f"init_cfg of type {kind!r}: {error}") from error
    yield Rule(where & match.name("weight", "*.weight"), filling)
    yield Rule(where & match.name("bias", "*.bias"), init.Constant(float(bias)), optional=True)


def _kaiming(
    a: float = 0, mode: Any = "fan_out", nonlinearity: Any = "relu", distribution: Any = "normal"
) -> init.Initializer:
    gain = nn.init.calculate_gain(nonlinearity, a)
    return init.VarianceScaling(gain**2, mode, distribution)


_FILLS: Mapping[str, Callable[..., init.Initializer]] = MappingProxyType({
    "Constant": lambda val: init.Constant(float(val)),
    "Normal": lambda mean=0, std=1: init.Normal(float(std), float(mean)),
    "TruncNormal": lambda mean=0, std=1, a=-2, b=2: (
        init.From(nn.init.trunc_normal_, mean=mean, std=std, a=a, b=b)
    ),
    "Uniform": lambda a=0, b=1: init.Uniform(float(a), float(b)),
    "Xavier": lambda gain=1, distribution="normal": (
        init.VarianceScaling(float(gain) ** 2, "fan_avg", distribution)
    ),
    "Kaiming": _kaiming,
    "Caffe2Xavier": lambda: init.VarianceScaling(1.0, "fan_in", "uniform"),
})  # fmt: skip
"""What each type fills a weight with, by the arguments that it has in MMEngine."""
