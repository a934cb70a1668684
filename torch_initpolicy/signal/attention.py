"""Scores of attention, computed again for the operators that keep them to themselves.

Knows the arguments of two of torch's functions; some rows of the first input are enough.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor


class Scores(NamedTuple):
    """What goes into a softmax.

    Attributes:
        rows: The scores, `(heads, queries, keys)`.
        allowed: Which of them count, of a shape that broadcasts; None for all.
    """

    rows: Tensor
    allowed: Tensor | None


def scores(op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scores | None:
    """Compute the scores of the first input of an attention.

    Args:
        op: Name of the operator.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        The scores; None for other operators, and where queries and keys have other shapes than
        these operators usually get.
    """
    known = _READERS.get(op)
    if known is None:
        return None
    function, names, read = known
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return function(*(given.get(name) for name in read))


def _of_heads(
    query: Tensor, key: Tensor, mask: Tensor | None, causal: bool | None, scale: float | None
) -> Scores | None:
    q, k = _first(query), _first(key)
    if q.shape[0] % k.shape[0] or q.shape[-1] != k.shape[-1]:
        return None
    k = k.repeat_interleave(q.shape[0] // k.shape[0], 0)
    found = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        return Scores(found, torch.ones_like(found[0], dtype=torch.bool).tril())
    return _masked(found, None if mask is None else _first(mask))


def _first(tensor: Tensor) -> Tensor:
    """Return the heads of the first input: `(heads, positions, features)`."""
    while tensor.ndim > 3:  # noqa: PLR2004 - heads, positions, features
        tensor = tensor[0]
    return tensor.float() if tensor.is_floating_point() else tensor


def _of_streams(
    query: Tensor, key: Tensor, heads: int, weight: Tensor | None, bias: Tensor | None,
    mask: Tensor | None,
) -> Scores | None:  # fmt: skip
    if weight is None or query.ndim != 3:  # noqa: PLR2004 - (positions, inputs, features)
        return None
    width = query.shape[-1]
    q = F.linear(query[:, 0], weight[:width], None if bias is None else bias[:width])
    k = F.linear(
        key[:, 0], weight[width : 2 * width], None if bias is None else bias[width : 2 * width]
    )
    q, k = (t.unflatten(-1, (heads, -1)).transpose(0, 1) for t in (q, k))
    found = q @ k.mT / math.sqrt(width / heads)
    return _masked(found, None if mask is None else _first(mask)[:1])


def _masked(found: Tensor, mask: Tensor | None) -> Scores:
    if mask is None:
        return Scores(found, None)
    return Scores(found, mask) if mask.dtype == torch.bool else Scores(found + mask, None)


_ATTENDS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
_PROJECTS = tuple(inspect.signature(F.multi_head_attention_forward).parameters)

_READERS: Mapping[str, tuple[Callable[..., Scores | None], tuple[str, ...], tuple[str, ...]]]
_READERS = MappingProxyType({
    "scaled_dot_product_attention": (
        _of_heads, _ATTENDS, ("query", "key", "attn_mask", "is_causal", "scale"),
    ),
    "multi_head_attention_forward": (
        _of_streams, _PROJECTS,
        ("query", "key", "num_heads", "in_proj_weight", "in_proj_bias", "attn_mask"),
    ),
})  # fmt: skip
"""How to compute scores, by operator: from which arguments, among which."""
