"""Measures what a model returns: its size, whether it looks like logits, and what scales it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from torch_initpolicy.signal import statistics
from torch_initpolicy.signal.points import Output, Point
from torch_initpolicy.signal.training import has_gradient
from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.functorch import bare
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OpRole
from torch_initpolicy.trace.trees import tensors_in

LARGE_SCALE = 10.0
"""Factors of learned scales from which on it is they that make an output large."""

_AS_THEY_ARE = frozenset({OpRole.MOVES, OpRole.CASTS, OpRole.ADDS})
"""Roles of operators behind which logits are still logits."""


def outputs_of(
    uses: Uses, makers: Mapping[int, int], points: Sequence[Point], results: Any
) -> Iterator[Output]:
    """Measure each floating-point tensor that a model returned."""
    seconds = {point.index: point.second for point in points}
    for tensor in tensors_in(results):
        index = makers.get(id(tensor))
        maker = next((p for p in reversed(points) if index is not None and p.index <= index), None)
        if index is None or maker is None or not has_gradient(tensor) or not tensor.numel():
            continue
        if tensor.ndim:
            plain, axis = bare(tensor), _axis_of_classes(uses, index, tensor)
            yield Output(
                name=maker.name,
                source=maker.source,
                std=math.sqrt(statistics.second_moment(plain - plain.mean()).item()),
                varies=statistics.spread(plain),
                classes=0 if axis is None else plain.shape[axis],
                excess=None if axis is None else statistics.excess(plain, axis),
                scale=_temperature(uses, uses.graph.nodes[index], seconds),
            )


def _axis_of_classes(uses: Uses, index: int, result: Tensor) -> int | None:
    """Return the axis that a softmax would run over, where a result may be logits."""
    if result.is_complex():
        return None
    node = uses.graph.nodes[index]
    while node.index not in uses.weighers and uses.role(node) is not OpRole.WEIGHS:
        before = list(_before(uses, node))
        if uses.role(node) not in _AS_THEY_ARE or len(before) != 1:
            return None
        node = before[0]
    shape = uses.graph.values[node.outputs[0]].shape
    channels = shape[1] if node.op.startswith("conv") and len(shape) > 1 else shape[-1]
    axes = (axis for axis in (-1, 1) if result.ndim > 1 and result.shape[axis] == channels)
    return next(axes, None) if channels > 1 else None


def _before(uses: Uses, node: Node) -> Iterator[Node]:
    """Yield the nodes whose numbers go into a node's."""
    producers = (uses.graph.values[value].producer for value in uses.carried(node))
    return (uses.graph.nodes[index] for index in dict.fromkeys(producers) if index is not None)


def _temperature(uses: Uses, node: Node, seconds: Mapping[int, float]) -> str | None:
    """Name a parameter that multiplies what comes to a node, from the last weight on, by much."""
    waiting, seen = [node], {node.index}
    while waiting:
        node = waiting.pop()
        before = [other for other in _before(uses, node) if other.index not in seen]
        factors = [use.source.site for use in uses.found if use.node.index == node.index]
        if uses.role(node) is OpRole.MULTIPLIES and factors:
            read = [second for other in before if (second := seconds.get(other.index))]
            if read and seconds.get(node.index, 0.0) > LARGE_SCALE**2 * max(read):
                return factors[0]
        if node.index not in uses.weighers:
            waiting += before
            seen.update(other.index for other in before)
    return None
