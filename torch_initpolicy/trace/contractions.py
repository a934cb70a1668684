"""What the dimensions of a weight mean to the operator that applies it.

A dimension is summed over with the signal (`in`), makes outputs of its own (`out`), goes along with
the signal (`copy`: a stack of matrices, a scale), or is the extent of a kernel (`kernel`).
"""

import math
import string
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.graph import Node, Value
from torch_initpolicy.trace.operators import OpRole, argument

Label = Literal["in", "out", "copy", "kernel"]


class Facing(NamedTuple):
    """A weight as its operator reads it.

    Attributes:
        labels: What each dimension means.
        shape: Its shape, the dimension that spans the groups of a convolution cut in two.
        stride: Product of the strides of a convolution.
        transposed: Whether it is the outputs of the convolution that meet one in `stride` taps.
    """

    labels: tuple[Label, ...]
    shape: tuple[int, ...]
    stride: int = 1
    transposed: bool = False

    def dims(self, *labels: Label) -> tuple[int, ...]:
        """Return the dimensions with one of these labels."""
        return tuple(dim for dim, label in enumerate(self.labels) if label in labels)

    @property
    def fan_in(self) -> float:
        """Connections into one output unit, were there one at every position of the weight."""
        taps = math.prod(self.shape[dim] for dim in self.dims("in", "kernel"))
        return taps / self.stride if self.transposed else taps


def facing(uses: Uses, node: Node, slot: str, value: Value) -> Facing | None:
    """Say how an operator reads the weight in an argument; None where it may be no weight."""
    if node.op.startswith(("conv", "deform_conv")):
        return _of_convolution(node, value.shape)
    if uses.role(node) is OpRole.MULTIPLIES:
        labels = _of_multiplication(uses, node, value)
    else:
        labels = _labels(node, slot, value, uses.signals)
    return Facing(labels, value.shape) if labels and len(labels) == len(value.shape) else None


def terms(uses: Uses, node: Node) -> float:
    """Count the terms of each sum in a product, be it of signals or of parameters."""
    shapes = [uses.graph.values[value].shape for value in node.inputs]
    if node.op == "einsum" and (found := _equation(node)) is not None:
        sizes = {
            letter: size
            for term, shape in zip(found.terms, shapes, strict=False)
            for letter, size in zip(_spelt(term, len(shape)), shape, strict=False)
        }
        return math.prod(sizes[letter] for letter in sizes.keys() - {*found.result, *_DOTS})
    for slot, value in uses.slots(node):
        if slot in ("left", "weight"):
            faced = facing(uses, node, slot, uses.graph.values[value])
            return 1.0 if faced is None else faced.fan_in
    return 1.0


def unit_dims(uses: Uses, node: Node, ndim: int) -> tuple[int, ...]:
    """Return the dimensions of a weight's output that are not the signal's own.

    They are in the order of the weight's own dimensions, a stack of matrices first.
    """
    if "conv" in node.op:
        return (ndim - 1 - int(node.op[-2]),)
    weights = [(slot, value) for slot, value in uses.slots(node) if value in uses.sources]
    if node.op == "einsum":
        return _brought(uses, node, weights[0][1]) if len(weights) == 1 else ()
    for slot, value in weights:
        dims = len(uses.graph.values[value].shape)
        if node.op == "tensordot":
            summed = _of_tensordot(node, slot, dims).count("in")
            own = dims - summed
            return tuple(range(own) if slot == "left" else range(ndim - own, ndim))
        if slot in ("left", "right"):
            stack = range(max(ndim - dims, 0), ndim - 2)
            return (*stack, ndim - 2 if slot == "left" else ndim - 1) if dims > 1 else ()
    return (ndim - 1,)


def _of_convolution(node: Node, shape: tuple[int, ...]) -> Facing | None:
    if len(shape) < 3:
        return None
    deforms = node.op == "deform_conv2d"
    groups = int(argument(node, 11 if deforms else 6, "groups", 1))
    stride = node.args[5:7] if deforms else argument(node, 3, "stride", 1)
    area = math.prod(stride) if isinstance(stride, (tuple, list)) else stride ** (len(shape) - 2)
    transposed = node.op.startswith("conv_transpose")
    maps: tuple[Label, Label] = ("in", "out") if transposed else ("out", "in")
    extent: Label = "kernel"
    labels = (*maps, *[extent] * (len(shape) - 2))
    if groups == 1:
        return Facing(labels, shape, area, transposed)
    return Facing(("copy", *labels), (groups, shape[0] // groups, *shape[1:]), area, transposed)


def _labels(
    node: Node, slot: str, value: Value, signals: Collection[int]
) -> tuple[Label, ...] | None:
    ndim = len(value.shape)
    if node.op == "einsum":
        return _of_einsum(node, value, signals)
    if node.op == "tensordot":
        return _of_tensordot(node, slot, ndim)
    if slot in ("left", "right"):
        return _of_product(node.op, slot, ndim)
    if slot in _FIXED:
        return ("out", "in")
    layout = _LAYOUTS.get(node.op, ())
    return layout[-ndim:] if len(layout) >= ndim > 0 else None


def _of_multiplication(uses: Uses, node: Node, value: Value) -> tuple[Label, ...] | None:
    """Read an element-wise product whose axes are summed over next: `(x * w).sum(-1)`.

    A sum over anything but the last axis mixes copies of a signal, which a vector only weighs.
    """
    product = uses.graph.values[node.outputs[0]]
    readers = uses.graph.consumers[product.index : product.index + 1]
    nodes = [uses.graph.nodes[reader] for each in readers for reader in each]
    signals = [uses.graph.values[v].shape for v in node.inputs if v in uses.signals]
    if len(nodes) != 1 or nodes[0].op != "sum" or len(signals) != 1:
        return None
    dims, last = argument(nodes[0], 1, "dim", None), len(product.shape) - 1
    dims = range(last + 1) if dims is None else dims if isinstance(dims, (tuple, list)) else (dims,)
    summed = {dim % (last + 1) for dim in dims}
    signal = (*(1,) * (last + 1 - len(signals[0])), *signals[0])
    labels: list[Label] = []
    for dim, size in enumerate(value.shape, last + 1 - len(value.shape)):
        alone: Label = "out" if signal[dim] == 1 else "copy"
        found: Label = "in" if dim in summed else alone
        labels.append(found if size > 1 else "copy")
    is_matrix = "out" in labels or summed == {last}
    return tuple(labels) if "in" in labels and is_matrix else None


_FIXED = frozenset(
    {"in_proj_weight", "out_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"}
)
"""Weights inside `multi_head_attention_forward`."""

_LAYOUTS: Mapping[str, tuple[Label, ...]] = MappingProxyType({
    "linear": ("out", "in"),
    "bilinear": ("out", "in", "in"),
    "embedding": ("copy", "out"),
    "embedding_bag": ("copy", "out"),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"), ("out", "in")),
})  # fmt: skip


def _of_product(op: str, slot: str, ndim: int) -> tuple[Label, ...]:
    """The last two dimensions are the matrix; those before index copies, or are summed over."""
    stack: Label = "in" if op == "addbmm" else "out" if op == "inner" else "copy"
    if ndim < 2:
        return ("in",)
    matrix: tuple[Label, Label] = ("out", "in")
    if slot == "right" and op != "inner":
        matrix = ("in", "out")
    return (*[stack] * (ndim - 2), *matrix)


def _of_tensordot(node: Node, slot: str, ndim: int) -> tuple[Label, ...]:
    dims = argument(node, 2, "dims", 2)
    if isinstance(dims, int):
        dims = (range(ndim - dims, ndim), range(dims))
    summed = {axis % ndim for axis in dims[0 if slot == "left" else 1]}
    return tuple("in" if axis in summed else "out" for axis in range(ndim))


class _Equation(NamedTuple):
    """An equation of `einsum`: the letters of each operand and of the result."""

    terms: tuple[str, ...]
    result: str


def _of_einsum(node: Node, value: Value, signals: Collection[int]) -> tuple[Label, ...] | None:
    """Letters summed with the signal, or with what it has been summed with, face inputs."""
    found = _equation(node)
    if found is None or len(found.terms) != len(node.inputs) or value.index not in node.inputs:
        return None
    mine = node.inputs.index(value.index)
    term, *others = (found.terms[mine], *found.terms[:mine], *found.terms[mine + 1 :])
    heard = {
        letter
        for letters, read in zip(found.terms, node.inputs, strict=True)
        if read in signals
        for letter in letters
    }
    reached = _reached(heard, others, found.result)
    return tuple(
        ("copy" if letter in heard or letter in _DOTS else "out")
        if letter in found.result or letter in _DOTS
        else ("in" if letter in reached else "out")
        for letter in _spelt(term, len(value.shape))
    )


def _brought(uses: Uses, node: Node, weight: int) -> tuple[int, ...]:
    """Return the dimensions of a result that the letters of one operand stand for."""
    found, value = _equation(node), uses.graph.values[weight]
    labels = _of_einsum(node, value, uses.signals)
    if found is None or labels is None:
        return ()
    term = _spelt(found.terms[node.inputs.index(weight)], len(value.shape))
    result = _spelt(found.result, len(uses.graph.values[node.outputs[0]].shape))
    named = list(zip(term, labels, strict=True))
    return tuple(
        result.index(letter)
        for wanted in ("copy", "out")
        for letter, label in named
        if label == wanted and letter in result
    )


def _reached(heard: set[str], terms: Sequence[str], result: str) -> set[str]:
    """Return the letters that the signal gets to through sums with these other operands."""
    reached, waiting = set(heard), list(terms)
    while near := [term for term in waiting if (reached - set(result)) & set(term)]:
        reached |= set(near[0])
        waiting.remove(near[0])
    return reached


_DOTS = "0123456789"
"""Letters that stand for the dimensions of an ellipsis, from the last one back."""


def _spelt(term: str, ndim: int) -> str:
    """Return a term of `einsum` with a letter for every dimension.

    Examples:
        >>> _spelt("...io", 4)
        '10io'
    """
    more = ndim - len(term.replace("...", ""))
    return term.replace("...", _DOTS[:more][::-1] if more > 0 else "")


def _equation(node: Node) -> _Equation | None:
    """Return the equation of a call, written as a string or as lists of numbers."""
    if not isinstance(node.args[0], str):
        return _equation_of_lists(node)
    terms, arrow, result = node.args[0].replace(" ", "").partition("->")
    letters = terms.replace(",", "").replace("...", "")
    if not arrow:
        once = sorted({letter for letter in letters if letters.count(letter) == 1})
        result = ("..." if "..." in terms else "") + "".join(once)
    return _Equation(tuple(terms.split(",")), result)


def _equation_of_lists(node: Node) -> _Equation | None:
    lists = [arg for arg in node.args if isinstance(arg, (list, tuple))]
    if not isinstance(node.args[0], Value) or not all(isinstance(x, int) for y in lists for x in y):
        return None
    terms = ["".join(string.ascii_letters[number] for number in each) for each in lists]
    if len(terms) > len(node.inputs):
        return _Equation(tuple(terms[:-1]), terms[-1])
    letters = "".join(terms)
    return _Equation(tuple(terms), "".join(sorted(x for x in letters if letters.count(x) == 1)))
