"""The recorder: writes down which operator read which tensor while a forward pass runs.

Knows how to name tensors that come and go; not what an operator does.
"""

import contextlib
import itertools
import math
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torch_initpolicy.sites import canonical_modules
from torch_initpolicy.tensors.aliases import storage_of
from torch_initpolicy.trace.functorch import bare, inside, is_transforming, is_wrapped
from torch_initpolicy.trace.graph import Graph, Node, Ref, Value
from torch_initpolicy.trace.names import op_name
from torch_initpolicy.trace.operators import reference
from torch_initpolicy.trace.stand_ins import INDICES, copied, plain_meta
from torch_initpolicy.trace.trees import Call, map_tensors, tensors_in

ShapeRule = Callable[..., Any]
"""Answers for an operator on meta tensors in place of its own, slower, meta kernel."""


class Ran(NamedTuple):
    """One operator that has just run, with its tensors.

    Attributes:
        graph: All that has been recorded so far; `node` is its last node.
        node: The operator.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        outputs: The tensors it returned or changed, as `node.outputs` numbers them.
    """

    graph: Graph
    node: Node
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Tensor, ...]


class OutOfBudgetError(Exception):
    """A search for inputs has taken as much as it may."""


class Budget:
    """How much a search may take: one for each operator, more for large outputs of real runs."""

    def __init__(self, left: float) -> None:
        self.left = left

    def spend(self, cost: float) -> None:
        """Take from the budget.

        Raises:
            OutOfBudgetError: There is nothing left.
        """
        self.left -= cost
        if self.left < 0:
            raise OutOfBudgetError


class Recorder(TorchFunctionMode):
    """Writes down every operator that returns or changes a tensor."""

    def __init__(
        self,
        shape_rules: Mapping[str, ShapeRule],
        *,
        on_meta: bool,
        see: Callable[[Ran], None] | None = None,
        budget: "Budget | None" = None,
    ) -> None:
        super().__init__()
        self.budget = budget or Budget(math.inf)
        self.shape_rules = shape_rules
        self.on_meta = on_meta
        self.see = see
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.current: dict[int, int] = {}
        self.alive: dict[int, object] = {}  # by id, which names a tensor only while that lives
        self.storages: dict[int, int] = {}  # serial numbers: an address is used again and again
        self.wrapped: dict[int, Tensor] = {}  # the last wrapper of each storage
        self.varying: set[int] = set()  # values that depend on the model's inputs
        self.moved: dict[int, Tensor] = {}  # what has become of real tensors written to on meta
        self.running: list[str] = [""]
        self.so_far = Graph(self.values, self.nodes, results=(), consumers=())

    def __deepcopy__(self, memo: dict[int, object]) -> "Recorder":
        """Stay one: copying a module while it runs copies the hooks that tell where it is."""
        return self

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run `func` and record it, where it makes or changes tensors.

        Where somebody has said what it computes, that runs in its place and is recorded.
        """
        del types
        kwargs = kwargs or {}
        op = op_name(func)
        like = reference(op)
        if like is not None:
            with self:
                return like(*args, **kwargs)
        if self.on_meta:
            args, kwargs = self._on_one_device(func, args, kwargs)
        rule = self.shape_rules.get(getattr(func, "__name__", ""))
        if rule is not None and (is_transforming() or not _begins_on_meta(args)):
            rule = None
        result = (rule or func)(*args, **kwargs)
        changed = args[:1] if getattr(func, "__name__", "") == "__setitem__" else ()
        outputs = (*tensors_in(result), *changed)
        if outputs:
            self.record(op, func, args, kwargs, outputs)
        return result

    def record(
        self,
        op: str,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        outputs: tuple[Tensor, ...],
    ) -> None:
        """Add one node; a tensor that it changed in place has a new value from here on.

        Where that tensor is a view, a second node writes it into its base.
        """
        read = tuple(self._value_of(tensor) for tensor in tensors_in((args, kwargs)))
        index = len(self.nodes)
        node_args, node_kwargs = map_tensors(self._ref, (args, dict(kwargs)))
        changed = tuple(self._changed_views(outputs))
        varies = not self.varying.isdisjoint(read)
        made = tuple(
            self._new_value(
                tensor, producer=index, constant=None if varies else self._constant(tensor)
            )
            for tensor in outputs
        )
        if varies:
            self.varying.update(made)
        node = Node(index, op, function, node_args, node_kwargs, read, made, self.running[-1])
        self.nodes.append(node)
        self.budget.spend(1 if self.on_meta else 1 + sum(t.numel() for t in outputs) / _PER_UNIT)
        if self.see is not None:
            # What is looked at is not recorded; the bridge below is.
            with torch._C.DisableTorchFunction(), torch.no_grad():  # noqa: SLF001
                self.see(Ran(self.so_far, node, args, kwargs, outputs))
        for base, view in changed:
            self.record("setitem", torch.Tensor.__setitem__, (base, ..., view), {}, (base,))

    def enter_parameter(self, stand_in: Tensor, name: str) -> None:
        """Make known what stands in for a parameter."""
        if id(stand_in) not in self.current:
            self._new_value(stand_in, parameter=name)

    def enter_buffer(self, stand_in: Tensor, buffer: Tensor) -> None:
        """Make known what stands in for a buffer, and the number in one of a single element."""
        self._new_value(stand_in, constant=_number(buffer), held=_numbers_held(buffer))

    def enter_inputs(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Make the arguments of the forward pass known and return their stand-ins."""
        args, kwargs = call.mapped(self._enter_input)
        return args, dict(kwargs)

    @contextlib.contextmanager
    def inside_modules(self, model: nn.Module) -> Iterator[None]:
        """Keep track of which module is running."""
        named: dict[nn.Module, str] = {}
        for name, module in canonical_modules(model):
            named.setdefault(module, name)
        # Written where torch would write them: to make a handle for each takes longer than they do.
        key = id(self)  # far beyond torch's own keys, which count from 0
        for module, name in named.items():
            module._forward_pre_hooks[key] = self._entering(name)  # noqa: SLF001
            module._forward_hooks[key] = self._leave  # noqa: SLF001
        try:
            yield
        finally:
            for module in named:
                module._forward_pre_hooks.pop(key, None)  # noqa: SLF001
                module._forward_hooks.pop(key, None)  # noqa: SLF001

    def graph(self, results: Any) -> Graph:
        """Return what has been recorded."""
        returned = tuple(self._value_of(tensor) for tensor in tensors_in(results))
        consumers: list[list[int]] = [[] for _ in self.values]
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                consumers[value].append(node.index)
        return Graph(
            values=tuple(self.values),
            nodes=tuple(self.nodes),
            results=returned,
            consumers=tuple(map(tuple, consumers)),
        )

    def _on_one_device(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Send real tensors to meta where an operator would mix the two; keep new indices real."""
        if self.moved:
            args, kwargs = map_tensors(self._latest, (args, dict(kwargs)))
        if kwargs and "device" in kwargs and _makes_indices(func, kwargs):
            return args, {**kwargs, "device": "cpu"}
        if func is Tensor.to:
            args, kwargs = _staying(args, kwargs)
        if len({tensor.is_meta for tensor in tensors_in((args, kwargs))}) < 2:
            return args, kwargs
        if func in _INDEXING and args[0].is_meta:
            args = (args[0], _numbered(args[1]), *args[2:])
        sent: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors(
            self._to_meta, (args, dict(kwargs))
        )
        if sent[0] and sent[0][0] is not args[0] and _writes(func) and isinstance(args[0], Tensor):
            self.moved[id(args[0])] = sent[0][0]
        return sent

    def _latest(self, tensor: Tensor) -> Tensor:
        return self.moved.get(id(tensor), tensor)

    def _to_meta(self, tensor: Tensor) -> Tensor:
        """Return a meta tensor that continues the value of a real one."""
        if tensor.device.type == "meta":
            return tensor
        on_meta = plain_meta(tensor)
        self.current[id(on_meta)] = self._value_of(tensor)
        self.alive[id(on_meta)] = on_meta
        return on_meta

    def _enter_input(self, tensor: Tensor) -> Tensor:
        stand_in = _index_like(tensor) if self.on_meta else copied(tensor)
        self.varying.add(self._new_value(stand_in, is_input=True))
        return stand_in

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, args: Any) -> None:
            del module, args
            self.running.append(name)

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Bridge what a module made unseen (a scripted function, a foreign kernel).

        Where somebody has said what its class computes, the module returns that.
        """
        made = (tensor for tensor in tensors_in(output) if id(tensor) not in self.current)
        unseen = tuple(tensor for tensor in made if self._origin(tensor) is None)
        like = reference(type(module).__name__) if unseen else None
        result = None if like is None else like(*args)
        if unseen and like is None:
            self.record(type(module).__name__, module, args, {}, unseen)
        self.running.pop()
        return result

    def _changed_views(self, outputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield those of `outputs` that were there before and are views, with their bases."""
        for tensor in outputs:
            base = tensor._base  # noqa: SLF001 - the only way from a view to its base
            if id(tensor) in self.current and base is not None and id(base) in self.current:
                yield base, tensor

    def _ref(self, tensor: Tensor) -> Ref:
        return Ref(self._value_of(tensor))

    def _value_of(self, tensor: Tensor) -> int:
        if id(tensor) not in self.current:
            self._discover(tensor)
        return self.current[id(tensor)]

    def _discover(self, tensor: Tensor) -> None:
        """Make known what no operator was seen to make: a constant, or the way through `vmap`."""
        origin = self._origin(tensor)
        if origin is None:
            self._new_value(tensor, constant=_number(tensor), held=_numbers_held(tensor))
        else:
            self.record("movedim", _unchanged, (origin,), {}, (tensor,))

    def _origin(self, tensor: Tensor) -> Tensor | None:
        """Return the tensor that has gone into `vmap` as this one, or come out of it so."""
        for wrapped in inside(tensor):
            if id(wrapped) in self.current:
                return wrapped
        return self.wrapped.get(_storage_of(tensor)) if self.wrapped else None

    def _constant(self, tensor: Tensor) -> float | None:
        """On meta, what still has numbers does not depend on the model's input."""
        return _number(tensor) if self.on_meta else None

    def _new_value(self, tensor: Tensor, **known: Any) -> int:
        strided = tensor.layout is torch.strided
        value = Value(
            index=len(self.values),
            shape=tuple(tensor.shape),
            stride=tensor.stride() if strided else (),
            offset=int(tensor.storage_offset()) if strided else 0,
            storage=self._serial(tensor),
            dtype=tensor.dtype,
            **known,
        )
        self.values.append(value)
        self.current[id(tensor)] = value.index
        self._keep(tensor)
        if is_wrapped(tensor):
            self.wrapped[_storage_of(tensor)] = tensor
        return value.index

    def _keep(self, tensor: Tensor) -> None:
        """Keep a tensor alive while its id stands for it; one with memory only as the model does.

        The id of what the model lets go of is forgotten, for another tensor may get it.
        """
        key = id(tensor)
        if self.on_meta or is_wrapped(tensor):
            self.alive[key] = tensor
        else:
            self.alive[key] = weakref.ref(tensor, _forget(key, self.alive, self.current))

    def _serial(self, tensor: Tensor) -> int:
        """Number the storage behind a tensor; no two have one number, living or dead."""
        key, new = _storage_of(tensor), len(self.values)
        if not key:
            return new
        if key not in self.storages:
            self.storages[key] = new
            if not self.on_meta:  # there, every tensor stays alive, and its storage with it
                storage = bare(tensor).untyped_storage()
                self.alive[key] = weakref.ref(storage, _forget(key, self.alive, self.storages))
        return self.storages[key]


def _forget(key: int, *records: dict[int, Any]) -> Callable[[object], None]:
    """Return what drops a key from some records once what it stands for has died."""

    def forget(dead: object) -> None:
        del dead
        for record in records:
            record.pop(key, None)

    return forget


def _storage_of(tensor: Tensor) -> int:
    """Return what identifies a tensor's storage, or 0 where it has none."""
    tensor = bare(tensor)
    stored = tensor.layout is torch.strided and torch._C._has_storage(tensor)  # noqa: SLF001
    return storage_of(tensor) if stored else 0


def _index_like(tensor: Tensor) -> Tensor:
    """Return what stands in for an input on meta: numbers where it is one of indices."""
    if tensor.is_floating_point() or tensor.is_complex() or tensor.numel() > INDICES:
        return plain_meta(tensor)
    if not tensor.is_meta:
        return tensor.clone()
    if tensor.dtype == torch.bool or not tensor.ndim:
        return torch.ones(tensor.shape, dtype=tensor.dtype)
    return torch.arange(tensor.shape[-1]).to(tensor.dtype).expand(tensor.shape).clone()


_PER_UNIT = 2**17
"""Elements made for real that cost as much as an operator: about a millisecond of a convolution."""

_FACTORIES = frozenset({torch.arange, torch.zeros, torch.ones, torch.full, torch.tensor})

_INDEXING = frozenset({Tensor.__getitem__, Tensor.__setitem__})


def _makes_indices(func: Callable[..., Any], kwargs: Mapping[str, Any]) -> bool:
    """Say whether a function makes small indices or a mask on meta."""
    if func not in _FACTORIES or torch.device(kwargs["device"] or "cpu").type != "meta":
        return False
    dtype = kwargs.get("dtype")
    if func is torch.ones and dtype is None:  # a mask of attention that the forward asks about
        return True
    if dtype is None:
        return func is torch.arange
    return not (dtype.is_floating_point or dtype.is_complex)


def _staying(
    args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Let a tensor stay where it is: on meta are no numbers to be moved, and small masks keep them.

    Only what a call of `Tensor.to` says of the device is changed.
    """
    device = args[0].device
    if not args[0].is_meta and args[0].numel() > INDICES:
        return args, kwargs

    def here(value: Any) -> Any:
        names_device = isinstance(value, (torch.device, str, int)) and not isinstance(value, bool)
        return device if names_device else value

    return tuple(map(here, args)), {name: here(value) for name, value in kwargs.items()}


def _numbered(index: Any) -> Any:
    """Write the masks in an index as numbers: how many they are is not known on meta."""
    items = index if isinstance(index, tuple) else (index,)
    parts = (_numbers_of(i) if isinstance(i, Tensor) else (i,) for i in items)
    return tuple(itertools.chain.from_iterable(parts))


def _numbers_of(index: Tensor) -> tuple[Tensor, ...]:
    mask = index.dtype == torch.bool and not index.is_meta and index.ndim > 0
    return index.nonzero(as_tuple=True) if mask else (index,)


def _writes(func: Callable[..., Any]) -> bool:
    """Say whether a method writes to the tensor it belongs to."""
    name = str(getattr(func, "__name__", ""))
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _begins_on_meta(args: tuple[Any, ...]) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and args[0].device.type == "meta"


def _numbers_held(tensor: Tensor) -> Tensor | None:
    """Return a real tensor itself, and nothing for one without numbers."""
    return None if tensor.is_meta or is_wrapped(tensor) else tensor


def _number(tensor: Tensor) -> float | None:
    """Return the number in a real tensor of one element, or None."""
    is_number = tensor.numel() == 1 and tensor.device.type != "meta" and not tensor.is_complex()
    return float(tensor.item()) if is_number and not is_wrapped(tensor) else None


def running_at(error: Exception) -> str:
    """Say at which operator, in which module, a recording raised; nothing where at none."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    calls = [f for f in frames if f.f_code is Recorder.__torch_function__.__code__]
    if not calls:
        return ""
    operator, module = op_name(calls[-1].f_locals["func"]), calls[-1].f_locals["self"].running[-1]
    return f"operator {operator!r} of {module!r}: " if module else f"operator {operator!r}: "
