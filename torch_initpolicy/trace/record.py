"""The recorder: runs a forward pass once and writes down which operator read which tensor.

Knows how to run a model without touching it; has never heard what an operator does.
"""

import contextlib
import copy
import dataclasses
import random
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from operator import is_
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torch_initpolicy.sites import BORROWING, canonical_modules
from torch_initpolicy.tensors.aliases import storage_of
from torch_initpolicy.trace.functorch import bare, inside, is_transforming, is_wrapped
from torch_initpolicy.trace.graph import Graph, Node, Ref, Value
from torch_initpolicy.trace.operators import reference

Result = TypeVar("Result")

ShapeRule = Callable[..., Any]
"""Answers for an operator on meta tensors in place of its own, slower, meta kernel."""


class Call(NamedTuple):
    """Arguments of one forward pass."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = {}

    def mapped(self, function: Callable[[Tensor], Any]) -> "Call":
        """Return the call with `function` applied to each of its tensors, nested ones too."""
        args, kwargs = map_tensors(function, (tuple(self.args), dict(self.kwargs)))
        return Call(args, kwargs)


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


class Observer(Protocol):
    """Looks on while a forward pass runs for real; what it computes itself is not recorded."""

    def stand_in(self, name: str, parameter: nn.Parameter) -> Tensor:
        """Return what to run with in place of the parameter of canonical name `name`."""

    def see(self, ran: Ran) -> None:
        """Look at an operator that has just run. Its outputs may be written to."""

    def end(self, results: Any) -> None:
        """Look at what the model returned, while the stand-ins are still in place."""


def observe(
    model: nn.Module,
    call: Call,
    observer: Observer,
    *,
    names: Mapping[int, str],
    with_grad: bool = False,
) -> None:
    """Run the forward pass of `model` as it is, under the eyes of an observer.

    Every module runs in the mode it is in, on copies of the buffers and from a fixed random state.
    The model is left as it was, as `capture` leaves it.

    Args:
        model: The model, without wrappers.
        call: What to call it with.
        observer: Who looks on.
        names: Canonical name of each parameter, by its `id`.
        with_grad: Whether gradients can be taken.

    Raises:
        Exception: Whatever the model's forward or the observer raises.
    """
    with _borrowed(model, with_grad=with_grad):
        made = {
            id(parameter): observer.stand_in(names[id(parameter)], parameter)
            for parameter in model.parameters()
            if id(parameter) in names
        }
        _seed_everywhere(model)
        recorder = _Recorder({}, on_meta=False, see=observer.see)
        results = _run(model, call, recorder, names, list(_stand_ins(model, made, on_meta=False)))
        observer.end(results)


def capture(
    model: nn.Module,
    call: Call,
    *,
    names: Mapping[int, str],
    on_meta: bool = True,
    training: bool = False,
    with_grad: bool = False,
    shape_rules: Mapping[str, ShapeRule] | None = None,
) -> Graph:
    """Record one forward pass of `model`.

    The model is left as it was, also when its forward raises: parameters and buffers are swapped
    for stand-ins, and attributes, hooks, training flags and random states are put back. Warnings
    that its forward gives are left for the run that somebody asks for.

    Args:
        model: The model, without wrappers.
        call: What to call it with. On meta, tensors are replaced by meta tensors of their shape.
        names: Canonical name of each parameter, by its `id`.
        on_meta: Run on meta tensors (no memory, no arithmetic), else on the real parameters and
            on copies of the buffers.
        training: Run with every module in training mode, else in evaluation mode.
        with_grad: Whether gradients can be taken.
        shape_rules: Answers for operators, by name, in place of their own meta kernel.

    Returns:
        The recorded graph.

    Raises:
        Exception: Whatever the model's forward raises.
    """
    with _borrowed(model, with_grad=with_grad), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in model.modules():
            module.training = training
        answers = on_meta and not with_grad  # shape rules answer without a way back
        recorder = _Recorder(shape_rules or {} if answers else {}, on_meta=on_meta)
        stand_ins = _stand_ins(model, {}, on_meta=on_meta, with_grad=with_grad)
        results = _run(model, call, recorder, names, list(stand_ins))
        return recorder.graph(results)


def with_grad_if_asked(run: Callable[..., Result]) -> Result:
    """Run without gradients, and with them where something complains that there are none.

    So does a forward that takes gradients itself: forces as those of an energy.
    """
    try:
        return run(with_grad=False)
    except Exception as error:
        if "grad" not in str(error):
            raise
    return run(with_grad=True)


def plain_failure(model: nn.Module, call: Call) -> Exception | None:
    """Return what the forward pass raises when nobody looks on, or None where it runs."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    call = call.mapped(lambda tensor: _leaf_like(tensor, tensor.to("meta") if on_meta else tensor))
    with _borrowed(model, with_grad=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.func.functional_call(model, buffers, call.args, dict(call.kwargs))
        except Exception as error:  # noqa: BLE001 - a forward may raise anything
            return error
    return None


def running_at(error: Exception) -> str:
    """Say at which operator, in which module, a recording raised; nothing where at none."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    calls = [f for f in frames if f.f_code is _Recorder.__torch_function__.__code__]
    if not calls:
        return ""
    operator, module = op_name(calls[-1].f_locals["func"]), calls[-1].f_locals["self"].running[-1]
    return f"operator {operator!r} of {module!r}: " if module else f"operator {operator!r}: "


class StandIn(NamedTuple):
    """What to run with in place of a parameter or buffer.

    Attributes:
        name: Name of the parameter or buffer in the model.
        original: The parameter or buffer.
        tensor: What stands in for it.
    """

    name: str
    original: Tensor
    tensor: Tensor


def _run(
    model: nn.Module,
    call: Call,
    recorder: "_Recorder",
    names: Mapping[int, str],
    stand_ins: Sequence[StandIn],
) -> Any:
    """Run the forward pass on stand-ins for parameters and buffers, and return its results."""
    for _, original, tensor in stand_ins:
        if id(original) in names:
            recorder.enter_parameter(tensor, original, names[id(original)])
    args, kwargs = recorder.enter_inputs(call)
    swapped = {name: tensor for name, _, tensor in stand_ins}
    with recorder.inside_modules(model), recorder:
        return torch.func.functional_call(model, swapped, args, kwargs, tie_weights=False)


def _stand_ins(
    model: nn.Module, made: dict[int, Tensor], *, on_meta: bool, with_grad: bool = False
) -> Iterator[StandIn]:
    """Yield what to run with in place of each parameter and buffer; ties stay ties.

    `made` are stand-ins that exist already, by the `id` of what they stand for.
    """
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in made:
            made[id(parameter)] = _stand_in(parameter, on_meta=on_meta, with_grad=with_grad)
        yield StandIn(name, parameter, made[id(parameter)])
    for name, buffer in model.named_buffers(remove_duplicate=False):
        if id(buffer) not in made:
            made[id(buffer)] = _plain_meta(buffer) if on_meta else buffer.clone()
        yield StandIn(name, buffer, made[id(buffer)])


def _stand_in(parameter: nn.Parameter, *, on_meta: bool, with_grad: bool) -> Tensor:
    tensor = _plain_meta(parameter) if on_meta else parameter
    return _leaf_like(parameter, tensor) if with_grad else tensor


def _leaf_like(original: Tensor, tensor: Tensor) -> Tensor:
    """Return an alias of `tensor` that takes gradients where `original` does, and keeps them."""
    return tensor.detach().requires_grad_(original.requires_grad)


def _plain_meta(tensor: Tensor) -> Tensor:
    """Return a contiguous meta tensor of the same (for a sharded tensor: global) shape."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


@contextlib.contextmanager
def _borrowed(model: nn.Module, *, with_grad: bool) -> Iterator[None]:
    """Keep a model untouched, its gradients too, while it runs with or without them."""
    with untouched(model), torch.set_grad_enabled(with_grad):
        gradients = [(parameter, parameter.grad) for parameter in model.parameters() if with_grad]
        for parameter, _ in gradients:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back every attribute, hook, flag and random state of `model` on the way out.

    One thread at a time borrows models: they share modules, and all share the random states.
    """
    with BORROWING:
        yield from _untouched(model)


def _untouched(model: nn.Module) -> Iterator[None]:
    before = [(module, _Saved.of(vars(module))) for module in model.modules()]
    python_state = random.getstate()
    for module, _ in before:
        _drop_distributed_hooks(module)
        _drop_compilation(module)
    try:
        with torch.random.fork_rng(devices=_cuda_devices(model)):
            yield
    finally:
        random.setstate(python_state)
        for module, saved in before:
            saved.restore(vars(module))


def _seed_everywhere(model: nn.Module) -> None:
    """Start the forked generators from one fixed state: dropout is the same in every run."""
    torch.default_generator.manual_seed(0)
    for index in _cuda_devices(model):
        torch.cuda.default_generators[index].manual_seed(0)


def _cuda_devices(model: nn.Module) -> list[int]:
    """Return the CUDA devices whose random state a forward pass of `model` could move."""
    indices = (p.device.index for p in model.parameters() if p.device.type == "cuda")
    return sorted({index for index in indices if index is not None})


_CONTAINERS = (dict, list, set)


class _Saved(NamedTuple):
    """The attributes of a module at one moment.

    Attributes:
        values: Each attribute, by name.
        filled: Those that are containers, each with a copy of what it holds.
        empty: Those that are empty containers: most of them, hooks above all.
    """

    values: dict[str, Any]
    filled: list[tuple[Any, Any]]
    empty: list[Any]

    @classmethod
    def of(cls, attributes: dict[str, Any]) -> "_Saved":
        """Keep the attributes of a module."""
        containers = [value for value in attributes.values() if isinstance(value, _CONTAINERS)]
        return cls(
            values=attributes.copy(),
            filled=[(container, container.copy()) for container in containers if container],
            empty=[container for container in containers if not container],
        )

    def restore(self, attributes: dict[str, Any]) -> None:
        """Put back what has changed."""
        if not _same_items(attributes, self.values):
            for name in attributes.keys() - self.values.keys():
                del attributes[name]
            attributes.update(self.values)
        for container in filter(None, self.empty):
            container.clear()
        for container, before in self.filled:
            if not _same_items(container, before):
                container.clear()
                add = container.extend if isinstance(container, list) else container.update
                add(before)


def _same_items(now: Any, before: Any) -> bool:
    """Compare two containers by the identity of what they hold, in order."""
    if isinstance(now, set):
        return bool(now == before)
    same_values = not isinstance(now, dict) or all(map(is_, now.values(), before.values()))
    return same_values and len(now) == len(before) and all(map(is_, now, before))


def _drop_distributed_hooks(module: nn.Module) -> None:
    """Take off the hooks of FSDP2 and tensor parallelism: they gather, and expect shards."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):  # noqa: SLF001 - no public view
        for key, hook in list(hooks.items()):
            if str(getattr(hook, "__module__", "")).startswith("torch.distributed"):
                del hooks[key]


def _drop_compilation(module: nn.Module) -> None:
    """Run plainly what `torch.compile` would compile: for tensors without numbers, at that."""
    vars(module)["_compiled_call_impl"] = None  # what `module.compile()` sets
    children = module._modules  # noqa: SLF001 - `torch.compile(module)` inside a model
    if list(children) == ["_orig_mod"]:
        vars(module)["forward"] = children["_orig_mod"]


_OF_REFLECTED = {
    "radd": "add", "rmul": "mul", "rsub": "rsub", "rdiv": "rdiv", "rtruediv": "rdiv",
    "rpow": "rpow", "rmatmul": "matmul", "iadd": "add", "isub": "sub", "imul": "mul",
    "itruediv": "div", "idiv": "div", "truediv": "div", "ipow": "pow", "invert": "bitwise_not",
}  # fmt: skip
"""Names of Python's operators, by the operator they call."""


def op_name(function: Callable[..., Any]) -> str:
    """Name an operator, in-place and Python-operator spellings folded.

    An operator of another library than torch's goes by its full name, `"library::name"`.

    Examples:
        >>> op_name(torch.Tensor.add_), op_name(torch.Tensor.__iadd__), op_name(torch.conv2d)
        ('add', 'add', 'conv2d')
        >>> op_name(torch.Tensor.mT.__get__)
        'mT'
    """
    if isinstance(function, _REGISTERED):
        return _registered_name(function)
    name = str(getattr(function, "__name__", function))
    if name == "__get__":
        name = str(getattr(getattr(function, "__self__", None), "__name__", name))
    return _folded(name)


_REGISTERED = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)  # noqa: SLF001 - have no other name
"""What `torch.ops.library.name` and each of its overloads are."""

_TORCHS_OWN = ("aten", "torchvision")
"""Libraries whose operators are known by their bare names."""


def _registered_name(function: Callable[..., Any]) -> str:
    packet = getattr(function, "overloadpacket", function)
    qualified = str(vars(packet)["_qualified_op_name"])
    library, _, name = qualified.partition("::")
    return _folded(name) if library in _TORCHS_OWN else qualified


def _folded(name: str) -> str:
    name = name.strip("_").removeprefix("special_")
    return _OF_REFLECTED.get(name, name)


class _Recorder(TorchFunctionMode):
    """Writes down every operator that returns or changes a tensor."""

    def __init__(
        self,
        shape_rules: Mapping[str, ShapeRule],
        *,
        on_meta: bool,
        see: Callable[[Ran], None] | None = None,
    ) -> None:
        super().__init__()
        self.shape_rules = shape_rules
        self.on_meta = on_meta
        self.see = see
        self.values: list[Value] = []
        self.nodes: list[Node] = []
        self.current: dict[int, int] = {}
        self.alive: list[Tensor] = []  # an id names a tensor only while the tensor lives
        self.wrapped: dict[int, Tensor] = {}  # the last wrapper of each storage
        self.running: list[str] = [""]
        self.so_far = Graph(self.values, self.nodes, results=(), consumers=())

    def __deepcopy__(self, memo: dict[int, object]) -> "_Recorder":
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
            args, kwargs = self._on_one_device(args, kwargs)
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
        made = tuple(
            self._new_value(tensor, producer=index, constant=self._constant(tensor))
            for tensor in outputs
        )
        node = Node(index, op, function, node_args, node_kwargs, read, made, self.running[-1])
        self.nodes.append(node)
        if self.see is not None:
            # What is looked at is not recorded; the bridge below is.
            with torch._C.DisableTorchFunction(), torch.no_grad():  # noqa: SLF001
                self.see(Ran(self.so_far, node, args, kwargs, outputs))
        for base, view in changed:
            self.record("setitem", torch.Tensor.__setitem__, (base, ..., view), {}, (base,))

    def enter_parameter(self, stand_in: Tensor, parameter: Tensor, name: str) -> None:
        """Make known a parameter under both its stand-in and itself.

        Recurrent layers keep a second list of their parameters, which swapping does not reach.
        """
        if id(stand_in) not in self.current:
            self._new_value(stand_in, parameter=name)
        self.current[id(parameter)] = self.current[id(stand_in)]

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
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Send real tensors to meta where an operator would mix the two."""
        if len({tensor.is_meta for tensor in tensors_in((args, kwargs))}) < 2:
            return args, kwargs
        on_meta: tuple[tuple[Any, ...], dict[str, Any]] = map_tensors(
            self._to_meta, (args, dict(kwargs))
        )
        return on_meta

    def _to_meta(self, tensor: Tensor) -> Tensor:
        """Return a meta tensor that continues the value of a real one."""
        if tensor.device.type == "meta":
            return tensor
        on_meta = _plain_meta(tensor)
        self.current[id(on_meta)] = self._value_of(tensor)
        self.alive.append(on_meta)
        return on_meta

    def _enter_input(self, tensor: Tensor) -> Tensor:
        stand_in = _plain_meta(tensor) if self.on_meta else _leaf_like(tensor, tensor)
        self._new_value(stand_in, is_input=True)
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
            self._new_value(tensor, constant=_number(tensor))
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
        storage = _storage_of(tensor)
        value = Value(
            index=len(self.values),
            shape=tuple(tensor.shape),
            stride=tensor.stride() if strided else (),
            offset=int(tensor.storage_offset()) if strided else 0,
            storage=storage or -1 - len(self.values),
            dtype=tensor.dtype,
            **known,
        )
        self.values.append(value)
        self.current[id(tensor)] = value.index
        self.alive.append(tensor)
        if is_wrapped(tensor):
            self.wrapped[storage] = tensor
        return value.index


def _storage_of(tensor: Tensor) -> int:
    """Return what identifies a tensor's storage, or 0 where it has none."""
    tensor = bare(tensor)
    stored = tensor.layout is torch.strided and torch._C._has_storage(tensor)  # noqa: SLF001
    return storage_of(tensor) if stored else 0


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor


def _begins_on_meta(args: tuple[Any, ...]) -> bool:
    return bool(args) and isinstance(args[0], Tensor) and args[0].device.type == "meta"


def _number(tensor: Tensor) -> float | None:
    """Return the number in a real tensor of one element, or None."""
    is_number = tensor.numel() == 1 and tensor.device.type != "meta" and not tensor.is_complex()
    return float(tensor.item()) if is_number and not is_wrapped(tensor) else None


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
    if type(tree) in _LEAVES:
        return tree
    items, remade = _KINDS[type(tree)]
    return remade(tree, [map_tensors(function, item) for item in items(tree)])


def _collect(tree: Any, found: list[Tensor]) -> None:
    if isinstance(tree, Tensor):
        found.append(tree)
    elif type(tree) not in _LEAVES:
        items, _ = _KINDS[type(tree)]
        for item in items(tree):
            _collect(item, found)


_LEAVES = frozenset({bool, int, float, str, type(None), torch.dtype, torch.device})
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
