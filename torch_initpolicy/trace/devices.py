"""Lets a forward pass run on meta while small indices and masks hold numbers.

Forward passes decide by such numbers, where they only compute with others.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from torch_initpolicy.trace.shapes import numbered
from torch_initpolicy.trace.stand_ins import INDICES, lazily_copied, plain_meta
from torch_initpolicy.trace.trees import map_tensors, tensors_in
from torch_initpolicy.trace.values import Values

CallArguments = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Positional arguments, and those by keyword."""


class OneDevice:
    """Sends real tensors to meta where an operator would mix the two."""

    def __init__(self, values: Values, value_of: Callable[[Tensor], int]) -> None:
        self._values = values
        self._value_of = value_of
        self._moved: dict[int, Tensor] = {}  # what has become of real tensors written to on meta

    def arguments(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> CallArguments:
        """Send real tensors to meta where an operator would mix the two; keep new indices real."""
        if self._moved:
            args, kwargs = map_tensors(self._latest, (args, dict(kwargs)))
        if kwargs and "device" in kwargs and _makes_indices(func, args, kwargs):
            return args, {**kwargs, "device": "cpu"}
        if func is Tensor.to:
            args, kwargs = _staying(args, kwargs)
        if func in _SHAPED_LIKE and not args[0].is_meta:
            args = (args[0], torch.empty((), device="cpu").expand(args[1].shape))
        if len({tensor.is_meta for tensor in tensors_in((args, kwargs))}) < 2:
            return args, kwargs
        if getattr(func, "__name__", "") in _SIZED:
            return map_tensors(_as_length, (args, dict(kwargs)))  # type: ignore[no-any-return]
        if func in _INDEXING and args[0].is_meta:
            args = (args[0], numbered(args[1]), *args[2:])
        sent: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors(
            self._to_meta, (args, dict(kwargs))
        )
        if sent[0] and sent[0][0] is not args[0] and _writes(func) and isinstance(args[0], Tensor):
            self._moved[id(args[0])] = sent[0][0]
        return sent

    def _latest(self, tensor: Tensor) -> Tensor:
        return self._moved.get(id(tensor), tensor)

    def _to_meta(self, tensor: Tensor) -> Tensor:
        """Return a meta tensor that continues the value of a real one."""
        if tensor.device.type == "meta":
            return tensor
        on_meta = plain_meta(tensor)
        self._values.share(on_meta, self._value_of(tensor))
        return on_meta


def input_like(tensor: Tensor, *, on_meta: bool) -> Tensor:
    """Return what stands in for an input; on meta, indices alone hold numbers."""
    if not on_meta:
        return lazily_copied(tensor)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.numel() > INDICES:
        return plain_meta(tensor)
    if not tensor.is_meta:
        return tensor.clone()
    if tensor.dtype == torch.bool or not tensor.ndim:
        return torch.ones(tensor.shape, dtype=tensor.dtype)
    return torch.arange(tensor.shape[-1]).to(tensor.dtype).expand(tensor.shape).clone()


_COPYING = frozenset({torch.tensor, torch.as_tensor})
"""Functions that make tensors of given numbers."""

_FACTORIES = _COPYING | {torch.arange, torch.zeros, torch.ones, torch.full, torch.empty}

_SIZED = frozenset(
    "view reshape expand repeat tile split split_with_sizes pad narrow new_zeros new_ones".split()
)
"""Operators that take lengths, which may be tensors of one number."""


def _as_length(tensor: Tensor) -> Tensor | int:
    """Return the number in a length that is a tensor."""
    real = not (tensor.is_meta or tensor.ndim or tensor.is_floating_point())
    return int(tensor) if real else tensor


_SHAPED_LIKE = frozenset({Tensor.expand_as, Tensor.view_as, Tensor.reshape_as})
"""Methods that read of another tensor its shape alone."""

_INDEXING = frozenset({Tensor.__getitem__, Tensor.__setitem__})


def _on_meta(args: tuple[Any, ...]) -> bool:
    return any(tensor.is_meta for tensor in tensors_in(args))


def _makes_indices(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> bool:
    """Say whether a function makes small indices or a mask on meta."""
    if func not in _FACTORIES or torch.device(kwargs["device"] or "cpu").type != "meta":
        return False
    dtype = kwargs.get("dtype")
    if dtype is None and func in _COPYING and args and not _on_meta(args):
        dtype = torch.as_tensor(args[0]).dtype
    if func is torch.ones and dtype is None:  # a mask of attention that the forward asks about
        return True
    if dtype is None:
        return func is torch.arange
    if isinstance(dtype, type):
        return dtype is not float
    return not (dtype.is_floating_point or dtype.is_complex)


def _staying(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Let a tensor stay where it is: on meta are no numbers to be moved, and small masks keep them.

    Only what a call of `Tensor.to` says of the device is changed.
    """
    device = args[0].device
    if not args[0].is_meta and args[0].untyped_storage().size() > INDICES * args[0].itemsize:
        return args, kwargs

    def here(value: Any) -> Any:
        names_device = isinstance(value, (torch.device, str, int)) and not isinstance(value, bool)
        return device if names_device else value

    return tuple(map(here, args)), {name: here(value) for name, value in kwargs.items()}


def _writes(func: Callable[..., Any]) -> bool:
    """Say whether a method writes to the tensor it belongs to."""
    name = str(getattr(func, "__name__", ""))
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
