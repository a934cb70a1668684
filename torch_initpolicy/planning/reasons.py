"""Reasons: why a site is filled as it is, in one sentence for people.

Knows facts and initializers; decides nothing.
"""

import math
from collections.abc import Iterator

from torch_initpolicy.errors import counted
from torch_initpolicy.moments.propagate import Reads
from torch_initpolicy.planning.choices import Choice
from torch_initpolicy.planning.describe import figure
from torch_initpolicy.policy.rules import Rule
from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.tensors.initializers import Blocks, BranchScaled, Initializer, Keep
from torch_initpolicy.trace.facts import Facts

_RECURS = ("lstm", "gru", "rnn")


def reason(
    choice: Choice, rule: Rule, chosen: Initializer, what: str, *, read: Reads | None, counts: bool
) -> str:
    """Say in one sentence why a rule's initializer fills a site as `what` says.

    `what` says in words how it fills the site, `counts` whether known constants have been taken out
    of the gain.
    """
    if chosen == Keep():
        return f"{_role(choice.facts)}: {rule.note or what}"
    words = ", ".join([what, *_details(choice, chosen), *(_taken_out(choice) if counts else ())])
    return f"{_cause(choice.facts, chosen, read)}: {words}" + (
        f" ({rule.note})" if rule.note else ""
    )


def _details(choice: Choice, chosen: Initializer) -> Iterator[str]:
    axes = choice.facts.axes
    blocks = axes.blocks if axes and choice.block is None else ()
    if blocks and choice.facts.role in ("weight", "recurrent") and not isinstance(chosen, Blocks):
        yield f"each of {counted(len(blocks), 'block')}"
    if isinstance(chosen, BranchScaled):
        count = choice.reckoned.residual_branches
        yield f"scaled for {count} residual {'branch' if count == 1 else 'branches'}"
    if choice.facts.offset:
        yield f"as {figure(choice.facts.offset)} is added to it"
    if choice.facts.padding is not None:
        yield f"row {choice.facts.padding} zero"


def _taken_out(choice: Choice) -> Iterator[str]:
    """Say which constants a gain makes up for."""
    multiplier, composition = choice.facts.multiplier, choice.facts.composition
    if composition is not None:
        yield f"shared by {composition.factors} factors"
    named = {"": multiplier.output, " on the input": multiplier.input}
    named[" on the weight"] = multiplier.weight
    for where, factor in named.items():
        if not math.isclose(factor, 1.0):
            yield f"x {figure(factor)}{where} taken out"


def _cause(facts: Facts, chosen: Initializer, read: Reads | None) -> str:
    """Say which fact about a site matters."""
    if facts.role != "weight":
        return _role(facts)
    if facts.evidence in ("traced", "ran") and not facts.used:
        return "not used by the forward pass"
    if (facts.op or "").startswith(_RECURS):
        return f"input of {facts.op}"
    if read is not None and read != Reads(None):
        return _read(facts, read)
    by_input = read is not None or getattr(chosen, "gain", None) == "fed_by"
    return _fed(facts) if by_input else _met(facts)


def _met(facts: Facts) -> str:
    if facts.meets is None and facts.stopped_by is not None:
        return f"meets {facts.stopped_by}, of unknown role"
    return f"meets {_activation(facts.meets)}"


def _fed(facts: Facts) -> str:
    return f"fed by {'the input' if facts.reads_input else _activation(facts.fed_by)}"


def _read(facts: Facts, read: Reads) -> str:
    if read.second is not None:
        return f"reads a mean square of {figure(read.second, 3)}"
    return f"what it reads is unknown behind {read.reason}, it is {_fed(facts)}"


def _role(facts: Facts) -> str:
    return facts.role.replace("_", " ")


def _activation(activation: Activation | None) -> str:
    if activation is None:
        return "nothing"
    if activation.parameter is None:
        return activation.name
    return f"{activation.name}({figure(activation.parameter)})"
