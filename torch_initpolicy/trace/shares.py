"""What each weight takes out of the constants behind it, going back from what its output meets.

A product `q . k` of two outputs sums `d` terms and is `sqrt(d)` as large as they are. The usual
`1 / sqrt(d)` of attention makes up for exactly that (Vaswani et al., *Attention Is All You Need*,
2017, arXiv:1706.03762, section 3.2.1); what is missing to it, or too much, both factors share.
"""

import math
from collections.abc import Sequence

from torch_initpolicy.trace.constants import Constants
from torch_initpolicy.trace.contractions import terms
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OpRole, attention_scale

_PRODUCTS = (OpRole.MULTIPLIES, OpRole.CONTRACTS, OpRole.WEIGHS)


def ahead(constants: Constants, node: Node, value: int, beyond: float, *, met: bool) -> float:
    """Return the constants from a value on, through a node, and those `beyond` it."""
    if constants.is_normalised(node):
        return 1.0
    role, signal = constants.scalars.uses.role(node), constants.signal(value)
    counted = _counted(constants, node).get(value) if role is OpRole.ADDS else None
    if counted is not None:
        return beyond * counted / signal.factor
    others = list(constants.scalars.uses.carried(node))
    if value in others:
        others.remove(value)
    if others and role in _PRODUCTS:
        return _of_product(constants, node, (value, *others), beyond, met=met)
    return beyond * constants.coefficient(node, value)


def attended(constants: Constants, node: Node, value: int) -> float:
    """Return the constants from a query or key on, up to the softmax inside attention."""
    given = dict(reversed(constants.scalars.uses.slots(node)))
    pair = [given.get("query"), given.get("key")]
    if value not in pair:
        return 1.0
    other = given["key" if value == given["query"] else "query"]
    width = constants.scalars.uses.graph.values[given["query"]].shape[-1]
    scale = attention_scale(node) or width**-0.5
    return _share(constants, (value, other), scale * math.sqrt(width))


def _of_product(
    constants: Constants, node: Node, factors: Sequence[int], beyond: float, *, met: bool
) -> float:
    """Return the part of the constants behind a product that its first factor takes out."""
    value, *others = factors
    beside = [constants.signal(other) for other in others]
    if node.index in constants.kernels:
        on_input = math.prod(signal.factor for signal in beside if not signal.is_drawn)
        return beyond * math.sqrt(terms(constants.scalars.uses, node)) * on_input
    if not met and any(signal.is_drawn for signal in beside):
        return 1.0  # how large a product should be that no function reads is not known
    behind = constants.coefficient(node, value) * constants.growth(node, factors)
    return _share(constants, factors, beyond * behind)


def _share(constants: Constants, factors: Sequence[int], behind: float) -> float:
    """Share out constants evenly, whichever factor they are written to; return the first's part."""
    own, *beside = (constants.signal(value) for value in factors)
    total = behind * own.factor * math.prod(signal.factor for signal in beside)
    return math.pow(total, 1 / (1 + sum(signal.is_drawn for signal in beside))) / own.factor


def _counted(constants: Constants, node: Node) -> dict[int, float]:
    """Return how much of the constants on each summand its own weight takes out.

    Each takes out what stands before it alone, but what makes it smaller than the others: how the
    author weighs summands, the scale of a branch or the weights of a mean, says nothing of any
    weight.
    """
    summed = constants.added(node).items()
    factors = {value: signal.factor for value, signal in summed if signal.is_drawn}
    if node.index in constants.skips:
        branches = {value for value, signal in summed if signal.source == "weight"}
        branches.discard(constants.skips[node.index])  # a product is no branch, but biased scores
        return {v: 1.0 if v in branches else factor for v, factor in factors.items()}
    if constants.mean(node) is not None:
        return dict.fromkeys(factors, 1.0)
    least = min(1.0, max(factors.values(), default=1.0))
    return {value: max(factor, least) for value, factor in factors.items()}
