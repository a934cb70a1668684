"""A plan: one step for each site, as a value that can be printed, compared and saved.

Knows steps, and the model that they were made for; decides nothing.
"""

import itertools
import math
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn, cast

from torch import Tensor, nn

from torch_initpolicy.engine.steps import Step
from torch_initpolicy.engine.words import extent, folded, header, table, told
from torch_initpolicy.errors import PlanError, PolicyError, UnknownNameError, listing, nearest
from torch_initpolicy.policy import codec
from torch_initpolicy.policy.rules import CLASSES
from torch_initpolicy.sites import Site, sites
from torch_initpolicy.tensors.axes import Axes, conventional
from torch_initpolicy.tensors.initializers import Zeros

FORMAT = 1
"""Version of the layout of a plan's JSON."""


@dataclass(frozen=True, slots=True)
class Difference:
    """In what the outcome of two plans differs; false where it does not.

    Attributes:
        added: Steps for sites that only the second plan has.
        removed: Steps for sites that only the first plan has.
        changed: Both steps for each site that they fill differently.
    """

    added: tuple[Step, ...] = ()
    removed: tuple[Step, ...] = ()
    changed: tuple[tuple[Step, Step], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __str__(self) -> str:
        lines = [
            *(f"+ {name}  {what}" for name, (what,) in folded(map(_summary, self.added))),
            *(f"- {name}  {what}" for name, (what,) in folded(map(_summary, self.removed))),
            *(f"~ {name}  {what}" for name, (what,) in folded(map(_change, self.changed))),
        ]
        return "\n".join(lines) or "no difference"


def _summary(step: Step) -> tuple[str, tuple[str, ...]]:
    return step.name, (f"{extent(step.shape)}: {_filling(step)}",)


def _change(pair: tuple[Step, Step]) -> tuple[str, tuple[str, ...]]:
    first, second = pair
    return first.name, (f"{_summary(first)[1][0]} -> {_summary(second)[1][0]}",)


def _filling(step: Step) -> str:
    return told(step.initializer, step.fan_in, step.fan_out)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a policy would write to each parameter of a model, and why.

    Iterating yields the steps; `plan[name]` is the step of a site, by any of its names; `print`
    writes a table.

    Examples:
        >>> from torch_initpolicy import plan_policy
        >>> plan = plan_policy(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
        >>> plan["0.weight"].reason
        'meets relu: He normal, fan_in 8, gain 1.41421'
        >>> Plan.from_json(plan.to_json()) == plan
        True

    Attributes:
        steps: One step per site, in the order of `model.named_parameters()`.
        policy: Name of the policy.
        policy_hash: Its hash; None where it holds functions of the user's.
        unknown_operators: Operators of unknown role that the trace met, with their number.
        model: The model it was made for; None for a plan that was read from a file.
    """

    steps: tuple[Step, ...]
    policy: str = "custom"
    policy_hash: str | None = None
    unknown_operators: tuple[tuple[str, int], ...] = ()
    model: nn.Module | None = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, name: str) -> Step:
        step = next((step for step in self.steps if name in step.names), None)
        if step is None:
            known = [name for step in self.steps for name in step.names]
            raise UnknownNameError(f"the plan has no step for {name!r}{nearest(name, known)}")
        return step

    def __str__(self) -> str:
        head = header(self.steps, self.policy, dict(self.unknown_operators))
        return f"{head}\n\n{table(self.steps)}"

    @property
    def hash(self) -> str:
        """What identifies the outcome, 32 hex digits: equal for plans that do not differ."""
        return codec.digest([_outcome(step) for step in self.steps])

    @property
    def symmetric(self) -> tuple[Step, ...]:
        """Steps that would make the units of a hidden layer alike, for ever or nearly so.

        These are constant weights whose output goes on into other constant weights, and weights of
        zero before a ReLU, which lets no gradient through. A constant last layer, or last weight of
        a residual branch, is no such case: it comes apart at the first steps of training.
        """
        weights = [step for step in self.steps if step.role in ("weight", "recurrent")]
        return tuple(
            step
            for step, after in itertools.zip_longest(weights, weights[1:])
            if _is_hidden_constant(step) and (_is_dead(step) or (after and _is_constant(after)))
        )

    def diff(self, other: "Plan") -> Difference:
        """Compare what this plan and another would leave behind, whatever their reasons.

        Args:
            other: Another plan, of the same model or of one with other parameters.

        Examples:
            >>> print(Plan(()).diff(Plan(())))
            no difference
        """
        before, after = ({step.name: step for step in plan.steps} for plan in (self, other))
        return Difference(
            added=tuple(step for name, step in after.items() if name not in before),
            removed=tuple(step for name, step in before.items() if name not in after),
            changed=tuple(
                (step, after[name])
                for name, step in before.items()
                if name in after and _outcome(step) != _outcome(after[name])
            ),
        )

    def on(self, model: nn.Module) -> "Plan":
        """Return this plan for another model that has the same sites.

        Raises:
            PlanError: The model has other sites; lists every case.
        """
        cases = list(_misfits(self.steps, sites(model)))
        if cases:
            raise PlanError(f"the plan is not for this model:\n{listing(cases)}")
        return replace(self, model=model)

    def pairs(self) -> tuple[tuple[Site, Step], ...]:
        """Return each site of the model, as it is now, with its step.

        Raises:
            PlanError: The plan is for no model, or the model has changed its shape since.
        """
        if self.model is None:
            raise PlanError("this plan comes from a file; say for which model: plan.on(model)")
        found = sites(self.model)
        self.on(self.model)
        return tuple((site, self[site.name]) for site in found)

    def to_json(self) -> str:
        """Write the plan as JSON; functions of the user's are kept as their names."""
        return codec.write_json(
            {
                "format": FORMAT,
                "policy": self.policy,
                "policy_hash": self.policy_hash,
                "unknown_operators": dict(self.unknown_operators),
                "steps": [_step_data(step) for step in self.steps],
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan from JSON; nothing in the text can run.

        Raises:
            UnknownNameError: A class or field does not exist.
            PolicyError: The text is no plan.
        """
        data = codec.read_json(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PolicyError(f"this is no plan of format = {FORMAT}")
        steps = data.get("steps")
        if not isinstance(steps, list):
            raise PolicyError(f"steps is an array, got {steps!r}")
        rest = {key: value for key, value in data.items() if key not in ("format", "steps")}
        plan: Plan = codec.decode(
            {
                **rest,
                "class": "Plan",
                "steps": [_typed_step(step) for step in steps],
                "unknown_operators": _listed(rest.get("unknown_operators", {})),
            },
            _CLASSES,
            "plan",
        )
        return plan


#
# What is the same, what is alike
#


def _outcome(step: Step) -> codec.Data:
    """Return what decides about the numbers that a step leaves behind."""
    parts = (step.name, step.shape, step.dtype, step.initializer, step.axes, step.padding)
    return codec.encode(parts, _CLASSES, _opaque)


def _is_constant(step: Step) -> bool:
    stds = step.std if isinstance(step.std, tuple) else (step.std,)
    return step.elements > 0 and all(std == 0 for std in stds)


def _is_hidden_constant(step: Step) -> bool:
    return (
        _is_constant(step) and _units(step) > 1 and not step.feeds_output and not step.ends_residual
    )


def _units(step: Step) -> int:
    """Count the output units of a weight, all copies and blocks together."""
    axes = conventional(step.shape) if step.axes is None else step.axes
    return math.prod(step.shape[axis] for axis in axes.outputs)


_SHUT_AT_ZERO = ("relu", "relu6", "relu2", "threshold")
"""Activations of which torch takes the derivative at 0 to be 0."""


def _is_dead(step: Step) -> bool:
    return step.meets in _SHUT_AT_ZERO and step.initializer == Zeros()


def _misfits(steps: Sequence[Step], found: Sequence[Site]) -> Iterator[str]:
    """Yield in what the sites of a model are not those that steps were made for."""
    wanted, held = {step.name: step for step in steps}, {site.name: site for site in found}
    for name in wanted.keys() - held.keys():
        yield f"the model has no parameter {name!r}{nearest(name, held)}"
    for name in held.keys() - wanted.keys():
        yield f"the plan has no step for {name!r}{nearest(name, wanted)}"
    for name, step in wanted.items():
        if name in held and held[name].shape != step.shape:
            yield f"{name!r} has shape {held[name].shape}, its step is for {step.shape}"
        elif name in held and held[name].names != step.names:
            yield f"{name!r} is tied as {held[name].names}, its step is for {step.names}"


#
# JSON
#


@dataclass(frozen=True, slots=True)
class Opaque:
    """Stands for something of the user's that a file cannot hold.

    Attributes:
        text: How it was called.
    """

    text: str

    def __call__(self, tensor: Tensor) -> NoReturn:
        """Refuse to fill a tensor."""
        raise PolicyError(
            f"a plan read from a file knows {self.text} by name only; make the plan anew"
        )


def _opaque(value: object) -> Opaque:
    """Call a function by its full name, which says more than its address."""
    names = (getattr(value, attribute, None) for attribute in ("__module__", "__qualname__"))
    return Opaque(".".join(filter(None, names)) or repr(value))


def _step_data(step: Step) -> codec.Data:
    data = cast("dict[str, codec.Data]", codec.encode(step, _CLASSES, _opaque))
    del data["class"]
    return {**data, "dtype": str(step.dtype).removeprefix("torch.")}


def _typed_step(data: codec.Data) -> codec.Data:
    if not isinstance(data, dict):
        raise PolicyError(f"a step is an object, got {data!r}")
    return {**data, "class": "Step", "dtype": {"dtype": data.get("dtype")}}


def _listed(counts: codec.Data) -> codec.Data:
    return [list(pair) for pair in counts.items()] if isinstance(counts, dict) else counts


_CLASSES: codec.Classes = types.MappingProxyType(
    {**CLASSES, "Axes": Axes, "Opaque": Opaque, "Plan": Plan, "Step": Step}
)
