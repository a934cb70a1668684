"""Choices: which rule decides about each site.

Knows policies, sites and facts; neither numbers nor reasons.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from torch_initpolicy.errors import PolicyError, nearest
from torch_initpolicy.planning.selection import Selection, patterns
from torch_initpolicy.policy.family import Member
from torch_initpolicy.policy.matchers import Name
from torch_initpolicy.policy.rules import InitPolicy, Rule, filling
from torch_initpolicy.sites import Site
from torch_initpolicy.tensors.initializers import AsConstructed, Initializer, Keep
from torch_initpolicy.trace.facts import Facts


@dataclass(frozen=True, slots=True)
class Choice:
    """What has been decided about a site.

    Attributes:
        rule: The first rule that matches, or None.
        kept: Why it is left alone whatever the rule says (the argument, and in words), or None.
        block: Number of the packed block that this is about; None for the whole site.
        blocks: The same for each packed block, where they meet different things; else empty.
        reckoned: Facts with the constants that initializers reckon with: those of the base model,
            where the policy scales from one.
    """

    site: Site
    facts: Facts
    rule: Rule | None
    kept: tuple[str, str] | None
    block: int | None = None
    blocks: "tuple[Choice, ...]" = ()
    reckoned: Facts = field(default=Facts("unknown"), compare=False)

    @property
    def is_settled(self) -> bool:
        """Whether it is known what becomes of the site."""
        return self.rule is not None or self.kept is not None

    @property
    def deciding(self) -> tuple[Rule, ...]:
        """The rules that decide about the site and its blocks."""
        return tuple(part.rule for part in (self, *self.blocks) if part.rule is not None)

    def __str__(self) -> str:
        return f"{self.site.name!r} ({self.site.kind}, {self.facts.role}, {self.site.shape})"


def choose(
    site: Site,
    facts: Facts | None,
    policy: InitPolicy,
    selection: Selection,
    member: Member | None = None,
) -> Choice:
    """Find the rule that decides about a site, and about each of its packed blocks."""
    known = _completed(facts or Facts(site.role), site)
    reckoned = known if policy.scaling is None else policy.scaling.in_base(known, member)
    blocks = tuple(
        Choice(site, block, policy.first(site, block), None, number, reckoned=numbers)
        for number, (block, numbers) in enumerate(zip(known.blocks, reckoned.blocks, strict=True))
    )
    rule, kept = policy.first(site, known), selection.kept(site)
    return Choice(site, known, rule, kept, blocks=blocks, reckoned=reckoned)


def sparing(choice: Choice, meant: Mapping[str, str]) -> Choice:
    """Return a choice that keeps what was meant, where each rule that decides lets it stay."""
    reason = meant.get(choice.site.name)
    deciding = choice.deciding
    spared = deciding and all(rule.keeps_meant for rule in deciding)
    writes = any(rule.initializer != Keep() for rule in deciding)
    if reason is None or choice.kept is not None or not spared or not writes:
        return choice
    return replace(choice, kept=("keep", f"kept: meant, {reason}"))


def by_recipe(choices: Iterable[Choice]) -> dict[str, Choice]:
    """Return the choices whose initializer is made from more than the site's shape."""
    return {
        choice.site.name: choice
        for choice in choices
        if any(
            not isinstance(rule.initializer, Initializer) or rule.initializer == AsConstructed()
            for rule in choice.deciding
        )
    }


def in_shape(choice: Choice, shape: tuple[int, ...]) -> Initializer:
    """Return what would fill a site of another shape, were nothing else known of its layer."""
    site = replace(choice.site, shape=shape, owner=nn.Module())
    return Keep() if choice.rule is None else chosen(choice.rule, replace(choice, site=site))


def _completed(facts: Facts, site: Site) -> Facts:
    """Return facts with what the owner's type says where the trace says nothing.

    A site that has no shape yet has no axes either.
    """
    axes = None if site.lazy else facts.axes or site.axes
    padding = site.padding if facts.padding is None else facts.padding
    if (axes, padding, facts.blocks) == (facts.axes, facts.padding, ()):
        return facts
    blocks = tuple(_completed(block, site) for block in facts.blocks)
    return replace(facts, axes=axes, padding=padding, blocks=blocks)


def idle_rules(policy: InitPolicy, choices: Sequence[Choice]) -> Iterator[str]:
    """Yield the rules that decide about no site, though they should."""
    deciding = {id(part.rule) for choice in choices for part in (choice, *choice.blocks)}
    for number, rule in enumerate(policy.rules):
        if rule.optional or id(rule) in deciding:
            continue
        hidden = any(rule.matcher.matches(choice.site, choice.facts) for choice in choices)
        why = (
            "comes too late, earlier rules match all of its sites" if hidden else "matches nothing"
        )
        yield f"rule {number}, {rule.matcher!r}, {why}{'' if hidden else _nearest(rule, choices)}"


def _nearest(rule: Rule, choices: Sequence[Choice]) -> str:
    """Suggest names where a rule goes by one."""
    if not isinstance(rule.matcher, Name) or not rule.matcher.globs:
        return ""
    return nearest(rule.matcher.globs[0], patterns(choice.site for choice in choices))


def chosen(rule: Rule, choice: Choice) -> Initializer:
    """Return a rule's initializer for a site or block, or the one that its recipe chooses."""
    held = rule.initializer
    if not isinstance(held, Initializer):
        held = filling(held.for_site(choice.site, choice.facts))
        if not isinstance(held, Initializer):
            raise PolicyError(f"{rule.initializer!r} chooses a recipe, {held!r}")
    return held if choice.block is None else held.of_block(choice.block)
