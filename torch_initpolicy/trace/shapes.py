"""What shape an operator returns, where its own meta kernel is slow or there is none.

Torch writes many meta kernels in Python, and those of recurrent layers loop over time. A rule
gives the same shapes and refuses the same misfits; it is for tensors on meta alone. Where a shape
depends on numbers, the largest is given.
"""

import itertools
import operator
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeGuard

import torch
from torch import Tensor


def _like(input: Tensor) -> Tensor:  # noqa: A002 - torch's name
    """Return what `torch.empty_like` does, whose own kernel is slow."""
    return input.new_empty(input.shape) if _is_dense(input) else torch.empty_like(input)


def _is_dense(tensor: Tensor) -> bool:
    """Say whether its strides are those of a new tensor, in dimensions of one as well."""
    inner = itertools.accumulate(reversed(tensor.shape[1:]), operator.mul, initial=1)
    return tensor.stride() == tuple(inner)[::-1]


def _arithmetic(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return the rule of an element-wise operator; most of it is left to torch."""

    def rule(*args: Any, **others: Any) -> Tensor:
        like = None if others else _larger(*args)
        return function(*args, **others) if like is None else like.new_empty(like.shape)

    return rule


def _larger(left: Any, right: Any, *rest: Any) -> Tensor | None:
    """Return the operand that the result is like; None where that takes thought."""
    if rest or not _is_plain(left):
        return None
    if type(right) in (int, float):
        return left
    if not _is_plain(right) or left.dtype is not right.dtype:
        return None
    larger, other = (left, right) if left.dim() >= right.dim() else (right, left)
    inner = larger.shape[larger.dim() - other.dim() :]
    fits = all(a in (1, b) for a, b in zip(other.shape, inner, strict=True))
    return larger if fits else None


def _is_plain(tensor: Any) -> TypeGuard[Tensor]:
    return (
        type(tensor) is Tensor
        and tensor.is_meta
        and tensor.layout is torch.strided
        and tensor.is_floating_point()
        and _is_dense(tensor)
    )


def _softmax(input: Tensor, dim: int | None = None, *rest: Any, **others: Any) -> Tensor:  # noqa: A002 - torch's name
    """Return what a softmax does along one axis of numbers that keep their dtype."""
    dtype = others.get("dtype") or next((it for it in rest if type(it) is torch.dtype), None)
    if dtype is None and dim is not None and input.is_floating_point() and _is_dense(input):
        _check(-max(input.dim(), 1) <= dim < max(input.dim(), 1), input, dim)
        return input.new_empty(input.shape)
    return torch.nn.functional.softmax(input, dim, dtype=dtype)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002 - torch's name
    del bias
    _check(input.shape[-1] == weight.shape[-1], input, weight)
    return input.new_empty((*input.shape[:-1], *weight.shape[:-1]))


def _elementwise(input: Tensor, *_: object, **__: object) -> Tensor:  # noqa: A002 - torch's name
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
    """
    return isinstance(args[1], Tensor) and args[1].dtype == torch.int64


def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:  # noqa: A002 - torch's name
    """Return where a tensor without numbers is not zero: everywhere, so that all is reached.

    The places hold numbers themselves, for what follows asks for them.
    """
    if input.numel() > _PLACES:
        places = torch.empty(input.numel(), input.dim(), dtype=torch.int64, device="meta")
    else:
        places = torch.ones(input.shape, dtype=torch.bool, device="cpu").nonzero()
    return places.unbind(1) if as_tuple else places


_PLACES = 2**20
"""Elements up to which all places of a tensor are written out."""


def _where(condition: Tensor, *rest: Any, **others: Any) -> Any:
    whole = rest or others
    return torch.where(condition, *rest, **others) if whole else nonzero(condition, as_tuple=True)


def _masked_select(input: Tensor, mask: Tensor) -> Tensor:  # noqa: A002 - torch's name
    return input.new_empty((input.expand_as(mask) if mask.ndim > input.ndim else input).numel())


def numbered(index: Any) -> Any:
    """Write the masks in an index as numbers: how many they are is not known on meta."""
    items = index if isinstance(index, tuple) else (index,)
    parts = (_places(i) if isinstance(i, Tensor) else (i,) for i in items)
    return tuple(itertools.chain.from_iterable(parts))


def _places(index: Tensor) -> tuple[Tensor, ...]:
    """Return where a mask holds: everywhere for one without numbers."""
    if index.dtype != torch.bool or not index.ndim:
        return (index,)
    if index.is_meta or index.numel() <= _PLACES:
        return tuple((nonzero if index.is_meta else Tensor.nonzero)(index, as_tuple=True))
    return (torch.empty(int(index.sum()), dtype=torch.int64, device="meta"),) * index.ndim


def _getitem(input: Tensor, index: Any) -> Tensor:  # noqa: A002 - torch's name
    return input[numbered(index) if _has_mask(index) else index]


def _setitem(input: Tensor, index: Any, value: Any) -> None:  # noqa: A002 - torch's name
    input[numbered(index) if _has_mask(index) and isinstance(value, Tensor) else index] = value


def _has_mask(index: Any) -> bool:
    items = index if isinstance(index, tuple) else (index,)
    return any(isinstance(item, Tensor) and item.dtype == torch.bool for item in items)


def _check(fits: bool, *what: Any) -> None:  # noqa: FBT001 - the condition, as in torch._check
    if not fits:
        shapes = (tuple(x.shape) if isinstance(x, Tensor) else x for x in what)
        raise RuntimeError(f"shapes do not fit: {', '.join(map(str, shapes))}")


SHAPE_RULES: Mapping[str, Callable[..., Any]] = MappingProxyType({
    **{op.__name__: _arithmetic(op) for op in (torch.add, torch.sub, torch.mul, torch.div)},
    "softmax": _softmax,
    "linear": _linear,
    **dict.fromkeys(("relu", "silu", "gelu", "tanh", "sigmoid"), _elementwise),
    "layer_norm": _layer_norm,
    "batch_norm": _batch_norm,
    "scaled_dot_product_attention": _attention,
    "__getitem__": _getitem,
    "__setitem__": _setitem,
    "nonzero": nonzero,
    "where": _where,
    "masked_select": _masked_select,
    "_grouped_mm": _grouped,
    "grouped_mm": _grouped,
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _gru,
    "rnn_relu": _gru,
})  # fmt: skip
"""Answers for operators on meta tensors, by the name of the function."""
