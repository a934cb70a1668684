"""Carries a plan over from a base model: each step drawn as its parametrisation asks.

Knows steps and scalings; decides nothing that the policy has not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.multipliers import Multipliers
from torch_initpolicy.planning.choices import Choice, in_shape
from torch_initpolicy.planning.fillings import spreads_of
from torch_initpolicy.policy.family import Member, member_of
from torch_initpolicy.policy.scaling import Part, Scaling, layouts, unfoldable
from torch_initpolicy.sites import Site
from torch_initpolicy.steps import Step, merged
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.initializer import Initializer
from torch_initpolicy.tensors.initializers import AsConstructed, Blocks
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.writing.forward import takes_hook


def members_of(
    scaling: Scaling | None, sites: Sequence[Site], facts: Mapping[str, Facts]
) -> Mapping[str, Member]:
    """Return what stands for each site in the base model; nothing without one.

    Raises:
        PlanError: A parameter has no counterpart in the base model; lists every case.
    """
    if scaling is None or scaling.family is None:
        return {}
    known = [member_of(s.name, s.shape, facts.get(s.name) or Facts(s.role)) for s in sites]
    return scaling.family.counterparts(known)


def scaled_steps(
    steps: Sequence[Step],
    scaling: Scaling | None,
    sites: Sequence[Site],
    members: Mapping[str, Member],
    asking: Mapping[str, Choice],
) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """Multiply what each step draws by what the parametrisation says.

    Args:
        steps: The steps as the policy alone makes them.
        scaling: The parametrisation; None leaves the steps as they are.
        sites: The sites that the steps are about.
        members: What stands for them in the base model.
        asking: The choices whose initializer depends on more than the site's shape, by name.

    Returns:
        The steps, in their order, and what is in the way, with the ways out.
    """
    if scaling is None:
        return tuple(steps), ()
    hooked = {site.name for site in sites if takes_hook(site)}
    carried: list[Step] = []
    cases: list[str] = []
    for step in steps:
        part = Part(step.name, step.shape, step.facts, takes_hook=step.name in hooked)
        member = members.get(part.name)
        if member is not None and len(member.shape) != len(part.shape):
            cases.append(f"{part.name!r} has shape {part.shape}, in the base {member.shape}")
            continue
        found = scaling.of(part, member)
        cases += unfoldable(scaling, part, found)
        try:
            carried.append(_scaled(step, found, member, asking.get(step.name)))
        except PolicyError as error:
            cases.append(f"{step.name!r}: {error}")
    return tuple(carried), tuple(cases)


def _scaled(step: Step, found: Multipliers, member: Member | None, choice: Choice | None) -> Step:
    """Return a step with its multipliers, its initializer scaled where it fills anything."""
    reason = f"{step.reason}; {found.reason}"
    if step.keeps:
        loses = found.std != 1.0 or found.folded != 1.0
        note = ", but its values are kept" if loses else ""
        return replace(step, multipliers=found, reason=reason + note)
    now = _sizes(step.initializer, step.shape, step.axes)
    then = now if member is None else _in_base(step, member, choice)
    factors = _factors(found, now, then)
    if set(factors) == {1.0}:
        return replace(step, multipliers=found, reason=reason)
    initializer = _multiplied(step.initializer, factors)
    std = merged(spread.std for spread in spreads_of(initializer, step.shape, step.axes))
    return replace(step, initializer=initializer, std=std, multipliers=found, reason=reason)


def _factors(found: Multipliers, now: Sequence[float], then: Sequence[float]) -> tuple[float, ...]:
    """Return what the numbers of each packed block are multiplied by, or those of the whole.

    The base model's standard deviation times the multiplier is wanted, over what the policy draws
    at this size.
    """
    stds = found.std if isinstance(found.std, tuple) else (found.std,)
    each = max(len(stds), len(now), len(then))
    # One number holds for all packed blocks; nothing is known where there is none.
    numbers = ([*(g or [0.0])] * (1 if len(g) > 1 else each) for g in (stds, now, then))
    return tuple(
        std * found.folded * (base / here if here and base else 1.0)
        for std, here, base in zip(*numbers, strict=True)
    )


def _in_base(step: Step, member: Member, choice: Choice | None) -> list[float]:
    """Return how large the numbers are that the policy draws in the base model."""
    axes = layouts(step.shape, step.facts, member)[1] if step.axes else None
    if choice is None:
        return _sizes(step.initializer, member.shape, axes)
    drawn = member.drawn or in_shape(choice, member.shape)
    if type(drawn) is type(step.initializer):
        return _sizes(drawn, member.shape, axes)
    random = any(spread.std for spread in spreads_of(step.initializer, step.shape, step.axes))
    if member.drawn is None and (not random or member.shape == step.shape):
        return _sizes(step.initializer, step.shape, step.axes)
    if member.drawn is None:
        if any(rule.initializer == AsConstructed() for rule in choice.deciding):
            raise PolicyError(
                "nothing says what the base's constructor draws; give as base its plan under the "
                "same policy, or build it under skip_init()"
            )
        raise PolicyError(
            f"{step.initializer} depends on its layer, of which shapes alone say nothing; give as "
            "base the model, or its plan under the same policy"
        )
    raise PolicyError(
        f"the base model gets {drawn} where this one gets {step.initializer}; plan both by the "
        "same policy"
    )


def _sizes(initializer: Initializer, shape: Sequence[int], axes: Axes | None) -> list[float]:
    """Return the root mean square of each packed block, or of the whole; nothing if unknown."""
    return [math.hypot(spread.mean, spread.std) for spread in spreads_of(initializer, shape, axes)]


def _multiplied(initializer: Initializer, factors: tuple[float, ...]) -> Initializer:
    """Return an initializer that fills each packed block with as many times the numbers."""
    if initializer.is_opaque:
        raise PolicyError(
            f"{initializer} is a function, whose numbers nothing scales; give an initializer"
        )
    if len(set(factors)) == 1:
        return initializer.scaled(factors[0])
    return Blocks(tuple(initializer.of_block(i).scaled(f) for i, f in enumerate(factors)))
