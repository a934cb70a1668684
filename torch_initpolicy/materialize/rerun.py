"""Methods by which modules set their own tensors, called once more on copies of the modules."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from torch_initpolicy.deferred.ledger import DeferredDraw, Ledger
from torch_initpolicy.deferred.skip import recording
from torch_initpolicy.deferred.undrawn import guard
from torch_initpolicy.errors import MaterializeError
from torch_initpolicy.materialize.rebuild import class_of
from torch_initpolicy.materialize.search import BuiltModule, Search

Method = Callable[[nn.Module], object]

CONVENTIONS = (
    "reset_parameters",
    "_reset_parameters",
    "init_non_persistent_buffers",
    "init_buffers",
    "reset_buffers",
    "rope_init",
    "init_weights",
    "initialize_weights",
)
"""Methods without arguments by which modules set their own tensors: torch's, timm's, torchtune's
and the names most used elsewhere."""


def conventions(search: Search) -> Iterator[BuiltModule]:
    """Call those methods on copies of the modules."""
    for name, module in search.owners():
        for method in filter(None, (getattr(class_of(module), m, None) for m in CONVENTIONS)):
            if not search.left[name]:
                break
            try:
                copied = called_again(search, name, module, method)
            except Exception:  # noqa: BLE001, S112 - it asks for arguments, or for lost values
                continue
            source = f"{type(module).__name__}.{method.__name__}"
            yield BuiltModule(name, copied, source, is_guess=True)


class _Undefined(DeferredDraw):
    """Stands for values that nobody has; whoever reads them cannot go on."""

    def draw_(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        raise MaterializeError("the values that are to be restored are read")


def called_again(search: Search, name: str, module: nn.Module, method: Method) -> nn.Module:
    """Call a function with a copy on the CPU; what it leaves undefined stays on meta."""
    ledger = Ledger()
    copied = _copy_of(module, ledger, {})
    with search.aside(name):
        with recording(ledger):
            method(copied)
        for child in copied.modules():
            _drop_undefined(child, ledger)
        drawn = (entry for entry in ledger.close() if not isinstance(entry.draw, _Undefined))
        guard(drawn, ledger.modules)
    return copied


def _copy_of(module: nn.Module, ledger: Ledger, memo: dict[int, Tensor]) -> nn.Module:
    """Copy a module with undefined tensors on the CPU for those on meta."""
    kind = class_of(module)
    copied = kind.__new__(kind)
    vars(copied).update(vars(module))
    for name in ("_parameters", "_buffers"):
        held = vars(module)[name].items()
        vars(copied)[name] = {key: _defined(tensor, ledger, memo) for key, tensor in held}
    children = vars(module)["_modules"].items()
    vars(copied)["_modules"] = {k: child and _copy_of(child, ledger, memo) for k, child in children}
    return copied


def _defined(tensor: Tensor | None, ledger: Ledger, memo: dict[int, Tensor]) -> Tensor | None:
    """Copy a tensor; one on meta becomes undefined memory."""
    if tensor is None or id(tensor) in memo:
        return memo.get(id(tensor))
    if tensor.is_meta:
        fresh = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        ledger.put_off(fresh, _Undefined())
    else:
        fresh = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        fresh = nn.Parameter(fresh, requires_grad=tensor.requires_grad)
        ledger.see(fresh)
    memo[id(tensor)] = fresh
    return fresh


def _drop_undefined(module: nn.Module, ledger: Ledger) -> None:
    """Put tensors that are still undefined back on meta."""
    for held in (vars(module)["_parameters"], vars(module)["_buffers"]):
        for name, tensor in held.items():
            entry = None if tensor is None else ledger.find(tensor)
            if entry is not None and isinstance(entry.draw, _Undefined):
                held[name] = tensor.detach().to("meta")
