"""The size of what operators without weights make of what they get."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from torch_initpolicy.moments.gaussian import Size, activated, constant, with_cube
from torch_initpolicy.moments.state import Drawn, Following, Known, Rows, Rules, Unknown
from torch_initpolicy.moments.weight_rules import attention_rows, averaged
from torch_initpolicy.tensors.gains import KNOWN, Activation
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OpRole, activation_of, argument, attention_scale


def _lost(following: Following, node: Node) -> Known:
    return following.lost(node, "an operator whose effect on sizes is not known")


def _same(following: Following, node: Node) -> Known:
    """The same numbers, elsewhere; dropout keeps means and adds to squares."""
    if not node.inputs:
        return following.lost(node, "numbers from elsewhere")
    size = following.size(node.inputs[0])
    _copied(following.rows, node)
    _copied(following.drawn, node)
    _copied(following.activated_at, node)
    if isinstance(size, Size) and "dropout" in node.op:
        return size.times(_dropped(float(argument(node, 1, "p", 0.5))))
    return size


def _dropped(p: float) -> Size:
    """Return the moments of dropout's factors: 0, or the inverse of the fraction that is kept."""
    kept = max(1 - p, 1e-3)
    return with_cube(1.0, 1 / kept, 1.0, 1.0, 1 / kept**2)


Note = TypeVar("Note")


def _copied(notes: dict[int, Note], node: Node) -> None:
    """Note of a node's outputs what is noted of its input."""
    if node.inputs[0] in notes:
        notes.update(dict.fromkeys(node.outputs, notes[node.inputs[0]]))


def _activation(following: Following, node: Node) -> Known:
    if node.op in ("softmax", "log_softmax"):
        return _softmax(following, node)
    return following.activate(node, activation_of(node), node.inputs[0])


def _softmax(following: Following, node: Node) -> Known:
    """Weights of a row sum to one; how even they are follows from the logits' variance."""
    if node.op == "log_softmax":
        return following.lost(node, "log-probabilities")
    dim = int(argument(node, 1, "dim", -1) or -1)
    count = following.shape(node.inputs[0])[dim]
    logits = following.size(node.inputs[0])
    if isinstance(logits, Unknown):
        return logits
    keys = following.drawn.get(node.inputs[0])
    rows = attention_rows(logits.second - logits.shared, count, keys)
    following.rows.update(dict.fromkeys(node.outputs, rows))
    return Size(1 / count, rows.squares / count, 1 / count**2, 1 / count**2)


def _gate(following: Following, node: Node) -> Known:
    size = following.size(node.inputs[0])
    if isinstance(size, Unknown):
        return size
    return size.times(activated(Activation("sigmoid"), size))


def _computed(following: Following, node: Node) -> Known:
    """An element-wise function by name; steps of a normalisation say nothing of themselves."""
    activation = Activation(node.op)
    if node.op not in KNOWN or KNOWN[node.op].function is None or len(node.inputs) != 1:
        return following.lost(node, "a function that is not in the table")
    return following.activate(node, activation, node.inputs[0])


def _multiplied(following: Following, node: Node) -> Known:
    kinds = following.uses.kinds
    kind, before = kinds.get(node.outputs[0]), [kinds.get(value) for value in node.inputs]
    if kind == "scaled" or (kind == "normalised" and kind not in before):
        return _normal_by_hand(following, node)
    sizes = list(_operands(following, node))
    unknown = next((size for size in sizes if isinstance(size, Unknown)), None)
    if unknown is not None:
        return unknown
    known = [size for size in sizes if isinstance(size, Size)]
    if len(known) == 2 and "div" in node.op:
        return _quotient(following, node, *known)
    product = known[0]
    for other in known[1:]:
        product = product.times(other)
    return product


def _quotient(following: Following, node: Node, over: Size, under: Size) -> Known:
    if under.variance > 1e-6 * under.second or not under.second:
        return following.lost(node, "a quotient by numbers that vary")
    return over.scaled(1 / under.mean)


def _normal_by_hand(following: Following, node: Node) -> Known:
    """The last steps of a normalisation that is written out: as large as what multiplies it."""
    others = [following.size(v) for v in node.inputs if v not in following.uses.kinds]
    beside = next((size for size in others if isinstance(size, Size)), None)
    is_affine = following.uses.kinds.get(node.outputs[0]) == "scaled"
    return beside if is_affine and beside is not None else Size()


def _operands(following: Following, node: Node) -> Iterator[Known]:
    """Yield the sizes of the operands of a sum or product, plain numbers among them."""
    values = iter(node.inputs)
    for given in node.args:
        if isinstance(given, bool):
            continue
        if isinstance(given, (int, float)):
            yield constant(float(given))
        elif (value := next(values, None)) is not None:
            yield following.size(value)


def _added(following: Following, node: Node) -> Known:
    sizes = list(_operands(following, node))
    known = [size for size in sizes if isinstance(size, Size)]
    if node.op == "addcmul" and len(known) == len(sizes) == 3:
        return known[0].plus(known[1].times(known[2]))
    if node.op not in ("add", "sub", "subtract", "rsub") or len(sizes) != 2:
        return following.lost(node, "a sum of its own kind")
    sign = float(node.kwargs.get("alpha", 1)) * (-1 if "sub" in node.op else 1)
    left, right = sizes[::-1] if node.op == "rsub" else sizes
    if isinstance(left, Unknown) or isinstance(right, Unknown):
        return left if isinstance(left, Unknown) else right
    if len(node.inputs) == 2 and node.inputs[0] == node.inputs[1]:
        return left.scaled(1 + sign)
    if len(node.inputs) == 2 and following.differ_in_units(*node.inputs):
        right = right.unshared()
    return left.plus(right.scaled(sign))


def _normalised(following: Following, node: Node) -> Known:
    """Mean 0 and second moment 1, times what is learnt; a mean over features stays shared."""
    given = following.slots(node)
    size = following.size(node.inputs[0])
    if node.op == "local_response_norm":
        return size
    if node.op == "normalize":
        dim = int(argument(node, 2, "dim", 1))
        return Size(0.0, 1.0 / max(following.shape(node.inputs[0])[dim], 1), 0.0)
    known = size if isinstance(size, Size) else Size()
    made = _NORMS.get(node.op, _by_feature)(known)
    scale = following.size(given["weight"]) if "weight" in given else constant(1.0)
    return made.times(scale) if isinstance(scale, Size) else made


def _by_channel(size: Size) -> Size:
    """Statistics over the batch take away what its inputs and positions share."""
    return Size(0.0, 1.0, 0.0, 0.0, size.skewness)


def _by_feature(size: Size) -> Size:
    """Statistics over the features take away a mean that is common to the units."""
    return Size(0.0, 1.0, size.correlation, size.nearness, size.skewness)


def _by_power(size: Size) -> Size:
    return size.scaled(1 / math.sqrt(max(size.second, 1e-12)))


_NORMS: Mapping[str, Callable[[Size], Size]] = {
    "batch_norm": _by_channel,
    "instance_norm": _by_channel,
    "rms_norm": _by_power,
}


def _contracted(following: Following, node: Node) -> Known:
    """A product of two signals, or an average by attention weights."""
    if len(node.inputs) != 2:
        return following.lost(node, "a product of more than two signals")
    left, right = (following.size(value) for value in node.inputs)
    for weights, value, size in zip(node.inputs, node.inputs[::-1], (right, left), strict=True):
        if weights in following.rows and isinstance(size, Size):
            return _averaged(following, weights, value, size)
    if isinstance(left, Unknown) or isinstance(right, Unknown):
        return left if isinstance(left, Unknown) else right
    if node.inputs[1] in following.drawn:
        following.drawn.update(dict.fromkeys(node.outputs, following.drawn[node.inputs[1]]))
    count = _summed(node, [following.shape(value) for value in node.inputs])
    if count is None:
        return following.lost(node, "a product over axes that are not known")
    means = (left.mean * right.mean) ** 2
    second = count * (left.second * right.second - means) + count**2 * means
    shared = count * (left.second * right.shared - means) + count**2 * means
    shared = min(shared, second)
    return Size(count * left.mean * right.mean, second, shared, shared)


def _averaged(following: Following, weights: int, value: int, size: Size) -> Size:
    count, drawn = following.shape(weights)[-1], following.drawn.get(value)
    return averaged(size, following.rows[weights], count, drawn)


def _summed(node: Node, shapes: Sequence[tuple[int, ...]]) -> int | None:
    """Count the terms of each sum in a product of two tensors."""
    if node.op == "einsum" and isinstance(node.args[0], str):
        terms, _, result = node.args[0].replace(" ", "").replace("...", "").partition("->")
        letters = terms.split(",")
        sizes = {
            letter: size
            for term, shape in zip(letters, shapes, strict=True)
            for letter, size in zip(term, shape[len(shape) - len(term) :], strict=True)
        }
        return math.prod(size for letter, size in sizes.items() if letter not in result)
    if node.op in ("matmul", "mm", "bmm", "mv", "dot", "inner") and shapes[0]:
        return shapes[0][-1]
    return None


def _scaled_attention(following: Following, node: Node) -> Known:
    """Softmax attention: logits `q k / sqrt(d)` have the variance of `q` times that of `k`."""
    given = following.slots(node)
    query, key, value = (following.size(given[slot]) for slot in ("query", "key", "value"))
    if isinstance(value, Unknown):
        return value
    if isinstance(query, Unknown) or isinstance(key, Unknown):
        return query if isinstance(query, Unknown) else key
    width = following.shape(given["query"])[-1]
    scale = attention_scale(node) or width**-0.5
    power = query.second * (key.second - key.shared) * width * scale**2
    count = following.shape(given["key"])[-2]
    causal = argument(node, 5, "is_causal", default=False)
    keys, drawn = (following.drawn.get(given[slot]) for slot in ("key", "value"))
    rows = (_causal_rows if causal else attention_rows)(power, count, keys)
    return averaged(value, rows, count, drawn)


def _causal_rows(power: float, count: int, keys: Drawn | None) -> Rows:
    """Describe attention weights where position `i` sees the `i` values up to it."""
    squares = [attention_rows(power, seen, keys).squares for seen in range(1, count + 1)]
    return Rows(statistics.fmean(squares), power, keys)


def _mixed(following: Following, node: Node) -> Known:
    """Pools, means and the like."""
    mixture = next((rule for word, rule in _MIXTURES.items() if word in node.op), None)
    if mixture is None or not node.inputs:
        return following.lost(node, "a mixture whose effect on sizes is not known")
    size = following.size(node.inputs[0])
    if isinstance(size, Unknown):
        return size
    before, after = (math.prod(following.shape(v)) for v in (node.inputs[0], node.outputs[0]))
    return mixture(following, node, size, before / max(after, 1))


def _mean(following: Following, node: Node, size: Size, share: float) -> Known:
    """The mean over positions far apart; units have no more in common than their mean."""
    over_units = following.sums_over_axis(node)
    return (size.unshared() if over_units else size).averaged(max(share, 1.0))


def _sum(following: Following, node: Node, size: Size, share: float) -> Known:
    mean = _mean(following, node, size, share)
    return mean.scaled(share) if isinstance(mean, Size) else mean


def _window_mean(following: Following, node: Node, size: Size, share: float) -> Known:
    return size.pooled(_window(node))


def _padded(following: Following, node: Node, size: Size, share: float) -> Known:
    """Zeros around count into the mean square; copies of the border do not change it."""
    zeros = argument(node, 2, "mode", "constant") == "constant"
    return size.scaled(math.sqrt(min(share, 1.0))) if zeros else size


def _interpolated(following: Following, node: Node, size: Size, share: float) -> Known:
    if node.op == "interpolate" and argument(node, 3, "mode", "nearest") != "nearest":
        return following.lost(node, "an interpolation between positions")
    return size


def _kept(following: Following, node: Node, size: Size, share: float) -> Known:
    return size


def _largest(following: Following, node: Node, size: Size, share: float) -> Known:
    """The largest under a window: of the normal signal, where the activation before grows."""
    count = max(round(share), 1) if node.op.startswith("adaptive") else _window(node)
    activation, normal = following.activated_at.get(node.inputs[0], (Activation("identity"), size))
    return activated(activation, normal, largest_of=count)


_MIXTURES: Mapping[str, Callable[[Following, Node, Size, float], Known]] = MappingProxyType({
    "max_pool": _largest,
    "adaptive_avg_pool": _mean,
    "avg_pool": _window_mean,
    "mean": _mean,
    "nansum": _sum,
    "sum": _sum,
    "pad": _padded,
    "interpolate": _interpolated,
    "upsample_nearest": _kept,
    "masked_fill": _kept,
    "broadcast_tensors": _kept,
})  # fmt: skip
"""What mixtures do, by a part of their name; the first that fits."""


def _window(node: Node) -> int:
    """Count the positions under a pool's window."""
    kernel = argument(node, 1, "kernel_size", 1)
    dims = int(node.op[-2])
    return math.prod(kernel) if isinstance(kernel, (tuple, list)) else int(kernel) ** dims


def _joined_side_by_side(following: Following, node: Node) -> Known:
    """A mixture, skewed as a unit of it is: that units differ in their means is no skewness."""
    sizes = [(following.size(value), math.prod(following.shape(value))) for value in node.inputs]
    unknown = next((size for size, _ in sizes if isinstance(size, Unknown)), None)
    total = sum(count for _, count in sizes)
    if unknown is not None or not total:
        return unknown or following.lost(node, "nothing side by side")
    known = [(size, count / total) for size, count in sizes if isinstance(size, Size)]
    mixture = Size(
        sum(size.mean * part for size, part in known),
        sum(size.second * part for size, part in known),
        sum(size.shared * part for size, part in known),
        sum(size.near * part for size, part in known),
    )
    return mixture.skewed(sum(size.skewness * part for size, part in known))


def _created(following: Following, node: Node) -> Known:
    values = {"zeros": 0.0, "ones": 1.0}
    found = next((number for word, number in values.items() if word in node.op), None)
    return following.lost(node, "numbers made on the way") if found is None else constant(found)


CARRIED: Rules = MappingProxyType({
    OpRole.CASTS: _same,
    OpRole.MOVES: _same,
    OpRole.ACTIVATES: _activation,
    OpRole.GATES: _gate,
    OpRole.COMPUTES: _computed,
    OpRole.MULTIPLIES: _multiplied,
    OpRole.ADDS: _added,
    OpRole.NORMALISES: _normalised,
    OpRole.CONTRACTS: _contracted,
    OpRole.ATTENDS: _scaled_attention,
    OpRole.MIXES: _mixed,
    OpRole.PICKS: _same,
    OpRole.JOINS: _joined_side_by_side,
    OpRole.CREATES: _created,
})  # fmt: skip
"""How to find the size of what other operators make, by their role."""
