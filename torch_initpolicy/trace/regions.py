"""Regions of a graph that are functions of one variable.

From a value on, element-wise operators that read nothing but that value and numbers form a region.
Where all paths through it meet again, one value holds all that has been computed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.trace.graph import Graph, Node, Value, rerun
from torch_initpolicy.trace.operators import OpRole

_ELEMENTWISE = frozenset({
    OpRole.ACTIVATES, OpRole.COMPUTES, OpRole.MULTIPLIES, OpRole.ADDS, OpRole.CASTS,
})  # fmt: skip

_OVER_AN_AXIS = frozenset({"softmax", "log_softmax"})
"""Activations that are not functions of one variable."""

CHOOSES = frozenset({"where", "maximum", "minimum", "max", "min", "masked_fill"})
"""Operators that choose between numbers, place by place: `where(x > 0, x, 0.1 * x)`."""

_COMPARES = frozenset({"gt", "ge", "lt", "le", "eq", "ne", "zeros_like", "ones_like", "full_like"})
"""Operators that make what is chosen by, or from; what they make is no signal."""

BY_MASK = frozenset({"getitem", "setitem"})
"""Operators that read or write what a mask of the same shape picks: `x[x < 0] = 0`."""


@dataclass(frozen=True, slots=True)
class Composite:
    """A function of one value, computed by several nodes.

    Attributes:
        start: The value that goes in.
        end: The value that comes out.
        inner: The nodes that compute it.
    """

    start: int
    end: int
    inner: frozenset[int]
    activation: Activation


@dataclass(frozen=True, slots=True)
class Elementwise:
    """A graph, and its known `numbers`, as functions of one variable are found in it."""

    graph: Graph
    roles: Mapping[int, OpRole]
    numbers: Mapping[int, float]

    def read(self, node: Node) -> list[int]:
        """Return what a node reads that is no number."""
        return [value for value in node.inputs if value not in self.numbers]

    def regions(self) -> dict[int, list[Node]]:
        """Group element-wise nodes by the one value that they are a function of."""
        root: dict[int, int] = {}
        found: dict[int, list[Node]] = {}
        for node in self.graph.nodes:
            roots = {root.get(value, value) for value in self.read(node)}
            if len(roots) == 1 and self._is_elementwise(node):
                start = roots.pop()
                found.setdefault(start, []).append(node)
                root[node.outputs[0]] = start
        return {start: list(self._purposeful(nodes)) for start, nodes in found.items()}

    def _purposeful(self, nodes: Sequence[Node]) -> Iterator[Node]:
        """Yield the nodes of a region, but comparisons that choose outside it and their readers."""
        region = {node.index for node in nodes}
        left_out: set[int] = set()
        for node in nodes:
            inside = region.issuperset(self.graph.consumers[node.outputs[0]])
            if (node.op in _COMPARES and not inside) or not left_out.isdisjoint(node.inputs):
                left_out.update(node.outputs)
            else:
                yield node

    def _is_elementwise(self, node: Node) -> bool:
        """Say whether each number of a node's output depends on one number of its input."""
        values = self.graph.values
        if node.op in BY_MASK:
            read = [given for given in node.args[:2] if isinstance(given, Value)]
            return len(read) == 2 and read[1].dtype == torch.bool and read[0].shape == read[1].shape
        by_role = self.roles[node.index] in _ELEMENTWISE and node.op not in _OVER_AN_AXIS
        chooses = node.op in CHOOSES and len(node.args) + len(node.kwargs) > 1
        after = values[node.outputs[0]].shape if len(node.outputs) == 1 else None
        return (by_role or chooses or node.op in _COMPARES) and all(
            values[value].shape == after for value in self.read(node)
        )

    def meetings(self, start: int, nodes: Sequence[Node]) -> Iterator[list[Node]]:
        """Yield the nodes that have run whenever one value holds all that they computed."""
        consumers, region = self.graph.consumers, {node.index for node in nodes}
        waiting = {start: len(region.intersection(consumers[start]))}
        for count, node in enumerate(nodes, 1):
            for value in set(node.inputs) & waiting.keys():
                waiting[value] -= 1
            if not any(waiting.values()):
                yield list(nodes[:count])
            made = node.outputs[0]
            waiting[made] = len(region.intersection(consumers[made]))
            if waiting[made] < len(set(consumers[made])):
                return  # something outside the region reads what has been computed so far

    def replayed(self, start: int, nodes: Sequence[Node]) -> Callable[[Tensor], Tensor]:
        """Return the function of one variable that nodes compute."""

        def function(variable: Tensor) -> Tensor:
            made: dict[int, Tensor] = {start: variable}

            def look_up(value: int) -> Tensor:
                if value in made:
                    return made[value].clone()  # the node may work in place
                return torch.tensor(self.numbers[value], dtype=variable.dtype)

            for node in nodes:
                casts = self.roles[node.index] is OpRole.CASTS
                result = look_up(node.inputs[0]) if casts else rerun(node, look_up)[0]
                made[node.outputs[0]] = result
            return made[nodes[-1].outputs[0]]

        return function

    def signature(self, start: int, nodes: Sequence[Node]) -> tuple[Any, ...]:
        """Return what tells one region from another: operators, numbers and wiring."""
        local = {start: 0} | {node.outputs[0]: i for i, node in enumerate(nodes, 1)}

        def key(argument: Any) -> Any:
            if not isinstance(argument, Value):
                return repr(argument)
            return local.get(argument.index, self.numbers.get(argument.index))

        return tuple(
            (node.op, *map(key, node.args), *((name, key(x)) for name, x in node.kwargs.items()))
            for node in nodes
        )
