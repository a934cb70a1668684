"""Activations built of primitives: `x * sigmoid(x)`, relu squared, a soft cap.

What a region of a graph computes is a function of one variable, and is recognised by evaluating it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from torch_initpolicy.tensors.gains import CUSTOM, Activation, family, recognise
from torch_initpolicy.trace.graph import CANNOT_RUN, Graph, Node
from torch_initpolicy.trace.operators import OpRole, activation_of
from torch_initpolicy.trace.regions import BY_MASK, CHOOSES, Composite, Elementwise
from torch_initpolicy.trace.softmax import softmax

_AFFINE = frozenset({OpRole.MULTIPLIES, OpRole.ADDS, OpRole.CASTS})
"""Roles of operators that alone make no activation."""

_LONGEST = 32
"""Nodes in the longest region that is looked at."""


def composites(
    graph: Graph,
    roles: Mapping[int, OpRole],
    numbers: Mapping[int, float],
    parameters: Mapping[str, float],
) -> dict[int, Composite]:
    """Find the activations of a graph, by the value that goes into them.

    Returns:
        One composite for each value that is activated; a plain `relu` is one of one node.
    """
    learnt = {v.index: parameters.get(v.parameter) for v in graph.values if v.parameter is not None}
    known = {**numbers, **{value: number for value, number in learnt.items() if number is not None}}
    namer = _Namer(Elementwise(graph, roles, known))
    regions = namer.reading.regions().items()
    found = (namer.composite(start, nodes[:_LONGEST]) for start, nodes in regions)
    return {each.start: softmax(namer.reading, each) or each for each in found if each is not None}


@dataclass(frozen=True, slots=True)
class _Namer:
    """Names what regions compute; `known` remembers those that were evaluated."""

    reading: Elementwise
    known: dict[Any, Activation | None] = field(default_factory=dict)

    def composite(self, start: int, nodes: Sequence[Node]) -> Composite | None:
        """Name what a region computes, at the last meeting of its paths that has a name."""
        best: Composite | None = None
        for inner in self.reading.meetings(start, nodes):
            if best is not None and self._only_scales(best, inner):
                continue
            activation = self._activation(start, inner)
            if activation is None or self._is_statistic(activation, inner[-1]):
                continue
            if best is None or activation.moments is None or self._says_less(best, inner):
                members = frozenset(node.index for node in inner)
                best = Composite(start, inner[-1].outputs[0], members, activation)
        led = 0 if best is None else self._led(best, nodes)
        return self.composite(nodes[led - 1].outputs[0], nodes[led:]) if led else best

    # Which meeting says most

    def _only_scales(self, best: Composite, inner: Sequence[Node]) -> bool:
        """Say whether a plain activation is merely scaled (the gammas of NFNet)."""
        known = self._is_lone(best, OpRole.COMPUTES) and best.activation.moments is None
        allowed = {OpRole.MULTIPLIES, OpRole.CASTS} if known else frozenset[OpRole]()
        if self._is_lone(best, OpRole.ACTIVATES):
            allowed = _AFFINE
        return all(
            self._role(node) in allowed
            and best.start not in node.inputs
            and not self._is_power(node, best.start)
            for node in inner
            if node.index not in best.inner
        )

    def _says_less(self, best: Composite, inner: Sequence[Node]) -> bool:
        """Say whether a meeting without a name is to be taken all the same.

        Over one that has no name either; over a function that is no activation; and over an
        activation that is raised to a power, and not for the sake of a mean.
        """
        if best.activation.moments is not None or self._is_lone(best, OpRole.COMPUTES):
            return True
        added = [node for node in inner if node.index not in best.inner]
        powers = [node for node in added if self._is_power(node, best.start)]
        readers = self.reading.graph.consumers[inner[-1].outputs[0]]
        averages = (OpRole.MIXES, OpRole.SUMMARISES)
        return (
            len(powers) > 0
            and all(node in powers or self._role(node) is OpRole.CASTS for node in added)
            and not all(self.reading.roles[index] in averages for index in readers)
        )

    def _is_lone(self, best: Composite, role: OpRole) -> bool:
        """Say whether a composite is a single operator of a role."""
        return [self.reading.roles[index] for index in best.inner] == [role]

    def _is_power(self, node: Node, start: int) -> bool:
        """Say whether a node raises what it reads to a power, or multiplies such powers."""
        product = self._role(node) is OpRole.MULTIPLIES and not node.op.startswith("div")
        read = self.reading.read(node)
        powers = node.op in ("pow", "square", "float_power")
        return start not in read and (powers or (product and len(read) == 2))

    def _is_statistic(self, activation: Activation, last: Node) -> bool:
        """Say whether an even function is averaged at once: it activates nothing."""
        graph, roles = self.reading.graph, self.reading.roles
        return activation.name in ("square", "abs") and all(
            graph.nodes[index].op in ("mean", "sum") or roles[index] is OpRole.SUMMARISES
            for index in graph.consumers[last.outputs[0]]
        )

    def _role(self, node: Node) -> OpRole:
        return self.reading.roles[node.index]

    # What a region is called

    def _activation(self, start: int, inner: Sequence[Node]) -> Activation | None:
        """Name what nodes compute; None where it is merely affine, or cannot be evaluated."""
        first = inner[0]
        if len(inner) == len(first.inputs) == 1 and self._role(first) is OpRole.ACTIVATES:
            return activation_of(first)
        signature = self.reading.signature(start, inner)
        if signature not in self.known:
            self.known[signature] = self._evaluated(start, inner)
        return self.known[signature]

    def _evaluated(self, start: int, inner: Sequence[Node]) -> Activation | None:
        curves = [n for n in inner if self._role(n) in (OpRole.ACTIVATES, OpRole.COMPUTES)]
        chooses = any(node.op in CHOOSES | BY_MASK for node in inner)
        name = curves[0].op if curves else CUSTOM if chooses else "product"
        if curves and not self._is_plain(curves[0], inner):
            name = CUSTOM
        if family(name) == "rectifier" and any(self._is_power(node, start) for node in inner[1:]):
            name = CUSTOM
        try:
            return recognise(self.reading.replayed(start, inner), name=name)
        except CANNOT_RUN:
            return None  # an operator that does not take plain numbers; it stays a carrier

    def _is_plain(self, bend: Node, inner: Sequence[Node]) -> bool:
        """Say whether an activation gives its name to all, or a function is only scaled."""
        return self._role(bend) is OpRole.ACTIVATES or all(
            self._role(node) in _AFFINE and len(self.reading.read(node)) == 1
            for node in inner
            if node is not bend
        )

    # Where a function begins

    def _led(self, best: Composite, nodes: Sequence[Node]) -> int:
        """Count the nodes that only scale the input before the function proper.

        The function reads what they make of it, so that they are constants on the way there. A
        function of the table is left whole, and so is one that undoes the scale: `c * f(x / c)`.
        """
        inner = [node for node in nodes if node.index in best.inner]
        led = self._affine(best.start, inner)
        scales = [i for i, node in enumerate(led, 1) if abs(self._slope([node])) != 1.0]
        if best.activation.moments is None or not scales:
            return 0
        behind = inner[len(led) :]
        back = [self._affine(node.outputs[0], behind[i:]) for i, node in enumerate(behind, 1)]
        last = next((each for each in back if each and each[-1] is inner[-1]), None)
        around = 0.0 if last is None else abs(self._slope(led) * self._slope(last))
        return 0 if math.isclose(around, 1.0, rel_tol=1e-3) else scales[-1]

    def _affine(self, start: int, nodes: Sequence[Node]) -> list[Node]:
        """Return the nodes at the beginning that each scale or shift what the one before made."""
        found: list[Node] = []
        for node in nodes:
            readers = sum(start in other.inputs for other in nodes)
            if self._role(node) not in _AFFINE or self.reading.read(node) != [start] or readers > 1:
                break
            found.append(node)
            start = node.outputs[0]
        return found

    def _slope(self, nodes: Sequence[Node]) -> float:
        line = self.reading.replayed(self.reading.read(nodes[0])[0], nodes)
        low, high = line(torch.tensor((0.0, 1.0), dtype=torch.float64))
        return float(high - low)
