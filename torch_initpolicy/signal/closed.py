"""Tells gradients that are zero because a weight starts at zero from those that vanish.

Knows the graph and which parameters are zero; no residual branches.
"""

from collections.abc import Collection, Mapping, Sequence

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.operators import OpRole

Sites = frozenset[str]
Ways = dict[int, Sites | None]
"""For each node the zeros in the way of the gradient; None where some of it gets through."""


def closed(uses: Uses, gradients: Mapping[int, float], zeros: Collection[str]) -> dict[int, Sites]:
    """Find the operators whose gradient is zero because its way leads through zeros.

    Through zeros alone, as in a closed branch; or through zeros and around them by a way on which
    other positions come, as the patches of a vision transformer that reads its class token alone.

    Returns the names of the zeros that are in the way, by the index of the node.
    """
    if not zeros:
        return {}
    ways: Ways = {}
    ahead: dict[int, Sites] = {}
    readers, factors = _readers(uses), _zero_factors(uses, zeros)
    for node in reversed(uses.graph.nodes):
        reading = [index for value in node.outputs for index in readers.get(value, ())]
        ways[node.index] = None if gradients.get(node.index) else _way(reading, factors, ways)
        # An activation that gets a gradient and lets none on is dead: no zeros are the cause.
        activates = uses.role(node) in (OpRole.ACTIVATES, OpRole.GATES)
        live = activates and gradients.get(node.index)
        ahead[node.index] = Sites() if live else _ahead(reading, factors, ahead)
    lost = (index for index, gradient in gradients.items() if gradient == 0)
    return {index: way for index in lost if (way := ways[index] or ahead[index])}


def _readers(uses: Uses) -> dict[int, list[int]]:
    readers: dict[int, list[int]] = {}
    for node in uses.graph.nodes:
        for value in node.inputs:
            readers.setdefault(value, []).append(node.index)
    return readers


def _zero_factors(uses: Uses, zeros: Collection[str]) -> dict[int, Sites]:
    """Return the zeros that each node multiplies by; a bias of zeros is in nobody's way."""
    factors: dict[int, Sites] = {}
    for use in uses.found:
        if use.source.site in zeros and "bias" not in use.slot:
            known = factors.get(use.node.index, Sites())
            factors[use.node.index] = known | {use.source.site}
    return factors


def _way(reading: Sequence[int], factors: Mapping[int, Sites], ways: Ways) -> Sites | None:
    """Collect what is in the way behind a node; None where one way is open."""
    found = Sites()
    for reader in reading:
        own, behind = factors.get(reader, Sites()), ways[reader]
        if behind is None and not own:
            return None
        found |= own | (behind or Sites())
    return found


def _ahead(
    reading: Sequence[int], factors: Mapping[int, Sites], ahead: Mapping[int, Sites]
) -> Sites:
    """Collect the zeros that a node's output comes to."""
    parts = (factors.get(reader, Sites()) | ahead[reader] for reader in reading)
    return Sites().union(*parts)
