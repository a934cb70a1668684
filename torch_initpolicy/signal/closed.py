"""Tells gradients that are zero because a weight starts at zero from those that vanish.

Knows the graph and which parameters are zero; no residual branches.
"""

from collections.abc import Collection, Mapping, Sequence

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OpRole

Sites = frozenset[str]

_Ways = dict[int, Sites | None]
"""For each node the zeros in the way of the gradient; None where some of it gets through."""

_Ahead = dict[int, Sites]
"""For each node the zeros that its output comes to, on any way."""


def closed(uses: Uses, gradients: Mapping[int, float], zeros: Collection[str]) -> dict[int, Sites]:
    """Find the operators whose gradient is zero because its way leads through zeros.

    Through zeros alone, as in a closed branch; or through zeros and around them by a way on which
    other positions come, as the patches of a vision transformer that reads its class token alone.

    Args:
        uses: Where parameters meet the signal, of a forward pass that has ended.
        gradients: What arrived at the outputs of nodes, where that was measured.
        zeros: Canonical names of the parameters that are all zero.

    Returns:
        The names of the zeros that are in the way, by the index of the node.
    """
    if not zeros:
        return {}
    ways: _Ways = {}
    ahead: _Ahead = {}
    readers = _readers(uses)
    factors = _factors(uses, zeros)
    for node in reversed(uses.graph.nodes):
        reading = [index for value in node.outputs for index in readers.get(value, ())]
        ways[node.index] = None if gradients.get(node.index) else _way(reading, factors, ways)
        live = _is_live(uses, node, gradients)
        ahead[node.index] = frozenset() if live else _ahead(reading, factors, ahead)
    lost = (index for index, gradient in gradients.items() if gradient == 0)
    return {index: way for index in lost if (way := ways[index] or ahead[index])}


def _readers(uses: Uses) -> dict[int, list[int]]:
    """Return the nodes that read each value."""
    readers: dict[int, list[int]] = {}
    for node in uses.graph.nodes:
        for value in node.inputs:
            readers.setdefault(value, []).append(node.index)
    return readers


def _factors(uses: Uses, zeros: Collection[str]) -> dict[int, Sites]:
    """Return the zeros that each node multiplies by; a bias of zeros is in nobody's way."""
    factors: dict[int, Sites] = {}
    for use in uses.found:
        if use.source.site in zeros and "bias" not in use.slot:
            known = factors.get(use.node.index, frozenset())
            factors[use.node.index] = known | {use.source.site}
    return factors


def _way(reading: Sequence[int], factors: Mapping[int, Sites], ways: _Ways) -> Sites | None:
    """Collect what is in the way behind a node; None where one way is open."""
    found: Sites = frozenset()
    for reader in reading:
        own, behind = factors.get(reader, frozenset()), ways[reader]
        if behind is None and not own:
            return None
        found |= own | (behind or frozenset())
    return found


def _ahead(reading: Sequence[int], factors: Mapping[int, Sites], ahead: _Ahead) -> Sites:
    """Collect the zeros that a node's output comes to."""
    parts = (factors.get(reader, frozenset()) | ahead[reader] for reader in reading)
    return frozenset[str]().union(*parts)


def _is_live(uses: Uses, node: Node, gradients: Mapping[int, float]) -> bool:
    """Say whether a node is an activation with a gradient: where it lets none on, it is dead."""
    activates = uses.role(node) in (OpRole.ACTIVATES, OpRole.GATES)
    return activates and bool(gradients.get(node.index))
