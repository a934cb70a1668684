"""Runs a forward pass once, on stand-ins for all tensors of the model, and records it."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from torch_initpolicy.tensors.memory import own_memory
from torch_initpolicy.trace.borrow import borrowed, cuda_devices
from torch_initpolicy.trace.graph import Graph
from torch_initpolicy.trace.reach import Reach
from torch_initpolicy.trace.recorder import Budget, Ran, Recorder
from torch_initpolicy.trace.shapes import SHAPE_RULES
from torch_initpolicy.trace.stand_ins import copied, leaf_like, plain_meta
from torch_initpolicy.trace.trees import Call, tensors_in

Result = TypeVar("Result")


class Observer(Protocol):
    """Looks on while a forward pass runs for real; what it computes itself is not recorded."""

    def stand_in(self, name: str, parameter: Tensor) -> Tensor:
        """Return what to run with in place of the parameter of canonical name `name`.

        It shares no storage with the parameter: a forward pass may write to it.
        """

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
    """Run the forward pass of `model` with its own numbers, under the eyes of an observer.

    Every module runs in the mode it is in, on copies of the buffers and from a fixed random state.
    The model is left as it was, as `capture` leaves it.
    """
    with borrowed(model) as lent, torch.set_grad_enabled(with_grad):
        stand_ins = {
            id(t): observer.stand_in(names[id(t)], t) if id(t) in names else copied(t)
            for t in _tensors_of(model)
        }
        _seed_cuda(model)
        recorder = Recorder({}, on_meta=False, see=observer.see)
        lent.swap(stand_ins)
        observer.end(_recorded(model, call, recorder, names, stand_ins))


def capture(
    model: nn.Module,
    call: Call,
    *,
    names: Mapping[int, str],
    on_meta: bool = True,
    drawn: Mapping[int, Tensor] | None = None,
    training: bool = False,
    with_grad: bool = False,
    budget: Budget | None = None,
    reach: Reach | None = None,
) -> Graph:
    """Record one forward pass of `model`.

    The model is left as it was, also when its forward raises: see `borrowed`. Warnings that its
    forward gives are left for the run that somebody asks for.

    On meta (no memory, no arithmetic) tensors of the call are replaced by meta tensors of their
    shape, but for small ones of indices: forward passes decide by them. For real it runs with what
    is `drawn` in place of a parameter, by its `id`, and with copies of the others. `reach` is what
    `borrowed` takes.
    """
    with borrowed(model, reach) as lent, torch.set_grad_enabled(with_grad):
        warnings.simplefilter("ignore")
        for module in model.modules():
            module.training = training
        if not on_meta:
            _seed_cuda(model)
        answers = on_meta and not with_grad  # shape rules answer without a way back
        recorder = Recorder(SHAPE_RULES if answers else {}, on_meta=on_meta, budget=budget)
        stand_ins = _stand_ins(model, drawn or {}, on_meta=on_meta, with_grad=with_grad)
        for buffer in model.buffers():
            recorder.enter_buffer(stand_ins[id(buffer)], buffer)
        lent.swap(stand_ins)
        return recorder.graph(_recorded(model, call, recorder, names, stand_ins))


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
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    call = call.mapped(lambda tensor: copied(tensor.to("meta") if on_meta else tensor))
    with borrowed(model) as lent, torch.enable_grad():
        warnings.simplefilter("ignore")
        lent.swap({id(tensor): copied(tensor) for tensor in _tensors_of(model)})
        try:
            model(*call.args, **call.kwargs)
        except Exception as error:  # noqa: BLE001 - a forward may raise anything
            return error
    return None


def _recorded(
    model: nn.Module,
    call: Call,
    recorder: Recorder,
    names: Mapping[int, str],
    stand_ins: Mapping[int, Tensor],
) -> Any:
    """Run the forward pass on stand-ins that are in place, and return its results."""
    for key, stand_in in stand_ins.items():
        if key in names:
            recorder.enter_parameter(stand_in, names[key])
    args, kwargs = recorder.enter_inputs(call)
    with recorder.inside_modules(model), recorder:
        try:
            return model(*args, **kwargs)
        finally:
            for tensor in tensors_in((args, kwargs, call.args, dict(call.kwargs))):
                own_memory(tensor)


def _tensors_of(model: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(model.parameters(), model.buffers())


def _stand_ins(
    model: nn.Module, drawn: Mapping[int, Tensor], *, on_meta: bool, with_grad: bool
) -> dict[int, Tensor]:
    """Return what to run with in place of each parameter and buffer, by its `id`."""
    made = {}
    for tensor in _tensors_of(model):
        stand_in = plain_meta(tensor) if on_meta else drawn.get(id(tensor))
        stand_in = _copied_or_ones(tensor) if stand_in is None else stand_in
        made[id(tensor)] = leaf_like(tensor, stand_in) if with_grad else stand_in
    return made


def _copied_or_ones(tensor: Tensor) -> Tensor:
    """Copy a tensor; one without numbers stands for ones, as the statistics of a norm start."""
    return torch.ones(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else copied(tensor)


def _seed_cuda(model: nn.Module) -> None:
    """Start the generators from one fixed state: dropout is the same in every run."""
    for index in cuda_devices(model):
        torch.cuda.default_generators[index].manual_seed(0)
