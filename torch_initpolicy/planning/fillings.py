"""Fillings: the numbers that a rule comes to at its site.

What the weights read is followed through the forward pass only where an initializer asks for it,
and then given everything else that the policy writes.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

from torch_initpolicy.errors import ApplyError, PolicyError
from torch_initpolicy.moments.gaussian import Size
from torch_initpolicy.moments.propagate import Reads, reads
from torch_initpolicy.moments.state import Unknown, WrittenMoments, held
from torch_initpolicy.planning.choices import Choice, chosen
from torch_initpolicy.planning.describe import ranges, summary
from torch_initpolicy.planning.reasons import reason
from torch_initpolicy.policy.rules import Rule
from torch_initpolicy.steps import Number, merged
from torch_initpolicy.tensors.axes import Axes, Fans, block_fans, conventional, fans
from torch_initpolicy.tensors.base import Context, Shared, Spread
from torch_initpolicy.tensors.gains import Activation, gain
from torch_initpolicy.tensors.initializers import Blocks, Initializer, Keep
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.trace.flow import Flow

Gains: TypeAlias = Mapping[Activation | None, float]
"""The gain of every activation that a model's facts name; 1 where there is none."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the numbers at one site depend on beside its own facts.

    `asks` says whether an initializer may ask what its weight reads, and `reads` by canonical name
    what each does read; it is empty where none asks.
    """

    gains: Gains
    asks: bool = True
    reads: Mapping[str, Reads] = field(default_factory=dict)

    def context(self, choice: Choice) -> Context:
        """Return what the initializer of a site may ask for, in numbers."""
        facts, read = choice.reckoned, self.reads.get(choice.site.name, UNREAD)
        fed_gain = self.gains[facts.fed_by]
        return Context(
            meets_gain=self.gains[facts.meets],
            fed_gain=fed_gain,
            signal_gain=fed_gain if read.second is None else read.second**-0.5,
            residual_branches=facts.residual_branches,
            branch_depth=facts.branch_depth,
            multiplier=facts.multiplier.total,
            weight_multiplier=facts.multiplier.weight,
            shared=_shared(choice),
        )


def _shared(choice: Choice) -> Shared | None:
    """Say how a site's weight in use is shared out; None where it makes one alone."""
    composition, shape = choice.facts.composition, choice.site.shape
    if composition is None:
        return None
    axes = choice.facts.axes or conventional(shape)
    if axes.blocks:
        return None
    growth = composition.growth * math.sqrt(composition.terms)
    used = Fans(composition.fan_in, composition.fan_out)
    return Shared(composition.factors, growth, used, fans(shape, axes))


UNREAD = Reads(None)
"""What a weight reads where no forward pass could be followed."""


def surroundings(choices: Sequence[Choice], flow: Flow | None) -> Surroundings:
    """Find what the numbers of a model's sites depend on."""
    known = Surroundings(_gains(choice.facts for choice in choices))
    if flow is None:
        return known
    if not any(_asks_anywhere(choice, known) for choice in choices):
        return replace(known, asks=False)
    written = {choice.site.name: _written(choice, known) for choice in choices}
    stated = {name: numbers for name, numbers in written.items() if numbers is not None}
    return replace(known, reads=reads(flow, [choice.site for choice in choices], stated))


def _gains(known: Iterable[Facts]) -> Gains:
    each = [fact for facts in known for fact in (facts, *facts.blocks)]
    named = {fact.meets for fact in each} | {fact.fed_by for fact in each}
    return {activation: _gain(activation) for activation in named}


def _gain(activation: Activation | None) -> float:
    """Return the gain of an activation; 1 where there is none, or it is not known."""
    try:
        return 1.0 if activation is None else gain(activation)
    except ValueError:
        return 1.0


def _asks(initializer: Initializer, context: Context) -> bool:
    """Tell whether the numbers of an initializer depend on what its site reads."""
    other = replace(context, signal_gain=2 * context.signal_gain)
    return initializer.resolve(context) != initializer.resolve(other)


def _asks_anywhere(choice: Choice, known: Surroundings) -> bool:
    """Tell whether a site or one of its blocks depends on what it reads."""
    if choice.kept is not None:
        return False
    return any(
        part.rule is not None and _asks(chosen(part.rule, part), known.context(part))
        for part in (choice, *choice.blocks)
    )


def _written(choice: Choice, known: Surroundings) -> WrittenMoments | Unknown | None:
    """Return what the policy writes to a site; None where what is usual for its role may do."""
    if choice.kept is not None or choice.rule is None:
        return _kept(choice)
    try:
        # At a signal gain of 1 an output's second moment is that for an input of second moment 1.
        asks = _asks_anywhere(choice, known)
        around = replace(known, reads={choice.site.name: Reads(1.0)}) if asks else known
        initializer = filled(choice, choice.rule, around).initializer
        if initializer == Keep():
            return _kept(choice)
        spreads = spreads_of(initializer, choice.site.shape, choice.facts.axes)
        blocks = block_fans(choice.site.shape, choice.facts.axes)
    except (ApplyError, PolicyError, ValueError) as error:  # said again where the step is made
        return Unknown(str(error))
    if not spreads:
        return Unknown(f"{initializer} at {choice.site.name!r}")
    return _moments(spreads, blocks, choice.facts, asks=asks)


def _kept(choice: Choice) -> WrittenMoments | Unknown | None:
    """Return what a site holds that is kept; scales and biases without values start at 1 and 0."""
    size = held(choice.site)
    if isinstance(size, Size):
        return WrittenMoments(size.mean, size.second)
    return None if choice.facts.role in ("norm_weight", "norm_bias", "bias") else size


def _moments(
    spreads: Sequence[Spread], blocks: Sequence[Fans], facts: Facts, *, asks: bool
) -> WrittenMoments:
    mean = sum(spread.mean for spread in spreads) / len(spreads)
    powers = [spread.std**2 + spread.mean**2 for spread in spreads]
    power = sum(powers) / len(powers)
    if not asks:
        return WrittenMoments(mean, power)
    if facts.composition is not None:  # each factor makes its part of the weight that was asked for
        return WrittenMoments(mean, power, output=1.0)
    fan_in = sum(fan.fan_in for fan in blocks) / len(blocks) if blocks else 1.0
    return WrittenMoments(mean, power, output=fan_in * power * facts.multiplier.weight**2)


class Filling(NamedTuple):
    """What a site or block is filled with, all numbers resolved; what chose it; why, in words."""

    initializer: Initializer
    rule: str
    reason: str


def filled(choice: Choice, rule: Rule, around: Surroundings) -> Filling:
    """Return what fills a site: its blocks separately where they come to different things.

    What cannot fill a block alone (a function, what keeps the tensor) fills the site as a whole.
    """
    whole = _filling(choice, rule, around)
    parts = [
        _filling(block, block.rule, around) for block in choice.blocks if block.rule is not None
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
    once = (f"block {ranges(numbers)} {why}" for why, numbers in reasons.items())
    return Filling(packed, "; ".join(rules), "; ".join(once))


def _filling(choice: Choice, rule: Rule, around: Surroundings) -> Filling:
    """Return what a rule fills a site with, or one of its blocks."""
    initializer, context = chosen(rule, choice), around.context(choice)
    resolved = initializer.resolve(context)
    plain = replace(context, multiplier=1.0, weight_multiplier=1.0, shared=None)
    counts = context != plain and resolved != initializer.resolve(plain)
    asks = around.asks and _asks(initializer, context)
    what = summary(resolved, *fans_of(choice))
    if counts and context.shared is not None:
        what = summary(initializer.resolve(replace(context, shared=None)), *context.shared.used)
    why = reason(
        choice,
        rule,
        initializer,
        what,
        read=around.reads.get(choice.site.name, UNREAD) if asks else None,
        counts=counts,
    )
    return Filling(resolved, repr(rule.matcher), why)


def fans_of(choice: Choice) -> tuple[Number, Number]:
    """Count the fans of a site, or of one of its blocks."""
    try:
        blocks = block_fans(choice.site.shape, choice.facts.axes)
    except ValueError as error:
        raise PolicyError(str(error)) from error
    if choice.block is not None:
        blocks = blocks[choice.block : choice.block + 1]
    return merged(fan.fan_in for fan in blocks), merged(fan.fan_out for fan in blocks)


def spreads_of(
    initializer: Initializer, shape: Sequence[int], axes: Axes | None
) -> tuple[Spread, ...]:
    """Return the distributions of a tensor's values, one or one per block; none where unknown."""
    spread = initializer.spread(shape, axes)
    return (spread,) if isinstance(spread, Spread) else spread or ()
