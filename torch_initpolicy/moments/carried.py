"""The size of what operators without weights make of what they get."""

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from torch_initpolicy.moments.attention import averaged
from torch_initpolicy.moments.gaussian import Size, activated, constant_size, mixture
from torch_initpolicy.moments.state import Activated, Propagation, Rows, Unknown, WeightOutput
from torch_initpolicy.tensors.gains import KNOWN, Activation
from torch_initpolicy.trace.contractions import terms
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import activation_of, argument

# The same numbers, and functions of one variable


def same(state: Propagation, node: Node) -> Size:
    """The same numbers, elsewhere; dropout keeps means and adds to squares."""
    if not node.inputs:
        raise state.lost(node, "numbers from elsewhere")
    state.comes_from(node, state.origins.get(node.inputs[0]))
    size = state.size(node.inputs[0])
    if "dropout" not in node.op:
        return size
    kept = max(1 - float(argument(node, 1, "p", 0.5)), 1e-3)
    return size.times(Size(1.0, 1 / kept, 1.0, 1.0))


def activate(state: Propagation, node: Node, activation: Activation, value: int) -> Size:
    """Return the size behind an activation of a value."""
    size = state.size(value)
    try:
        made = activated(activation, size)
    except ValueError as error:
        raise state.lost(node, str(error)) from error
    if activation.moments is None:
        state.comes_from(node, Activated(activation, size))
    return made


def activation(state: Propagation, node: Node) -> Size:
    """An activation by name."""
    return activate(state, node, activation_of(node), node.inputs[0])


def computed(state: Propagation, node: Node) -> Size:
    """An element-wise function by name; steps of a normalisation say nothing of themselves."""
    if node.op not in KNOWN or KNOWN[node.op].function is None or len(node.inputs) != 1:
        raise state.lost(node, "a function that is not in the table")
    return activate(state, node, Activation(node.op), node.inputs[0])


def gate(state: Propagation, node: Node) -> Size:
    """One half times the sigmoid of the other."""
    size = state.size(node.inputs[0])
    return size.times(activated(Activation("sigmoid"), size))


# Products and sums


def multiplied(state: Propagation, node: Node) -> Size:
    """Products and quotients, and the last steps of a normalisation that is written out."""
    kinds = state.flow.uses.kinds
    kind, before = kinds.get(node.outputs[0]), [kinds.get(value) for value in node.inputs]
    if kind == "scaled" or (kind == "normalised" and kind not in before):
        factors = (state.known(v) for v in node.inputs if v not in kinds)
        beside = next((size for size in factors if isinstance(size, Size)), Size())
        return beside if kind == "scaled" else Size()
    first, *others = _operands(state, node)
    if others and "div" in node.op:
        under = others[0]
        if under.variance > 1e-6 * under.second or not under.second:
            raise state.lost(node, "a quotient by numbers that vary")
        return first.scaled(1 / under.mean)
    return functools.reduce(Size.times, others, first)


def _operands(state: Propagation, node: Node) -> Iterator[Size]:
    """Yield the sizes of the operands of a sum or product, plain numbers among them."""
    values = iter(node.inputs)
    for given in node.args:
        if isinstance(given, (int, float)) and not isinstance(given, bool):
            yield constant_size(float(given))
        elif (value := next(values, None)) is not None:
            yield state.size(value)


def added(state: Propagation, node: Node) -> Size:
    """Sums of independent signals; two whose units lie along different axes share nothing."""
    sizes = list(_operands(state, node))
    if node.op == "addcmul" and len(sizes) == 3:
        return sizes[0].plus(sizes[1].times(sizes[2]))
    if node.op not in ("add", "sub", "subtract", "rsub") or len(sizes) != 2:
        raise state.lost(node, "a sum of its own kind")
    sign = float(node.kwargs.get("alpha", 1)) * (-1 if "sub" in node.op else 1)
    left, right = sizes[::-1] if node.op == "rsub" else sizes
    if len(node.inputs) == 2:
        if node.inputs[0] == node.inputs[1]:
            return left.scaled(1 + sign)
        one, other = map(state.flow.units.along, node.inputs)
        right = right.unshared() if one and other and one != other else right
    return left.plus(right.scaled(sign))


def contracted(state: Propagation, node: Node) -> Size:
    """A product of two signals, or an average by attention weights."""
    if len(node.inputs) != 2:
        raise state.lost(node, "a product of more than two signals")
    for weights, value in (node.inputs, node.inputs[::-1]):
        rows = state.origin(weights, Rows)
        if rows is not None:
            count = state.shape(weights)[-1]
            return averaged(state.size(value), rows, count, state.origin(value, WeightOutput))
    left, right = map(state.size, node.inputs)
    state.comes_from(node, state.origin(node.inputs[1], WeightOutput))
    length = terms(state.flow.uses, node)
    means = (left.mean * right.mean) ** 2
    second = length * (left.second * right.second - means) + length**2 * means
    shared = length * (left.second * right.shared - means) + length**2 * means
    return Size(length * left.mean * right.mean, second, min(shared, second), min(shared, second))


def normalised(state: Propagation, node: Node) -> Size:
    """Mean 0 and second moment 1, times what is learnt.

    Statistics over the batch take away what its inputs and positions share; those over features a
    mean that is common to the units, and what is shared stays so.
    """
    known, given = state.known(node.inputs[0]), state.slots(node)
    if node.op == "local_response_norm":
        return state.size(node.inputs[0])
    if node.op == "normalize":
        dim = int(argument(node, 2, "dim", 1))
        return Size(0.0, 1.0 / max(state.shape(node.inputs[0])[dim], 1))
    size = Size() if isinstance(known, Unknown) else known
    if node.op == "rms_norm":
        made = size.scaled(1 / math.sqrt(max(size.second, 1e-12)))
    elif node.op in ("batch_norm", "instance_norm"):
        made = Size()
    else:
        made = Size(0.0, 1.0, size.correlation, size.nearness)
    scale = state.known(given["weight"]) if "weight" in given else constant_size(1.0)
    return made if isinstance(scale, Unknown) else made.times(scale)


def side_by_side(state: Propagation, node: Node) -> Size:
    """A mixture of what is joined."""
    counts = [math.prod(state.shape(value)) for value in node.inputs]
    if not sum(counts):
        raise state.lost(node, "nothing side by side")
    shares = (count / sum(counts) for count in counts)
    return mixture(zip(map(state.size, node.inputs), shares, strict=True))


def created(state: Propagation, node: Node) -> Size:
    """Numbers made on the way: zeros and ones are known."""
    values = {"zeros": 0.0, "ones": 1.0}
    found = next((number for word, number in values.items() if word in node.op), None)
    if found is None:
        raise state.lost(node, "numbers made on the way")
    return constant_size(found)


# Pools, means, sums and paddings


def mixed(state: Propagation, node: Node) -> Size:
    """Pools, means and the like."""
    rule = _MIXTURES.get(re.sub(r"\dd$", "", node.op))
    if rule is None or not node.inputs:
        raise state.lost(node, "a mixture whose effect on sizes is not known")
    before, after = (math.prod(state.shape(v)) for v in (node.inputs[0], node.outputs[0]))
    return rule(state, node, state.size(node.inputs[0]), before / max(after, 1))


def _mean(state: Propagation, node: Node, size: Size, share: float) -> Size:
    """The mean over positions far apart; units have no more in common than their mean."""
    value = node.inputs[0]
    ndim, after = len(state.shape(value)), len(state.shape(node.outputs[0]))
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    places = [dims] if isinstance(dims, int) else list(dims or range(ndim))
    units = state.flow.units.along(value)
    over_units = after <= ndim and {place % ndim - ndim for place in places} == units
    return (size.unshared() if over_units else size).averaged(max(share, 1.0))


def _sum(state: Propagation, node: Node, size: Size, share: float) -> Size:
    return _mean(state, node, size, share).scaled(share)


def _padded(state: Propagation, node: Node, size: Size, share: float) -> Size:
    """Zeros around count into the mean square; copies of the border do not change it."""
    zeros = argument(node, 2, "mode", "constant") == "constant"
    return size.scaled(math.sqrt(min(share, 1.0))) if zeros else size


def _interpolated(state: Propagation, node: Node, size: Size, share: float) -> Size:
    if node.op == "interpolate" and argument(node, 3, "mode", "nearest") != "nearest":
        raise state.lost(node, "an interpolation between positions")
    return size


def _largest(state: Propagation, node: Node, size: Size, share: float) -> Size:
    """The largest under a window: of the normal signal, where the activation before grows."""
    count = max(round(share), 1) if node.op.startswith("adaptive") else _window(node)
    plain = Activated(Activation("identity"), size)
    behind = state.origin(node.inputs[0], Activated) or plain
    return activated(*behind, largest_of=count)


def _window(node: Node) -> int:
    """Count the positions under a pool's window."""
    kernel = argument(node, 1, "kernel_size", 1)
    return (
        math.prod(kernel) if isinstance(kernel, (tuple, list)) else int(kernel) ** int(node.op[-2])
    )


_MIXTURES: Mapping[str, Callable[[Propagation, Node, Size, float], Size]] = MappingProxyType({
    "max_pool": _largest,
    "adaptive_max_pool": _largest,
    "fractional_max_pool": _largest,
    "adaptive_avg_pool": _mean,
    "avg_pool": lambda _, node, size, __: size.pooled(_window(node)),
    "mean": _mean,
    "nanmean": _mean,
    "nansum": _sum,
    "sum": _sum,
    "pad": _padded,
    "interpolate": _interpolated,
    **dict.fromkeys(
        ("upsample_nearest", "masked_fill", "broadcast_tensors"),
        lambda _, __, size, ___: size,
    ),
})  # fmt: skip
"""What mixtures do, by their name without the number of dimensions."""
