"""What a constructor computed on the meta device: values that were never there, found again.

A model built under `torch.device("meta")` has shapes and nothing else. Its weights come from the
policy; its buffers, its constants (layer scales, temperatures) and whatever the policy keeps can
only come from the code that once computed them. That code is run again, on the CPU and without
drawing weights, and the values are read off.
"""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn

from torch_initpolicy.deferred.undrawn import pending_of
from torch_initpolicy.errors import MaterializeError
from torch_initpolicy.materialize.held import tensors_of
from torch_initpolicy.materialize.rebuild import ADAPTED, build_aside, class_of, rebuilt
from torch_initpolicy.materialize.rerun import called_again, conventions
from torch_initpolicy.materialize.search import Build, BuiltModule, Lost, Origin, Search
from torch_initpolicy.sites import canonical_modules


@functools.singledispatch
def restore(module: nn.Module) -> None:
    """Compute the buffers and constants of a module once more, as its constructor does.

    `materialize` calls this for what a model built on the meta device has lost. Register a function
    for modules of your own with `restore.register` where it cannot find out by itself; the type of
    the argument, or a class given to `register`, says for which, subclasses included. The function
    is called with a copy of the module on the CPU, whose tensors on the meta device are undefined
    there; it may write them in place or assign new ones.

    Args:
        module: The module, without its submodules' tensors being of interest.

    Raises:
        NotImplementedError: No function is registered for the module's class.

    Examples:
        >>> import math, torch
        >>> class Rotary(nn.Module):
        ...     def __init__(self, width: int, base: float = 1e4) -> None:
        ...         super().__init__()
        ...         self.width, self.log_base = width, math.log(base)
        ...         self.register_buffer("frequencies", self.compute(), persistent=False)
        ...
        ...     def compute(self) -> torch.Tensor:
        ...         return torch.exp(-self.log_base * torch.arange(0, self.width, 2) / self.width)
        >>> @restore.register
        ... def _(module: Rotary) -> None:
        ...     module.frequencies = module.compute()
        >>> module = Rotary(4)
        >>> restore(module)
        >>> module.frequencies
        tensor([1.0000, 0.0100])
    """
    raise NotImplementedError(f"no function is registered for {type(module).__name__}")


def origins(
    model: nn.Module, lost: Iterable[Lost], *, rebuild: Build | None = None, seed: int = 0
) -> dict[str, Origin]:
    """Find out what lost tensors should hold, by canonical name; what nothing tells is missing.

    Asked in this order: functions registered with `restore`; `rebuild`; the model's own class
    with the arguments it keeps, or the library that the model comes from, where what is built is
    the same in every module, shape and attribute; the classes of its modules; at last their
    `reset_parameters` and other methods of that kind.
    """
    search = Search(model, seed, lost)
    found: dict[str, Origin] = {}
    given = functools.partial(_from_caller, rebuild=rebuild)
    for source in (_registered, given, rebuilt, conventions):
        for reference in source(search):
            for tensor, origin in _read_off(reference, search):
                found[tensor.name] = origin
                search.remove(tensor)
    return found


def _read_off(reference: BuiltModule, search: Search) -> Iterator[tuple[Lost, Origin]]:
    """Yield what a reference says about tensors within it."""
    for name, module in canonical_modules(reference.module, reference.prefix):
        lost = [*search.left.get(name, ()), *search.left.get(f"{name}.{ADAPTED}", ())]
        held = dict(tensors_of(module)) if lost else {}
        for tensor in lost:
            value = held.get(tensor.attribute)
            if value is not None and value.shape == tensor.shape and not value.is_meta:
                pending = pending_of(value)
                known = None if pending else value.detach()
                drawn = pending and pending._replace(source=reference.source)
                yield tensor, Origin(known, drawn, reference.source, reference.is_guess)


def _registered(search: Search) -> Iterator[BuiltModule]:
    unknown = restore.dispatch(nn.Module)
    for name, module in search.owners():
        function = restore.dispatch(class_of(module))
        if function is not unknown:
            source = f"the function registered for {type(module).__name__}"
            with _blamed(source):
                yield BuiltModule(name, called_again(search, name, module, function), source)


def _from_caller(search: Search, rebuild: Build | None) -> Iterator[BuiltModule]:
    if rebuild is not None and search.within[""]:
        with _blamed("rebuild"):
            yield BuiltModule("", build_aside(search, "", rebuild), "rebuild")


@contextmanager
def _blamed(source: str) -> Iterator[None]:
    """Say whose code it was that raised."""
    try:
        yield
    except Exception as error:
        raise MaterializeError(f"{source} raised {type(error).__name__}: {error}") from error
