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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Undo = Callable[[], None]
"""Puts something back as it was; does nothing where it has not changed."""


class Slot(NamedTuple):
    """A place that holds a tensor: a key of a mapping, or an index of a list."""

    holder: Any
    key: Any
    tensor: Tensor


class Reach:
    """Everything mutable that can be reached from a model, and how to put it back.

    Attributes:
        undo: Puts back each object that was reached, in any order.
        slots: Where tensors are held that another tensor can stand in for.
    """

    def __init__(self, model: nn.Module) -> None:
        self._empty: list[Any] = []  # most containers: those of a module's hooks above all
        self.undo: list[Undo] = [self._clear]
        self.slots: list[Slot] = []
        self._seen: dict[int, object] = {}  # keeps what it has seen alive: an id names it
        self._waiting: list[object] = []
        self._mentioned: set[str] = {"forward", "__call__"}
        self._methods: dict[str, list[Any]] = {}  # by name, of classes, until code mentions them
        self._visitors: dict[type, Callable[[Any], None] | None] = {}
        self._push(model)
        while self._waiting:
            thing = self._waiting.pop()
            visit = self._visitor(type(thing))
            if visit is not None:
                visit(thing)

    def _clear(self) -> None:
        """Empty the containers that were empty."""
        for container in filter(None, self._empty):
            container.clear()

    def _push(self, thing: object) -> None:
        if type(thing) not in _LEAVES and id(thing) not in self._seen:
            self._seen[id(thing)] = thing
            self._waiting.append(thing)

    def _visitor(self, kind: type) -> Callable[[Any], None] | None:
        if kind not in self._visitors:
            own = next((visit for base, visit in self._table() if issubclass(kind, base)), None)
            self._visitors[kind] = own or (None if _is_foreign(kind) else self._instance)
        return self._visitors[kind]

    def _table(self) -> tuple[tuple[type, Callable[[Any], None]], ...]:
        return (
            (Tensor, self._tensor),
            (nn.Module, self._instance),
            (dict, self._mapping),
            (list, self._list),
            (set, self._set),
            (collections.deque, self._deque),
            (tuple, self._items),
            (types.FunctionType, self._function),
            (types.MethodType, lambda method: self._items((method.__self__, method.__func__))),
            (functools.partial, lambda part: self._items((part.func, part.args, part.keywords))),
            (functools._lru_cache_wrapper, self._cached),  # noqa: SLF001 - has no public name
            ((classmethod, staticmethod), lambda method: self._push(method.__func__)),  # type: ignore[arg-type]
            (property, lambda member: self._items((member.fget, member.fset))),
            (functools.cached_property, lambda member: self._push(member.func)),
            (type, self._class),
            (types.SimpleNamespace, self._instance),
            (torch.Generator, lambda it: self._state(it.get_state(), it.set_state)),
            (random.Random, lambda it: self._state(it.getstate(), it.setstate)),
            *self._table_of_numpy(),
        )

    def _table_of_numpy(self) -> Iterator[tuple[type, Callable[[Any], None]]]:
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            yield numpy.ndarray, lambda array: self._state(array.copy(), _filler(array))
            yield numpy.random.Generator, lambda it: self._numpy_bits(it.bit_generator)
            yield numpy.random.RandomState, lambda it: self._state(it.get_state(), it.set_state)

    def _numpy_bits(self, bits: Any) -> None:
        self._state(bits.state, lambda state: setattr(bits, "state", state))

    def _state(self, before: Any, write: Callable[[Any], Any]) -> None:
        self.undo.append(lambda: write(before))

    def _items(self, items: Iterable[object]) -> None:
        for item in items:
            self._push(item)

    #
    # Containers
    #

    def _mapping(self, mapping: dict[Any, Any]) -> None:
        ordered = isinstance(mapping, collections.OrderedDict)
        self._entries(mapping, collections.OrderedDict if ordered else dict)

    def _entries(self, mapping: dict[Any, Any], kind: type[dict[Any, Any]] = dict) -> None:
        """Keep what a mapping holds; `kind` is whose methods write it, past any of a subclass."""
        before = dict(kind.items(mapping))

        def restore() -> None:
            if not _same_entries(kind.items(mapping), before):
                kind.clear(mapping)
                kind.update(mapping, before)

        self.undo.append(restore)
        self._hold(mapping, before.items())

    def _list(self, items: list[Any]) -> None:
        before = list(items)

        def restore() -> None:
            if len(items) != len(before) or not all(map(is_, items, before)):
                list.__setitem__(items, slice(None), before)

        self.undo.append(restore)
        self._hold(items, enumerate(before))

    def _hold(self, holder: Any, entries: Iterable[tuple[Any, Any]]) -> None:
        for key, value in entries:
            kind = type(value)
            if kind in _LEAVES:
                continue
            if kind in _CONTAINERS and not value:
                self._empty.append(value)
            elif isinstance(value, Tensor):
                self.slots.append(Slot(holder, key, value))
            else:
                self._push(value)

    def _set(self, items: set[Any]) -> None:
        before = set(items)

        def restore() -> None:
            if items != before:
                set.clear(items)
                set.update(items, before)

        self.undo.append(restore)

    def _deque(self, items: collections.deque[Any]) -> None:
        before = tuple(items)

        def restore() -> None:
            if len(items) != len(before) or not all(map(is_, items, before)):
                items.clear()
                items.extend(before)

        self.undo.append(restore)
        self._items(before)

    def _tensor(self, tensor: Tensor) -> None:
        """Keep the numbers of a tensor for which nothing can stand in: in a tuple, or global."""
        if tensor.is_meta or not _can_be_copied(tensor):
            return
        version, before = tensor._version, _copy(tensor)  # noqa: SLF001 - counts writes

        def restore() -> None:
            if tensor._version != version:  # noqa: SLF001
                with torch.no_grad():
                    tensor.copy_(before)

        self.undo.append(restore)

    #
    # Objects and their code
    #

    def _instance(self, thing: object) -> None:
        """Keep the attributes of an object, and look at the code of its class."""
        kind = type(thing)
        if kind.__dictoffset__:
            self._entries(vars(thing))
        for name in _slots(kind):
            self._slot(thing, name)
        self._push(kind)

    def _slot(self, thing: object, name: str) -> None:
        value = getattr(thing, name, _ABSENT)
        if value is not _ABSENT:
            self._state(value, lambda before: object.__setattr__(thing, name, before))
            self._push(value)

    def _class(self, kind: type) -> None:
        """Keep the attributes of a class and of its bases, and the methods that code mentions."""
        if _is_foreign(kind):
            return
        for base in kind.__bases__:
            self._push(base)
        for name, value in vars(kind).items():
            if isinstance(value, _CODE) and not (name.startswith("__") and name in _OPERATORS):
                self._method(name, value)
            elif not name.startswith("__") or name in _OPERATORS:
                self._push(value)
        self._names(kind, vars(kind), lambda name, value: type.__setattr__(kind, name, value))

    def _names(
        self, owner: Any, space: Mapping[str, Any], write: Callable[[str, Any], None]
    ) -> None:
        """Keep the data in a class; functions and classes that are new there may stay."""
        before = {name: value for name, value in space.items() if not name.startswith("__")}

        def restore() -> None:
            for name in [n for n in space if not n.startswith("__") and n not in before]:
                if not isinstance(space[name], (*_CODE, type)):
                    type.__delattr__(owner, name)
            for name, value in before.items():
                if space.get(name, _ABSENT) is not value:
                    write(name, value)

        self.undo.append(restore)

    def _method(self, name: str, method: Any) -> None:
        if name in self._mentioned:
            self._push(method)
        else:
            self._methods.setdefault(name, []).append(method)

    def _function(self, function: types.FunctionType) -> None:
        """Keep what a function closes over, its defaults, and the globals that it mentions."""
        if _is_foreign_name(function.__module__):
            return
        for cell in function.__closure__ or ():
            self._cell(cell)
        self._items((function.__defaults__, function.__kwdefaults__))
        self._push(getattr(function, "__wrapped__", None))
        names = set(_names_in(function.__code__))
        for name in names & function.__globals__.keys():
            self._global(function.__globals__, name, names)
        for name in names - self._mentioned:
            self._mentioned.add(name)
            self._items(self._methods.pop(name, ()))

    def _cell(self, cell: types.CellType) -> None:
        try:
            value = cell.cell_contents
        except ValueError:  # empty yet
            return
        self._state(value, functools.partial(setattr, cell, "cell_contents"))
        self._push(value)

    def _global(self, space: dict[str, Any], name: str, mentioned: set[str]) -> None:
        """Keep one global, and of a module those of its globals that the code mentions."""
        value = space[name]
        if not isinstance(value, types.ModuleType):
            if not isinstance(value, (*_CODE, type)):
                self._state(value, functools.partial(space.__setitem__, name))
            self._push(value)
        elif not _is_foreign_name(value.__name__):
            inner = vars(value)
            for other in mentioned & inner.keys():
                if not isinstance(inner[other], types.ModuleType):
                    self._global(inner, other, mentioned)

    def _cached(self, function: Any) -> None:
        """Empty a cache that has grown: what it was given may have no memory."""
        if not _is_foreign_name(getattr(function, "__module__", None)):
            before = function.cache_info().currsize
            self.undo.append(lambda: _empty(function, before))
            self._push(function.__wrapped__)


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


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        members = vars(base)
        if "__slots__" in members and not _is_foreign(base):
            yield from (n for n, m in members.items() if isinstance(m, types.MemberDescriptorType))


@functools.lru_cache(maxsize=4096)
def _names_in(code: types.CodeType) -> tuple[str, ...]:
    """Return the names of globals and attributes that code mentions, nested functions too."""
    nested = (inner for inner in code.co_consts if isinstance(inner, types.CodeType))
    return (*code.co_names, *(name for inner in nested for name in _names_in(inner)))


def _same_entries(now: ItemsView[Any, Any], before: Mapping[Any, Any]) -> bool:
    """Compare what two mappings hold by identity, in order."""
    pairs = zip(now, before.items(), strict=False)
    return len(now) == len(before) and all(a is c and b is d for (a, b), (c, d) in pairs)


def _filler(array: Any) -> Callable[[Any], None]:
    def fill(before: Any) -> None:
        if array.flags.writeable:
            array[...] = before

    return fill


def _empty(function: Any, size: int) -> None:
    if function.cache_info().currsize != size:
        function.cache_clear()


def _can_be_copied(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_quantized


def _copy(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        return tensor.detach().clone()
