"""The recorder: writes down which operator read which tensor while a forward pass runs.

Knows how to name tensors that come and go; not what an operator does.
"""

import contextlib
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torch_initpolicy.sites import canonical_modules
from torch_initpolicy.trace.devices import OneDevice, input_like
from torch_initpolicy.trace.functorch import is_transforming, is_wrapped
from torch_initpolicy.trace.graph import Graph, Node, Value
from torch_initpolicy.trace.names import op_name
from torch_initpolicy.trace.operators import reference
from torch_initpolicy.trace.trees import Call, map_tensors, tensors_in
from torch_initpolicy.trace.values import Values

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
        """Take from the budget, or raise where there is nothing left."""
        self.left -= cost
        if self.left < 0:
            raise OutOfBudgetError("more operators than a search may run")


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
        self.values = Values(on_meta=on_meta)
        self.parameters: dict[int, Tensor] = {}  # stand-ins, by storage
        self.nodes: list[Node] = []
        self.varying: set[int] = set()  # values that depend on the model's inputs
        self.devices = OneDevice(self.values, self._value_of)
        self.running: list[str] = [""]
        self.so_far = Graph(self.values.all, self.nodes, results=(), consumers=())

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
            args, kwargs = self.devices.arguments(func, args, kwargs)
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
        read: list[Value] = []

        def note(tensor: Tensor) -> Value:
            read.append(self.values.all[self._value_of(tensor)])
            return read[-1]

        node_args, node_kwargs = map_tensors(note, (args, dict(kwargs)))
        inputs, index = tuple(value.index for value in read), len(self.nodes)
        changed = tuple(self._changed_views(outputs))
        varies = not self.varying.isdisjoint(inputs)
        fixed = self.on_meta and not varies  # there, only what no input reaches holds numbers
        made = tuple(
            self.values.add(tensor, producer=index, constant=_number(tensor) if fixed else None)
            for tensor in outputs
        )
        if varies:
            self.varying.update(made)
        node = Node(index, op, function, node_args, node_kwargs, inputs, made, self.running[-1])
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
        if id(stand_in) not in self.values.current:
            value = self.values.add(stand_in, parameter=name)
            self.parameters[self.values.all[value].storage] = stand_in

    def enter_buffer(self, stand_in: Tensor, buffer: Tensor) -> None:
        """Make known what stands in for a buffer, and the number in one of a single element."""
        self.values.add(stand_in, constant=_number(buffer), held=_numbers_held(buffer))

    def enter_inputs(self, call: Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Make the arguments of the forward pass known and return their stand-ins."""

        def enter(tensor: Tensor) -> Tensor:
            stand_in = input_like(tensor, on_meta=self.on_meta)
            self.varying.add(self.values.add(stand_in, is_input=True))
            return stand_in

        args, kwargs = call.mapped(enter)
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
        consumers: list[list[int]] = [[] for _ in self.values.all]
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs):
                consumers[value].append(node.index)
        return Graph(
            values=tuple(self.values.all),
            nodes=tuple(self.nodes),
            results=returned,
            consumers=tuple(map(tuple, consumers)),
        )

    def _entering(self, name: str) -> Callable[[nn.Module, Any], None]:
        def enter(module: nn.Module, args: Any) -> None:
            del module, args
            self.running.append(name)

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Bridge what a module made unseen (a scripted function, a foreign kernel).

        Where somebody has said what its class computes, the module returns that.
        """
        made = (tensor for tensor in tensors_in(output) if id(tensor) not in self.values.current)
        unseen = tuple(tensor for tensor in made if self.values.origin(tensor) is None)
        like = reference(type(module).__name__) if unseen else None
        result = None if like is None else like(*args)
        if unseen and like is None:
            self.record(type(module).__name__, module, args, {}, unseen)
        self.running.pop()
        return result

    def _changed_views(self, outputs: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield those of `outputs` that were there before and are views, with their bases.

        The `data` of a parameter, in which masks are multiplied, is a view that says of none.
        """
        known = self.values.current
        for tensor in outputs:
            if id(tensor) in known:
                storage = self.values.all[known[id(tensor)]].storage
                base = tensor._base  # noqa: SLF001 - the only way from a view to its base
                base = self.parameters.get(storage) if base is None else base
                if base is not None and base is not tensor and id(base) in known:
                    yield base, tensor

    def _value_of(self, tensor: Tensor) -> int:
        if id(tensor) not in self.values.current:
            self._discover(tensor)
        return self.values.current[id(tensor)]

    def _discover(self, tensor: Tensor) -> None:
        """Make known what no operator was seen to make: a constant, or the way through `vmap`."""
        origin = self.values.origin(tensor)
        if origin is None:
            self.values.add(tensor, constant=_number(tensor), held=_numbers_held(tensor))
        else:
            self.record("movedim", lambda moved: moved, (origin,), {}, (tensor,))


_PER_UNIT = 2**17
"""Elements made for real that cost as much as an operator: about a millisecond of a convolution."""


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
