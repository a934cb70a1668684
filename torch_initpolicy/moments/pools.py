"""The size of what pools, means, sums and paddings make."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch_initpolicy.moments.following import Activated, Following
from torch_initpolicy.moments.gaussian import Size, activated
from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import argument


def mixed(following: Following, node: Node) -> Size:
    """Pools, means and the like."""
    rule = next((rule for word, rule in _MIXTURES.items() if word in node.op), None)
    if rule is None or not node.inputs:
        raise following.lost(node, "a mixture whose effect on sizes is not known")
    before, after = (math.prod(following.shape(v)) for v in (node.inputs[0], node.outputs[0]))
    return rule(following, node, following.size(node.inputs[0]), before / max(after, 1))


def _mean(following: Following, node: Node, size: Size, share: float) -> Size:
    """The mean over positions far apart; units have no more in common than their mean."""
    value = node.inputs[0]
    ndim, after = len(following.shape(value)), len(following.shape(node.outputs[0]))
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    places = [dims] if isinstance(dims, int) else list(dims or range(ndim))
    units = following.flow.units.along(value)
    over_units = after <= ndim and {place % ndim - ndim for place in places} == units
    return (size.unshared() if over_units else size).averaged(max(share, 1.0))


def _sum(following: Following, node: Node, size: Size, share: float) -> Size:
    return _mean(following, node, size, share).scaled(share)


def _window_mean(following: Following, node: Node, size: Size, share: float) -> Size:
    return size.pooled(_window(node))


def _padded(following: Following, node: Node, size: Size, share: float) -> Size:
    """Zeros around count into the mean square; copies of the border do not change it."""
    zeros = argument(node, 2, "mode", "constant") == "constant"
    return size.scaled(math.sqrt(min(share, 1.0))) if zeros else size


def _interpolated(following: Following, node: Node, size: Size, share: float) -> Size:
    if node.op == "interpolate" and argument(node, 3, "mode", "nearest") != "nearest":
        raise following.lost(node, "an interpolation between positions")
    return size


def _kept(following: Following, node: Node, size: Size, share: float) -> Size:
    return size


def _largest(following: Following, node: Node, size: Size, share: float) -> Size:
    """The largest under a window: of the normal signal, where the activation before grows."""
    count = max(round(share), 1) if node.op.startswith("adaptive") else _window(node)
    plain = Activated(Activation("identity"), size)
    behind = following.origin(node.inputs[0], Activated) or plain
    return activated(*behind, largest_of=count)


def _window(node: Node) -> int:
    """Count the positions under a pool's window."""
    kernel = argument(node, 1, "kernel_size", 1)
    return (
        math.prod(kernel) if isinstance(kernel, (tuple, list)) else int(kernel) ** int(node.op[-2])
    )


_MIXTURES: Mapping[str, Callable[[Following, Node, Size, float], Size]] = MappingProxyType({
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
