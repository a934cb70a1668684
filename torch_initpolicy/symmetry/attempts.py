"""Ways to run a model for a probe: at which sizes, in which mode and precision.

Knows inputs and their shapes; runs nothing.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torch_initpolicy.trace.stand_ins import batch_size
from torch_initpolicy.trace.trees import Call, tensors_in


class Attempt(NamedTuple):
    """One way to run a model.

    Attributes:
        call: Inputs of the right shapes.
        style: How to draw inputs like them: `"fresh"`, `"near"` or `"given"`.
        dtype: What to run in.
        training: The mode to run in; None for that of the model.
        confirmed_by: Inputs of the size that is meant, where `call` is smaller: what is tied on
            small inputs is tied only if one gradient on these does not contradict it. None where
            `call` is what is meant.
        clears_only: Whether it can clear suspects, but not convict them.
    """

    call: Call
    style: str
    dtype: torch.dtype
    training: bool | None = None
    confirmed_by: Call | None = None
    clears_only: bool = False


def attempts_with(model: nn.Module, call: Call) -> Iterator[Attempt]:
    """Yield ways to run a model on inputs like the user's."""
    for dtype, style in itertools.product(_dtypes(model), ("fresh", "near", "given")):
        yield Attempt(call, style, dtype)


def attempts(model: nn.Module, call: Call) -> Iterator[Attempt]:
    """Yield ways to run a model on inputs that were found: on little first, then on all.

    Args:
        model: The model.
        call: Inputs that fit, on the meta device.
    """
    first, *_ = dtypes = _dtypes(model)
    one, many = _with_one_large(call), _with_more_samples(call)
    for edge in _EDGES:
        small = _with_small_images(call, edge)
        if small is not None:
            yield Attempt(small, "fresh", first, confirmed_by=one or call)
    if one is not None:
        yield Attempt(one, "fresh", torch.float32, clears_only=True)
    if many is not None:
        yield Attempt(many, "fresh", first)
    for dtype, training in itertools.product(dtypes, (None, False)):
        yield Attempt(call, "fresh", dtype, training)


_MOST_IN_DOUBLE = 300_000_000
"""Parameters of the largest model that is copied to float64."""


def _dtypes(model: nn.Module) -> tuple[torch.dtype, ...]:
    numbers = sum(p.numel() for p in model.parameters())
    on_mps = any(p.device.type == "mps" for p in model.parameters())
    if on_mps or numbers > _MOST_IN_DOUBLE:
        return (torch.float32,)
    return (torch.float64, torch.float32)


_EDGES = (32, 64)
"""Edges of the images that are tried first, in pixels."""

_BATCH = 8
"""Number of small inputs that are drawn at once."""


def _with_small_images(call: Call, edge: int) -> Call | None:
    """Return the call with small images, which most models take; None where it has no others."""

    def small(tensor: Tensor) -> Tensor:
        if tensor.ndim != 4 or tensor.shape[1] > 4 or min(tensor.shape[2:]) <= edge:
            return tensor
        return tensor.new_empty((_BATCH // 2, tensor.shape[1], edge, edge), device="meta")

    return _changed(call, small)


def _with_one_large(call: Call) -> Call | None:
    """Return the call with a single sample; None where samples are small."""
    before = batch_size(call)

    def one(tensor: Tensor) -> Tensor:
        if tensor.ndim < 2 or tensor.shape[0] != before or tensor.numel() <= before << 14:
            return tensor
        return tensor.new_empty((1, *tensor.shape[1:]), device="meta")

    return _changed(call, one)


def _with_more_samples(call: Call) -> Call | None:
    """Return the call with more samples, so that more is generic; None where they are large."""
    before = batch_size(call)

    def more(tensor: Tensor) -> Tensor:
        if not tensor.ndim or tensor.shape[0] != before or tensor.numel() > before << 14:
            return tensor
        return tensor.new_empty((_BATCH, *tensor.shape[1:]), device="meta")

    return _changed(call, more)


def _changed(call: Call, change: Callable[[Tensor], Tensor]) -> Call | None:
    changed = call.mapped(change)
    before, after = tensors_in((call.args, call.kwargs)), tensors_in((changed.args, changed.kwargs))
    same = all(a is b for a, b in zip(before, after, strict=True))
    return None if same else changed
