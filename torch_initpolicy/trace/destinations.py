"""What reads a signal in the end: a normalisation, a recurrent layer, or neither.

A residual stream is followed to its end, over all the additions of its branches.
"""

from typing import NamedTuple

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.facts import Reader
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OpRole
from torch_initpolicy.trace.residuals import Residuals, indices


class Destination(NamedTuple):
    """What reads a signal before the next weight.

    Attributes:
        reader: The first normalisation or recurrent layer on any path, branches of a residual
            stream among them.
        ends_in_norm: Whether a normalisation reads it in the end; of a residual stream, what is
            left when all branches have been added.
    """

    reader: Reader | None = None
    ends_in_norm: bool = False


NOWHERE = Destination()
_NORM = Destination("norm", ends_in_norm=True)
_RECURRENT = Destination("recurrent")

_PASSED = frozenset({
    OpRole.MULTIPLIES, OpRole.ADDS, OpRole.CASTS, OpRole.MOVES, OpRole.PICKS, OpRole.MIXES,
    OpRole.JOINS, OpRole.ACTIVATES, OpRole.COMPUTES, OpRole.GATES,
})  # fmt: skip
"""Roles of operators behind which the next reader is looked for."""


def destinations(uses: Uses, found: Residuals) -> dict[int, Destination]:
    """Say for every value what reads it in the end.

    Args:
        uses: The graph with its signals and weights.
        found: Its residual branches.

    Returns:
        By value; one that is missing is read by neither a normalisation nor a recurrent layer.
    """
    skips = found.skips(uses)
    known: dict[int, Destination] = {}
    for value in reversed(uses.graph.values):
        readers = [uses.graph.nodes[index] for index in uses.graph.consumers[value.index]]
        each = [_read(uses, known, node, value.index) for node in readers]
        streams = [
            destination
            for node, destination in zip(readers, each, strict=True)
            if skips.get(node.index) == value.index
        ]
        reader = next((destination.reader for destination in each if destination.reader), None)
        ends = any(destination.ends_in_norm for destination in streams or each)
        if reader is not None:
            known[value.index] = Destination(reader, ends)
    return known


def _read(uses: Uses, known: dict[int, Destination], node: Node, value: int) -> Destination:
    """Say what reads a value through one of its consumers."""
    role = uses.role(node)
    if value not in uses.carried(node):
        return NOWHERE
    if role is OpRole.RECURS:
        return _RECURRENT
    if node.index in uses.weighers:
        return NOWHERE
    if role is OpRole.NORMALISES or "normalised" in map(uses.kinds.get, node.outputs):
        return _NORM
    beyond = [known[output] for output in node.outputs if output in known and role in _PASSED]
    return max(beyond, key=lambda found: found.ends_in_norm, default=NOWHERE)


def batch_normalised(uses: Uses, found: Residuals) -> frozenset[int]:
    """Return the nodes that lie in a residual branch with a batch normalisation."""
    norms = sum(1 << node.index for node in uses.graph.nodes if node.op == "batch_norm")
    inside = 0
    for branch in found.branches:
        if branch.inside & norms:
            inside |= branch.inside
    return frozenset(indices(inside))
