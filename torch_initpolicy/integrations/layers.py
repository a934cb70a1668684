"""Linear layers of other libraries that inherit from none of torch's, by their class names.

They need no import and no registration; subclasses are found through their MRO.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from torch_initpolicy.tensors.axes import Axes

__all__ = ["LAYERS", "axes_of_weight"]

LAYERS: Mapping[str, Callable[[Any], Axes]] = MappingProxyType(
    {
        "transformers.pytorch_utils.Conv1D": lambda _: Axes((0,), (1,)),
        "torchvision.ops.deform_conv.DeformConv2d": lambda it: Axes((1,), (0,), groups=it.groups),
    }
)
"""What the axes of a layer's `weight` mean, by the qualified name of its class."""


def axes_of_weight(module: nn.Module) -> Axes | None:
    """Return what the axes of a known layer's `weight` mean, or None for any other module."""
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__)
    return next((LAYERS[name](module) for name in names if name in LAYERS), None)
