"""Activations built of primitives: `x * sigmoid(x)`, relu squared, a soft cap.

From a value on, element-wise operators that read nothing but that value and numbers form a
region. Where all paths through a region come together again, what has been computed is a function
of one variable, and can be recognised by evaluating it.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_initpolicy.tensors.gains import Activation, recognise
from torch_initpolicy.trace.graph import Graph, Node, Ref, Value
from torch_initpolicy.trace.ops import OpRole, activation_of

_ELEMENTWISE = frozenset({
    OpRole.ACTIVATES, OpRole.COMPUTES, OpRole.MULTIPLIES, OpRole.ADDS, OpRole.CASTS,
})  # fmt: skip

_OVER_AN_AXIS = frozenset({"softmax", "log_softmax"})
"""Activations that are not functions of one variable."""

_EVEN = frozenset({"square", "abs"})
"""Functions that appear inside statistics; averaged at once, they activate nothing."""

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
    graph: Graph, roles: Mapping[int, OpRole], numbers: Mapping[str, float]
) -> dict[int, Composite]:
    """Find the activations of a graph, by the value that goes into them.

    Args:
        graph: The recorded forward pass.
        roles: Role of each node.
        numbers: Values of parameters of one element, by name (a learnt slope or temperature).

    Returns:
        One composite for each value that is activated; a plain `relu` is one of one node.
    """
    known: dict[Any, Activation | None] = {}
    found = {}
    for start, nodes in _regions(graph, roles, numbers).items():
        composite = _composite(graph, roles, numbers, start, nodes[:_LONGEST], known)
        if composite is not None:
            found[start] = composite
    return found


def _regions(
    graph: Graph, roles: Mapping[int, OpRole], numbers: Mapping[str, float]
) -> dict[int, list[Node]]:
    """Group element-wise nodes by the one value that they are a function of."""
    root: dict[int, int] = {}
    regions: dict[int, list[Node]] = {}
    for node in graph.nodes:
        roots = {
            root.get(value, value)
            for value in node.inputs
            if _number(graph.values[value], numbers) is None
        }
        if len(roots) == 1 and _is_elementwise(graph, node, roles[node.index]):
            start = roots.pop()
            regions.setdefault(start, []).append(node)
            root.update(dict.fromkeys(node.outputs, start))
    return regions


def _is_elementwise(graph: Graph, node: Node, role: OpRole) -> bool:
    return (
        role in _ELEMENTWISE
        and node.op not in _OVER_AN_AXIS
        and len(node.outputs) == 1
        and not _broadcasts(graph, node)
    )


def _broadcasts(graph: Graph, node: Node) -> bool:
    """Say whether a node stretches an input: then its output is no function of one value."""
    after = graph.values[node.outputs[0]].shape
    return any(
        graph.values[value].shape != after and len(graph.values[value].shape) > 0
        for value in node.inputs
        if graph.values[value].constant is None and graph.values[value].parameter is None
    )


def _number(value: Value, numbers: Mapping[str, float]) -> float | None:
    if value.parameter is not None:
        return numbers.get(value.parameter)
    return value.constant


def _composite(
    graph: Graph,
    roles: Mapping[int, OpRole],
    numbers: Mapping[str, float],
    start: int,
    nodes: list[Node],
    known: dict[Any, Activation | None],
) -> Composite | None:
    """Name the function that a region computes, at the last meeting of its paths that has one."""
    if len(nodes) == 1 and roles[nodes[0].index] is OpRole.ACTIVATES and len(nodes[0].inputs) == 1:
        node = nodes[0]
        return Composite(start, node.outputs[0], frozenset({node.index}), activation_of(node))
    best: Composite | None = None
    for length in _meetings(graph, start, nodes):
        inner = nodes[:length]
        if _is_affine_step(roles, inner, best):
            continue
        activation = _recognised(graph, roles, numbers, start, inner, known)
        if activation is None or _is_statistic(graph, roles, activation, inner[-1]):
            continue
        if best is None or activation.moments is None:
            members = frozenset(node.index for node in inner)
            best = Composite(start, inner[-1].outputs[0], members, activation)
    return best


def _meetings(graph: Graph, start: int, nodes: list[Node]) -> Iterator[int]:
    """Yield how many nodes have run whenever a single value holds all that they computed."""
    region = {node.index for node in nodes}
    waiting = {start: _readers(graph, start, region)}
    for count, node in enumerate(nodes, 1):
        for value in set(node.inputs) & waiting.keys():
            waiting[value] -= 1
        made = node.outputs[0]
        others_done = not any(left for value, left in waiting.items())
        leaks = any(
            len(graph.consumers[value]) > _readers(graph, value, region)
            for value in waiting
            if value != start
        )
        if others_done and not leaks:
            yield count
        waiting[made] = _readers(graph, made, region)


def _readers(graph: Graph, value: int, region: set[int]) -> int:
    return sum(index in region for index in graph.consumers[value])


_AFFINE = frozenset({OpRole.MULTIPLIES, OpRole.ADDS, OpRole.CASTS})


def _is_affine_step(
    roles: Mapping[int, OpRole], inner: list[Node], best: Composite | None
) -> bool:
    """Say whether a region only scales what is a plain activation already (NFNet's gammas)."""
    return (
        best is not None
        and len(best.inner) == 1
        and all(roles[n.index] in _AFFINE for n in inner if n.index not in best.inner)
        and all(best.start not in n.inputs for n in inner if n.index not in best.inner)
    )


def _is_statistic(
    graph: Graph, roles: Mapping[int, OpRole], activation: Activation, last: Node
) -> bool:
    readers = graph.consumers[last.outputs[0]]
    return activation.name in _EVEN and all(
        graph.nodes[index].op in ("mean", "sum") or roles[index] is OpRole.SUMMARISES
        for index in readers
    )


def _recognised(
    graph: Graph,
    roles: Mapping[int, OpRole],
    numbers: Mapping[str, float],
    start: int,
    inner: list[Node],
    known: dict[Any, Activation | None],
) -> Activation | None:
    """Evaluate a region and name it; None where it is merely affine, or cannot be evaluated."""
    signature = tuple(_signature(graph, numbers, start, inner))
    if signature not in known:
        known[signature] = _evaluated(graph, roles, numbers, start, inner)
    return known[signature]


def _evaluated(
    graph: Graph,
    roles: Mapping[int, OpRole],
    numbers: Mapping[str, float],
    start: int,
    inner: list[Node],
) -> Activation | None:
    single = inner[0] if len(inner) == 1 and roles[inner[0].index] is OpRole.ACTIVATES else None
    if single is not None and len(single.inputs) == 1:
        return activation_of(single)
    bends = (n for n in inner if roles[n.index] in (OpRole.ACTIVATES, OpRole.COMPUTES))
    name = next((node.op for node in bends), "product")
    try:
        return recognise(_replay(graph, roles, numbers, start, inner), name=name)
    except (RuntimeError, TypeError, ValueError):
        return None  # an operator that does not take plain numbers; it stays a carrier


def _replay(
    graph: Graph,
    roles: Mapping[int, OpRole],
    numbers: Mapping[str, float],
    start: int,
    inner: list[Node],
) -> Callable[[Tensor], Tensor]:
    """Return the function of one variable that a region computes."""

    def function(variable: Tensor) -> Tensor:
        made: dict[int, Tensor] = {start: variable}

        def look_up(argument: Any) -> Any:
            if not isinstance(argument, Ref):
                return argument
            if argument.value in made:
                return made[argument.value].clone()
            return torch.tensor(_number(graph.values[argument.value], numbers), dtype=variable.dtype)

        with torch.no_grad():
            for node in inner:
                args = [look_up(argument) for argument in node.args]
                kwargs = {key: look_up(argument) for key, argument in node.kwargs.items()}
                casts = roles[node.index] is OpRole.CASTS
                made[node.outputs[0]] = args[0] if casts else node.function(*args, **kwargs)
        return made[inner[-1].outputs[0]]

    return function


def _signature(
    graph: Graph, numbers: Mapping[str, float], start: int, inner: list[Node]
) -> Iterator[Any]:
    """Yield what tells one region from another: operators, numbers and wiring."""
    local = {start: 0} | {node.outputs[0]: i for i, node in enumerate(inner, 1)}

    def key(argument: Any) -> Any:
        if not isinstance(argument, Ref):
            return repr(argument)
        return local.get(argument.value, _number(graph.values[argument.value], numbers))

    for node in inner:
        pairs = itertools.chain(enumerate(node.args), sorted(node.kwargs.items()))
        yield node.op, tuple((name, key(argument)) for name, argument in pairs)
