"""Facts about single layers, by their type.

Four open functions, dispatched on the module's class through its MRO, so that subclasses and
torch's own dynamic classes (`ParametrizedLinear`) are found without any code. Teach them a layer of
your own with `.register`. What only the data flow can tell (a raw parameter's axes, a table's role)
is not guessed here: the answer is None or `"unknown"`.
"""

import functools
import importlib
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.lazy import LazyModuleMixin

from torch_initpolicy.tensors.axes import Axes

Role = Literal[
    "weight", "bias", "norm_weight", "norm_bias", "embedding", "recurrent", "gate", "scale",
    "spread", "position", "token", "table", "unknown",
]  # fmt: skip
"""What a parameter does.

`weight`: a linear map; `recurrent`: one from a state to the same state. `bias`: added to a linear
map. `norm_weight`, `norm_bias`: the affine part of a normalisation. `embedding`: rows looked up by
index. `gate`, `scale`: multiplies a signal, as one number or per channel. `position`, `token`,
`table`: added to, or standing beside, the signal (position embeddings, class tokens, bias tables).
`unknown`: the type does not say, and perhaps the data flow does not."""

_OUT_IN = Axes(inputs=(1,), outputs=(0,))
_VECTOR = Axes(inputs=(), outputs=(0,))
_LOOKUP = Axes(inputs=(), outputs=(1,), copies=(0,))


def _stacked(layout: Axes, count: int, size: int) -> Axes:
    """Stack equal blocks along the output axis; a single one is nothing packed."""
    return Axes(layout.inputs, layout.outputs, blocks=(size,) * count if count > 1 else ())


def _foreign(module: nn.Module) -> Axes | None:
    """Return the axes of the weight of another library's layer, which inherits from none here."""
    libraries = importlib.import_module("torch_initpolicy.integrations.layers")
    axes: Axes | None = libraries.axes_of_weight(module)
    return axes


# Axes


@functools.singledispatch
def axes_of(module: nn.Module, name: str) -> Axes | None:
    """Say what the axes of parameter `name` mean, or None where it is no linear map.

    Lazy layers have none before their first forward pass. Packed vectors (the biases of recurrent
    and attention layers) have axes too, to say how they are packed.

    Examples:
        >>> axes_of(nn.Conv2d(8, 32, 3, groups=4), "weight")
        Axes(inputs=(1,), outputs=(0,), groups=4)

        Teach it a layer of your own:

        >>> class Transposed(nn.Module):
        ...     pass
        >>> @axes_of.register
        ... def _(module: Transposed, name: str) -> Axes | None:
        ...     return Axes(inputs=(0,), outputs=(1,)) if name == "weight" else None
        >>> axes_of(Transposed(), "weight").inputs
        (0,)
    """
    return _foreign(module) if name == "weight" else None


@axes_of.register(LazyModuleMixin)
def _(module: nn.Module, name: str) -> Axes | None:  # type: ignore[misc]  # a mixin of modules
    # A lazy class stands before its materialised one in the MRO, and is left at the first forward.
    return None


def _layout_of_weight(module: nn.Module, name: str, layout: Axes) -> Axes | None:
    return layout if name == "weight" else None


for _kind, _layout in (
    (nn.Linear, _OUT_IN),
    (nn.Bilinear, Axes(inputs=(1, 2), outputs=(0,))),
    (nn.Embedding, _LOOKUP),
    (nn.EmbeddingBag, _LOOKUP),
):
    axes_of.register(_kind, functools.partial(_layout_of_weight, layout=_layout))


@axes_of.register(_ConvNd)
def _(module: nn.Conv2d, name: str) -> Axes | None:
    if name != "weight":
        return None
    maps = ((0,), (1,)) if module.transposed else ((1,), (0,))
    stride = math.prod(module.stride)
    return Axes(*maps, groups=module.groups, stride=stride, transposed=module.transposed)


@axes_of.register(nn.MultiheadAttention)
def _(module: nn.MultiheadAttention, name: str) -> Axes | None:
    return {
        "in_proj_weight": _stacked(_OUT_IN, 3, module.embed_dim),
        "q_proj_weight": _OUT_IN,
        "k_proj_weight": _OUT_IN,
        "v_proj_weight": _OUT_IN,
        "in_proj_bias": _stacked(_VECTOR, 3, module.embed_dim),
    }.get(name)


def _bare_name(name: str) -> str:
    """Cut layer and direction off a recurrent layer's parameter: `weight_ih_l0_reverse`."""
    return name.partition("_l")[0]


def _recurrent_axes(module: nn.RNNBase | nn.RNNCellBase, name: str, gates: int) -> Axes | None:
    if _bare_name(name) == "weight_hr":  # the projection of `proj_size`, `(proj, hidden)`
        return _OUT_IN
    known = {"weight_ih": _OUT_IN, "weight_hh": _OUT_IN, "bias_ih": _VECTOR, "bias_hh": _VECTOR}
    layout = known.get(_bare_name(name))
    return None if layout is None else _stacked(layout, gates, module.hidden_size)


@axes_of.register(nn.RNNBase)
def _(module: nn.RNNBase, name: str) -> Axes | None:
    return _recurrent_axes(module, name, {"LSTM": 4, "GRU": 3}.get(module.mode, 1))


for _cell, _gates in ((nn.RNNCellBase, 1), (nn.GRUCell, 3), (nn.LSTMCell, 4)):
    axes_of.register(_cell, functools.partial(_recurrent_axes, gates=_gates))


# Roles

_LINEAR: Mapping[str, Role] = MappingProxyType({"weight": "weight", "bias": "bias"})
_RECURRENT: Mapping[str, Role] = MappingProxyType(
    {
        "weight_ih": "weight",
        "weight_hh": "recurrent",
        "weight_hr": "weight",
        "bias_ih": "bias",
        "bias_hh": "bias",
    }
)
NORMS = (_BatchNorm, _InstanceNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
"""Torch's normalisations, whose parameters scale and shift what they make."""

_ROLES: Sequence[tuple[Sequence[type[nn.Module]], Mapping[str, Role]]] = (
    ((nn.Linear, nn.Bilinear, _ConvNd), _LINEAR),
    (NORMS, {"weight": "norm_weight", "bias": "norm_bias"}),
    ((nn.Embedding, nn.EmbeddingBag), {"weight": "embedding"}),
    ((nn.PReLU,), {"weight": "scale"}),
    (
        (nn.MultiheadAttention,),
        {
            "in_proj_weight": "weight",
            "q_proj_weight": "weight",
            "k_proj_weight": "weight",
            "v_proj_weight": "weight",
            "in_proj_bias": "bias",
            "bias_k": "token",  # one learned key and value beside those of the sequence
            "bias_v": "token",
        },
    ),
)
"""What the parameters of torch's layers do."""


@functools.singledispatch
def role_of(module: nn.Module, name: str) -> Role:
    """Say what parameter `name` does; `"unknown"` where the type cannot tell.

    Examples:
        >>> role_of(nn.LSTM(8, 16), "weight_hh_l0")
        'recurrent'
        >>> role_of(nn.LayerNorm(8), "bias")
        'norm_bias'
    """
    return _LINEAR.get(name, "unknown") if _foreign(module) else "unknown"


def _role_among(module: nn.Module, name: str, roles: Mapping[str, Role]) -> Role:
    return roles.get(name, "unknown")


for _owners, _roles in _ROLES:
    for _owner in _owners:
        role_of.register(_owner, functools.partial(_role_among, roles=_roles))


@role_of.register(nn.RNNBase)
@role_of.register(nn.RNNCellBase)
def _(module: nn.Module, name: str) -> Role:
    return _RECURRENT.get(_bare_name(name), "unknown")


# What must stay zero, what is reset beside the parameters


@functools.singledispatch
def padding_of(module: nn.Module, name: str) -> int | None:
    """Return the row of parameter `name` that must stay zero, or None."""
    return None


@padding_of.register(nn.Embedding)
@padding_of.register(nn.EmbeddingBag)
def _(module: nn.Embedding, name: str) -> int | None:
    return module.padding_idx if name == "weight" else None


@functools.singledispatch
def buffers_of(module: nn.Module) -> Mapping[str, float]:
    """Return the buffers to reset together with the parameters, each with the value it starts at.

    Running statistics belong to the weights they were measured under; new weights with old
    statistics are wrong in evaluation mode.

    Examples:
        >>> dict(buffers_of(nn.BatchNorm2d(8)))
        {'running_mean': 0.0, 'running_var': 1.0, 'num_batches_tracked': 0.0}
    """
    return {}


@buffers_of.register(_BatchNorm)
@buffers_of.register(_InstanceNorm)
def _(module: nn.BatchNorm2d) -> Mapping[str, float]:
    starts = {"running_mean": 0.0, "running_var": 1.0, "num_batches_tracked": 0.0}
    held = {name for name, _ in module.named_buffers(recurse=False)}
    return {name: value for name, value in starts.items() if name in held}
