"""Planning: from rules and facts to one step for each site.

Everything that can be wrong is found here, before a tensor is touched, and raised once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TypeAlias

from torch import nn

from torch_initpolicy.errors import (
    ApplyError,
    PlanError,
    PolicyError,
    UnusedRuleWarning,
    listing,
    warn,
)
from torch_initpolicy.planning import checks
from torch_initpolicy.planning.choices import Choice, by_recipe, choose, chosen, idle_rules, sparing
from torch_initpolicy.planning.fillings import (
    Filling,
    Surroundings,
    filled,
    spreads_of,
    surroundings,
)
from torch_initpolicy.planning.plan import Plan
from torch_initpolicy.planning.scale import members_of, scaled_steps
from torch_initpolicy.planning.selection import Selection
from torch_initpolicy.policy.rules import WEIGHTS_ONLY, InitPolicy, is_blanket
from torch_initpolicy.sites import Site, sites
from torch_initpolicy.steps import Step, merged
from torch_initpolicy.tensors.base import Spread
from torch_initpolicy.tensors.initializers import Keep
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.trace.flow import Flow

_ALL = Selection()
_NOTHING: Mapping[str, str] = MappingProxyType({})

Failed: TypeAlias = tuple[Choice, str]
"""A choice that comes to no step, and why."""


def make_plan(
    model: nn.Module | Sequence[Site],
    facts: Mapping[str, Facts],
    policy: InitPolicy,
    selection: Selection = _ALL,
    *,
    flow: Flow | None = None,
    meant: Mapping[str, str] = _NOTHING,
    constructed: Callable[[Sequence[Step]], Sequence[Step]] | None = None,
) -> Plan:
    """Decide what a policy writes to each site of a model; from sites alone, bound to no model.

    Initializers that ask what a weight reads need the `flow`; what is `meant`, by canonical name,
    stays where a rule lets it. `constructed` says what the constructor draws, for policies that
    scale it.
    """
    found = sites(model) if isinstance(model, nn.Module) else tuple(model)
    bases = members_of(policy.scaling, found, facts)
    choices = [
        sparing(choose(s, facts.get(s.name), policy, selection, bases.get(s.name)), meant)
        for s in found
    ]
    idle = list(idle_rules(policy, choices))
    made, failed = _steps(choices, flow)
    if not selection.frozen:
        made = list(_thawed(made, found))
    if policy.scaling is not None and constructed is not None and len(made) == len(found):
        made = list(constructed(made))
    steps, unscaled = scaled_steps(made, policy.scaling, found, bases, by_recipe(choices))
    unmatched = [choice for choice in choices if not choice.is_settled]
    cases = [
        *([] if found else ["the model has no parameters"]),
        *selection.idle(found),
        *(f"no rule matches {choice}" for choice in unmatched),
        *(idle if selection.strict else []),
        *(f"{choice}: {error}" for choice, error in failed),
        *unscaled,
        *checks.overwritten(found, steps),
    ]  # fmt: skip
    if cases:
        text = "\n".join((listing(cases), *_remedies(unmatched, failed)))
        raise PlanError(f"policy {_title(policy)} makes no plan:\n{text}")
    if idle:
        warn(f"policy {_title(policy)}:\n{listing(idle)}", UnusedRuleWarning)
    bound = model if isinstance(model, nn.Module) else None
    return Plan(tuple(steps), _title(policy), _hash(policy), model=bound)


def _remedies(unmatched: Sequence[Choice], failed: Sequence[Failed]) -> Iterator[str]:
    """Yield what would help with many cases at once."""
    if unmatched:
        yield "add a Rule for these, or end the policy with .otherwise(presets.auto())"
    if any(_is_blanket(choice) for choice, _ in failed):
        yield WEIGHTS_ONLY


def _is_blanket(choice: Choice) -> bool:
    """Tell whether an initializer for everything fails for not being at a weight."""
    rule = choice.rule
    if rule is None or not is_blanket(repr(rule.matcher), choice.facts.role):
        return False
    try:
        spreads_of(chosen(rule, choice), choice.site.shape, choice.facts.axes)
    except PolicyError:
        return True
    return False


def _title(policy: InitPolicy) -> str:
    return policy.name or "custom"


def _hash(policy: InitPolicy) -> str | None:
    try:
        return policy.hash
    except PolicyError:
        return None


def _steps(choices: Sequence[Choice], flow: Flow | None) -> tuple[list[Step], list[Failed]]:
    """Make the step of each choice that is settled, and list what is wrong with the others."""
    settled = [choice for choice in choices if choice.is_settled]
    try:
        around = surroundings(choices, flow)
    except PolicyError as error:  # a recipe or an initializer of the user's
        return [], [(settled[0], str(error))]
    made = [_attempt(choice, around) for choice in settled]
    steps = [step for step in made if isinstance(step, Step)]
    return steps, [failed for failed in made if not isinstance(failed, Step)]


def _attempt(choice: Choice, around: Surroundings) -> Step | Failed:
    try:
        return _step(choice, around)
    except (ApplyError, PolicyError) as error:
        return choice, str(error)


def _step(choice: Choice, around: Surroundings) -> Step:
    """Work out what a rule comes to at its site, or raise why it comes to nothing."""
    site = choice.site
    if choice.kept is not None or choice.rule is None:
        return _described(choice, Filling(Keep(), *(choice.kept or ("", ""))))
    filling = filled(choice, choice.rule, around)
    if filling.initializer == Keep():
        checks.check_kept(site)
        return _described(choice, filling)
    checks.check_memory(site)
    spreads = spreads_of(filling.initializer, site.shape, choice.facts.axes)
    checks.check_range(filling.initializer, spreads, site.dtype)
    step = _described(choice, filling, spreads)
    if site.storage != "plain":
        checks.check_reachable(site, step)
    return step


def _thawed(steps: Iterable[Step], found: Sequence[Site]) -> Iterator[Step]:
    """Yield steps that leave alone what is frozen behind a parametrised site."""
    frozen = {site.name: site.frozen_parts for site in found if site.storage != "plain"}
    for step in steps:
        names = () if step.keeps else frozen.get(step.name, ())
        reason = f"{step.reason}; {', '.join(names)} stays: frozen (requires_grad=False)"
        yield replace(step, frozen=names, reason=reason) if names else step


def _described(choice: Choice, filling: Filling, spreads: Sequence[Spread] = ()) -> Step:
    site = choice.site
    return Step(
        name=site.name,
        names=site.names,
        shape=site.shape,
        dtype=site.dtype,
        owner=site.kind,
        facts=choice.facts,
        initializer=filling.initializer,
        std=merged(spread.std for spread in spreads),
        rule=filling.rule,
        reason=filling.reason,
    )
