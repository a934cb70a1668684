"""Code of the user that draws from torch's global generators draws from a stream of its own.

Those generators belong to the whole process, and another thread may draw from them at the same
time. So they are not borrowed: each random operator that this thread calls is handed a generator of
its own, which gives the same numbers. Torch's dispatch modes, which see every operator of a thread
and no other's, live in a private module, as does what lets operators pass by them; should it go,
user initializers and audits fail in the first test.
"""

import functools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from torch_initpolicy.locks import BORROWING
from torch_initpolicy.undo import undoing


class _OwnGenerators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands random operators a generator, where they are not given one."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Let torch not import its compiler (1.5 s) to keep it from compiling this class."""
        return False

    def __init__(self, generators: Mapping[str, torch.Generator]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generators = generators

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        own = self._generators.get(_device_type(args, given)) if _draws(func) else None
        if own is None:
            return func(*args, **given)
        taking = _with_generator(func)
        if taking is None:
            with _lent(own):
                return func(*args, **given)
        at = _argument_names(taking).index("generator")
        if at < len(args):  # a few operators take it by position, None where there is none
            return taking(*args[:at], args[at] or own, *args[at + 1 :], **given)
        return taking(*args, **{**given, "generator": given.get("generator") or own})


def _device_type(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    device = kwargs.get("device")
    tensors = (argument.device for argument in args if isinstance(argument, Tensor))
    return torch.device(device or next(tensors, "cpu")).type


@functools.cache
def _draws(func: Any) -> bool:
    """Say whether an operator draws; one of higher order calls others, which come here too."""
    return isinstance(func, OpOverload) and torch.Tag.nondeterministic_seeded in func.tags


@functools.cache
def _with_generator(func: Any) -> Any:
    """Return the overload of an operator that takes the same arguments and a generator, or None."""
    packet = func.overloadpacket
    wanted = {*_argument_names(func), "generator"}
    overloads = (func, *(getattr(packet, name) for name in packet.overloads()))
    return next((each for each in overloads if set(_argument_names(each)) == wanted), None)


def _argument_names(func: Any) -> list[str]:
    return [argument.name for argument in func._schema.arguments]  # noqa: SLF001 - the only record


@contextmanager
def _lent(generator: torch.Generator) -> Iterator[None]:
    """Let the global generator go on where another one is, and the other one where it ends."""
    if generator.device.type != "cpu":
        yield
        return
    with BORROWING, torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator.get_state())
        yield
        generator.set_state(torch.get_rng_state())


@contextmanager
def drawing_from(generators: Mapping[str, torch.Generator]) -> Iterator[None]:
    """Let code that draws from torch's global generators draw from others.

    What this thread draws in the block comes from these; a global generator of the CPU that the
    block seeds is put back. Types of devices without a generator keep their own.
    """
    with BORROWING:  # models that run meanwhile have the generator seeded, and put it back
        before = torch.get_rng_state()
    try:
        with _on(_OwnGenerators(generators)):
            yield
    finally:
        with BORROWING:
            if _is_fresh() and not torch.equal(torch.get_rng_state(), before):
                torch.set_rng_state(before)


def passing_by(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a block in which operators on a plain tensor, none of which draws, cost less.

    Dispatch modes do not see them. Those on a tensor of a class of its own stay as they are.
    """
    plain = type(tensor) is Tensor
    return torch._C._DisableTorchDispatch() if plain else nullcontext()  # noqa: SLF001


@contextmanager
def _on(mode: TorchDispatchMode) -> Iterator[None]:
    """Put a mode on this thread's stack, and take it off whatever interrupts.

    What torch's own `with mode` does besides belongs to the whole process: threads that take turns
    would leave it switched on. And Ctrl-C on its way out would leave the mode on for good.
    """
    with undoing([partial(_unwind, torch._C._len_torch_dispatch_stack())]):  # noqa: SLF001
        torch._C._push_on_torch_dispatch_stack(mode)  # noqa: SLF001
        yield


def _unwind(depth: int) -> None:
    while torch._C._len_torch_dispatch_stack() > depth:  # noqa: SLF001
        torch._C._pop_torch_dispatch_stack(None)  # noqa: SLF001


def _is_fresh() -> bool:
    """Tell whether the global generator has been seeded, and has not been drawn from since."""
    fresh = torch.Generator().manual_seed(torch.initial_seed())
    return torch.equal(torch.get_rng_state(), fresh.get_state())
