"""Activations built of primitives: `x * sigmoid(x)`, relu squared, a soft cap.

From a value on, element-wise operators that read nothing but that value and numbers form a
region. Where all paths through a region come together again, what has been computed is a function
of one variable, and can be recognised by evaluating it.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from torch_initpolicy.tensors.gains import CUSTOM, Activation, family, recognise
from torch_initpolicy.trace.graph import Graph, Node, Ref
from torch_initpolicy.trace.operators import OpRole, activation_of

_ELEMENTWISE = frozenset({
    OpRole.ACTIVATES, OpRole.COMPUTES, OpRole.MULTIPLIES, OpRole.ADDS, OpRole.CASTS,
})  # fmt: skip

_CHOOSES = frozenset({"where", "maximum", "minimum", "max", "min", "masked_fill"})
"""Operators that choose between numbers, place by place: `where(x > 0, x, 0.1 * x)`."""

_COMPARES = frozenset({"gt", "ge", "lt", "le", "eq", "ne", "zeros_like", "ones_like", "full_like"})
"""Operators that make what is chosen by, or from; what they make is no signal."""

_MASKED = frozenset({"getitem", "setitem"})
"""Operators that read or write what a mask of the same shape picks: `x[x < 0] = 0`."""

_POWERS = frozenset({"pow", "square", "float_power"})
"""Operators that raise an activation to a power."""

_OVER_AN_AXIS = frozenset({"softmax", "log_softmax"})
"""Activations that are not functions of one variable."""

_EVEN = frozenset({"square", "abs"})
"""Functions that appear inside statistics; averaged at once, they activate nothing."""

_AFFINE = frozenset({OpRole.MULTIPLIES, OpRole.ADDS, OpRole.CASTS})
"""Roles of operators that alone make no activation."""

_AVERAGES = frozenset({OpRole.MIXES, OpRole.SUMMARISES})
"""Roles of operators that take means."""

_SUMS = frozenset({"sum", "nansum"})

_QUOTIENTS = frozenset({"div", "divide", "true_divide"})

_GUARDS = frozenset({"clamp", "clip", "clamp_min", "reciprocal"})
"""Functions through which a sum goes before it divides what it is the sum of."""

_SOFTMAX = Activation("softmax")

_FOLLOWED = (OpRole.MOVES, OpRole.CASTS)
"""Roles of operators that change no number."""

_LONGEST = 32
"""Nodes in the longest region that is looked at."""


@dataclass(frozen=True, slots=True)
class Composite:
    """A function of one value, computed by several nodes.

    Attributes:
        start: The value that goes in.
        end: The value that comes out.
        inner: The nodes that compute it.
        activation: What it is.
    """

    start: int
    end: int
    inner: frozenset[int]
    activation: Activation


def composites(
    graph: Graph,
    roles: Mapping[int, OpRole],
    numbers: Mapping[int, float],
    parameters: Mapping[str, float],
) -> dict[int, Composite]:
    """Find the activations of a graph, by the value that goes into them.

    Args:
        graph: The recorded forward pass.
        roles: Role of each node.
        numbers: The values that are known numbers.
        parameters: Numbers that parameters of one element hold, by name (a learnt slope).

    Returns:
        One composite for each value that is activated; a plain `relu` is one of one node.
    """
    reader = _Reader(graph, roles, numbers, parameters)
    found = (reader.composite(start, nodes[:_LONGEST]) for start, nodes in reader.regions().items())
    known = (composite for composite in found if composite is not None)
    return {composite.start: reader.softmax(composite) or composite for composite in known}


@dataclass(frozen=True, slots=True)
class _Reader:
    """Finds regions and what they compute; `known` remembers those that were evaluated."""

    graph: Graph
    roles: Mapping[int, OpRole]
    numbers: Mapping[int, float]
    parameters: Mapping[str, float]
    known: dict[Any, Activation | None] = field(default_factory=dict)

    def number(self, index: int) -> float | None:
        """Return the number that a value is, or None where it is none."""
        parameter = self.graph.values[index].parameter
        return self.numbers.get(index) if parameter is None else self.parameters.get(parameter)

    def regions(self) -> dict[int, list[Node]]:
        """Group element-wise nodes by the one value that they are a function of."""
        root: dict[int, int] = {}
        regions: dict[int, list[Node]] = {}
        for node in self.graph.nodes:
            roots = {root.get(v, v) for v in node.inputs if self.number(v) is None}
            if len(roots) == 1 and self._is_elementwise(node):
                start = roots.pop()
                regions.setdefault(start, []).append(node)
                root[node.outputs[0]] = start
        return {start: list(self._purposeful(nodes)) for start, nodes in regions.items()}

    def _purposeful(self, nodes: list[Node]) -> Iterator[Node]:
        """Yield the nodes of a region, without the comparisons that choose something outside it."""
        region = {node.index for node in nodes}
        for node in nodes:
            if node.op not in _COMPARES or region.issuperset(self.graph.consumers[node.outputs[0]]):
                yield node

    def _is_elementwise(self, node: Node) -> bool:
        """Say whether each number of a node's output depends on one number of its input."""
        if node.op in _MASKED:
            return self._is_masked(node)
        by_role = self.roles[node.index] in _ELEMENTWISE and node.op not in _OVER_AN_AXIS
        chooses = node.op in _CHOOSES and len(node.args) + len(node.kwargs) > 1
        if not (by_role or chooses or node.op in _COMPARES):
            return False
        after = self.graph.values[node.outputs[0]].shape
        return len(node.outputs) == 1 and all(
            self.graph.values[v].shape == after for v in node.inputs if self.number(v) is None
        )

    def _is_masked(self, node: Node) -> bool:
        """Say whether a node picks by a mask of the same shape, and thus number by number."""
        refs = [argument for argument in node.args[:2] if isinstance(argument, Ref)]
        if len(refs) < 2:
            return False
        picked, by = (self.graph.values[ref.value] for ref in refs)
        return by.dtype == torch.bool and by.shape == picked.shape

    def composite(self, start: int, nodes: list[Node]) -> Composite | None:
        """Name what a region computes, at the last meeting of its paths that has a name."""
        best: Composite | None = None
        for length in self._meetings(start, nodes):
            inner = nodes[:length]
            if best is not None and self._only_scales(best, inner):
                continue
            activation = self._activation(start, inner)
            if activation is None or self._is_statistic(activation, inner[-1]):
                continue
            if self._is_better(activation, inner, best):
                members = frozenset(node.index for node in inner)
                best = Composite(start, inner[-1].outputs[0], members, activation)
        led = 0 if best is None else self._led(best, nodes)
        return self.composite(nodes[led - 1].outputs[0], nodes[led:]) if led else best

    def _led(self, best: Composite, nodes: list[Node]) -> int:
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
        back = [list(self._affine(node.outputs[0], behind[i:])) for i, node in enumerate(behind, 1)]
        last = next((nodes for nodes in back if nodes and nodes[-1] is inner[-1]), [])
        undone = bool(last) and math.isclose(
            abs(self._slope(led) * self._slope(last)), 1.0, rel_tol=1e-3
        )
        return 0 if undone else scales[-1]

    def _affine(self, start: int, nodes: Sequence[Node]) -> list[Node]:
        """Return the nodes at the beginning that each scale or shift what the one before made."""
        found: list[Node] = []
        for node in nodes:
            read = [value for value in node.inputs if self.number(value) is None]
            readers = sum(start in other.inputs for other in nodes)
            if self.roles[node.index] not in _AFFINE or read != [start] or readers > 1:
                break
            found.append(node)
            start = node.outputs[0]
        return found

    def _slope(self, nodes: list[Node]) -> float:
        """Return the factor of an affine function."""
        start = next(value for value in nodes[0].inputs if self.number(value) is None)
        low, high = self._replay(start, nodes)(torch.tensor((0.0, 1.0), dtype=torch.float64))
        return float(high - low)

    def _is_better(self, activation: Activation, inner: list[Node], best: Composite | None) -> bool:
        """Say whether a later meeting says more: it has a name, or the one before no proper one."""
        if best is None or activation.moments is None:
            return True
        proper = best.activation.moments is None and not self._is_lone(best, OpRole.COMPUTES)
        return not proper or self._is_raised(best, inner)

    def _is_lone(self, best: Composite, role: OpRole) -> bool:
        """Say whether a composite is a single operator of a role."""
        return len(best.inner) == 1 and all(self.roles[index] is role for index in best.inner)

    def softmax(self, exponential: Composite) -> Composite | None:
        """Return the softmax that an exponential divided by its own sum is; None if it is none."""
        graph, end = self.graph, exponential.end
        producer = graph.values[end].producer
        if producer is None or graph.nodes[producer].op != "exp":
            return None
        if self._is_log_softmax(exponential.start):
            return replace(exponential, activation=_SOFTMAX)
        sums = {end: False}  # what is made of the sum, and whether it is inverted
        inner, waiting = set(exponential.inner), list(graph.consumers[end])
        while waiting:
            node = graph.nodes[waiting.pop(0)]
            read = [value for value in node.inputs if self.number(value) is None]
            if self._divides(node, end, sums):
                members = frozenset(inner | {node.index})
                return Composite(exponential.start, node.outputs[0], members, _SOFTMAX)
            is_sum = read == [end] and node.op in _SUMS
            if is_sum or (len(read) == 1 and read[0] in sums and self._keeps_sums(node, end)):
                sums[node.outputs[0]] = sums[read[0]] or node.op == "reciprocal"
                inner.add(node.index)
                waiting += graph.consumers[node.outputs[0]]
        return None

    def _is_log_softmax(self, value: int) -> bool:
        """Say whether a value is another less its own `logsumexp`."""
        values, nodes = self.graph.values, self.graph.nodes
        node = nodes[values[value].producer or 0]
        if node.op not in ("sub", "subtract") or len(node.inputs) != 2:
            return False
        of, taken = node.inputs
        while (made := values[taken].producer) is not None and self.roles[made] in _FOLLOWED:
            taken = nodes[made].inputs[0]
        return made is not None and nodes[made].op == "logsumexp" and nodes[made].inputs[0] == of

    def _divides(self, node: Node, end: int, sums: Mapping[int, bool]) -> bool:
        """Say whether a node divides a value by its own sum, or multiplies it by the inverse."""
        if len(node.inputs) != 2 or not set(node.inputs) <= sums.keys():
            return False
        left, right = node.inputs
        if node.op in _QUOTIENTS:
            return left == end and right != end and not sums[right]
        return (
            node.op in ("mul", "multiply") and end in (left, right) and (sums[left] or sums[right])
        )

    def _keeps_sums(self, node: Node, end: int) -> bool:
        """Say whether a node leaves a sum what it is, a guard against zero apart."""
        kept = self.roles[node.index] in (OpRole.ADDS, OpRole.CASTS, OpRole.MOVES)
        return end not in node.inputs and (kept or node.op in _GUARDS)

    def _meetings(self, start: int, nodes: list[Node]) -> Iterator[int]:
        """Yield how many nodes have run whenever one value holds all that they computed."""
        region = {node.index for node in nodes}
        waiting = {start: self._readers(start, region)}
        leaks = False
        for count, node in enumerate(nodes, 1):
            for value in set(node.inputs) & waiting.keys():
                waiting[value] -= 1
            if not leaks and not any(waiting.values()):
                yield count
            made = node.outputs[0]
            waiting[made] = self._readers(made, region)
            leaks = leaks or waiting[made] < len(self.graph.consumers[made])

    def _readers(self, value: int, region: set[int]) -> int:
        return sum(index in region for index in self.graph.consumers[value])

    def _only_scales(self, best: Composite, inner: list[Node]) -> bool:
        """Say whether a plain activation is merely scaled (the gammas of NFNet)."""
        added = [node for node in inner if node.index not in best.inner]
        lone = self._is_lone(best, OpRole.ACTIVATES)
        known = self._is_lone(best, OpRole.COMPUTES) and best.activation.moments is None
        allowed = _AFFINE if lone else {OpRole.MULTIPLIES, OpRole.CASTS} if known else ()
        return all(
            self.roles[node.index] in allowed
            and best.start not in node.inputs
            and not self._is_power(node, best.start)
            for node in added
        )

    def _is_raised(self, best: Composite, inner: list[Node]) -> bool:
        """Say whether an activation is raised to a power, and not for the sake of a mean."""
        added = [node for node in inner if node.index not in best.inner]
        powers = [node for node in added if self._is_power(node, best.start)]
        others = (node for node in added if node not in powers)
        readers = self.graph.consumers[inner[-1].outputs[0]]
        return (
            len(powers) > 0
            and all(self.roles[node.index] is OpRole.CASTS for node in others)
            and not all(self.roles[index] in _AVERAGES for index in readers)
        )

    def _is_power(self, node: Node, start: int) -> bool:
        """Say whether a node raises what it reads to a power, or multiplies such powers."""
        product = self.roles[node.index] is OpRole.MULTIPLIES and not node.op.startswith("div")
        signals = [value for value in node.inputs if self.number(value) is None]
        return start not in signals and (node.op in _POWERS or (product and len(signals) == 2))

    def _is_statistic(self, activation: Activation, last: Node) -> bool:
        readers = self.graph.consumers[last.outputs[0]]
        return activation.name in _EVEN and all(
            self.graph.nodes[index].op in ("mean", "sum") or self.roles[index] is OpRole.SUMMARISES
            for index in readers
        )

    def _activation(self, start: int, inner: list[Node]) -> Activation | None:
        """Name what nodes compute; None where it is merely affine, or cannot be evaluated."""
        first = inner[0]
        activates = self.roles[first.index] is OpRole.ACTIVATES and len(first.inputs) == 1
        if activates and len(inner) == 1:
            return activation_of(first)
        signature = tuple(self._signature(start, inner))
        if signature not in self.known:
            self.known[signature] = self._evaluated(start, inner)
        return self.known[signature]

    def _evaluated(self, start: int, inner: list[Node]) -> Activation | None:
        bends = [n for n in inner if self.roles[n.index] in (OpRole.ACTIVATES, OpRole.COMPUTES)]
        chooses = any(node.op in _CHOOSES | _MASKED for node in inner)
        name = bends[0].op if bends else CUSTOM if chooses else "product"
        if bends and not self._is_plain(bends[0], inner):
            name = CUSTOM
        if family(name) == "rectifier" and any(self._is_power(node, start) for node in inner[1:]):
            name = CUSTOM
        try:
            return recognise(self._replay(start, inner), name=name)
        except (RuntimeError, TypeError, ValueError):
            return None  # an operator that does not take plain numbers; it stays a carrier

    def _is_plain(self, bend: Node, inner: list[Node]) -> bool:
        """Say whether an activation gives its name to all, or a function is only scaled."""
        others = (node for node in inner if node is not bend)
        return self.roles[bend.index] is OpRole.ACTIVATES or all(
            self.roles[node.index] in _AFFINE and self._signals(node) == 1 for node in others
        )

    def _signals(self, node: Node) -> int:
        return sum(self.number(value) is None for value in node.inputs)

    def _replay(self, start: int, inner: list[Node]) -> Callable[[Tensor], Tensor]:
        """Return the function of one variable that nodes compute."""

        def function(variable: Tensor) -> Tensor:
            made: dict[int, Tensor] = {start: variable}

            def look_up(argument: Any) -> Any:
                if not isinstance(argument, Ref):
                    return argument
                if argument.value in made:
                    return made[argument.value].clone()  # the node may work in place
                return torch.tensor(self.number(argument.value), dtype=variable.dtype)

            for node in inner:
                args = [look_up(argument) for argument in node.args]
                kwargs = {key: look_up(argument) for key, argument in node.kwargs.items()}
                casts = self.roles[node.index] is OpRole.CASTS
                result = args[0] if casts else node.function(*args, **kwargs)
                made[node.outputs[0]] = args[0] if result is None else result
            return made[inner[-1].outputs[0]]

        return function

    def _signature(self, start: int, inner: list[Node]) -> Iterator[Any]:
        """Yield what tells one region from another: operators, numbers and wiring."""
        local = {start: 0} | {node.outputs[0]: i for i, node in enumerate(inner, 1)}

        def key(argument: Any) -> Any:
            if not isinstance(argument, Ref):
                return repr(argument)
            return local.get(argument.value, self.number(argument.value))

        for node in inner:
            pairs = itertools.chain(enumerate(node.args), sorted(node.kwargs.items()))
            yield node.op, tuple((name, key(argument)) for name, argument in pairs)
