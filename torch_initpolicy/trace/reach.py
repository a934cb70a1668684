"""What a forward pass can change: everything mutable that it reaches from its model.

Attributes, containers and tensors are reached through the objects that hold them; class attributes,
globals and caches through the names that the code of the forward pass mentions.
"""

import collections
import functools
import random
import sys
import types
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch_initpolicy.undo import Undo


class Slot(NamedTuple):
    """A place that holds a tensor: a key of a mapping, or an index of a list."""

    holder: Any
    key: Any
    tensor: Tensor


class Reach:
    """Everything mutable that can be reached from a model, how to put it back, and its tensors."""

    def __init__(self, model: nn.Module) -> None:
        self._empty: list[Any] = []  # most containers: those of a module's hooks above all
        self.undo: list[Undo] = [self._clear]
        self.slots: list[Slot] = []
        self._seen: dict[int, object] = {}  # keeps what it has seen alive: an id names it
        self._waiting: list[object] = []
        self._mentioned: set[str] = {"forward", "__call__"}
        self._methods: dict[str, list[Any]] = {}  # by name, of classes, until code mentions them
        if "numpy" in sys.modules:
            _visit_numpy()
        self.push(model)
        while self._waiting:
            _visit(self._waiting.pop(), self)

    def push(self, *things: object) -> None:
        """Go on to some objects, unless they were reached before."""
        for thing in things:
            if type(thing) not in _LEAVES and id(thing) not in self._seen:
                self._seen[id(thing)] = thing
                self._waiting.append(thing)

    def keep(self, before: Any, write: Callable[[Any], Any]) -> None:
        """Keep a state that is written back whether or not it has changed."""
        self.undo.append(lambda: write(before))

    def hold(self, holder: Any, entries: Iterable[tuple[Any, Any]]) -> None:
        """Note the tensors that a container holds, and go on to what else it does."""
        for key, value in entries:
            kind = type(value)
            if kind in _LEAVES:
                continue
            if kind in _CONTAINERS and not value:
                self._empty.append(value)
            elif isinstance(value, Tensor):
                self.slots.append(Slot(holder, key, value))
            else:
                self.push(value)

    def push_method(self, name: str, method: Any) -> None:
        """Go on to a method of a class, as soon as code mentions it."""
        if name in self._mentioned:
            self.push(method)
        else:
            self._methods.setdefault(name, []).append(method)

    def mention(self, names: set[str]) -> None:
        """Go on to the methods of some names."""
        for name in names - self._mentioned:
            self._mentioned.add(name)
            self.push(*self._methods.pop(name, ()))

    def _clear(self) -> None:
        for container in filter(None, self._empty):
            container.clear()


@functools.singledispatch
def _visit(thing: object, reach: Reach) -> None:
    """Keep what an object can change, and go on to what it holds and to the code of its class."""
    if not _is_foreign(type(thing)):
        _attributes(thing, reach)


@_visit.register(nn.Module)
@_visit.register(types.SimpleNamespace)
def _attributes(thing: Any, reach: Reach) -> None:
    kind = type(thing)
    if kind.__dictoffset__:
        _entries(vars(thing), reach)
    for member in _members(kind):
        try:
            value = member.__get__(thing)
        except AttributeError:  # not set yet
            continue
        reach.keep(value, functools.partial(member.__set__, thing))
        reach.push(value)
    reach.push(kind)


# Containers


@_visit.register
def _mapping(mapping: dict, reach: Reach) -> None:  # type: ignore[type-arg]
    ordered = isinstance(mapping, collections.OrderedDict)
    _entries(mapping, reach, collections.OrderedDict if ordered else dict)


def _entries(mapping: dict[Any, Any], reach: Reach, kind: type[dict[Any, Any]] = dict) -> None:
    """Keep what a mapping holds; `kind` is whose methods write it, past any of a subclass."""
    before = dict(kind.items(mapping))

    def restore() -> None:
        if not _same_entries(kind.items(mapping), before):
            kind.clear(mapping)
            kind.update(mapping, before)

    reach.undo.append(restore)
    reach.hold(mapping, before.items())


def _visit_items(kind: type, write: Callable[[Any, Any], object]) -> None:
    """Keep which objects a container holds, in order; `write` puts them back."""

    @_visit.register(kind)
    def _(items: Any, reach: Reach) -> None:
        before = list(items)

        def restore() -> None:
            if len(items) != len(before) or not all(map(is_, items, before)):
                write(items, before)

        reach.undo.append(restore)
        if kind is list:
            reach.hold(items, enumerate(before))
        else:
            reach.push(*before)


_visit_items(list, lambda items, before: list.__setitem__(items, slice(None), before))
_visit_items(set, lambda items, before: (set.clear(items), set.update(items, before)))
_visit_items(collections.deque, lambda items, before: (items.clear(), items.extend(before)))


@_visit.register
def _tuple(items: tuple, reach: Reach) -> None:  # type: ignore[type-arg]
    reach.push(*items)


@_visit.register
def _tensor(tensor: Tensor, reach: Reach) -> None:
    """Keep the numbers of a tensor for which nothing can stand in: in a tuple, or global."""
    if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
        return
    version, before = tensor._version, tensor.detach().clone()  # noqa: SLF001 - counts writes

    def restore() -> None:
        if tensor._version != version:  # noqa: SLF001
            with torch.no_grad():
                tensor.copy_(before)

    reach.undo.append(restore)


# Random states


def _visit_generators(kind: type, read: str, write: str) -> None:
    """Keep the states of generators, which they read and write by two methods."""

    @_visit.register(kind)
    def _(generator: Any, reach: Reach) -> None:
        reach.keep(getattr(generator, read)(), getattr(generator, write))


_visit_generators(torch.Generator, "get_state", "set_state")
_visit_generators(random.Random, "getstate", "setstate")


@functools.cache
def _visit_numpy() -> None:
    """Keep arrays and generators of numpy, which the program has imported."""
    import numpy as np  # noqa: PLC0415 - torch alone is required

    @_visit.register
    def _array(array: np.ndarray, reach: Reach) -> None:
        if array.flags.writeable:
            reach.keep(array.copy(), functools.partial(array.__setitem__, ...))

    @_visit.register
    def _bits(generator: np.random.Generator, reach: Reach) -> None:
        bits: Any = generator.bit_generator
        reach.keep(bits.state, functools.partial(setattr, bits, "state"))

    _visit_generators(np.random.RandomState, "get_state", "set_state")


# Code


@_visit.register
def _class(kind: type, reach: Reach) -> None:
    """Keep the attributes of a class and of its bases, and the methods that code mentions.

    Functions and classes that are new there may stay.
    """
    if _is_foreign(kind):
        return
    reach.push(*kind.__bases__)
    for name, value in vars(kind).items():
        special = name.startswith("__")
        if isinstance(value, _CODE) and not (special and name in _OPERATORS):
            reach.push_method(name, value)
        elif not special or name in _OPERATORS:
            reach.push(value)
    before = {name: value for name, value in vars(kind).items() if not name.startswith("__")}

    def restore() -> None:
        space = vars(kind)
        for name in [n for n in space if not n.startswith("__") and n not in before]:
            if not isinstance(space[name], (*_CODE, type)):
                type.__delattr__(kind, name)
        for name, value in before.items():
            if space.get(name, _ABSENT) is not value:
                type.__setattr__(kind, name, value)

    reach.undo.append(restore)


@_visit.register
def _function(function: types.FunctionType, reach: Reach) -> None:
    """Keep what a function closes over, its defaults, and the globals that it mentions."""
    if _is_foreign_name(function.__module__):
        return
    for cell in function.__closure__ or ():
        _cell(cell, reach)
    reach.push(function.__defaults__, function.__kwdefaults__)
    reach.push(getattr(function, "__wrapped__", None))
    names = set(_names_in(function.__code__))
    for name in names & function.__globals__.keys():
        _global(function.__globals__, name, names, reach)
    reach.mention(names)


def _visit_wrappers(kind: type, *names: str) -> None:
    """Go on to what objects that cannot change hold under some names."""

    @_visit.register(kind)
    def _(thing: Any, reach: Reach) -> None:
        reach.push(*(getattr(thing, name) for name in names))


_visit_wrappers(types.MethodType, "__self__", "__func__")
_visit_wrappers(functools.partial, "func", "args", "keywords")
_visit_wrappers(classmethod, "__func__")
_visit_wrappers(staticmethod, "__func__")
_visit_wrappers(property, "fget", "fset")
_visit_wrappers(functools.cached_property, "func")


@_visit.register(functools._lru_cache_wrapper)  # noqa: SLF001 - has no public name
def _cached(function: Any, reach: Reach) -> None:
    """Empty a cache that has grown: what it was given may have no memory."""
    if not _is_foreign_name(getattr(function, "__module__", None)):
        before = function.cache_info().currsize
        reach.undo.append(lambda: _cleared(function, before))
        reach.push(function.__wrapped__)


def _cell(cell: types.CellType, reach: Reach) -> None:
    try:
        value = cell.cell_contents
    except ValueError:  # empty yet
        return
    reach.keep(value, functools.partial(setattr, cell, "cell_contents"))
    reach.push(value)


def _global(space: dict[str, Any], name: str, mentioned: set[str], reach: Reach) -> None:
    """Keep one global, and of a module those of its globals that the code mentions."""
    value = space[name]
    if not isinstance(value, types.ModuleType):
        if not isinstance(value, (*_CODE, type)):
            reach.keep(value, functools.partial(space.__setitem__, name))
        reach.push(value)
    elif not _is_foreign_name(value.__name__):
        inner = vars(value)
        for other in mentioned & inner.keys():
            if not isinstance(inner[other], types.ModuleType):
                _global(inner, other, mentioned, reach)


_ABSENT = object()

_LEAVES = frozenset({
    bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size,
    torch.layout, torch.memory_format, types.BuiltinFunctionType, types.ModuleType, frozenset,
})  # fmt: skip
"""Types of what cannot change, or is not looked into."""

_CONTAINERS = frozenset({dict, collections.OrderedDict, list, set})

_CODE = (types.FunctionType, classmethod, staticmethod, property, functools.cached_property)

_OPERATORS = frozenset({
    "__call__", "__getattr__", "__getitem__", "__setitem__", "__iter__", "__next__", "__len__",
    "__contains__", "__enter__", "__exit__", "__get__", "__init__", "__new__", "__bool__", "__eq__",
    "__add__", "__mul__", "__matmul__", "__torch_function__", "__post_init__",
})  # fmt: skip
"""Methods that code calls without mentioning their names."""

_LOOKED_INTO = frozenset({"collections", "types", "functools", "dataclasses"})
"""Modules of the standard library whose objects a model may hold state in."""

_FOREIGN = (sys.stdlib_module_names - _LOOKED_INTO - {"__main__"}) | {
    *("torch", "numpy", "torch_initpolicy", "pytest", "_pytest", "pluggy")
}
"""Packages whose own classes, functions and globals no forward pass is expected to change."""


def _is_foreign(kind: type) -> bool:
    return _is_foreign_name(kind.__module__) or issubclass(kind, (type, BaseException))


def _is_foreign_name(module: str | None) -> bool:
    return str(module).partition(".")[0] in _FOREIGN


def _members(kind: type) -> Iterator[types.MemberDescriptorType]:
    """Yield what reads and writes the slots of a class, past properties of the same names."""
    for base in kind.__mro__:
        if "__slots__" in vars(base) and not _is_foreign(base):
            members = vars(base).values()
            yield from (it for it in members if isinstance(it, types.MemberDescriptorType))


@functools.lru_cache(maxsize=4096)
def _names_in(code: types.CodeType) -> tuple[str, ...]:
    """Return the names of globals and attributes that code mentions, nested functions too."""
    nested = (inner for inner in code.co_consts if isinstance(inner, types.CodeType))
    return (*code.co_names, *(name for inner in nested for name in _names_in(inner)))


def _same_entries(now: ItemsView[Any, Any], before: Mapping[Any, Any]) -> bool:
    """Compare what two mappings hold by identity, in order."""
    pairs = zip(now, before.items(), strict=False)
    return len(now) == len(before) and all(a is c and b is d for (a, b), (c, d) in pairs)


def _cleared(function: Any, size: int) -> None:
    if function.cache_info().currsize != size:
        function.cache_clear()
