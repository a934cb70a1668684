"""What the output of a weight is added to or multiplied by before the next weight.

A zero there closes a summand or a factor, and what it joins carries the signal on.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import NamedTuple

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import CARRIERS, OpRole, activation_of
from torch_initpolicy.trace.residuals import Residuals


class Join(NamedTuple):
    """What a value meets on its way to the next weight.

    Attributes:
        summands: Values that it is added to and that do not come out of it.
        factors: Values that it is multiplied by.
    """

    summands: frozenset[int] = frozenset()
    factors: frozenset[int] = frozenset()


ALONE = Join()

_PRODUCTS = frozenset({OpRole.MULTIPLIES, OpRole.CONTRACTS, OpRole.ATTENDS})
_PASSED = CARRIERS - {OpRole.NORMALISES} | {
    OpRole.ACTIVATES, OpRole.COMPUTES, OpRole.GATES, OpRole.ATTENDS, OpRole.CONTRACTS,
}  # fmt: skip
"""Roles of operators through which a small signal goes on: all but normalisations, which make a
zero no small signal."""

SHUT_AT_ZERO = frozenset({"relu", "relu6", "relu2", "threshold"})
"""Activations of which torch takes the derivative at 0 to be 0: behind them a zero is dead."""


def joins(uses: Uses, found: Residuals) -> dict[int, Join]:
    """Say for every value what it is joined with before the next weight."""
    joined: dict[int, Join] = {}
    for node in reversed(uses.graph.nodes):
        if not _passes(uses, node):
            continue
        for value in dict.fromkeys(uses.carried(node)):
            here = [_at(uses, found, node, value), joined.get(value, ALONE)]
            beyond = [joined.get(output, ALONE) for output in node.outputs]
            joined[value] = _both(*here, *beyond)
    return {value: join for value, join in joined.items() if join != ALONE}


def _passes(uses: Uses, node: Node) -> bool:
    role = uses.role(node)
    if role is OpRole.ACTIVATES and activation_of(node).name in SHUT_AT_ZERO:
        return False
    return role in _PASSED and node.index not in uses.weighers


def _both(*each: Join) -> Join:
    return Join(_either(join.summands for join in each), _either(join.factors for join in each))


def _either(sets: Iterable[frozenset[int]]) -> frozenset[int]:
    """Return the union of sets; of very many numbers which they are does not matter."""
    first, *others = sorted(filter(None, sets), key=len) or (_NO,)
    for other in others:
        first |= other if len(other) < _MANY else frozenset(islice(other, _MANY))
    return first


_MANY = 1000
"""Signals that one value is joined with, of which no more are told apart."""


def _at(uses: Uses, found: Residuals, node: Node, value: int) -> Join:
    """Say what a value is joined with at one node: signals that do not come out of it."""
    operands = _multiplied(uses, node) if uses.role(node) is OpRole.ATTENDS else uses.carried(node)
    if value not in operands:
        return ALONE
    derived = found.derived.get(node.index, _NO_PAIRS)
    others = {v for v in operands if v != value and (value, v) not in derived}
    role, both = uses.role(node), frozenset(others)
    return Join(both if role is OpRole.ADDS else _NO, both if role in _PRODUCTS else _NO)


_NO: frozenset[int] = frozenset()
_NO_PAIRS: frozenset[tuple[int, int]] = frozenset()


def beside(
    heads: Mapping[str, float],
    uses: Uses,
    joined: Mapping[int, Join],
    made_by: Mapping[int, frozenset[str] | None],
) -> Iterator[tuple[str, float]]:
    """Yield the embeddings that go with a head, each with the number that belongs to the head.

    These are those whose rows are added to the rows of one that is tied to it, and then these.
    """
    for use in uses.found:
        if use.source.site in heads and uses.role(use.node) is OpRole.LOOKS_UP:
            for value in joined.get(use.node.outputs[0], ALONE).summands:
                yield from ((name, heads[use.source.site]) for name in made_by.get(value) or ())
    yield from heads.items()


def _multiplied(uses: Uses, node: Node) -> tuple[int, ...]:
    """Return the operands of attention that make a zero of each other: queries and keys."""
    return tuple(value for slot, value in uses.slots(node) if slot in ("query", "key"))


def makers(join: Join, made_by: Mapping[int, frozenset[str] | None]) -> tuple[str, ...] | None:
    """Name the weights that make what a value is multiplied by; none where they are many."""
    if not join.factors:
        return None
    each = [made_by.get(value) or frozenset() for value in join.factors]
    return tuple(sorted(frozenset().union(*each))) if all(each) else ()
