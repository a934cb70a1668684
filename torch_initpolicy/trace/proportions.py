"""Which parameters an expression of parameters is proportional to.

`weight.T`, `weight * 0.1`, `gain * standardised(weight)`: the first two grow with `weight`, the
last with `gain` alone. Knows the roles of operators; changes nothing.
"""

from dataclasses import dataclass, field

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.expressions import Source
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OpRole

NOTHING: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Proportions:
    """Follows parameters through expressions, one node at a time.

    Attributes:
        uses: The data flow, which runs ahead of this by no node.
        sites: Canonical names of the parameters that a value is proportional to, by value.
    """

    uses: Uses
    sites: dict[int, frozenset[str]] = field(default_factory=dict)

    def of(self, value: int) -> frozenset[str]:
        """Name the parameters that a value is proportional to."""
        parameter = self.uses.graph.values[value].parameter
        return self.sites.get(value, NOTHING) if parameter is None else frozenset({parameter})

    def advance(self, node: Node) -> None:
        """Read the next node; one whose output is a signal says nothing of parameters."""
        if node.inputs and not self.uses.signals.intersection(node.outputs):
            self.sites.update(dict.fromkeys(node.outputs, self._made(node)))

    def _made(self, node: Node) -> frozenset[str]:
        role = self.uses.role(node)
        if role in (OpRole.MOVES, OpRole.CASTS, OpRole.PICKS):
            return self.of(node.inputs[0])
        if role in (OpRole.MULTIPLIES, OpRole.CONTRACTS):
            return self._product(node)
        if role is OpRole.NORMALISES:
            scales = [value for slot, value in self.uses.slots(node) if slot == "weight"]
            return frozenset().union(*map(self.of, scales))
        return NOTHING

    def _product(self, node: Node) -> frozenset[str]:
        """A parameter in both factors enters more than once, one in a divisor inversely."""
        divides = "div" in node.op
        factors = node.inputs[:1] if divides else node.inputs
        everywhere = [source.site for value in node.inputs for source in self._sources(value)]
        once = {site for site in everywhere if everywhere.count(site) == 1}
        return frozenset().union(*map(self.of, factors)) & once

    def _sources(self, value: int) -> tuple[Source, ...]:
        return self.uses.sources.get(value, ())
