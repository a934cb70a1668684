"""Planning: from rules and facts to one step for each site.

Everything that can be wrong is found here, before a tensor is touched, and raised once.
"""

import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import nn

from torch_initpolicy.errors import (
    ApplyError,
    PlanError,
    PolicyError,
    UnusedRuleWarning,
    counted,
    listing,
    nearest,
    warn,
)
from torch_initpolicy.planning.describe import figure, ranges, told
from torch_initpolicy.planning.plan import Plan
from torch_initpolicy.planning.scale import scaled_steps
from torch_initpolicy.policy.matchers import Name
from torch_initpolicy.policy.recipes import Recipe
from torch_initpolicy.policy.rules import WEIGHTS_ONLY, InitPolicy, Rule, filling, is_blanket
from torch_initpolicy.sites import Site, sites
from torch_initpolicy.steps import Number, Step, merged, overflow
from torch_initpolicy.tensors.axes import block_fans
from torch_initpolicy.tensors.base import Context, Spread, working_dtype
from torch_initpolicy.tensors.gains import Activation, gain
from torch_initpolicy.tensors.initializers import Blocks, BranchScaled, Initializer, Keep
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.writing.parametrized import behind
from torch_initpolicy.writing.shards import obstacles, shared
from torch_initpolicy.writing.streams import isolated

Gains: TypeAlias = Mapping[Activation | None, float]
"""The gain of every activation that a model's facts name; 1 where there is none."""

_NONE: Mapping[str, int] = types.MappingProxyType({})
_NOTHING: Mapping[str, str] = types.MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Choice:
    """What has been decided about a site.

    Attributes:
        site: The site.
        facts: What is known about it.
        rule: The first rule that matches, or None.
        kept: Why it is left alone whatever the rule says (the argument, and in words), or None.
        block: Number of the packed block that this is about; None for the whole site.
        blocks: The same for each packed block, where they meet different things; else empty.
        branches: How many residual branches initializers reckon with.
    """

    site: Site
    facts: Facts
    rule: Rule | None
    kept: tuple[str, str] | None
    block: int | None = None
    blocks: tuple["Choice", ...] = ()
    branches: int = 0

    @property
    def is_settled(self) -> bool:
        """Whether it is known what becomes of the site."""
        return self.rule is not None or self.kept is not None

    @property
    def padding(self) -> int | None:
        """The row that must stay zero, or None."""
        return self.site.padding if self.facts.padding is None else self.facts.padding

    def __str__(self) -> str:
        return f"{self.site.name!r} ({self.site.kind}, {self.facts.role}, {self.site.shape})"


Failed: TypeAlias = tuple[Choice, str]
"""A choice that comes to no step, and why."""


def make_plan(
    model: nn.Module | Sequence[Site],
    facts: Mapping[str, Facts],
    policy: InitPolicy,
    *,
    only: Sequence[str] | str | None = None,
    skip: Sequence[str] | str | None = None,
    frozen: bool = False,
    strict: bool = True,
    meant: Mapping[str, str] = _NOTHING,
    unknown_operators: Mapping[str, int] = _NONE,
    untraced: str | None = None,
) -> Plan:
    """Decide what a policy writes to each site of a model.

    Args:
        model: The model, or its sites; from sites alone the plan is bound to no model.
        facts: What the trace says about each site, by canonical name.
        policy: The policy.
        only: Globs; other sites are kept. None for all sites, an empty sequence for none.
        skip: Globs; these sites are kept.
        frozen: Whether parameters that require no gradient are written too.
        strict: Whether a rule that decides about no site is an error; otherwise a warning.
        meant: What holds values that were meant, with what they are, by canonical name: these
            sites stay where a rule lets them.
        unknown_operators: Operators of unknown role that the trace met, with their number.
        untraced: Why the forward pass could not be read, with what helps, or None.

    Returns:
        A plan with exactly one step for each site.

    Raises:
        PlanError: Something is wrong or missing; the message lists every case.
        PolicyError: A glob of `only` or `skip` is malformed.

    Examples:
        >>> from torch_initpolicy.policy.presets import auto
        >>> print(make_plan(nn.Linear(2, 3), {}, auto())["bias"].reason)
        bias: zeros
    """
    found = sites(model) if isinstance(model, nn.Module) else tuple(model)
    filters = Filters.of(only, skip, frozen=frozen)
    choices = [
        _sparing(_choice(site, facts.get(site.name), policy, filters), meant) for site in found
    ]
    idle = list(_idle(policy, choices))
    made, failed = _steps(choices)
    steps, unscaled = scaled_steps(made, policy.scaling, found, frozenset(_asking(choices)))
    unmatched = [choice for choice in choices if not choice.is_settled]
    _raise_all([
        *([] if found else ["the model has no parameters"]),
        *filters.idle(found),
        *(f"no rule matches {choice}" for choice in unmatched),
        *(idle if strict else []),
        *(f"{choice}: {error}" for choice, error in failed),
        *unscaled,
        *_shared(found, steps),
    ], policy, _remedies(unmatched, failed))  # fmt: skip
    if idle:
        warn(f"policy {_title(policy)}:\n{listing(idle)}", UnusedRuleWarning)
    return Plan(
        steps=tuple(steps),
        policy=_title(policy),
        policy_hash=_hash(policy),
        unknown_operators=tuple(unknown_operators.items()),
        model=model if isinstance(model, nn.Module) else None,
        untraced=untraced,
    )


def _raise_all(cases: Sequence[str], policy: InitPolicy, remedies: Iterable[str]) -> None:
    if cases:
        text = "\n".join((listing(cases), *remedies))
        raise PlanError(f"policy {_title(policy)} makes no plan:\n{text}")


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
        _spreads(choice, _chosen(rule.initializer, choice))
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


#
# What is left alone
#


@dataclass(frozen=True, slots=True)
class Filters:
    """What the caller wants left alone, whatever the policy says.

    Attributes:
        only: Globs of the sites that may be written; None for all.
        skip: Globs of the sites that may not.
        frozen: Whether sites that require no gradient may be written.
    """

    only: tuple[str, ...] | None
    skip: tuple[str, ...]
    frozen: bool

    @classmethod
    def of(
        cls,
        only: Sequence[str] | str | None = None,
        skip: Sequence[str] | str | None = None,
        *,
        frozen: bool = False,
    ) -> "Filters":
        """Take the arguments as all verbs do: one glob or several, of which there may be none."""
        return cls(None if only is None else _globs(only), _globs(skip or ()), frozen)

    def kept(self, site: Site) -> tuple[str, str] | None:
        """Say why a site is left alone: which argument says so, and in words; None if it is not."""
        skipped = next((glob for glob in self.skip if _fits(glob, site)), None)
        if skipped is not None:
            return "skip", f"kept: skip={skipped!r}"
        if self.only is not None and not any(_fits(glob, site) for glob in self.only):
            return "only", "kept: not among only=..."
        if not (site.requires_grad or self.frozen):
            return "frozen", "kept: frozen (requires_grad=False)"
        return None

    def idle(self, found: Sequence[Site]) -> Iterator[str]:
        """Yield the globs that match no site."""
        for argument, globs in ("only", self.only or ()), ("skip", self.skip):
            for glob in globs:
                if not any(_fits(glob, site) for site in found):
                    yield f"{argument}={glob!r} matches nothing{nearest(glob, _patterns(found))}"


def _globs(globs: Sequence[str] | str) -> tuple[str, ...]:
    return (globs,) if isinstance(globs, str) else tuple(globs)


def _fits(glob: str, site: Site) -> bool:
    return Name((glob,)).matches(site, _UNKNOWN)


_UNKNOWN = Facts("unknown")


def _patterns(found: Iterable[Site]) -> set[str]:
    """Return what somebody may have meant: names, and `module.*` for each module."""
    names = {name for site in found for name in site.names}
    parts = [name.split(".") for name in names]
    return names | {".".join([*part[:end], "*"]) for part in parts for end in range(1, len(part))}


#
# Which rule decides
#


def _choice(site: Site, facts: Facts | None, policy: InitPolicy, filters: Filters) -> Choice:
    known = _with_axes(facts or Facts(site.role), site)
    branches = known.residual_branches
    if policy.scaling is not None:
        branches = policy.scaling.branches(branches)
    blocks = tuple(
        Choice(site, block, policy.first(site, block), None, number, branches=branches)
        for number, block in enumerate(known.blocks)
    )
    rule, kept = policy.first(site, known), filters.kept(site)
    return Choice(site, known, rule, kept, blocks=blocks, branches=branches)


def _sparing(choice: Choice, meant: Mapping[str, str]) -> Choice:
    """Return a choice that keeps what was meant, where each rule that decides lets it stay."""
    reason = meant.get(choice.site.name)
    deciding = [part.rule for part in (choice, *choice.blocks) if part.rule is not None]
    spared = deciding and all(rule.keeps_meant for rule in deciding)
    writes = any(not isinstance(rule.initializer, Keep) for rule in deciding)
    if reason is None or choice.kept is not None or not spared or not writes:
        return choice
    return replace(choice, kept=("keep", f"kept: meant, {reason}"))


def _with_axes(facts: Facts, site: Site) -> Facts:
    """Return facts whose axes are what the trace says, else what the owner's type says.

    A site that has no shape yet has no axes either.
    """
    axes = None if site.lazy else facts.axes or site.axes
    blocks = tuple(_with_axes(block, site) for block in facts.blocks)
    return replace(facts, axes=axes, blocks=blocks)


def _idle(policy: InitPolicy, choices: Sequence[Choice]) -> Iterator[str]:
    """Yield the rules that decide about no site, though they should."""
    deciding = {id(part.rule) for choice in choices for part in (choice, *choice.blocks)}
    for number, rule in enumerate(policy.rules):
        if rule.optional or id(rule) in deciding:
            continue
        hidden = any(rule.matches(choice.site, choice.facts) for choice in choices)
        why = (
            "comes too late, earlier rules match all of its sites" if hidden else "matches nothing"
        )
        yield f"rule {number}, {rule.matcher!r}, {why}{'' if hidden else _meant(rule, choices)}"


def _meant(rule: Rule, choices: Sequence[Choice]) -> str:
    """Suggest names where a rule goes by one."""
    if not isinstance(rule.matcher, Name) or not rule.matcher.globs:
        return ""
    return nearest(rule.matcher.globs[0], _patterns(choice.site for choice in choices))


#
# What the rule comes to
#


def _steps(choices: Sequence[Choice]) -> tuple[list[Step], list[Failed]]:
    """Make the step of each choice that is settled, and list what is wrong with the others."""
    gains = dict(_gains(choice.facts for choice in choices))
    made = [_attempt(choice, gains) for choice in choices if choice.is_settled]
    steps = [step for step in made if isinstance(step, Step)]
    return steps, [failed for failed in made if not isinstance(failed, Step)]


def _asking(choices: Iterable[Choice]) -> Iterator[str]:
    """Yield the sites whose initializer depends on more than their shapes: a recipe chose it."""
    for choice in choices:
        deciding = (part.rule for part in (choice, *choice.blocks) if part.rule is not None)
        if any(not isinstance(rule.initializer, Initializer) for rule in deciding):
            yield choice.site.name


def _attempt(choice: Choice, gains: Gains) -> Step | Failed:
    try:
        return _step(choice, gains)
    except (ApplyError, PolicyError) as error:
        return choice, str(error)


def _gains(known: Iterable[Facts]) -> Iterator[tuple[Activation | None, float]]:
    each = (fact for facts in known for fact in (facts, *facts.blocks))
    for activation in {activation for fact in each for activation in (fact.meets, fact.fed_by)}:
        yield activation, _gain(activation)


def _gain(activation: Activation | None) -> float:
    """Return the gain of an activation; 1 where there is none, or nobody knows it."""
    try:
        return 1.0 if activation is None else gain(activation)
    except ValueError:
        return 1.0


def _step(choice: Choice, gains: Gains) -> Step:
    """Work out what a rule comes to at its site.

    Raises:
        PolicyError: The initializer does not fit the site.
        ApplyError: The site cannot be written, or not with these values.
    """
    site = choice.site
    if choice.kept is not None or choice.rule is None:
        return _described(choice, Filling(Keep(), *(choice.kept or ("", ""))))
    filled = _filled(choice, choice.rule, gains)
    if filled.initializer == Keep():
        return _described(choice, filled)
    _check_memory(site)
    spreads = _spreads(choice, filled.initializer)
    _check_range(filled.initializer, spreads, site.dtype)
    step = _described(choice, filled, spreads)
    if site.storage != "plain":
        _check_reachable(site, step)
    return step


class Filling(NamedTuple):
    """What a site or one of its blocks is filled with.

    Attributes:
        initializer: The initializer, all numbers resolved.
        rule: What chose it, as the policy writes it.
        reason: Why, in words.
    """

    initializer: Initializer
    rule: str
    reason: str


def _filled(choice: Choice, rule: Rule, gains: Gains) -> Filling:
    """Return what fills a site: its blocks apart where they come to different things.

    What cannot fill a block alone (a function, what keeps the tensor) fills the site as a whole.
    """
    whole = _filling(choice, rule, gains)
    parts = [
        _filling(block, block.rule, gains) for block in choice.blocks if block.rule is not None
    ]
    each = tuple(part.initializer for part in parts)
    separate = len(parts) == len(choice.blocks) and not any(part.is_opaque for part in each)
    if not separate or all(initializer == whole.initializer for initializer in each):
        return whole
    packed = Blocks(each)
    return whole if packed == whole.initializer else _packed(packed, parts)


def _packed(packed: Blocks, parts: Sequence[Filling]) -> Filling:
    """Join the fillings of blocks; what is said of several is said once."""
    rules = dict.fromkeys(part.rule for part in parts)
    reasons: dict[str, list[int]] = {}
    for number, part in enumerate(parts):
        reasons.setdefault(part.reason, []).append(number)
    told_once = (f"block {ranges(numbers)} {why}" for why, numbers in reasons.items())
    return Filling(packed, "; ".join(rules), "; ".join(told_once))


def _filling(choice: Choice, rule: Rule, gains: Gains) -> Filling:
    """Return what a rule fills a site with, or one of its blocks."""
    chosen = _chosen(rule.initializer, choice)
    if choice.block is not None:
        chosen = chosen.of_block(choice.block)
    context = _context(choice, gains)
    resolved = chosen.resolve(context)
    counts = resolved != chosen.resolve(replace(context, multiplier=1.0, weight_multiplier=1.0))
    reason = _reason(choice, rule, chosen, told(resolved, *_fans(choice)), counts=counts)
    return Filling(resolved, repr(rule.matcher), reason)


def _chosen(held: Initializer | Recipe, choice: Choice) -> Initializer:
    """Return a rule's initializer, or the one that its recipe chooses for a site."""
    if isinstance(held, Initializer):
        return held
    return cast("Initializer", filling(held.for_site(choice.site, choice.facts)))


def _context(choice: Choice, gains: Gains) -> Context:
    facts = choice.facts
    return Context(
        meets_gain=gains[facts.meets],
        fed_gain=gains[facts.fed_by],
        signal_gain=facts.reads**-0.5 if facts.reads else gains[facts.fed_by],
        residual_branches=choice.branches,
        branch_depth=facts.branch_depth,
        multiplier=facts.multiplier.total,
        weight_multiplier=facts.multiplier.weight,
    )


def _described(choice: Choice, filled: Filling, spreads: Sequence[Spread] = ()) -> Step:
    site = choice.site
    return Step(
        name=site.name,
        names=site.names,
        shape=site.shape,
        dtype=site.dtype,
        owner=site.kind,
        facts=choice.facts,
        initializer=filled.initializer,
        std=merged(spread.std for spread in spreads),
        rule=filled.rule,
        reason=filled.reason,
        padding=choice.padding,
    )


def _fans(choice: Choice) -> tuple[Number, Number]:
    """Count the fans of a site, or of one of its blocks.

    Raises:
        PolicyError: The axes do not fit the site's shape.
    """
    try:
        blocks = block_fans(choice.site.shape, choice.facts.axes)
    except ValueError as error:
        raise PolicyError(str(error)) from error
    if choice.block is not None:
        blocks = blocks[choice.block : choice.block + 1]
    return merged(fan.fan_in for fan in blocks), merged(fan.fan_out for fan in blocks)


def _spreads(choice: Choice, initializer: Initializer) -> tuple[Spread, ...]:
    """Return the distributions of a site's values, one or one per block; none if nobody knows."""
    spread = initializer.spread(choice.site.shape, choice.facts.axes)
    return (spread,) if isinstance(spread, Spread) else spread or ()


#
# Why
#

_RECURS = ("lstm", "gru", "rnn")


def _reason(choice: Choice, rule: Rule, chosen: Initializer, what: str, *, counts: bool) -> str:
    """Say in one sentence why a site is filled as it is; `counts`: constants have been counted."""
    if chosen == Keep():
        return f"{_role(choice.facts)}: {rule.note or what}"
    words = ", ".join([what, *_details(choice, chosen), *(_taken_out(choice) if counts else ())])
    return f"{_cause(choice.facts, chosen)}: {words}" + (f" ({rule.note})" if rule.note else "")


def _details(choice: Choice, chosen: Initializer) -> Iterator[str]:
    axes = choice.facts.axes
    blocks = axes.blocks if axes and choice.block is None else ()
    if blocks and choice.facts.role in ("weight", "recurrent") and not isinstance(chosen, Blocks):
        yield f"each of {counted(len(blocks), 'block')}"
    if isinstance(chosen, BranchScaled):
        yield f"scaled for {choice.branches} residual branches"
    if choice.facts.offset:
        yield f"as {figure(choice.facts.offset)} is added to it"
    if choice.padding is not None:
        yield f"row {choice.padding} zero"


def _taken_out(choice: Choice) -> Iterator[str]:
    """Say which constants a gain makes up for."""
    multiplier = choice.facts.multiplier
    named = {"": multiplier.output, " on the input": multiplier.input}
    named[" on the weight"] = multiplier.weight
    for where, factor in named.items():
        if not math.isclose(factor, 1.0):
            yield f"x {figure(factor)}{where} taken out"


def _cause(facts: Facts, chosen: Initializer) -> str:
    """Say which fact about a site matters."""
    if facts.role != "weight":
        return _role(facts)
    if facts.evidence in ("traced", "ran") and not facts.used:
        return "not used by the forward pass"
    if (facts.op or "").startswith(_RECURS):
        return f"input of {facts.op}"
    said = _OF_GAINS.get(getattr(chosen, "gain", None), _met)
    return said(facts)


def _met(facts: Facts) -> str:
    if facts.meets is None and facts.stopped_by is not None:
        return f"meets {facts.stopped_by}, of unknown role"
    return f"meets {_activation(facts.meets)}"


def _fed(facts: Facts) -> str:
    return f"fed by {'the input' if facts.reads_input else _activation(facts.fed_by)}"


def _read(facts: Facts) -> str:
    if facts.reads_unknown is None:
        return f"reads a mean square of {figure(facts.reads, 3)}"
    return f"what it reads is unknown behind {facts.reads_unknown}, it is {_fed(facts)}"


_OF_GAINS: Mapping[object, Callable[[Facts], str]] = types.MappingProxyType(
    {"signal": _read, "fed_by": _fed}
)
"""What matters where the gain is not that of the activation that is met."""


def _role(facts: Facts) -> str:
    return facts.role.replace("_", " ")


def _activation(activation: Activation | None) -> str:
    if activation is None:
        return "nothing"
    if activation.parameter is None:
        return activation.name
    return f"{activation.name}({figure(activation.parameter)})"


#
# What could fail
#


def _check_memory(site: Site) -> None:
    """Raise where a site cannot be written; one without memory can still be planned for."""
    if site.lazy or site.device.type != "meta":
        found = list(obstacles(site))
        if found:
            raise ApplyError(found[0])
    try:
        working_dtype(site.dtype)
    except PolicyError as error:
        raise PolicyError(f"{error}; leave it out with skip=[{site.name!r}]") from error


def _shared(found: Sequence[Site], steps: Sequence[Step]) -> Iterator[str]:
    """Yield which sites would be written over by each other."""
    written = {step.name for step in steps if not step.keeps}
    return shared(site for site in found if site.name in written)


def _check_range(initializer: Initializer, spreads: Sequence[Spread], dtype: torch.dtype) -> None:
    """Raise where a site's dtype cannot hold what would be drawn for it."""
    reason = overflow(spreads, dtype)
    if reason is not None:
        raise PolicyError(f"{initializer}: {reason}")


def _check_reachable(site: Site, step: Step) -> None:
    """Raise where the parametrisation of a site cannot be given such values.

    Raises:
        ApplyError: A sample drawn for the site does not read back.
    """
    if site.device.type == "meta" or step.initializer.is_opaque:
        return
    with torch.inference_mode(mode=False), torch.no_grad(), isolated(site.device, 0):
        sample = torch.empty(site.shape, dtype=working_dtype(site.dtype), device=site.device)
        generator = torch.Generator(site.device).manual_seed(0)
        step.initializer(sample, step.axes, generator=generator)
        behind(site, sample.to(site.dtype))
