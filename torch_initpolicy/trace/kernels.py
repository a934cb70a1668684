"""Signals that are weights: what hypernetworks and dynamic convolutions generate.

Queries, keys and values are signals that meet in products as well. A generated weight differs from
them in that a single layer makes whole matrices: both its rows and its columns lie along the units
of the layer's output.

Reference:
    Chang, Flokas and Lipson, *Principled Weight Initialization for Hypernetworks*, 2020,
    arXiv:2312.08399 (ICLR 2020), section 4: hyperfan-in, the variance with which a layer generates
    weights of the right variance.
"""

from collections.abc import Iterator, Mapping, Sequence

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OpRole
from torch_initpolicy.trace.units import Shown

ShownByValue = Mapping[int, Mapping[int, Shown]]
"""Which units of which weights each value shows."""


def kernels(uses: Uses, shown: ShownByValue) -> dict[int, int]:
    """Return the generated weight that each node applies, by node."""
    found: dict[int, int] = {}
    for node in uses.graph.nodes:
        applied = [value for value in _applied(uses, node) if _is_matrix(uses, node, value, shown)]
        if len(applied) == 1:
            found[node.index] = applied[0]
    return found


def _applied(uses: Uses, node: Node) -> Iterator[int]:
    """Yield the signals that a node may apply as its weight."""
    if node.index in uses.weighers:
        return
    if uses.role(node) is OpRole.WEIGHS:
        yield from (v for slot, v in uses.slots(node) if slot == "weight" and v in uses.signals)
    elif uses.role(node) is OpRole.CONTRACTS and len(set(uses.carried(node))) > 1:
        yield from dict.fromkeys(uses.carried(node))


def _is_matrix(uses: Uses, node: Node, value: int, shown: ShownByValue) -> bool:
    """Say whether one layer makes a whole matrix: what it sums over, and what it brings along."""
    each = [units.along() for units in shown.get(value, {}).values()]
    ndim = len(uses.graph.values[value].shape)
    if uses.role(node) is OpRole.WEIGHS:
        return any(-ndim in along and len(along) > 1 for along in each)
    matrix = _matrix(node, value, ndim)
    return len(matrix) > 1 and any(along.issuperset(matrix) for along in each)


def _matrix(node: Node, value: int, ndim: int) -> Sequence[int]:
    """Return the dimensions of a factor that are summed over, or that only it brings along."""
    if node.op == "einsum" and isinstance(node.args[0], str):
        terms, _, result = node.args[0].replace(" ", "").replace("...", "").partition("->")
        mine = terms.split(",")[node.inputs.index(value)]
        shared = [x for x in mine if terms.count(x) > 1 and x in result]
        return [dim - len(mine) for dim, letter in enumerate(mine) if letter not in shared]
    return range(-min(ndim, 2), 0)
