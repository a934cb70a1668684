"""Tensors in nested containers, and the arguments of a forward pass, which are such a container."""

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """Arguments of one forward pass."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}

    def mapped(self, function: Callable[[Tensor], Any]) -> "Call":
        """Return the call with `function` applied to each of its tensors, nested ones too."""
        args, kwargs = map_tensors(function, (tuple(self.args), dict(self.kwargs)))
        return Call(args, kwargs)


def tensors_in(tree: Any) -> list[Tensor]:
    """Return the tensors in nested tuples, lists, mappings and dataclasses, in order."""
    found: list[Tensor] = []
    _collect(tree, found)
    return found


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """Apply `function` to the tensors in nested tuples, lists, mappings and dataclasses.

    Tuples, lists and dicts are made anew, and so is what else holds a tensor that changes.
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if type(tree) in _PLAIN:
        return tree
    items, remade = _KINDS[type(tree)]
    return remade(tree, [map_tensors(function, item) for item in items(tree)])


def _collect(tree: Any, found: list[Tensor]) -> None:
    if isinstance(tree, Tensor):
        found.append(tree)
    elif type(tree) not in _PLAIN:
        items, _ = _KINDS[type(tree)]
        for item in items(tree):
            _collect(item, found)


_PLAIN = frozenset({bool, int, float, str, type(None), torch.dtype, torch.device})
"""Most of what is no tensor: cheaper to look up than to ask what else it may be."""


class _Container(NamedTuple):
    """A kind of container.

    Attributes:
        items: Returns what one holds, in order.
        remade: Returns one like the given, with other items.
    """

    items: Callable[[Any], Iterable[Any]]
    remade: Callable[[Any, list[Any]], Any]


class _Containers(dict[type, _Container]):
    """How to walk objects of a type: worked out when one is first met."""

    def __missing__(self, kind: type) -> _Container:
        """Tell what a type is."""
        self[kind] = _container(kind)
        return self[kind]


def _container(kind: type) -> _Container:
    if issubclass(kind, tuple):
        return _NAMED_TUPLE if "_fields" in dir(kind) else _TUPLE
    if issubclass(kind, (list, dict, Mapping)):
        return _LIST if issubclass(kind, list) else _DICT if kind is dict else _MAPPING
    return _RECORD if dataclasses.is_dataclass(kind) else _NO_CONTAINER


def _copy_of_mapping(tree: Mapping[Any, Any], items: list[Any]) -> Mapping[Any, Any]:
    """Return a mapping of the same type, or a dict where that type takes no items."""
    if all(map(is_, tree.values(), items)):
        return tree
    if not isinstance(tree, MutableMapping):
        return dict(zip(tree, items, strict=True))
    copied = copy.copy(tree)
    copied.update(zip(tree, items, strict=True))
    return copied


def _copy_of_record(tree: Any, items: list[Any]) -> Any:
    """Return a dataclass with other fields, frozen or not; its constructor does not run."""
    if all(map(is_, _fields(tree), items)):
        return tree
    copied = copy.copy(tree)
    for field, item in zip(dataclasses.fields(tree), items, strict=True):
        object.__setattr__(copied, field.name, item)
    return copied


def _fields(tree: Any) -> list[Any]:
    return [getattr(tree, field.name) for field in dataclasses.fields(tree)]


_TUPLE = _Container(tuple, lambda _, items: tuple(items))
_NAMED_TUPLE = _Container(tuple, lambda tree, items: type(tree)(*items))
_LIST = _Container(list, lambda _, items: items)
_DICT = _Container(dict.values, lambda tree, items: dict(zip(tree, items, strict=True)))
_MAPPING = _Container(lambda tree: tree.values(), _copy_of_mapping)
_RECORD = _Container(_fields, _copy_of_record)
_NO_CONTAINER = _Container(lambda _: (), lambda tree, _: tree)

_KINDS = _Containers()
