"""Where the tensors of a module hang: under its names, and in its containers and helper objects."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn


class Nested(NamedTuple):
    """A tensor within a container: `holder[key]`."""

    holder: Any
    key: Any
    tensor: Tensor


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters, buffers and plain tensors that a module holds itself.

    Those in its dictionaries, lists and helper objects come last: `tables['shift']`, `cache.mask`.
    """
    held = {**vars(module), **module._parameters, **module._buffers}  # noqa: SLF001 - duplicates too
    yield from ((name, value) for name, value in held.items() if isinstance(value, Tensor))
    yield from ((name, place.tensor) for name, place in nested_of(module))


def nested_of(module: nn.Module) -> Iterator[tuple[str, Nested]]:
    """Yield the tensors within the containers and helper objects of a module."""
    for name, value in vars(module).items():
        if name not in _OF_TORCH:
            yield from _nested(name, value, _NESTED)


_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes of every module, which hold parameters, submodules and hooks."""

_NESTED = 3
"""Containers within containers that are looked into."""


def _nested(name: str, value: object, depth: int) -> Iterator[tuple[str, Nested]]:
    holder, title = _opened(value)
    items = holder.items() if isinstance(holder, dict) else enumerate(holder)
    for index, item in list(items):
        inner = title.format(name, index)
        if isinstance(item, Tensor):
            yield inner, Nested(holder, index, item)
        elif depth > 1:
            yield from _nested(inner, item, depth - 1)


def _opened(value: object) -> tuple[dict[Any, Any] | list[Any] | tuple[Any, ...], str]:
    """Return what a container holds, and how what is in it is called."""
    if isinstance(value, (dict, list, tuple)):
        return value, "{}[{!r}]"
    if isinstance(value, (nn.Module, Tensor, type)) or callable(value):
        return (), ""
    return getattr(value, "__dict__", ()), "{}.{}"


def held_by(module: nn.Module, name: str) -> Tensor:
    """Return the tensor that a module holds under a name of `tensors_of`."""
    for held in (vars(module)["_parameters"], vars(module)["_buffers"], vars(module)):
        if isinstance(held.get(name), Tensor):
            tensor: Tensor = held[name]
            return tensor
    return dict(tensors_of(module))[name]
