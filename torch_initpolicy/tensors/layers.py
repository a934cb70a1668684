"""Facts about single layers, by their type.

Knows torch's own layers and a few foreign ones by name; has never heard of a whole model.
"""

import functools
from collections.abc import Mapping
from typing import Literal

from torch import nn

from torch_initpolicy.tensors.axes import Axes

Role = Literal[
    "weight",
    "bias",
    "norm_weight",
    "norm_bias",
    "embedding",
    "recurrent",
    "gate",
    "scale",
    "position",
    "token",
    "table",
    "unknown",
]
"""What a parameter does; `unknown` where only the data flow, or nobody, can tell."""


@functools.singledispatch
def axes_of(module: nn.Module, name: str) -> Axes | None:
    """Say what the axes of parameter `name` mean, or None where it is no linear map."""
    return None


@functools.singledispatch
def role_of(module: nn.Module, name: str) -> Role:
    """Say what parameter `name` does; `"unknown"` where the type cannot tell."""
    return "unknown"


@functools.singledispatch
def padding_of(module: nn.Module, name: str) -> int | None:
    """Return the row of parameter `name` that must stay zero, or None."""
    return None


@functools.singledispatch
def buffers_of(module: nn.Module) -> Mapping[str, float]:
    """Return the buffers to reset with the weights, each with the value that fills it."""
    return {}
