"""What attention keeps to itself, computed again: its scores.

Knows the arguments of torch's functions; the first input of a batch is enough.
"""

import inspect
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

Scores = tuple[Tensor, Tensor | None]
"""What goes into a softmax, `(heads, queries, keys)`, and which of it counts; None for all."""


def scores(op: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Scores | None:
    """Compute the scores of the first input of an attention, from the operator's arguments.

    None for other operators, and where queries and keys have shapes that torch's do not get.
    """
    read, names = _SCORES.get(op, (None, ()))
    return None if read is None else read(dict(zip(names, args, strict=False)) | dict(kwargs))


def _of_heads(given: Mapping[str, Any]) -> Scores | None:
    q, k = _first(given["query"]), _first(given["key"])
    if q.shape[0] % k.shape[0] or q.shape[-1] != k.shape[-1]:
        return None
    scale = given.get("scale")
    found = q @ k.repeat_interleave(q.shape[0] // k.shape[0], 0).mT
    found = found * (q.shape[-1] ** -0.5 if scale is None else scale)
    if given.get("is_causal"):
        return found, torch.ones_like(found[0], dtype=torch.bool).tril()
    return _masked(found, given.get("attn_mask"), excludes=False)


def _of_streams(given: Mapping[str, Any]) -> Scores | None:
    query, key, heads = given["query"], given["key"], given["num_heads"]
    weight, bias = given.get("in_proj_weight"), given.get("in_proj_bias")
    if weight is None or query.ndim != 3:
        return None
    width = query.shape[-1]
    biases = (None, None) if bias is None else (bias[:width], bias[width : 2 * width])
    q = F.linear(query[:, 0], weight[:width], biases[0])
    k = F.linear(key[:, 0], weight[width : 2 * width], biases[1])
    q, k = (t.view(len(t), heads, -1).transpose(0, 1) for t in (q, k))
    return _masked(q @ k.mT / math.sqrt(width / heads), given.get("attn_mask"), excludes=True)


def _first(tensor: Tensor) -> Tensor:
    """Return what belongs to the first input: `(heads, positions, features)`."""
    while tensor.ndim > 3:
        tensor = tensor[0]
    return tensor


def _masked(found: Tensor, mask: Tensor | None, *, excludes: bool) -> Scores:
    """Apply a mask: of numbers to add, or of truth values that include or exclude."""
    if mask is None:
        return found, None
    own = _first(mask)
    own = own[: len(found)] if own.ndim == found.ndim else own
    if own.dtype != torch.bool:
        return found + own, None
    return found, ~own if excludes else own


ScoresOf = Callable[[Mapping[str, Any]], Scores | None]

_SCORES: Mapping[str, tuple[ScoresOf, tuple[str, ...]]] = MappingProxyType({
    "scaled_dot_product_attention": (
        _of_heads, ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    ),
    "multi_head_attention_forward": (
        _of_streams, tuple(inspect.signature(F.multi_head_attention_forward).parameters)
    ),
})  # fmt: skip
"""How to compute scores, and the names of positional arguments, by operator."""
