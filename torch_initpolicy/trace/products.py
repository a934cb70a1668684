"""Dot products of two signals: how long they are, and by which number they are multiplied.

In attention a query and a key of `d` numbers are multiplied and divided by `sqrt(d)`. What matters
to a parametrisation is how large the result is when both are one: `d / sqrt(d)`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.contractions import terms
from torch_initpolicy.trace.flow import Flow
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import CARRIERS, OpRole, argument, attention_scale
from torch_initpolicy.trace.scalars import Scalars


def dot_products(flow: Flow) -> dict[str, float]:
    """Say how large the dot products are into which parameters' outputs enter first.

    Returns:
        For each parameter that makes the first factor of a dot product of two signals (a query
        weight, or the norm behind it): the product, were all numbers in it one.
    """
    uses, constants = flow.uses, flow.looking.constants
    maps, found = _maps(uses), dict[str, float]()
    for node in uses.graph.nodes:
        for left, right, size in _products(uses, node):
            factors = constants.signal(left).factor * constants.signal(right).factor
            whole = size * factors * _factor_behind(constants.scalars, node)
            found.update(dict.fromkeys(_makers(uses, left, maps), whole))
    return found | dict(_inside_attention(uses))


def _inside_attention(uses: Uses) -> Iterator[tuple[str, float]]:
    """Yield the weights that make the queries of `multi_head_attention_forward`."""
    for use in uses.found:
        projects = uses.role(use.node) is OpRole.PROJECTS_AND_ATTENDS
        if projects and use.slot in ("in_proj_weight", "q_proj_weight"):
            width = argument(use.node, 3, "embed_dim_to_check", 1)
            heads = argument(use.node, 4, "num_heads", 1)
            yield use.source.site, math.sqrt(width / heads)


def _products(uses: Uses, node: Node) -> Iterator[tuple[int, int, float]]:
    """Yield the two factors of a dot product, with its length times the operator's own factor."""
    role, slots = uses.role(node), dict(uses.slots(node))
    if role is OpRole.ATTENDS and {"query", "key"} <= slots.keys():
        length = uses.graph.values[slots["query"]].shape[-1]
        scale = attention_scale(node)
        own = length**-0.5 if scale is None else abs(scale)
        yield slots["query"], slots["key"], length * own
    elif role is OpRole.CONTRACTS and node.index not in uses.weighers:
        signals = [value for value in node.inputs if value in uses.signals]
        if len(set(signals)) == 2:
            yield signals[0], signals[1], terms(uses, node)


def _factor_behind(scalars: Scalars, node: Node) -> float:
    """Return the number by which a product is multiplied before it meets anything else."""
    factor, graph = 1.0, scalars.uses.graph
    while len(node.outputs) == 1 and len(graph.consumers[node.outputs[0]]) == 1:
        reader = graph.nodes[graph.consumers[node.outputs[0]][0]]
        if scalars.uses.role(reader) not in CARRIERS - {OpRole.NORMALISES}:
            break
        factor *= scalars.factor(reader, node.outputs[0])
        node = reader
    return factor


def _maps(uses: Uses) -> dict[int, list[str]]:
    """Name the parameters of each weight and each norm, by node."""
    found: dict[int, list[str]] = {}
    for use in uses.found:
        is_map = use.node.index in uses.weighers or uses.role(use.node) is OpRole.NORMALISES
        if is_map and "bias" not in use.slot:
            found.setdefault(use.node.index, []).append(use.source.site)
    return found


def _makers(uses: Uses, value: int, maps: Mapping[int, Sequence[str]]) -> Sequence[str]:
    """Name the parameters of the last weight or norm that a signal comes out of."""
    while (producer := uses.graph.values[value].producer) is not None and producer not in maps:
        node = uses.graph.nodes[producer]
        carried = uses.carried(node)
        if not carried or uses.role(node) not in CARRIERS:
            return ()
        value = carried[0]
    return () if producer is None else maps[producer]


def tied_heads(flow: Flow) -> Iterator[tuple[str, float]]:
    """Yield the parameters that are looked up by index, and multiplied to a signal as well.

    With each goes the number that the products are multiplied by.
    """
    uses, constants = flow.uses, flow.looking.constants
    looked_up = {use.source.site for use in uses.found if uses.role(use.node) is OpRole.LOOKS_UP}
    for use in uses.found:
        is_head = use.node.index in uses.weighers and uses.role(use.node) is not OpRole.LOOKS_UP
        if is_head and use.source.site in looked_up:
            before = 1.0 if use.partner is None else constants.signal(use.partner).factor
            yield use.source.site, before * _factor_behind(constants.scalars, use.node)
