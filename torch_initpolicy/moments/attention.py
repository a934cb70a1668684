"""Averages by softmax weights: how even the weights are, and how small that makes the average."""

import math
import statistics
from collections.abc import Mapping
from types import MappingProxyType

from torch_initpolicy.moments.gaussian import Size
from torch_initpolicy.moments.state import Known, LostError, Propagation, Rows, WeightOutput
from torch_initpolicy.moments.weights import moments_behind
from torch_initpolicy.trace.consumers import Use
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import argument, attention_scale


def _rows(power: float, count: int, keys: WeightOutput | None) -> Rows:
    """Describe softmax weights over `count` values, their logits normal of variance `power`.

    The squared weights of a row sum to `exp(power) / count`.
    """
    return Rows(min(1.0, math.exp(min(power, 50.0)) / max(count, 1)), power, keys)


def _causal_rows(power: float, count: int, keys: WeightOutput | None) -> Rows:
    """Describe attention weights where position `i` sees the `i` values up to it."""
    squares = [_rows(power, seen, keys).squares for seen in range(1, count + 1)]
    return Rows(statistics.fmean(squares), power, keys)


def averaged(value: Size, rows: Rows, count: int, drawn: WeightOutput | None) -> Size:
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


def softmax_moments(state: Propagation, node: Node) -> Size:
    """Weights of a row sum to one; how even they are follows from the logits' variance."""
    dim = int(argument(node, 1, "dim", -1) or -1)
    count = state.shape(node.inputs[0])[dim]
    logits = state.size(node.inputs[0])
    keys = state.origin(node.inputs[0], WeightOutput)
    rows = _rows(logits.second - logits.shared, count, keys)
    state.comes_from(node, rows)
    return Size(1 / count, rows.squares / count, 1 / count**2, 1 / count**2)


def scaled_attention(state: Propagation, node: Node) -> Size:
    """Softmax attention: logits `q k / sqrt(d)` have the variance of `q` times that of `k`."""
    given = state.slots(node)
    value, query, key = (state.size(given[slot]) for slot in ("value", "query", "key"))
    width, count = state.shape(given["query"])[-1], state.shape(given["key"])[-2]
    scale = attention_scale(node) or width**-0.5
    power = query.second * (key.second - key.shared) * width * scale**2
    rows = _causal_rows if argument(node, 5, "is_causal", default=False) else _rows
    keys, drawn = (state.origin(given[slot], WeightOutput) for slot in ("key", "value"))
    return averaged(value, rows(power, count, keys), count, drawn)


def attention_layer(state: Propagation, node: Node) -> Size:
    """Attention with its projections: each reads its own input, the last reads an average."""
    given = state.slots(node)
    used = {use.slot: use for use in state.flow.uses.applied(node.index)}
    try:
        inputs = {slot: state.size(given[slot]) for slot in _READ.values()}
    except LostError as error:
        _note(state, used, dict.fromkeys(_READ.values(), error.unknown))
        raise
    _note(state, used, inputs)
    query, key, value = (_projected(state, node, used, slot) for slot in _READ)
    keys, drawn = (
        WeightOutput(given[slot], state.shape(given[slot])[-1]) for slot in ("key", "value")
    )
    count = state.shape(given["key"])[0]  # the batch lies behind the sequence
    average = averaged(value, _rows(query.second * key.second, count, keys), count, drawn)
    if _LAST not in used:
        return average.weighed()
    state.note(used[_LAST], average)
    width = float(state.shape(node.outputs[0])[-1])
    return moments_behind(state, used[_LAST], node, average, width)


_LAST = "out_proj_weight"

_READ: Mapping[str, str] = MappingProxyType(
    {"q_proj_weight": "query", "k_proj_weight": "key", "v_proj_weight": "value"}
)
"""What each projection of an attention layer reads."""


def _note(state: Propagation, used: Mapping[str, Use], inputs: Mapping[str, Known]) -> None:
    """Note what the projections read; a packed one is noted with what makes its queries."""
    for slot, use in used.items():
        if slot != _LAST and slot.endswith("proj_weight"):
            state.note(use, inputs[_READ.get(slot, "query")])


def _projected(state: Propagation, node: Node, used: Mapping[str, Use], slot: str) -> Size:
    """Return queries, keys or values, be their weight one of its own or packed with the others."""
    size = state.size(state.slots(node)[_READ[slot]])
    use = used.get(slot) or used.get("in_proj_weight")
    if use is None:
        return size
    return moments_behind(state, use, node, size, float(use.value.shape[-1]))
