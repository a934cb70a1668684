"""Parameters on their way to the operator that consumes them.

A weight may be transposed, standardised, scaled, sliced or multiplied by another before it meets
the signal. This module follows each axis of the parameter through such an expression, and says
what the consuming operator makes of it.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.trace.graph import Node, Value
from torch_initpolicy.trace.operators import Op, OpRole, argument

Dims = tuple[tuple[int, ...], ...]
"""For each dimension of a value, the axes of the parameter that it runs along."""

Label = str
"""What a dimension of a weight means to an operator: `in`, `out`, `copy` or `kernel`."""


@dataclass(frozen=True, slots=True)
class Source:
    """A parameter inside an expression of parameters.

    Attributes:
        site: Canonical name of the parameter.
        size: Its number of elements.
        dims: Where its axes have gone.
        contracted: Its axes that were summed over in a product with another parameter.
        shift: What has been added to it: 1.0 for `1 + weight`.
        gated: Whether an activation has been applied to it.
        bent: Whether any function of one number has: an activation, an exponential, a root.
        indexed: Whether rows have been picked out of it by a table of indices.
    """

    site: str
    size: int
    dims: Dims
    contracted: tuple[int, ...] = ()
    shift: float = 0.0
    gated: bool = False
    bent: bool = False
    indexed: bool = False


def whole(site: str, shape: Sequence[int]) -> Source:
    """Return the expression that is the parameter itself."""
    return Source(site, math.prod(shape), tuple((axis,) for axis in range(len(shape))))


def through(source: Source, node: Node, op: Op, before: Value, after: Value) -> Source:
    """Follow a parameter through an operator that reads parameters and constants only."""
    if op.role is OpRole.CONTRACTS:
        return _through_product(source, left=node.inputs[0] == before.index)
    there = replace(source, dims=moved(source.dims, op, before, after))
    if op.role is OpRole.ADDS:
        return replace(there, shift=there.shift + _added_number(node))
    if op.role is OpRole.PICKS:
        return replace(there, indexed=there.indexed or len(node.inputs) > 1)
    gates, bends = op.role is OpRole.ACTIVATES, op.role in (OpRole.ACTIVATES, OpRole.COMPUTES)
    return replace(there, gated=there.gated or gates, bent=there.bent or bends)


def _added_number(node: Node) -> float:
    numbers = [arg for arg in node.args if isinstance(arg, (int, float))]
    return float(numbers[0]) if len(numbers) == 1 else 0.0


def _through_product(source: Source, *, left: bool) -> Source:
    """`left @ right` keeps the rows of one and the columns of the other."""
    if len(source.dims) < 2:
        return replace(source, dims=())
    *batch, rows, columns = source.dims
    kept = (rows, ()) if left else ((), columns)
    return replace(source, dims=(*batch, *kept), contracted=columns if left else rows)


def moved(dims: Dims, op: Op, before: Value, after: Value) -> Dims:
    """Say where the axes are after an operator that makes `after` of `before`."""
    if len(dims) != len(before.shape):
        return ()  # lost on the way
    if before.shape == after.shape and op.role is not OpRole.MOVES:
        return dims
    if before.storage == after.storage:
        return _overlaps(dims, _extents(before), _extents(after))
    if op.role is OpRole.MOVES and math.prod(before.shape) == math.prod(after.shape):
        return _overlaps(dims, _dense_extents(before.shape), _dense_extents(after.shape))
    missing = len(after.shape) - len(dims)
    return ((),) * missing + dims if missing >= 0 else ()


Extent = tuple[int, int]
"""The half-open interval of distances, in elements, that a dimension spans: `(stride, reach)`."""


def _extents(value: Value) -> tuple[Extent, ...]:
    return tuple((s, s * n) for s, n in zip(value.stride, value.shape, strict=True))


def _dense_extents(shape: Sequence[int]) -> tuple[Extent, ...]:
    reaches = list(itertools.accumulate(reversed(shape), lambda a, b: a * b, initial=1))[::-1]
    return tuple((inner, outer) for outer, inner in itertools.pairwise(reaches))


def _overlaps(dims: Dims, before: Sequence[Extent], after: Sequence[Extent]) -> Dims:
    """Two views of the same memory run along the same axis where their extents intersect."""
    return tuple(
        tuple(
            axis
            for axes, (low, high) in zip(dims, before, strict=True)
            if max(low, stride) < min(high, reach)
            for axis in axes
        )
        for stride, reach in after
    )


def axes_at(
    source: Source, labels: Sequence[Label], shape: Sequence[int], node: Node
) -> Axes | None:
    """Say what a parameter's axes mean to the operator that consumes its expression.

    Args:
        source: The parameter and where its axes have gone.
        labels: What the dimensions of the expression mean to the operator.
        shape: Shape of the parameter.
        node: The operator.

    Returns:
        The axes, or None where the expression has lost track of them. Those out of which one entry
        was picked (`weight[i]`) index copies.
    """
    if len(labels) != len(source.dims):
        return None
    meant: dict[int, Label] = {
        axis: label for label, axes in zip(labels, source.dims, strict=True) for axis in axes
    }
    if source.contracted:
        facing = "in" if "out" in meant.values() else "out"
        meant |= dict.fromkeys(source.contracted, facing)
    of = {
        label: tuple(a for a in sorted(meant) if meant[a] == label) for label in set(meant.values())
    }
    if not of.get("in") and not of.get("out"):
        return None
    picked = tuple(axis for axis in range(len(shape)) if axis not in meant)
    return Axes(
        inputs=of.get("in", ()),
        outputs=of.get("out", ()),
        copies=(*of.get("copy", ()), *picked),
        groups=groups_of(node),
        stride=_stride(node, len(shape) - 2),
        transposed=node.op.startswith("conv_transpose"),
    )


def groups_of(node: Node) -> int:
    """Return the groups of a convolution; 1 for everything else."""
    return int(argument(node, 6, "groups", 1)) if node.op.startswith("conv") else 1


def _stride(node: Node, dimensions: int) -> int:
    stride = argument(node, 3, "stride", 1) if node.op.startswith("conv") else 1
    return int(math.prod(stride) if isinstance(stride, (tuple, list)) else stride**dimensions)


def labels_of(node: Node, slot: str, value: Value) -> tuple[Label, ...]:
    """Say what the dimensions of a weight in an argument of an operator mean to it.

    Args:
        node: The operator.
        slot: Name of the argument.
        value: The weight.

    Returns:
        One label per dimension; empty where the operator is not known to take weights there.
    """
    ndim = len(value.shape)
    if node.op == "einsum":
        return _einsum_labels(node, value)
    if node.op == "tensordot":
        return _tensordot_labels(node, slot, ndim)
    if node.op == "inner":
        return (*("out",) * (ndim - 1), "in")
    if slot in _FIXED:
        return _FIXED[slot]
    if slot in ("left", "right"):
        return _matmul_labels(slot, ndim)
    return _layer_labels(node, ndim)


_FIXED: Mapping[str, tuple[Label, ...]] = dict.fromkeys(
    ("in_proj_weight", "out_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
    ("out", "in"),
)
"""Layouts of the weights inside `multi_head_attention_forward`."""


def _layer_labels(node: Node, ndim: int) -> tuple[Label, ...]:
    if node.op.startswith("conv_transpose"):
        return ("in", "out", *("kernel",) * (ndim - 2))
    if node.op == "bilinear":
        return ("out", "in", "in")
    if node.op in ("embedding", "embedding_bag"):
        return ("copy", "out")
    return ("out", "in", *("kernel",) * (ndim - 2))[-ndim:] if ndim > 1 else ("in",)


def _matmul_labels(slot: str, ndim: int) -> tuple[Label, ...]:
    """The last two dimensions are the matrix; those before index copies."""
    if ndim < 2:
        return ("in",)
    matrix = ("in", "out") if slot == "right" else ("out", "in")
    return (*("copy",) * (ndim - 2), *matrix)


def _einsum_labels(node: Node, value: Value) -> tuple[Label, ...]:
    """Letters shared with the signal are summed over (`in`) or, if they survive, copies."""
    equation = node.args[0]
    if not isinstance(equation, str):
        return ()
    terms, _, result = equation.replace(" ", "").replace("...", "").partition("->")
    operands = terms.split(",")
    if value.index not in node.inputs or len(operands) != len(node.inputs):
        return ()
    mine = node.inputs.index(value.index)
    others = "".join(term for i, term in enumerate(operands) if i != mine)
    result = result or "".join(sorted({x for x in terms if x.isalpha() and terms.count(x) == 1}))
    return tuple(
        "in" if letter not in result else "copy" if letter in others else "out"
        for letter in operands[mine]
    )


def _tensordot_labels(node: Node, slot: str, ndim: int) -> tuple[Label, ...]:
    dims = argument(node, 2, "dims", 2)
    if isinstance(dims, int):
        dims = (range(ndim - dims, ndim), range(dims))
    summed = {axis % ndim for axis in dims[0 if slot == "left" else 1]}
    return tuple("in" if axis in summed else "out" for axis in range(ndim))


def sites_in(sources: Iterator[Source] | Sequence[Source]) -> tuple[str, ...]:
    """Name the parameters in an expression, each once."""
    return tuple(dict.fromkeys(source.site for source in sources))
