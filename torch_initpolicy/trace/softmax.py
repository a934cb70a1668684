"""Softmax that is written out: an exponential, divided by its own sum in one of many ways."""

from collections.abc import Mapping
from dataclasses import replace

from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import SOFTMAX, OpRole
from torch_initpolicy.trace.regions import Composite, Elementwise

_KEEPS = (OpRole.ADDS, OpRole.CASTS, OpRole.MOVES)
"""Roles of operators that keep a sum a sum, such as a guard against zero."""

_GUARDS = frozenset({"clamp", "clip", "clamp_min", "reciprocal"})
"""Functions through which a sum goes before it divides what it is the sum of."""


def softmax(reading: Elementwise, exponential: Composite) -> Composite | None:
    """Return the softmax that an exponential is part of; None if it is none."""
    graph, end = reading.graph, exponential.end
    producer = graph.values[end].producer
    if producer is None or graph.nodes[producer].op != "exp":
        return None
    if _is_log_softmax(reading, exponential.start):
        return replace(exponential, activation=SOFTMAX)
    sums, inner = {end: False}, set(exponential.inner)
    waiting = list(graph.consumers[end])
    while waiting:
        node = graph.nodes[waiting.pop(0)]
        if _divides(node, end, sums):
            members = frozenset(inner | {node.index})
            return Composite(exponential.start, node.outputs[0], members, SOFTMAX)
        read = reading.read(node)
        keeps = reading.roles[node.index] in _KEEPS or node.op in _GUARDS
        allowed = node.op in ("sum", "nansum") if read == [end] else keeps
        if len(read) == 1 and read[0] in sums and allowed:
            sums[node.outputs[0]] = sums[read[0]] or node.op == "reciprocal"
            inner.add(node.index)
            waiting += graph.consumers[node.outputs[0]]
    return None


def _is_log_softmax(reading: Elementwise, value: int) -> bool:
    """Say whether a value is another less its own `logsumexp`."""
    values, nodes = reading.graph.values, reading.graph.nodes
    node = nodes[values[value].producer or 0]
    if node.op not in ("sub", "subtract") or len(node.inputs) != 2:
        return False
    of, taken = node.inputs
    while (made := values[taken].producer) is not None and reading.roles[made] in _KEEPS[1:]:
        taken = nodes[made].inputs[0]
    return made is not None and nodes[made].op == "logsumexp" and nodes[made].inputs[0] == of


def _divides(node: Node, end: int, sums: Mapping[int, bool]) -> bool:
    """Say whether a node divides a value by its own sum, or multiplies it by the inverse."""
    if len(node.inputs) != 2 or not set(node.inputs) <= sums.keys():
        return False
    left, right = node.inputs
    if node.op in ("div", "divide", "true_divide"):
        return left == end and right != end and not sums[right]
    return node.op in ("mul", "multiply") and end in (left, right) and (sums[left] or sums[right])
