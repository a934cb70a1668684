"""Steps as data for JSON, and what of them decides about the outcome.

Knows steps and the notation of values, not plans.
"""

import dataclasses
import types
from collections import ChainMap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, cast

from torch_initpolicy.errors import PolicyError, UnknownNameError, brief, nearest
from torch_initpolicy.multipliers import Multipliers
from torch_initpolicy.policy import codec
from torch_initpolicy.policy.rules import CLASSES
from torch_initpolicy.steps import Step
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.base import dtype_name
from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.tensors.initializer import Initializer
from torch_initpolicy.trace.facts import Composition, Facts

PLAN_FORMAT = 2
"""Version of the layout of the JSON of plans and receipts."""

READABLE = (1, 2)
"""Versions that can be read: the first has fewer facts in each step."""

Types = Mapping[str, Any]  # annotations, which have no type of their own

NO_CLASSES: codec.Classes = types.MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Opaque(Initializer):
    """Stand, by its name, for something of the user's that a file cannot hold."""

    is_opaque: ClassVar[bool] = True

    text: str

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> NoReturn:
        raise PolicyError(
            f"a plan read from a file knows {self.text} by name only; make the plan anew"
        )


_OWN: dict[str, type] = {
    kind.__name__: kind for kind in (Activation, Composition, Facts, Multipliers, Opaque, Step)
}
_CLASSES: codec.Classes = ChainMap(_OWN, CLASSES)


def _opaque(value: object) -> Opaque:
    """Call a function by its full name, which says more than its address."""
    names = (getattr(value, attribute, None) for attribute in ("__module__", "__qualname__"))
    return Opaque(".".join(filter(None, names)) or repr(value))


def _encoded(value: object) -> codec.Data:
    return codec.encode(value, _CLASSES, _opaque)


_FACTS: Mapping[str, object] = types.MappingProxyType(
    {field.name: field.default for field in dataclasses.fields(Facts)}
)
"""The fields of facts, with their defaults."""

_ALWAYS = frozenset({"role", "op", "meets", "fed_by", "evidence"})
"""Facts that are written whatever they are: other programs look for them."""

_COUNTED = ("fan_in", "fan_out")
"""What is written for other programs, and follows from the rest."""


def step_data(step: Step) -> codec.Data:
    """Write a step as an object, its facts beside its other fields, its dtype a word."""
    own = [field.name for field in dataclasses.fields(step) if field.name != "facts"]
    return {
        **{name: _encoded(getattr(step, name)) for name in own},
        "dtype": dtype_name(step.dtype),
        **_facts_data(step.facts),
        **{name: _encoded(getattr(step, name)) for name in _COUNTED},
    }


def _facts_data(facts: Facts) -> dict[str, codec.Data]:
    values = {name: getattr(facts, name) for name in _FACTS}
    unusual = {name: it for name, it in values.items() if name in _ALWAYS or it != _FACTS[name]}
    data = {name: _encoded(value) for name, value in unusual.items()}
    data |= {name: _activation_data(values[name]) for name in _MET}
    if facts.blocks:
        data["blocks"] = [_facts_data(block) for block in facts.blocks]
    return data


_MET = ("meets", "fed_by")
_KEYS = frozenset({*(field.name for field in dataclasses.fields(Step)), *_FACTS, *_COUNTED})


def _activation_data(activation: Activation | None) -> codec.Data:
    """Write an activation as its name, or an object where it has parameters or moments."""
    if activation is None or activation == Activation(activation.name):
        return None if activation is None else activation.name
    return _encoded(activation)


def steps_of(plan: Mapping[str, codec.Data], where: str) -> tuple[Step, ...]:
    """Read the steps of a plan."""
    steps = plan.get("steps")
    if not isinstance(steps, list):
        raise PolicyError(f"{where}: steps is an array, got {brief(steps)}")
    return tuple(_step(step, f"{where}.steps[{i}]") for i, step in enumerate(steps))


def _step(data: codec.Data, where: str) -> Step:
    if not isinstance(data, dict):
        raise PolicyError(f"{where}: a step is an object, got {brief(data)}")
    for key in data:
        if key not in _KEYS:
            raise UnknownNameError(
                f"{where}: a step has no field {brief(key)}{nearest(key, _KEYS)}"
            )
    known = _facts_object({key: value for key, value in data.items() if key in _FACTS}, where)
    step = {
        **{key: value for key, value in data.items() if key not in (*_FACTS, *_COUNTED)},
        "class": "Step",
        "dtype": {"dtype": data.get("dtype")},
        # A value stands for itself; decoded here, its fields are named as the file has them.
        "facts": codec.decode(known, _CLASSES, where),
    }
    return cast("Step", codec.decode(step, _CLASSES, where))


def _facts_object(data: codec.Data, where: str) -> codec.Data:
    """Turn what `_facts_data` writes into what `codec.decode` reads."""
    if not isinstance(data, dict):
        raise PolicyError(f"{where}: facts are an object, got {brief(data)}")
    named = {name: data[name] for name in _MET if isinstance(data.get(name), str)}
    met = {name: {"class": "Activation", "name": word} for name, word in named.items()}
    blocks = data.get("blocks", [])
    if not isinstance(blocks, list):
        raise PolicyError(f"{where}.blocks must be an array, got {brief(blocks)}")
    each = [_facts_object(block, f"{where}.blocks[{i}]") for i, block in enumerate(blocks)]
    return {**data, **met, "class": "Facts", "blocks": each}


def outcome(step: Step) -> codec.Data:
    """Return what decides about the numbers that a step leaves behind, whatever its reasons."""
    parts = (step.name, step.shape, step.dtype, step.initializer, step.axes, step.padding)
    multiplied = (step.factors,) if step.factors else ()
    return _encoded((*parts, *multiplied))


def current(data: codec.Data, what: str) -> dict[str, codec.Data]:
    """Return an object of a format that this version reads."""
    if not isinstance(data, dict) or data.get("format") not in READABLE:
        raise PolicyError(f"this is no {what} of format = {' or '.join(map(str, READABLE))}")
    return data


def read_fields(
    data: Mapping[str, codec.Data], where: str, types: Types, classes: codec.Classes = NO_CLASSES
) -> dict[str, Any]:
    """Decode the fields of an object, each of its type."""
    values = {name: codec.decode(data.get(name), classes, f"{where}.{name}") for name in types}
    for name, value in values.items():
        if not codec.fits_annotation(value, types[name]):
            wanted = codec.spelt(types[name])
            raise PolicyError(f"{where}.{name} must be {wanted}, got {brief(data.get(name))}")
    return values
