"""Checks: what could fail when a step is carried out, found before anything is written."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from torch_initpolicy.deferred.undrawn import pending_of
from torch_initpolicy.errors import ApplyError, PlanError, PolicyError, listing, nearest
from torch_initpolicy.sites import Site
from torch_initpolicy.steps import Step, misfit
from torch_initpolicy.tensors.base import Spread, working_dtype
from torch_initpolicy.tensors.initializer import Initializer
from torch_initpolicy.writing.obstacles import obstacles, shared
from torch_initpolicy.writing.parametrized import parameters_behind
from torch_initpolicy.writing.streams import isolated


def check_memory(site: Site) -> None:
    """Raise where a site cannot be written; one without memory can still be planned for."""
    if site.lazy or site.device.type != "meta":
        found = list(obstacles(site))
        if found:
            raise ApplyError(found[0])
    try:
        working_dtype(site.dtype)
    except PolicyError as error:
        raise PolicyError(f"{error}; leave it out with skip=[{site.name!r}]") from error


_ABSURD = 1e30
"""No constructor means a number as large: it is memory that nothing was written to."""


def check_kept(site: Site) -> None:
    """Raise where a policy would keep values that were never written; infinite ones are masks.

    A parameter whose draw was skipped is drawn before it is kept, and holds nothing that counts.
    """
    parameter = site.parameters[0] if len(site.parameters) == 1 else None
    if type(parameter) is not nn.Parameter or parameter.is_meta or not site.dtype.is_floating_point:
        return
    if pending_of(parameter) is not None:
        return
    with torch.no_grad():
        unfit = parameter.isnan() | ((parameter.abs() > _ABSURD) & parameter.isfinite())
        count = int(unfit.sum())
    if count:
        what = "NaN" if bool(parameter.isnan().any()) else "memory that was never filled"
        raise PolicyError(
            f"{count} of its {parameter.numel()} elements are {what}, and the policy keeps them; "
            f"fill it where it is made, or write a rule: Rule(match.name({site.name!r}), Zeros())"
        )


def overwritten(found: Sequence[Site], steps: Sequence[Step]) -> Iterator[str]:
    """Yield which sites would be written over by each other."""
    written = {step.name for step in steps if not step.keeps}
    return shared(site for site in found if site.name in written)


def check_range(initializer: Initializer, spreads: Sequence[Spread], dtype: torch.dtype) -> None:
    """Raise where a site's dtype cannot hold what would be drawn for it."""
    reason = misfit(spreads, dtype)
    if reason is not None:
        raise PolicyError(f"{initializer}: {reason}")


def check_reachable(site: Site, step: Step) -> None:
    """Raise where the parametrisation of a site cannot be given such values, judged by a sample."""
    if site.device.type == "meta" or step.initializer.is_opaque:
        return
    with torch.inference_mode(mode=False), torch.no_grad(), isolated(site.device, 0):
        sample = torch.empty(site.shape, dtype=working_dtype(site.dtype), device=site.device)
        generator = torch.Generator(site.device).manual_seed(0)
        step.initializer(sample, step.axes, generator=generator)
        parameters_behind(site, sample.to(site.dtype))


Names = str | Mapping[str, str] | Callable[[str], str]
"""What the parameters of a part are called in the whole model: a prefix of all their names, names
there by names here (of parameters or of modules), or a function of a name."""


def named_in_whole(names: Names, name: str) -> str:
    """Return what a parameter of a part is called in the whole model.

    Examples:
        >>> named_in_whole("encoder", "0.weight"), named_in_whole({"layers.0": "layers.4"}, "head")
        ('encoder.0.weight', 'head')
        >>> named_in_whole({"layers.0": "layers.4"}, "layers.0.bias")
        'layers.4.bias'
    """
    given: object = names
    if callable(names):
        return str(names(name))
    if isinstance(names, str):
        return f"{names}.{name}" if names else name
    if not isinstance(given, Mapping):
        what = "a prefix, a mapping of names, or a function of a name"
        raise PlanError(f"names says what a part is called in the whole: {what}; got {names!r:.80}")
    inner = name
    while inner and inner not in names:  # the longest name that is known goes first
        inner = inner.rpartition(".")[0]
    return names[inner] + name[len(inner) :] if inner else name


def pairs_of(
    steps: Sequence[Step], found: Sequence[Site], names: Names | None = None
) -> tuple[tuple[Site, Step], ...]:
    """Return each site of a model with its step, or raise where the steps are for another model.

    With `names` the sites are those of a part: each is returned under its name in the whole model,
    and steps may be left over.
    """
    keys = {step.name: (step.name,) if names is None else step.names for step in steps}
    known = {name: step for step in steps for name in keys[step.name]}
    called = {s: s.name if names is None else named_in_whole(names, s.name) for s in found}
    paired = [(site, known[name]) for site, name in called.items() if name in known]
    counts = Counter(step.name for _, step in paired)
    left = () if names is not None else [name for name in known if name not in counts]
    cases = [
        *(f"the model has no parameter {name!r}{nearest(name, called.values())}" for name in left),
        *(
            f"the plan has no step for {name!r}"
            + (f", {site.name!r} here" if name != site.name else "")
            + nearest(name, known)
            for site, name in called.items()
            if name not in known
        ),
        *(case for site, step in paired for case in _misfits(site, step, ties=names is None)),
        *(f"{name!r} is {n} tensors here; tie them" for name, n in counts.items() if n > 1),
    ]
    if cases:
        what = "model" if names is None else "part of the model"
        raise PlanError(f"the plan is not for this {what}:\n{listing(cases)}")
    return tuple((replace(site, name=step.name), step) for site, step in paired)


def _misfits(site: Site, step: Step, *, ties: bool) -> Iterator[str]:
    """Yield in what a site is not that which a step was made for; of a part ties say nothing."""
    if site.shape != step.shape:
        yield f"{step.name!r} has shape {site.shape} here, its step is for {step.shape}"
    elif ties and site.names != step.names:
        yield f"{step.name!r} is tied as {site.names}, its step is for {step.names}"
