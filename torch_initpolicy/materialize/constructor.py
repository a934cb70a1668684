"""What a model's own constructor draws, as steps: recorded by `skip_init` or found by a rebuild."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from torch_initpolicy.deferred.undrawn import as_constructed, pending_of
from torch_initpolicy.errors import InitPolicyWarning, counted, listing, warn
from torch_initpolicy.materialize.restore import origins
from torch_initpolicy.materialize.search import Lost, Origin
from torch_initpolicy.sites import Site
from torch_initpolicy.steps import Step
from torch_initpolicy.tensors.initializers import AsConstructed, Constant, Keep, Ones, Zeros
from torch_initpolicy.writing.verify import measure_steps


def constructor_steps(
    steps: Sequence[Step], found: Sequence[Site], model: nn.Module, known: Mapping[str, Origin]
) -> tuple[Step, ...]:
    """Put the constructor's distributions where steps ask for them, or keep what was skipped.

    Warns:
        InitPolicyWarning: A constructor computes values from what it draws; those stay as they
            are.
    """
    pairs = list(zip(found, steps, strict=True))
    skipped = {site.name for site in found if pending_of(site.parameters[0]) is not None}
    asked = [site for site, step in pairs if step.initializer == AsConstructed()]
    open_ = [site for site in asked if site.name not in known and site.name not in skipped]
    told = {**known, **origins(model, map(_as_lost, open_))} if open_ else known
    if skipped:  # what is not what a rebuild says was set beside the draws that were skipped
        told = {name: origin._replace(is_guess=True) for name, origin in told.items()}
    made = tuple(_carried_out(site, step, told) for site, step in pairs)
    if skipped:
        return tuple(replace(s, reason=_SET) if s.reason == _OPEN else s for s in made)
    _warn_of_open(site for site, step in zip(found, made, strict=True) if step.reason == _OPEN)
    return made


def only_constructed(
    steps: Sequence[Step], found: Sequence[Site], model: nn.Module, known: Mapping[str, Origin]
) -> tuple[Step, ...]:
    """Put the constructor's distributions where steps ask for them, and leave all others."""
    asks = [step.initializer == AsConstructed() for step in steps]
    if not any(asks):
        return tuple(steps)
    made = constructor_steps(steps, found, model, known)
    return tuple(new if asked else old for asked, old, new in zip(asks, steps, made, strict=True))


def _as_lost(site: Site) -> Lost:
    module = site.name.rpartition(".")[0]
    return Lost(module, site.owner, site.attribute, torch.Size(site.shape))


def _carried_out(site: Site, step: Step, rebuilt: Mapping[str, Origin]) -> Step:
    wanted = step.initializer == AsConstructed()
    pending = pending_of(site.parameters[0]) if step.keeps or wanted else None
    if pending is not None:
        return as_constructed(step, pending)
    if not wanted:
        return step
    unknown = replace(step, initializer=Keep(), reason=_OPEN)
    origin = rebuilt.get(site.name)
    if origin is None:
        return unknown
    if origin.pending is not None:
        made = as_constructed(step, origin.pending)
    else:
        made = _with_value(site, step, origin)
    is_open = origin.is_guess and site.device.type != "meta" and not made.keeps
    return unknown if is_open and not measure_steps([(site, made)]).ok else made


_OPEN = "kept: building the model once more does not tell what its constructor draws here"
_SET = "kept: as it was set where other draws were skipped"


def _with_value(site: Site, step: Step, origin: Origin) -> Step:
    """Return the step for values that the constructor computes: a constant, or what is there."""
    value = origin.value
    if value is not None and value.numel() and bool((value == value.flatten()[0]).all()):
        number = float(value.flatten()[0])
        constant = {0.0: Zeros(), 1.0: Ones()}.get(number, Constant(number))
        return replace(step, initializer=constant, std=0.0, reason=f"as {origin.source} has it")
    own = site.parameters[0]
    same = value is not None and (own.is_meta or torch.equal(own.detach().cpu(), value))
    return replace(
        step, initializer=Keep(), reason=f"kept: {origin.source} computes it" if same else _OPEN
    )


def _warn_of_open(kept: Iterator[Site]) -> None:
    cases = [f"{site.name!r} ({site.kind}, shape {site.shape})" for site in kept]
    if cases:
        warn(
            f"{counted(len(cases), 'parameter')} stay as they are: their constructor computes them "
            f"from what it draws, or cannot be called again:\n{listing(cases)}\n"
            "build the model under skip_init(), or on the meta device and materialize it",
            InitPolicyWarning,
        )
