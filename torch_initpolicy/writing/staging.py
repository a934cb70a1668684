"""Staging: the values that are not drawn in place, computed before anything is written.

Here is all that may fail: callables of the user, matrices that are built as a whole, and
parametrisations that must be inverted.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count

import torch
from torch import Tensor

from torch_initpolicy.errors import ApplyError, listing
from torch_initpolicy.policy.rules import WEIGHTS_ONLY, is_blanket
from torch_initpolicy.sites import Site
from torch_initpolicy.tensors.base import dtype_name, widened
from torch_initpolicy.tensors.initializers import From
from torch_initpolicy.tensors.samplers import Joint
from torch_initpolicy.writing.blocks import Job, Workspace, blocks_drawn, draws_of, normals
from torch_initpolicy.writing.commit import Write
from torch_initpolicy.writing.crew import Crew
from torch_initpolicy.writing.journal import Journal
from torch_initpolicy.writing.parametrized import Behind, parameters_behind, reading, store
from torch_initpolicy.writing.shards import Piece, multiply_, whole
from torch_initpolicy.writing.streams import isolated


def staged(jobs: Sequence[Job], workers: Crew[Workspace], own: Workspace) -> list[Write]:
    """Compute what is not drawn in place; return what writes it.

    Code of the user runs in this thread, with the workspace `own`.
    """
    threaded, serial = split((job for job in jobs if not job.is_direct), _is_threaded)
    threaded.sort(key=lambda job: -math.prod(job.site.shape))
    found: dict[str, Write | ApplyError] = {}

    def stage(job: Job, workspace: Workspace) -> None:
        found[job.site.name] = _attempted(job, workspace)

    workers.finish(lambda: workers.share((partial(stage, job) for job in threaded), stops=True))
    for job in serial:
        stage(job, own)
    found.update(_idle(serial, found, own))
    outcomes = [(job, found[job.site.name]) for job in (*threaded, *serial)]
    errors = [outcome for _, outcome in outcomes if isinstance(outcome, ApplyError)]
    if errors:
        failed = [job for job, outcome in outcomes if isinstance(outcome, ApplyError)]
        lines = "nothing was written:", listing(list(map(str, errors))), *_advice(failed)
        raise ApplyError("\n".join(lines)) from errors[0]
    return [write for _, write in outcomes if not isinstance(write, ApplyError)]


def _idle(
    jobs: Iterable[Job], found: Mapping[str, Write | ApplyError], workspace: Workspace
) -> Iterator[tuple[str, ApplyError]]:
    """Yield an error for each site of a function that ran and wrote to none of them."""
    called = [job for job in jobs if isinstance(job.step.initializer, From)]
    failed = {_function(job) for job in called if isinstance(found[job.site.name], ApplyError)}
    for job in called:
        if _function(job) not in failed | workspace.wrote:
            yield job.site.name, _refused(job, "left it as it was")


def _function(job: Job) -> int:
    """Identify a function of the user; it need not be hashable."""
    initializer = job.step.initializer
    return id(initializer.function if isinstance(initializer, From) else initializer)


def _advice(failed: Sequence[Job]) -> Iterator[str]:
    """Yield what would help with many failures at once."""
    if all(isinstance(job.step.initializer, From) for job in failed):
        yield "a rule's function fills the tensor it gets; one that takes modules: model.apply(f)"
    functions = any(isinstance(job.step.initializer, From) for job in failed)
    if functions and all(is_blanket(job.step.rule, job.step.role) for job in failed):
        yield WEIGHTS_ONLY


def split(jobs: Iterable[Job], test: Callable[[Job], bool]) -> tuple[list[Job], list[Job]]:
    """Part the jobs that pass a test from those that do not."""
    parts: tuple[list[Job], list[Job]] = ([], [])
    for job in jobs:
        parts[not test(job)].append(job)
    return parts


def _is_threaded(job: Job) -> bool:
    """Tell whether any thread may compute a job."""
    return job.is_own_work and job.origin.type == "cpu"


def _attempted(job: Job, workspace: Workspace) -> Write | ApplyError:
    """Compute a job's values aside, or say why not."""
    try:
        if _is_threaded(job):
            return _prepare(job, workspace)
        with isolated(job.origin, workspace.key(job, _GLOBAL)):
            return _prepare(job, workspace)
    except ApplyError as error:
        return error
    except Exception as error:  # noqa: BLE001 - whatever a user's callable may raise
        failure = _refused(job, f"raised {error!r}")
        failure.__cause__ = error
        return failure


_GLOBAL = 1 << 63
"""Salt of the stream that stands in for torch's global generators."""


def _prepare(job: Job, workspace: Workspace) -> Write:
    aside = _aside(job, workspace)
    wrong = sum(int(widened(piece.tensor).isfinite().logical_not().sum()) for piece in aside)
    if wrong:
        share = f"{wrong} of {sum(piece.tensor.numel() for piece in aside)} elements"
        raise _refused(job, f"gives {share} that are not finite in {dtype_name(job.site.dtype)}")
    zero_padding(job, aside)
    if job.site.storage != "plain":
        return partial(store, job.site, _values_behind(job, aside[0].tensor))
    multiply_(aside, job.step.factors)
    places = zip(job.held, aside, strict=True)
    return partial(_place, [(place.tensor, piece.tensor) for place, piece in places])


def _aside(job: Job, workspace: Workspace) -> list[Piece]:
    """Compute what this process holds of a job's values; all of it behind a parametrisation."""
    if job.draws and job.site.storage == "plain":
        aside = [replace(piece, tensor=torch.empty_like(piece.tensor)) for piece in job.held]
        for task in chain.from_iterable(draws_of(job, piece) for piece in aside):
            task(workspace)
        return aside
    target = _target(job, workspace).to(job.site.device, job.site.dtype)
    if job.site.storage != "plain":
        return [whole(target)]
    return [replace(piece, tensor=_compact(piece.part_of(target))) for piece in job.held]


def _values_behind(job: Job, target: Tensor) -> Behind:
    """Find what lies behind a parametrised site, multiplied after it has been filled if need be."""
    try:
        found = parameters_behind(job.site, target, job.step.frozen)
        if not job.step.factors:
            return found
        multiplied = found.reading.clone()
        multiply_([whole(multiplied)], job.step.factors)
        return parameters_behind(job.site, multiplied, job.step.frozen)
    except ApplyError as error:
        raise ApplyError(f"{_named(job.site)}: {error}") from error


def _compact(part: Tensor) -> Tensor:
    """Return a part that keeps no more memory alive than it needs."""
    return part if part.nbytes == part.untyped_storage().nbytes() else part.clone()


def _place(parts: Iterable[tuple[Tensor, Tensor]], journal: Journal) -> None:
    for place, values in parts:
        journal.write(place, values)


def _target(job: Job, workspace: Workspace) -> Tensor:
    """Return the whole logical tensor that a job asks for."""
    if job.draws:
        return blocks_drawn(job, workspace)
    sampler = job.step.initializer.sampler(job.site.shape, job.step.axes)
    if isinstance(sampler, Joint):
        return sampler.build(partial(normals, job, workspace, count()))
    return _by_callable(job, workspace)


def _by_callable(job: Job, workspace: Workspace) -> Tensor:
    """Let code of the user fill a copy of what the site holds now."""
    now = reading(job.site).to(job.origin, job.working)
    copy = now.clone(memory_format=torch.contiguous_format)
    version = copy._version  # noqa: SLF001 - torch's count of writes, documented beside autograd
    job.step.initializer(copy, job.step.axes, generator=workspace.stream(job)(0))
    made, wanted = map(_in_words, (copy, now))
    if made != wanted:
        raise _refused(job, f"made {made} of a tensor {wanted}")
    counted = copy._version > version  # noqa: SLF001
    if counted or not torch.equal(copy, now) or _writes(job, now):
        workspace.wrote.add(_function(job))
    return copy


def _writes(job: Job, now: Tensor) -> bool:
    """Say whether a function writes what torch does not count, as through `.data`."""
    other = now + 1
    job.step.initializer(copy := other.clone(), job.step.axes)
    return not torch.equal(copy, other)


def _in_words(tensor: Tensor) -> str:
    return f"of shape {tuple(tensor.shape)}, {dtype_name(tensor.dtype)}, on {tensor.device}"


def _refused(job: Job, why: str) -> ApplyError:
    return ApplyError(f"{_named(job.site)}: {job.step.initializer} {why}")


def _named(site: Site) -> str:
    return f"{site.name!r} ({site.kind}, {site.shape})"


def zero_padding(job: Job, held: Iterable[Piece]) -> None:
    """Zero the row of an embedding that stands for nothing."""
    row = job.step.padding
    if row is None:
        return
    for piece in held:
        first = piece.box[0].start
        piece.tensor[max(row - first, 0) : max(row + 1 - first, 0)].zero_()
