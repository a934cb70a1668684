"""A site: one parameter tensor of a model with everything its owner's type says about it.

Knows modules, names and ties, neither data flow nor initializers.
"""

import contextlib
import copy
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from torch_initpolicy.errors import NotAModuleError, PlanError, listing
from torch_initpolicy.locks import BORROWING
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.layers import Role, axes_of, padding_of, role_of
from torch_initpolicy.undo import modes_kept, undoing


@contextlib.contextmanager
def borrowing(model: nn.Module) -> Iterator[None]:
    """Hold `BORROWING`, and let Python recurse as deep as the modules of a model nest.

    To walk modules takes torch one call for each level, and to run them some ten.
    """
    with BORROWING:
        limit = sys.getrecursionlimit()
        deeper = limit + _FRAMES * min(_depth(model), _DEEPEST)
        with modes_kept(), undoing([partial(sys.setrecursionlimit, limit)]):
            sys.setrecursionlimit(deeper)
            yield


_FRAMES, _DEEPEST = 16, 5000
"""Calls for each level, and levels beyond which the stack of the processor could run over."""


def _depth(model: nn.Module) -> int:
    depth, level, seen = -1, [model], {id(model)}
    while level:
        depth += 1
        below = [m for module in level for m in module._modules.values() if m is not None]  # noqa: SLF001
        level = [m for m in below if id(m) not in seen]
        seen.update(map(id, level))
    return depth


Storage = Literal["plain", "parametrized", "weight_norm", "spectral_norm"]
"""How a site is held: `plain`, one `nn.Parameter`; `parametrized`, behind
`torch.nn.utils.parametrize`; `weight_norm`, the `_g` and `_v` pair of the legacy hook;
`spectral_norm`, the `_orig` of the legacy hook."""


@dataclass(frozen=True, slots=True)
class Site:
    """One parameter tensor of the model, with everything known about it but the data flow.

    Attributes:
        name: Canonical name: the first in `named_parameters(remove_duplicate=False)`, wrapper
            prefixes removed and parametrisations folded.
        names: All canonical names of the tensor; the first is `name`, the others are its ties.
        owner: The module that holds it under `name`.
        attribute: Its name there (`"weight"`).
        shape: Its logical shape (for a parametrised weight that of the weight, for a sharded
            tensor the global shape).
        dtype: Its dtype.
        device: Where it lives.
        requires_grad: Whether it is trained.
        storage: How it is held.
        parameters: The `nn.Parameter` objects behind it, one but for parametrised weights.
        role: What its owner's type says it does; `"unknown"` where only the data flow can tell.
        axes: What its owner's type says its axes mean; None where it is no linear map or unknown.
        padding: Row of an embedding that must stay zero, or None.
        parents: The modules around its owner, the outermost first.
        lazy: Whether it has no shape yet (`()` stands here) because no forward pass has run.
    """

    name: str
    names: tuple[str, ...]
    owner: nn.Module = field(repr=False, compare=False)
    attribute: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    storage: Storage = "plain"
    parameters: tuple[nn.Parameter, ...] = field(default=(), repr=False, compare=False)
    role: Role = "unknown"
    axes: Axes | None = None
    padding: int | None = None
    parents: tuple[nn.Module, ...] = field(default=(), repr=False, compare=False)
    lazy: bool = False

    @property
    def kind(self) -> str:
        """Class name of the owner: `"Conv2d"`."""
        return type(self.owner).__name__

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parameters behind it, within the owner: `"weight_g"`, `"weight_v"`."""
        suffixes = {"weight_norm": ("_g", "_v"), "spectral_norm": ("_orig",)}.get(self.storage)
        if suffixes is not None:
            return tuple(self.attribute + suffix for suffix in suffixes)
        if self.storage == "plain":
            return (self.attribute,)
        path = f"parametrizations.{self.attribute}"
        held = self.owner.get_submodule(path).named_parameters(recurse=False)
        return tuple(f"{path}.{name}" for name, _ in held if name.startswith("original"))

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Those of the parts that are not trained."""
        parts = zip(self.parts, self.parameters, strict=True)
        return tuple(name for name, parameter in parts if not parameter.requires_grad)


class Holder(NamedTuple):
    """One place where a tensor hangs: the parameters behind `owner.attribute`, and how."""

    name: str
    owner: nn.Module
    attribute: str
    storage: Storage
    parameters: tuple[nn.Parameter, ...]


def sites(model: nn.Module) -> tuple[Site, ...]:
    """Walk a model and describe each of its parameter tensors once.

    Args:
        model: Any module; DDP, `torch.compile`, FSDP and checkpoint wrappers are looked through.

    Returns:
        One site per tensor, in the order of `named_parameters()`. A tensor under several names
        is one site with several names.

    Raises:
        PlanError: An engine has flat pieces in place of the parameters; says what to call.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [(site.name, site.shape, site.role) for site in sites(model)][:2]
        [('0.weight', (8, 4), 'weight'), ('0.bias', (8,), 'bias')]
    """
    holders: dict[tuple[int, ...], list[Holder]] = {}
    with borrowing(model):
        _require_whole(model)
        for holder in _holders(model):
            key = tuple(id(parameter) for parameter in holder.parameters)
            holders.setdefault(key, []).append(holder)
        _require_gathered(places[0] for places in holders.values())
        modules = dict(canonical_modules(model))
        return tuple(_site(places, modules) for places in holders.values())


def _require_whole(model: nn.Module) -> None:
    """Refuse a model whose parameters FSDP1 keeps as flat pieces without a shape of their own."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return
    for name, module in model.named_modules():
        flat = isinstance(module, fsdp.FullyShardedDataParallel)
        if flat and module.training_state.name != "SUMMON_FULL_PARAMS":
            raise PlanError(
                f"{name or 'the model'!r} is wrapped by FullyShardedDataParallel, which keeps flat "
                "pieces without shapes; call this within FullyShardedDataParallel."
                "summon_full_params(model), before wrapping, or shard with fully_shard(model)"
            )


def _require_gathered(holders: Iterable[Holder]) -> None:
    """Refuse parameters that an engine has partitioned, so that they have no shape here."""
    cases = [holder.name for holder in holders if any(map(_is_partitioned, holder.parameters))]
    if cases:
        raise PlanError(
            f"partitioned by DeepSpeed ZeRO-3, without shapes here:\n{listing(cases)}\n"
            "call this on every rank within deepspeed.zero.GatheredParameters("
            "list(model.parameters()), modifier_rank=0)"
        )


def _is_partitioned(tensor: torch.Tensor) -> bool:
    """Tell whether DeepSpeed has taken a parameter's values away, and left an empty tensor."""
    status = vars(tensor).get("ds_status")
    return status is not None and status.name != "AVAILABLE"


def require_module(model: object) -> nn.Module:
    """Return a model, and refuse what is none, a class of models above all."""
    if not isinstance(model, nn.Module):
        raise NotAModuleError(
            f"model must be an nn.Module, got {model!r}; pass an object of your class"
        )
    return model


def canonical_modules(model: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield every module under each of its names, as the model without its wrappers calls it."""
    model = unwrapped(model)
    yield prefix, model
    for name, child in model._modules.items():  # noqa: SLF001 - the public walk drops duplicates
        if child is not None:
            yield from canonical_modules(child, f"{prefix}.{name}" if prefix else name)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a model without what wraps it: compilation, data parallelism, checkpoints of memory.

    Examples:
        >>> inner = nn.Linear(2, 2)
        >>> unwrapped(nn.DataParallel(inner)) is inner
        True
    """
    wrapped = _wrapped(model)
    return model if wrapped is None else unwrapped(wrapped)


_WRAPPED_UNDER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Names that only wrappers give to the module they wrap."""


def _wrapped(module: nn.Module) -> nn.Module | None:
    """Return the module inside a wrapper, which holds nothing else; None where it is none."""
    children: Mapping[str, nn.Module | None] = module._modules  # noqa: SLF001 - no lookup by MRO
    if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return children["module"]
    if len(children) != 1 or module._parameters:  # noqa: SLF001
        return None
    return next((children[name] for name in _WRAPPED_UNDER if name in children), None)


def _holders(model: nn.Module) -> Iterator[Holder]:
    """Yield each place where parameters hang, folding what parametrises them."""
    for prefix, module in canonical_modules(model):
        if not isinstance(module, parametrize.ParametrizationList):
            yield from _module_holders(prefix, module)
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if not name.startswith("original"):  # originals stand where they are folded
                yield Holder(f"{prefix}.{name}", module, name, "plain", (parameter,))


def _module_holders(prefix: str, module: nn.Module) -> Iterator[Holder]:
    """Yield the parameters of one module, those behind a parametrisation under its name."""
    dot = f"{prefix}." if prefix else ""
    hooked = dict(_hooked(module))
    for name, parameter in module._parameters.items():  # noqa: SLF001 - keeps duplicates
        if name in hooked:
            attribute, storage, parameters = hooked[name]
            if parameters:
                yield Holder(f"{dot}{attribute}", module, attribute, storage, parameters)
        elif parameter is not None:
            yield Holder(f"{dot}{name}", module, name, "plain", (parameter,))
    if parametrize.is_parametrized(module):
        lists = module.get_submodule("parametrizations")
        for name, parametrization in lists.named_children():
            own = parametrization.named_parameters(recurse=False)
            originals = tuple(p for key, p in own if key.startswith("original"))
            if originals:
                yield Holder(f"{dot}{name}", module, name, "parametrized", originals)


_Folded = tuple[str, Storage, tuple[nn.Parameter, ...]]


def _hooked(module: nn.Module) -> Iterator[tuple[str, _Folded]]:
    """Map the parameters of legacy `weight_norm` and `spectral_norm` to what they stand for."""
    for hook in module._forward_pre_hooks.values():  # noqa: SLF001 - the legacy hooks' only trace
        if isinstance(hook, WeightNorm):
            g, v = (module.get_parameter(f"{hook.name}_{part}") for part in "gv")
            yield f"{hook.name}_g", (hook.name, "weight_norm", (g, v))
            yield f"{hook.name}_v", (hook.name, "weight_norm", ())
        elif isinstance(hook, SpectralNorm):
            original = module.get_parameter(f"{hook.name}_orig")
            yield f"{hook.name}_orig", (hook.name, "spectral_norm", (original,))


def _site(places: list[Holder], modules: Mapping[str, nn.Module]) -> Site:
    first = places[0]
    parameter = first.parameters[0]
    lazy = is_lazy(parameter)
    logical = parameter if lazy else _effective(first)
    parts = first.name.split(".")
    around = (".".join(parts[:depth]) for depth in range(len(parts) - 1))
    return Site(
        name=first.name,
        names=tuple(dict.fromkeys(place.name for place in places)),
        owner=first.owner,
        attribute=first.attribute,
        shape=() if lazy else tuple(logical.shape),
        dtype=parameter.dtype,
        device=parameter.device,
        requires_grad=any(part.requires_grad for part in first.parameters),
        storage=first.storage,
        parameters=first.parameters,
        role=role_of(first.owner, first.attribute),
        axes=None if lazy else axes_of(first.owner, first.attribute),
        padding=padding_of(first.owner, first.attribute),
        parents=tuple(modules[name] for name in around if name in modules),
        lazy=lazy,
    )


def _effective(holder: Holder) -> torch.Tensor:
    """Return a tensor of the logical shape, computed by a copy on meta: nothing is updated."""
    if holder.storage != "parametrized":
        return holder.parameters[-1]
    parametrization = holder.owner.get_submodule(f"parametrizations.{holder.attribute}")
    held = (*parametrization.parameters(), *parametrization.buffers())
    with torch.no_grad():
        on_meta: dict[int, Any] = {id(t): torch.empty_like(t, device="meta") for t in held}
        tensor: torch.Tensor = copy.deepcopy(parametrization, on_meta)()
    return tensor
