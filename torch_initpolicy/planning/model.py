"""Planning for a live model: its data flow is read, and what its author meant is looked at.

Knows models, inputs and policies; what the rules come to is decided in `decide`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from torch_initpolicy.deferred.undrawn import pending_of
from torch_initpolicy.errors import (
    OverwrittenWarning,
    UnknownOperatorWarning,
    UnusedRuleWarning,
    listing,
    warn,
)
from torch_initpolicy.materialize.constructor import constructor_steps, only_constructed
from torch_initpolicy.materialize.search import Origin
from torch_initpolicy.planning.decide import make_plan
from torch_initpolicy.planning.plan import Plan
from torch_initpolicy.planning.selection import Selection
from torch_initpolicy.policy.meant import is_plain_draw, meant, values_of
from torch_initpolicy.policy.rules import InitPolicy
from torch_initpolicy.sites import Site, borrowing, sites
from torch_initpolicy.steps import Step
from torch_initpolicy.tensors.initializers import Keep
from torch_initpolicy.tensors.layers import buffers_of
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.trace.operators import remedy
from torch_initpolicy.trace.read import Reading, is_scripted, read


def plan_model(
    model: nn.Module,
    policy: InitPolicy,
    example_inputs: Any,
    selection: Selection,
    known: Mapping[str, Origin] = MappingProxyType({}),
) -> Plan:
    """Decide what a policy writes to each parameter of a model; see `plan_policy`.

    Where its constructor's values and draws are known already, they are not looked for again.
    """
    with borrowing(model):
        found = sites(model)
        reading = _reading(model, found, example_inputs)
        asked = _meant(found, reading.facts) if selection.keep == "meant" else {}
        constructed = partial(only_constructed, found=found, model=model, known=known)
        plan = make_plan(
            found,
            reading.facts,
            policy,
            selection,
            flow=reading.flow,
            meant=asked,
            constructed=constructed,
        )
    if reading.unknown_operators:
        _warn_of_unknown(reading.unknown_operators)
    return replace(
        plan,
        steps=constructor_steps(plan.steps, found, model, known),
        unknown_operators=tuple(reading.unknown_operators.items()),
        untraced=reading.untraced,
        model=model,
    )


def _reading(model: nn.Module, found: Sequence[Site], example_inputs: Any) -> Reading:
    """Read the data flow, unless planning is about to say that there is nothing to plan for."""
    if not found or any(site.lazy for site in found):
        return Reading({}, "type")
    return read(model, found, example_inputs)


def _meant(found: Sequence[Site], facts: Mapping[str, Facts]) -> dict[str, str]:
    """Say what was meant, also where `skip_init` has skipped a draw."""
    pending = {site.name: pending_of(site.parameters[0]) for site in found if not site.lazy}
    skipped = {name: draw.initializer for name, draw in pending.items() if draw is not None}
    plain = {name for name, initializer in skipped.items() if is_plain_draw(initializer)}

    def look(site: Site) -> Tensor | None:
        if site.name not in skipped:
            return values_of(site)
        if site.name in plain:
            return None
        sample = torch.empty(site.shape, dtype=site.dtype)
        skipped[site.name](sample, None, generator=torch.Generator().manual_seed(0))
        return sample

    return meant(found, facts, look, plain)


def _warn_of_unknown(operators: Mapping[str, int]) -> None:
    cases = [f"{name} ({times}x): {remedy(name)}" for name, times in operators.items()]
    warn(
        f"operators of unknown role:\n{listing(cases)}\nwhat lies behind them was not seen; make "
        "each known where it is defined, by a function of torch's operators that computes the same",
        UnknownOperatorWarning,
    )


def warn_of_overwriting(pairs: Sequence[tuple[Site, Step]]) -> None:
    """Warn where steps write over norms that differ from channel to channel, as trained ones do.

    Norms that were drawn so (DCGAN's) still have the constructor's bias or running statistics.
    """
    norms = [site for site, step in pairs if step.role == "norm_weight" and not step.keeps]
    biases = {id(site.owner): site for site, step in pairs if step.role == "norm_bias"}
    moved = (site for site in norms if _holds_one_number(site) is False)
    trained = [site.name for site in moved if not _is_untrained(site, biases.get(id(site.owner)))]
    if trained:
        warn(
            "the model looks trained, or loaded from a checkpoint, since its norms differ from "
            f"channel to channel:\n{listing(trained)}\nit is overwritten; to keep what was loaded "
            "use initialize_missing, or only= and skip=; keep='nothing' says that it may go",
            OverwrittenWarning,
        )


def _is_untrained(norm: Site, bias: Site | None) -> bool:
    """Tell whether training, which moves more of a norm than its weight, has not moved the rest."""
    if bias is not None and bias.requires_grad and _holds_one_number(bias):
        return True
    starts = {norm.owner.get_buffer(name): value for name, value in buffers_of(norm.owner).items()}
    return bool(starts) and all(bool((held == value).all()) for held, value in starts.items())


def _holds_one_number(site: Site) -> bool | None:
    """Tell whether a vector holds one number; None where its values are not to be seen."""
    values = values_of(site) if pending_of(site.parameters[0]) is None else None
    return None if values is None else not bool((values != values.flatten()[:1]).any())


def warn_of_unknown_parameters(plan: Plan, policy: InitPolicy) -> None:
    """Warn where a preset keeps parameters for no other reason than that nobody knows their use.

    A rule of the user's own that keeps them says that it shall be so.
    """
    keeping = {repr(r.matcher) for r in policy if r.keeps_meant and r.initializer == Keep()}
    kept = (step for step in plan if step.role == "unknown" and step.rule in keeping)
    writes = any(not step.keeps or step.factors for step in plan)
    # What a forward pass is known to leave out does no harm beside what is written.
    unknown = [s for s in kept if s.facts.used or s.evidence == "order" or not writes]
    if not unknown or all(rule.initializer == Keep() for rule in policy):
        return
    scripted = plan.model is not None and is_scripted(plan.model)
    help_ = "initialise the module before torch.jit compiles it" if scripted else _BY_NAME
    cases = [f"{step.name!r} ({step.owner}, {step.shape})" for step in unknown]
    warn(
        f"policy {plan.policy!r} does not write to these, since it is unknown what they do:\n"
        f"{listing(cases)}\n{help_}",
        UnusedRuleWarning,
    )


_BY_NAME = "fill them by name: Rule(match.name(...), ...), or keep them by a policy of Keep() alone"
