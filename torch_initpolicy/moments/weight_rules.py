"""The size of what weights make, and what they read to make it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import cast

from torch_initpolicy.moments.gaussian import Size, constant
from torch_initpolicy.moments.padding import reached
from torch_initpolicy.moments.state import (
    Drawn,
    Following,
    Known,
    Rows,
    Rules,
    Unknown,
)
from torch_initpolicy.trace.consumers import Use
from torch_initpolicy.trace.contractions import facing
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OpRole


def _weights_at(following: Following, node: Node) -> Iterator[Use]:
    for use in following.at.get(node.index, ()):
        if "bias" not in use.slot:
            yield use


def _product(following: Following, node: Node) -> Known:
    """Follow `weight * input`, also where the operator fixes the weight's size itself."""
    used = list(_weights_at(following, node))
    size = _met(following, node, used)
    grows = following.composed.proportional
    fixed = [use for use in used if use.source.site not in grows(use.value.index)]
    if fixed and isinstance(size, Size):
        return _fixed(following, node, fixed[0], size)
    for use in used:
        following.note(use, size)
    _draw(following, node, used)
    if len(used) != 1 or isinstance(size, Unknown):  # products of weights are made 1 together
        return size.weighed() if isinstance(size, Size) else size
    made = following.behind(used[0], node, size, _fan_in(following, used[0], node))
    return _with_bias(following, node, made)


def _with_bias(following: Following, node: Node, made: Known) -> Known:
    """Add the bias of a layer, which inputs and positions share."""
    bias = following.slots(node).get("bias")
    added = constant(0.0) if bias is None else following.size(bias)
    if isinstance(made, Unknown) or isinstance(added, Unknown):
        return made if isinstance(made, Unknown) else added
    return made.plus(added) if added.second else made


def _draw(following: Following, node: Node, used: Sequence[Use]) -> None:
    """Note what a single weight draws its output from."""
    partner = used[0].partner if len(used) == 1 else None
    fan_in = None if partner is None else _fan_in(following, used[0], node)
    if partner is not None and fan_in:
        following.drawn.update(dict.fromkeys(node.outputs, Drawn(partner, int(fan_in))))


def _met(following: Following, node: Node, used: Sequence[Use]) -> Known:
    """Return what a weight reads: the product of the signals it meets, less the zero padding."""
    signals = [
        value
        for slot, value in following.uses.slots(node)
        if value in following.uses.signals and slot != "bias"
    ]
    sizes = [following.size(value) for value in dict.fromkeys(signals)]
    unknown = next((size for size in sizes if isinstance(size, Unknown)), None)
    if unknown is not None or not used:
        return unknown or following.lost(node, "a weight that is no parameter")
    met = constant(1.0)
    for value, size in zip(dict.fromkeys(signals), sizes, strict=True):
        if isinstance(size, Size):
            met = met.times(size if following.sums_over_units(node, value) else size.unshared())
    if not signals:
        return met
    taps = reached(node, following.shape(signals[0]), used[0].value.shape)
    return Size(met.mean, met.second * taps.once, met.shared * taps.twice, met.near * taps.beside)


def _fixed(following: Following, node: Node, use: Use, met: Size) -> Known:
    """Return the output of a weight whose size an expression fixes: standardised weights."""
    weight = following.size(use.value.index)
    if isinstance(weight, Unknown):
        following.note(use, weight)
        return weight
    fan_in = _fan_in(following, use, node)
    following.note(use, Unknown("its operator fixes the weight's size"))
    if fan_in is None:
        return following.lost(node, "the fan of its weight is unknown")
    return met.weighed().scaled(math.sqrt(fan_in * weight.second * met.second))


def _fan_in(following: Following, use: Use, node: Node) -> float | None:
    """Count the connections into one unit of the expression that an operator applies."""
    faced = facing(following.uses, node, use.slot, use.value)
    return None if faced is None else faced.fan_in


def _looked_up(following: Following, node: Node) -> Known:
    """Rows of a table: as large as its numbers; a table that is a head too is as large as a head's.

    One connection leads into each number, so a table of its own gets numbers of second moment 1.
    """
    found = list(_weights_at(following, node))
    if not found:
        return following.lost(node, "a table that is no parameter")
    site = found[0].source.site
    shared = [
        use
        for uses in following.at.values()
        for use in uses
        if use.source.site == site and use.node.op not in ("embedding", "embedding_bag")
    ]
    fan_in = _fan_in(following, shared[0], shared[0].node) if shared else 1.0
    power = 1.0 / (fan_in or 1.0)
    following.note(found[0], Size(0.0, 1.0 / power, 0.0))
    return Size(0.0, power, 0.0)


def _attended(following: Following, node: Node) -> Known:
    """Attention with its projections: each reads its own input, the last reads an average."""
    given = following.slots(node)
    inputs = {slot: following.size(given[slot]) for slot in _READ.values()}
    unknown = next((size for size in inputs.values() if isinstance(size, Unknown)), None)
    used = {use.slot: use for use in _weights_at(following, node)}
    for slot, use in used.items():
        if slot != _LAST and slot.endswith("proj_weight"):
            following.note(use, unknown or inputs[_READ.get(slot, "query")])
    if unknown is not None:
        return unknown
    projected = {slot: _projected(following, node, used, slot) for slot in _READ}
    lost = next((size for size in projected.values() if isinstance(size, Unknown)), None)
    if lost is not None:
        return lost
    averaged = _averaged_by_layer(following, node, projected)
    if _LAST not in used:
        return averaged.weighed()
    following.note(used[_LAST], averaged)
    width = following.shape(node.outputs[0])[-1]
    return following.behind(used[_LAST], node, averaged, float(width))


_LAST = "out_proj_weight"

_READ: Mapping[str, str] = MappingProxyType(
    {"q_proj_weight": "query", "k_proj_weight": "key", "v_proj_weight": "value"}
)
"""What each projection of an attention layer reads."""


def _projected(following: Following, node: Node, used: Mapping[str, Use], slot: str) -> Known:
    """Return queries, keys or values, be their weight one of its own or packed with the others."""
    size = following.size(following.slots(node)[_READ[slot]])
    use = used.get(slot) or used.get("in_proj_weight")
    if use is None or isinstance(size, Unknown):
        return size
    return following.behind(use, node, size, float(use.value.shape[-1]))


def _averaged_by_layer(following: Following, node: Node, projected: Mapping[str, Known]) -> Size:
    """Return the average inside an attention layer, whose batch lies behind its sequence."""
    given = following.slots(node)
    drawn = {slot: Drawn(given[slot], following.shape(given[slot])[-1]) for slot in _PAIR}
    count = following.shape(given["key"])[0]
    query, key, value = (cast("Size", projected[slot]) for slot in _READ)
    rows = attention_rows(query.second * key.second, count, drawn["key"])
    return averaged(value, rows, count, drawn["value"])


_PAIR = ("key", "value")


def attention_rows(power: float, count: int, keys: Drawn | None) -> Rows:
    """Describe softmax weights over `count` values, their logits normal of variance `power`.

    The squared weights of a row sum to `exp(power) / count`.
    """
    return Rows(min(1.0, math.exp(min(power, 50.0)) / max(count, 1)), power, keys)


def averaged(value: Size, rows: Rows, count: int, drawn: Drawn | None = None) -> Size:
    """Return an average by attention weights; its neighbours average likewise.

    Keys and values that are drawn from the same normal signal vary together, so that the average
    leans towards the query: softmax weights `exp(u x)` move the mean of a normal `x` by `u` times
    its variance, and no further than the largest of `count`.
    """
    own = value.second - value.shared
    even = value.shared + own / max(count, 1)
    shift = 0.0
    if drawn is not None and rows.keys == drawn:
        shift = min(rows.power, 2 * math.log(max(count, 1))) / drawn.width
    second = value.shared + own * min(rows.squares + shift, 1.0)
    return Size(value.mean, second, even, even)


def recurring(following: Following, node: Node) -> Known:
    """Recurrent layers: their inputs are known, their states are not followed."""
    lost = following.lost(node, "the state of a recurrent layer")
    first = following.size(node.inputs[0]) if node.inputs else lost
    for use in _weights_at(following, node):
        is_input = "_ih" in use.source.site.rpartition(".")[2] and "_ih_l0" in use.source.site
        following.note(use, first if is_input else lost)
    return lost


WEIGHED: Rules = MappingProxyType({
    OpRole.WEIGHS: _product,
    OpRole.CONTRACTS: _product,
    OpRole.LOOKS_UP: _looked_up,
    OpRole.PROJECTS_AND_ATTENDS: _attended,
    OpRole.RECURS: recurring,
})  # fmt: skip
"""How to find the size of what a weight makes, by the role of its operator."""
