"""Dot products of two signals: how long they are, and by which number they are multiplied.

In attention a query and a key of `d` numbers are multiplied and divided by `sqrt(d)`. What matters
to a parametrisation is how large the result is when both are one: `d / sqrt(d)`.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.graph import Node, Value
from torch_initpolicy.trace.operators import OpRole, argument, attention_scale

_KEEPS = frozenset({OpRole.CASTS, OpRole.MOVES, OpRole.PICKS, OpRole.MIXES, OpRole.JOINS})


class _Made(NamedTuple):
    """What a signal is, up to the last weight or norm before it.

    Attributes:
        sites: The parameters of that weight or norm.
        factor: The number by which their output has been multiplied.
    """

    sites: frozenset[str] = frozenset()
    factor: float = 1.0


class _Product(NamedTuple):
    """A dot product of two signals.

    Attributes:
        node: Where it is computed.
        left: The signal that stands first: the query.
        right: The other one: the key.
        size: Its length times the factor that the operator applies itself.
    """

    node: Node
    left: int
    right: int
    size: float


def dot_products(uses: Uses) -> dict[str, float]:
    """Say how large the dot products are into which parameters' outputs enter first.

    Args:
        uses: The graph with its signals and weights.

    Returns:
        For each parameter that makes the first factor of a dot product of two signals (a query
        weight, or the norm behind it): the product, were all numbers in it one.
    """
    made = dict(_made(uses))
    found: dict[str, float] = {}
    for product in _products(uses):
        left, right = made.get(product.left, _Made()), made.get(product.right, _Made())
        behind = _factor_behind(uses, product.node)
        size = abs(product.size * left.factor * right.factor * behind)
        found.update(dict.fromkeys(left.sites, size))
    return found | dict(_inside_attention(uses))


def _inside_attention(uses: Uses) -> Iterator[tuple[str, float]]:
    """Yield the weights that make the queries of `multi_head_attention_forward`."""
    for use in uses.found:
        projects = uses.role(use.node) is OpRole.PROJECTS_AND_ATTENDS
        if projects and use.slot in ("in_proj_weight", "q_proj_weight"):
            width = argument(use.node, 3, "embed_dim_to_check", 1)
            heads = argument(use.node, 4, "num_heads", 1)
            yield use.source.site, math.sqrt(width / heads)


def _products(uses: Uses) -> Iterator[_Product]:
    for node in uses.graph.nodes:
        role, slots = uses.role(node), dict(uses.slots(node))
        if role is OpRole.ATTENDS and {"query", "key"} <= slots.keys():
            length = uses.graph.values[slots["query"]].shape[-1]
            scale = attention_scale(node)
            size = length * (length**-0.5 if scale is None else scale)
            yield _Product(node, slots["query"], slots["key"], float(size))
        elif role is OpRole.CONTRACTS and node.index not in uses.weighers:
            signals = [value for value in node.inputs if value in uses.signals]
            if len(set(signals)) == 2:
                left, right = signals
                yield _Product(node, left, right, _length(node, uses.graph.values[left]))


def _length(node: Node, left: Value) -> float:
    """Count the numbers that are multiplied and summed for one number of the result."""
    equation = node.args[0] if node.op == "einsum" else None
    if not isinstance(equation, str):
        return float(left.shape[-1])
    terms, _, result = equation.replace(" ", "").replace("...", "").partition("->")
    one, _, other = terms.partition(",")
    shape = dict(zip(reversed(one), reversed(left.shape), strict=False))
    return math.prod(shape[letter] for letter in set(one) & set(other) if letter not in result)


def _number(uses: Uses, node: Node) -> float:
    """Return the number that a node multiplies a signal by; 1 where it is not one number."""
    others = [a for a in node.args[1:] if isinstance(a, (int, float))]
    others += [n for v in node.inputs if (n := uses.graph.values[v].constant) is not None]
    if len(others) != 1 or not others[0]:
        return 1.0
    return 1.0 / others[0] if "div" in node.op else float(others[0])


def _made(uses: Uses) -> Iterator[tuple[int, _Made]]:
    """Yield what each signal is made of."""
    sites: dict[int, frozenset[str]] = {}
    for use in uses.found:
        is_map = use.node.index in uses.weighers or uses.role(use.node) is OpRole.NORMALISES
        if is_map and "bias" not in use.slot:
            sites[use.node.index] = sites.get(use.node.index, frozenset()) | {use.source.site}
    made: dict[int, _Made] = {}
    for node in uses.graph.nodes:
        found = _through(uses, node, sites, made)
        if found is not None:
            made.update(dict.fromkeys(node.outputs, found))
    yield from made.items()


def _through(
    uses: Uses, node: Node, sites: dict[int, frozenset[str]], made: dict[int, _Made]
) -> _Made | None:
    """Say what a node's output is made of, or None where no signal goes in."""
    if node.index in sites:
        return _Made(sites[node.index])
    carried = [made.get(value, _Made()) for value in uses.carried(node)]
    role = uses.role(node)
    if not carried:
        return None
    if role is OpRole.NORMALISES:  # it makes nothing of constants before it
        return _Made(carried[0].sites)
    if role in (OpRole.MULTIPLIES, OpRole.ADDS):
        scale = _number(uses, node) if role is OpRole.MULTIPLIES else 1.0
        return _Made(carried[0].sites, carried[0].factor * scale)
    return carried[0] if role in _KEEPS else _Made()


def _factor_behind(uses: Uses, node: Node) -> float:
    """Return the number by which a product is multiplied before it meets anything else."""
    factor = 1.0
    while len(node.outputs) == 1:
        readers = uses.graph.consumers[node.outputs[0]]
        following = [uses.graph.nodes[index] for index in readers]
        if len(following) != 1 or uses.role(following[0]) not in (*_KEEPS, *_SCALES):
            break
        node = following[0]
        factor *= _number(uses, node) if uses.role(node) is OpRole.MULTIPLIES else 1.0
    return factor


_SCALES = (OpRole.MULTIPLIES, OpRole.ADDS)


def tied_heads(uses: Uses) -> Iterator[tuple[str, float]]:
    """Yield the parameters that are looked up by index, and multiplied to a signal as well.

    With each goes the number that the products are multiplied by.
    """
    looked_up = {use.source.site for use in uses.found if uses.role(use.node) is OpRole.LOOKS_UP}
    heads = [
        use
        for use in uses.found
        if use.source.site in looked_up
        and use.node.index in uses.weighers
        and uses.role(use.node) is not OpRole.LOOKS_UP
    ]
    made = dict(_made(uses)) if heads else {}
    for use in heads:
        read = made.get(use.partner, _Made()) if use.partner is not None else _Made()
        yield use.source.site, read.factor * _factor_behind(uses, use.node)
