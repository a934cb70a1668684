"""Lends a model to who runs it, and gives it back as it was: the one place that does.

While a model is lent, its forward pass works on copies of all tensors that it reaches outside its
parameters and buffers; for those, whoever borrows the model says what stands in.
"""

import contextlib
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torch_initpolicy.sites import borrowing
from torch_initpolicy.tensors.isolation import drawing_from
from torch_initpolicy.trace.hooks import takes_part
from torch_initpolicy.trace.reach import Reach, Slot
from torch_initpolicy.trace.stand_ins import copied
from torch_initpolicy.undo import modes_kept, undoing


class Lent:
    """A model that is lent, with the places where its tensors are held.

    Its own parameters and buffers are known whatever stands in for them; random operators on the
    CPU draw from the `generator`.
    """

    def __init__(self, model: nn.Module, reach: Reach, generator: torch.Generator) -> None:
        self.model = model
        self.parameters = tuple(model.parameters())
        self.buffers = tuple(model.buffers())
        self.generator = generator
        self._slots = reach.slots
        self._own = {id(tensor) for tensor in (*self.parameters, *self.buffers)}

    def use_copies(self) -> None:
        """Put copies in place of all tensors but the parameters and buffers."""
        copies: dict[int, Tensor] = {}
        for slot in self._slots:
            if id(slot.tensor) not in self._own:
                if id(slot.tensor) not in copies:
                    copies[id(slot.tensor)] = _copy(slot.tensor)
                _put(slot, copies[id(slot.tensor)])

    def swap(self, stand_ins: Mapping[int, Tensor]) -> None:
        """Put tensors in place of those of the model, by their `id`, wherever they are held."""
        for slot in self._slots:
            if id(slot.tensor) in stand_ins:
                _put(slot, stand_ins[id(slot.tensor)])


def _put(slot: Slot, tensor: Tensor) -> None:
    kind = list if isinstance(slot.holder, list) else dict
    kind.__setitem__(slot.holder, slot.key, tensor)


def _copy(tensor: Tensor) -> Tensor:
    """Return a copy that shares no storage, or the tensor where its kind cannot be copied."""
    try:
        return copied(tensor)
    except (RuntimeError, NotImplementedError, TypeError):
        return tensor


@contextlib.contextmanager
def borrowed(model: nn.Module, reach: Reach | None = None) -> Iterator[Lent]:
    """Lend a model, and leave it, all that its forward pass reaches, and the process as they were.

    Hooks that only look on, those of sharding and what `torch.compile` has made are off while the
    model is lent. One thread at a time borrows models: they share modules and random states.

    Who borrows a model several times in a row, and holds `BORROWING` all the while, gives what it
    was found to `reach`.
    """
    generator = torch.Generator().manual_seed(0)
    with borrowing(model), warnings.catch_warnings(), _same_process(model, generator):
        found = Reach(model) if reach is None else reach
        lent = Lent(model, found, generator)
        with undoing(found.undo), modes_kept():
            for module in model.modules():
                _drop_hooks(module)
                _drop_compilation(module)
            lent.use_copies()
            with _nothing_compiled():
                yield lent


def _drop_hooks(module: nn.Module) -> None:
    """Take off hooks that only look on, and those of sharding: they gather, and expect shards."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):  # noqa: SLF001 - no public view
        for key, hook in list(hooks.items()):
            if not takes_part(hook):
                del hooks[key]


def _nothing_compiled() -> contextlib.AbstractContextManager[Any]:
    """Run plainly what `torch.compile` has wrapped; else import nothing of it."""
    compiles = not {"torch._dynamo", "torch.nn.attention.flex_attention"}.isdisjoint(sys.modules)
    return torch.compiler.set_stance("force_eager") if compiles else contextlib.nullcontext()


def _drop_compilation(module: nn.Module) -> None:
    """Run plainly what `torch.compile` would compile: for tensors without numbers, at that."""
    vars(module)["_compiled_call_impl"] = None  # what `module.compile()` sets
    children = module._modules  # noqa: SLF001 - `torch.compile(module)` inside a model
    if list(children) == ["_orig_mod"]:
        vars(module)["forward"] = children["_orig_mod"]


@contextlib.contextmanager
def _same_process(model: nn.Module, generator: torch.Generator) -> Iterator[None]:
    """Put back the random states and settings of the process.

    Torch's generator of the CPU is not even borrowed: other threads may draw from it meanwhile.
    """
    states = [partial(write, read()) for read, write in _generators(model)]
    settings = [partial(_set_back, read, write, read()) for read, write in _SETTINGS]
    environment = partial(_set_back, lambda: dict(os.environ), _set_environment, dict(os.environ))
    with undoing([environment, *settings, *states]), drawing_from({"cpu": generator}):
        yield


def _set_back(read: Callable[[], Any], write: Callable[[Any], object], before: object) -> None:
    """Write what was read before, where it has changed: some import a compiler to be written."""
    if read() != before:
        write(before)


def _set_environment(before: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
)
"""How to read and write what a forward pass may set for the whole process."""


def _generators(model: nn.Module) -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Yield how to read and write the generators that a forward pass of `model` could move."""
    for generator in (torch.cuda.default_generators[index] for index in cuda_devices(model)):
        yield generator.get_state, generator.set_state
    yield random.getstate, random.setstate
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        yield numpy.random.get_state, numpy.random.set_state


def cuda_devices(model: nn.Module) -> list[int]:
    """Return the CUDA devices whose random state a forward pass of `model` could move."""
    indices = (p.device.index for p in model.parameters() if p.device.type == "cuda")
    return sorted({index for index in indices if index is not None})
