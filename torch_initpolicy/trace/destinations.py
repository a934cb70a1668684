"""What reads a signal next, and in the end: a normalisation, a recurrent layer, or neither.

A residual stream is followed over all the additions of its branches, and on to the model's output.
"""

from typing import NamedTuple

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.facts import Reader
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import CARRIERS, OpRole
from torch_initpolicy.trace.residuals import Residuals


class Destination(NamedTuple):
    """What reads a signal.

    Attributes:
        reader: The first normalisation or recurrent layer on any path before the next weight,
            branches of a residual stream among them.
        ends_in_norm: Whether a normalisation lies between it and the model's output; of a residual
            stream, behind all of its additions.
    """

    reader: Reader | None = None
    ends_in_norm: bool = False


NOWHERE = Destination()
_NORM = Destination("norm", ends_in_norm=True)

_LEADS_ON = CARRIERS | {OpRole.ACTIVATES, OpRole.COMPUTES, OpRole.GATES}
"""Roles of operators behind which the next reader is looked for."""


def destinations(uses: Uses, found: Residuals) -> dict[int, Destination]:
    """Say for every value what reads it in the end."""
    known: dict[int, Destination] = {}
    for value in reversed(uses.graph.values):
        readers = [uses.graph.nodes[index] for index in uses.graph.consumers[value.index]]
        each = [_read_through(uses, known, node, value.index) for node in readers]
        streams = [
            destination
            for node, destination in zip(readers, each, strict=True)
            if found.skips.get(node.index) == value.index
        ]
        reader = next((destination.reader for destination in each if destination.reader), None)
        ends = any(destination.ends_in_norm for destination in streams or each)
        if reader is not None or ends:
            known[value.index] = Destination(reader, ends)
    return known


def _read_through(uses: Uses, known: dict[int, Destination], node: Node, value: int) -> Destination:
    """Say what reads a value through one of its consumers."""
    role = uses.role(node)
    if value not in uses.carried(node):
        return NOWHERE
    beyond = [known[output] for output in node.outputs if output in known]
    ends = any(destination.ends_in_norm for destination in beyond)
    if role is OpRole.RECURS:
        return Destination("recurrent", ends)
    if node.index in uses.weighers:
        return Destination(None, ends)
    if role is OpRole.NORMALISES or "normalised" in map(uses.kinds.get, node.outputs):
        return _NORM
    reader = next((found.reader for found in beyond if found.reader), None)
    return Destination(reader, ends) if role in _LEADS_ON else NOWHERE
