"""Which weights decide whether the units of another one stay alike.

Alike units of one weight learn alike as long as all that they lead to, and all that they are added
to or multiplied by on the way there, is alike for them too. Sets of weights are small: one that
grows, as along a residual stream, decides nothing any more and is given up.
"""

from collections.abc import Iterable, Sequence

from torch_initpolicy.trace.consumers import Use, Uses
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OpRole

WeightNames = frozenset[str] | None
"""Canonical names of weights; None for too many, or for the model's output, which tells units
apart."""

_NONE: frozenset[str] = frozenset()

_MOST = 8
"""How many weights are kept apart."""


class Neighbours:
    """The weights around each value: one pass over the nodes in either direction."""

    def __init__(self, uses: Uses) -> None:
        self.uses = uses
        self.made_by: dict[int, WeightNames] = {}
        for node in uses.graph.nodes:
            self.made_by.update(dict.fromkeys(node.outputs, self._makers(node)))
        self.ahead: dict[int, WeightNames] = dict.fromkeys(uses.graph.results)
        for node in reversed(uses.graph.nodes):
            self._look_ahead(node)

    def of(self, found: Sequence[Use]) -> tuple[str, ...]:
        """Return the weights that decide about another, by its uses; empty for too many."""
        names = _joined(self._of(use) for use in found)
        return tuple(sorted(names or _NONE))

    def _of(self, use: Use) -> WeightNames:
        role = self.uses.role(use.node)
        if role is OpRole.PROJECTS_AND_ATTENDS and "out_proj" not in use.slot:
            return self._applied(use.node)
        beyond = [self._ahead_of(value) for value in use.node.outputs]
        return _joined([*beyond, self._applied(use.node)] if role is OpRole.RECURS else beyond)

    def _applied(self, node: Node) -> frozenset[str]:
        return frozenset(use.source.site for use in self.uses.applied(node.index))

    def _ahead_of(self, value: int) -> WeightNames:
        return self.ahead.get(value, _NONE)

    def _makers(self, node: Node) -> WeightNames:
        """Return the weights that a node's output comes out of, the last on each path."""
        if node.index in self.uses.weighers:
            return self._applied(node)
        return _joined(self.made_by.get(value, _NONE) for value in self.uses.carried(node))

    def _look_ahead(self, node: Node) -> None:
        """Note for each signal that a node reads what it meets there and behind."""
        carried = dict.fromkeys(self.uses.carried(node))
        beyond = self._beyond(node)
        combines = len(carried) > 1 and self.uses.role(node) is not OpRole.JOINS
        for value in carried:
            beside = (
                [self.made_by.get(other, _NONE) for other in carried if other != value]
                if combines and node.index not in self.uses.weighers
                else []
            )
            before = self._ahead_of(value)
            self.ahead[value] = _joined([before, beyond, *beside])

    def _beyond(self, node: Node) -> WeightNames:
        if self.uses.role(node) is OpRole.UNKNOWN:
            return None
        if node.index in self.uses.weighers:
            return self._applied(node)
        return _joined(self._ahead_of(output) for output in node.outputs)


def _joined(each: Iterable[WeightNames]) -> WeightNames:
    """Join sets of names; one that is given up gives up the whole."""
    joined = _NONE
    for names in each:
        if names is None:
            return None
        if not names <= joined:
            joined = joined | names if joined else names
    return joined if len(joined) <= _MOST else None
