"""What lies behind a parametrised weight, found without touching the model."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from torch_initpolicy.errors import ApplyError
from torch_initpolicy.sites import Site, Storage
from torch_initpolicy.writing.journal import Journal
from torch_initpolicy.writing.shards import full, is_sharded, pieces

LAST_PLACES = 64
"""Units in the last place, of the largest value, by which a weight may read back changed."""

Hook = TypeVar("Hook", WeightNorm, SpectralNorm)


@dataclass(frozen=True, slots=True, eq=False)
class Behind:
    """What must lie behind a site for it to read as some target.

    There is one whole logical tensor for each of the site's parameters, what the site then reads
    as, and the buffers of the parametrisations that belong to these values.
    """

    values: tuple[Tensor, ...]
    reading: Tensor
    buffers: tuple[tuple[nn.Module, str, Tensor], ...] = ()


def parameters_behind(site: Site, target: Tensor, frozen: Collection[str] = ()) -> Behind:
    """Find what must be written behind a parametrised site for it to read as `target`.

    Parameters of the names `frozen` stay as they are, so that the site reads as something else in
    the end: of a frozen gain it takes the direction of the target alone.

    Raises:
        ApplyError: The parametrisation has no inverse, or reading it back gives something else
            than the target, rounding apart; or what is frozen makes numbers of its zeros.
    """
    found = _SOLVERS[site.storage](site, target)
    if [value.shape for value in found.values] != [held.shape for held in site.parameters]:
        raise _unreachable(site, f"its inverse gives {[tuple(v.shape) for v in found.values]}")
    error, scale = (_peak(tensor) for tensor in (found.reading - target, target))
    if not error <= LAST_PLACES * torch.finfo(target.dtype).eps * scale:
        raise _unreachable(site, f"it would read back with an error of {error:.3g}")
    return _with_frozen(site, found, target, frozen) if frozen else found


def _with_frozen(site: Site, found: Behind, target: Tensor, frozen: Collection[str]) -> Behind:
    """Put what is frozen in the place of what was found for it."""
    each = zip(site.parts, site.parameters, found.values, strict=True)
    values = tuple(full(held) if name in frozen else value for name, held, value in each)
    read = _READERS[site.storage](site, values)
    if bool(((target == 0) & (read != 0)).any()):
        raise _unreachable(site, f"zeros need another {', '.join(frozen)}, which is frozen")
    return replace(found, values=values, reading=read)


def direction(site: Site, frozen: Collection[str]) -> Tensor | None:
    """Return the trained part of a partly frozen site that holds what was drawn; None if none does.

    It is the part that the inverse hands on as it is: of `g * v / |v|` the `v`.
    """
    parts = [p for name, p in zip(site.parts, site.parameters, strict=True) if name not in frozen]
    for part in (full(p) for p in parts if p.shape == site.shape):
        try:
            values = parameters_behind(site, 2 * part).values
        except ApplyError:
            continue
        if any(value.shape == part.shape and torch.equal(value, 2 * part) for value in values):
            return part
    return None


def store(site: Site, found: Behind, journal: Journal) -> None:
    """Write what lies behind a parametrised site, this process' part of it where it is sharded."""
    for parameter, value in zip(site.parameters, found.values, strict=True):
        for piece in pieces(parameter):
            journal.write(piece.tensor, piece.part_of(value))
    for module, name, value in found.buffers:
        journal.assign(module._buffers, name, value)  # noqa: SLF001 - may be None, and is no more
    # The hook computes it anew before every forward pass; this is for whoever looks before that.
    if site.storage != "parametrized" and not any(map(is_sharded, site.parameters)):
        journal.assign(vars(site.owner), site.attribute, found.reading)


def reading(site: Site) -> Tensor:
    """Return what a site reads as, its whole logical tensor, and leave the model as it is.

    A sharded tensor is gathered, so every process of its mesh must ask.
    """
    values = tuple(full(parameter) for parameter in site.parameters)
    if site.storage == "plain":
        return values[0]
    return _READERS[site.storage](site, values)


def _peak(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def _unreachable(site: Site, why: str) -> ApplyError:
    return ApplyError(
        f"cannot be given these values through its parametrisation {_kind_of(site)}: {why}; "
        "initialise the model before applying the parametrisation, or leave it out with "
        f"skip=[{site.name!r}]"
    )


def _kind_of(site: Site) -> str:
    if site.storage != "parametrized":
        return f"torch.nn.utils.{site.storage}"
    # Torch's own are private classes behind public functions; the underscore is no help.
    return " of ".join(type(module).__name__.lstrip("_") for module in reversed(_chain(site)))


# torch.nn.utils.parametrize


def _chain(site: Site) -> list[nn.Module]:
    """Return the parametrisations of a site, the one nearest to the originals first."""
    listed = site.owner.get_submodule(f"parametrizations.{site.attribute}")
    return [module for name, module in listed.named_children() if name.isdigit()]


def _solve_parametrized(site: Site, target: Tensor) -> Behind:
    originals = _chain(site)
    chain = copy.deepcopy(originals)
    value: Tensor | Sequence[Tensor] = target
    for module in reversed(chain):
        value = _right_inverse(site, module, value)
    values = (value,) if isinstance(value, Tensor) else tuple(value)
    buffers = tuple(
        (original, name, buffer.clone())
        for original, module in zip(originals, chain, strict=True)
        for name, buffer in module.named_buffers(recurse=False)
    )
    return Behind(values, _run_chain(chain, values), buffers)


def _right_inverse(
    site: Site, module: nn.Module, value: Tensor | Sequence[Tensor]
) -> Tensor | Sequence[Tensor]:
    inverse = getattr(module, "right_inverse", None)
    if inverse is None:
        raise _unreachable(site, f"{type(module).__name__} has no right_inverse")
    try:
        found: Tensor | Sequence[Tensor] = inverse(value)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        raise _unreachable(site, f"its right_inverse says: {error}") from error
    return found


def _read_parametrized(site: Site, values: Sequence[Tensor]) -> Tensor:
    return _run_chain(copy.deepcopy(_chain(site)), values)


def _run_chain(chain: Sequence[nn.Module], values: Sequence[Tensor]) -> Tensor:
    read: Tensor = chain[0](*values)
    for module in chain[1:]:
        read = module(read)
    return read


# The hooks of torch.nn.utils.weight_norm and spectral_norm


def _legacy_hook(site: Site, kind: type[Hook]) -> Hook:
    hooks = site.owner._forward_pre_hooks.values()  # noqa: SLF001 - the hook's only trace
    return next(hook for hook in hooks if isinstance(hook, kind) and hook.name == site.attribute)


def _solve_weight_norm(site: Site, target: Tensor) -> Behind:
    """Solve `weight = g * v / |v|`: g is the norm, and a row of zeros takes any v but zero."""
    g = torch.norm_except_dim(target, 2, _legacy_hook(site, WeightNorm).dim)
    v = torch.where(g == 0, torch.ones_like(target), target)
    return Behind((g, v), _read_weight_norm(site, (g, v)))


def _read_weight_norm(site: Site, values: Sequence[Tensor]) -> Tensor:
    g, v = values
    dim = _legacy_hook(site, WeightNorm).dim
    return torch._weight_norm(v, g, dim)  # noqa: SLF001 - what the hook itself computes


def _solve_spectral_norm(site: Site, target: Tensor) -> Behind:
    """Solve `weight = original / sigma`: possible only where the target's sigma is 1."""
    return Behind((target,), _read_spectral_norm(site, (target,)))


def _read_spectral_norm(site: Site, values: Sequence[Tensor]) -> Tensor:
    twin = nn.Module()
    twin.register_buffer(f"{site.attribute}_orig", values[0])
    for name in (f"{site.attribute}_u", f"{site.attribute}_v"):
        twin.register_buffer(name, site.owner.get_buffer(name).clone())
    hook = _legacy_hook(site, SpectralNorm)
    return hook.compute_weight(twin, do_power_iteration=site.owner.training)


_SOLVERS: Mapping[Storage, Callable[[Site, Tensor], Behind]] = {
    "parametrized": _solve_parametrized,
    "weight_norm": _solve_weight_norm,
    "spectral_norm": _solve_spectral_norm,
}

_READERS: Mapping[Storage, Callable[[Site, Sequence[Tensor]], Tensor]] = {
    "parametrized": _read_parametrized,
    "weight_norm": _read_weight_norm,
    "spectral_norm": _read_spectral_norm,
}
