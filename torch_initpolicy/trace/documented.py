"""What the docstring of a forward pass says of its arguments: their dtypes, and shapes in words.

Reads `x (torch.LongTensor of shape (batch_size, length)): ...` in any of the usual styles.
"""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

BATCH = 2
"""Batch normalisation in training mode needs more than one sample."""

SEQUENCE = 8
"""Length of sequences of features or of integers."""

_ENTRY = r"^\s*{name}\s*[(:](?P<text>.*(?:\n(?!\s*\w+\s*[(:]|\s*Returns?\b).*)*)"
_SHAPE = re.compile(r"shape:?\s*`{0,2}[(\[]([^)\]]*)[)\]]", re.IGNORECASE)
_KIND = re.compile(r"(Long|Int|Bool|Float|)Tensor")

_AXES = {
    r"^(b|n|bs|bsz|batch|batch_size|num_(images|videos|audios|choices))$": (),
    r"^(c|channels?|num_channels|in_channels)$": ("num_channels", "in_channels", "in_chans"),
    r"^(h|w|height|width|edge|image_size)$": ("image_size", "img_size", "sample_size"),
    r"^(d|dim|d_model|(hidden|embed|feature)\w*(size|dims?|width))$": (
        *("hidden_size", "d_model", "n_embd", "embed_dim"),
        *("cross_attention_dim", "joint_attention_dim", "caption_channels"),
    ),
}
"""Under which names a model or its configuration keeps the lengths that docstrings speak of."""


def documented(model: nn.Module, name: str) -> Iterator[Tensor]:
    """Yield a tensor on meta such as the docstring of a forward pass says that an argument is.

    Examples:
        >>> class Net(nn.Module):
        ...     def forward(self, ids):
        ...         \"\"\"Embed `ids` (LongTensor of shape (batch, 5)).
        ...
        ...         ids (LongTensor of shape (batch, 5)): Which rows to take.
        ...         \"\"\"
        >>> [tensor.shape for tensor in documented(Net(), "ids")]
        [torch.Size([2, 5])]
    """
    taken = inspect.signature(model.forward).parameters
    text = inspect.getdoc(type(model).forward) or "" if name in taken else ""
    entry = re.search(_ENTRY.format(name=re.escape(name)), text, re.MULTILINE)
    shape = entry and _SHAPE.search(entry["text"])
    if entry and shape:
        kind = _KIND.search("BoolTensor" if "mask" in name else entry["text"])
        lengths = [_length(model, word) for word in shape[1].split(",") if word.strip()]
        yield torch.empty(lengths, dtype=_DTYPES[kind[1] if kind else ""], device="meta")


_DTYPES = {
    **dict.fromkeys(("Long", "Int"), torch.int64),
    **dict.fromkeys(("Float", ""), torch.float32),
    "Bool": torch.bool,
}


def _length(model: nn.Module, word: str) -> int:
    """Return the length of an axis: a number, or what a model or its configuration calls so."""
    word = re.sub(r"\W+", "_", word.strip().lower().removeprefix("config.")).strip("_")
    if word.isdecimal():
        return int(word)
    for pattern, names in _AXES.items():
        if re.search(pattern, word):
            return number(model, word, *names, default=SEQUENCE) if names else BATCH
    return number(model, word, default=SEQUENCE)


def number(model: Any, *names: str, default: int) -> int:
    """Return the first length that a model or its configuration has under one of some names."""
    places = (getattr(model, "config", None), model)
    found = (getattr(place, name, None) for name in names for place in places)
    return next((n for n in found if type(n) is int and n > 0), default)
