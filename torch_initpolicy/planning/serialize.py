"""Steps as data for JSON, and what of them decides about the outcome.

Knows steps and the notation of values; has never heard of a plan.
"""

import types
from dataclasses import dataclass
from typing import NoReturn, cast

from torch import Tensor

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.policy import codec
from torch_initpolicy.policy.rules import CLASSES
from torch_initpolicy.steps import Step
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.base import dtype_name


@dataclass(frozen=True, slots=True)
class Opaque:
    """Stands for something of the user's that a file cannot hold.

    Attributes:
        text: What it is called.
    """

    text: str

    def __call__(self, tensor: Tensor) -> NoReturn:
        """Refuse to fill a tensor."""
        raise PolicyError(
            f"a plan read from a file knows {self.text} by name only; make the plan anew"
        )


_CLASSES: codec.Classes = types.MappingProxyType(
    {**CLASSES, "Axes": Axes, "Opaque": Opaque, "Step": Step}
)


def _opaque(value: object) -> Opaque:
    """Call a function by its full name, which says more than its address."""
    names = (getattr(value, attribute, None) for attribute in ("__module__", "__qualname__"))
    return Opaque(".".join(filter(None, names)) or repr(value))


def step_data(step: Step) -> codec.Data:
    """Write a step as an object: its class is understood, its dtype a word."""
    data = cast("dict[str, codec.Data]", codec.encode(step, _CLASSES, _opaque))
    del data["class"]
    return {**data, "dtype": dtype_name(step.dtype)}


def step_of(data: codec.Data, where: str) -> Step:
    """Read the object that `step_data` writes.

    Raises:
        UnknownNameError: A class or field does not exist.
        PolicyError: The object is no step.
    """
    if not isinstance(data, dict):
        raise PolicyError(f"{where}: a step is an object, got {data!r}")
    typed: codec.Data = {**data, "class": "Step", "dtype": {"dtype": data.get("dtype")}}
    step: Step = codec.decode(typed, _CLASSES, where)
    return step


def outcome(step: Step) -> codec.Data:
    """Return what decides about the numbers that a step leaves behind, whatever its reasons."""
    parts = (step.name, step.shape, step.dtype, step.initializer, step.axes, step.padding)
    multiplied = (step.factors,) if step.factors else ()
    return codec.encode((*parts, *multiplied), _CLASSES, _opaque)
