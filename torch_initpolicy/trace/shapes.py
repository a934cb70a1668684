"""What shape an operator returns, for the operators whose own meta kernels are slow.

Torch writes many meta kernels in Python, and those of recurrent layers loop over time. A rule
gives the same shapes and refuses the same misfits; it is for tensors on meta alone.
"""

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor


def _like(input: Tensor) -> Tensor:  # noqa: A002 - torch's name
    """Return what `torch.empty_like` does, whose own kernel is slow."""
    return input.new_empty(input.shape) if _is_dense(input) else torch.empty_like(input)


def _is_dense(tensor: Tensor) -> bool:
    """Say whether its strides are those of a new tensor, in dimensions of one as well."""
    inner = itertools.accumulate(reversed(tensor.shape[1:]), operator.mul, initial=1)
    return tensor.stride() == tuple(inner)[::-1]


def _add(*args: Any, **others: Any) -> Any:
    """Add two that are alike, as in a residual stream; leave all other sums to torch."""
    return _like(args[0]) if not others and _alike(*args) else torch.add(*args, **others)


def _alike(left: Tensor, right: Any, *rest: Any) -> bool:
    return (
        not rest
        and type(left) is type(right) is Tensor
        and right.is_meta
        and left.layout is right.layout is torch.strided
        and left.dtype is right.dtype
        and left.shape == right.shape
        and _is_dense(left)
        and _is_dense(right)
    )


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002 - torch's name
    del bias
    _check(input.shape[-1] == weight.shape[-1], input, weight)
    return input.new_empty((*input.shape[:-1], *weight.shape[:-1]))


def _elementwise(input: Tensor, inplace: bool = False) -> Tensor:  # noqa: A002, FBT001, FBT002 - torch's
    del inplace
    return _like(input)


def _gelu(input: Tensor, *, approximate: str = "none") -> Tensor:  # noqa: A002 - torch's name
    del approximate
    return _like(input)


def _layer_norm(
    input: Tensor,  # noqa: A002 - torch's name
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    del weight, bias, eps
    size = tuple(normalized_shape)
    _check(tuple(input.shape[-len(size) :]) == size, input, size)
    return _like(input)


def _batch_norm(
    input: Tensor,  # noqa: A002 - torch's name
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *rest: Any,
    **others: Any,
) -> Tensor:
    del rest, others
    for channels in (running_mean, running_var, weight, bias):
        _check(channels is None or channels.shape[0] == input.shape[1], input, channels)
    return _like(input)


def _attention(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **others: Any) -> Tensor:
    del rest, others
    _check(query.shape[-1] == key.shape[-1], query, key)
    _check(key.shape[-2] == value.shape[-2], key, value)
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _grouped(left: Tensor, right: Tensor, *rest: Any, **others: Any) -> Tensor:
    """A product with a stack of matrices; torch's kernel takes bfloat16 only."""
    del rest, others
    _check(right.dim() > 2 and left.shape[-1] == right.shape[-2], left, right)
    return left.new_empty((*left.shape[:-1], right.shape[-1]))


def _lstm(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    output, hidden = _recurrent(args, states=2)
    return output, hidden[0], hidden[1]


def _gru(*args: Any) -> tuple[Tensor, Tensor]:
    output, hidden = _recurrent(args, states=1)
    return output, hidden[0]


def _recurrent(args: tuple[Any, ...], states: int) -> tuple[Tensor, list[Tensor]]:
    """The output of a recurrent layer has the width of all directions."""
    packed = is_packed(args)
    hx = args[2 if packed else 1]
    hidden = [hx] if states == 1 else list(hx)
    directions = 2 if args[8 if packed else 7] else 1
    shape = (*args[0].shape[:-1], hidden[0].shape[-1] * directions)
    return args[0].new_empty(shape), [torch.empty_like(state) for state in hidden]


def is_packed(args: Sequence[Any]) -> bool:
    """Tell whether a recurrent layer was called with packed sequences.

    It is called as `(input, hx, ...)`, or as `(data, batch_sizes, hx, ...)` for these.

    Args:
        args: The arguments of `torch.lstm`, `torch.gru` and the like.
    """
    return isinstance(args[1], Tensor) and args[1].dtype == torch.int64


def _check(fits: bool, *what: Any) -> None:  # noqa: FBT001 - the condition, as in torch._check
    if not fits:
        shapes = (tuple(x.shape) if isinstance(x, Tensor) else x for x in what)
        raise RuntimeError(f"shapes do not fit: {', '.join(map(str, shapes))}")


SHAPE_RULES: Mapping[str, Callable[..., Any]] = MappingProxyType({
    "add": _add,
    "linear": _linear,
    "gelu": _gelu,
    **dict.fromkeys(("relu", "silu", "tanh", "sigmoid"), _elementwise),
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "scaled_dot_product_attention": _attention,
    "_grouped_mm": _grouped,
    "grouped_mm": _grouped,
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _gru,
    "rnn_relu": _gru,
})  # fmt: skip
"""Answers for operators on meta tensors, by the name of the function."""
