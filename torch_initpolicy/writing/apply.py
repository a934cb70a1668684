"""The only writer: carries out steps on the tensors of their sites.

First everything that could fail is looked for or computed aside: memory that cannot be written,
callables of the user, matrices that are built as a whole, parametrisations that must be inverted.
Then the model is written as one commit, in threads that nothing interrupts: what was computed
aside first, with a journal that undoes it, then what is drawn in place, block by block. Processes
that hold the model together commit together, or not at all.

Beside the model this takes the staged tensors, which become the journal as they are written, the
old values of what is drawn in place up to 64 MiB (`journal.ROOM`), and 1 MiB a thread.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, count

import torch
from torch import Tensor, nn

from torch_initpolicy.deferred.skip import opened
from torch_initpolicy.deferred.undrawn import mark_filled
from torch_initpolicy.errors import ApplyError, PolicyError, listing
from torch_initpolicy.policy.rules import WEIGHTS_ONLY, is_blanket
from torch_initpolicy.sites import Site, canonical_modules
from torch_initpolicy.steps import Step, misfit
from torch_initpolicy.tensors.base import dtype_name, working_dtype
from torch_initpolicy.tensors.initializers import From
from torch_initpolicy.tensors.layers import buffers_of
from torch_initpolicy.tensors.samplers import Draw, Independent, Joint
from torch_initpolicy.writing.blocks import (
    Job,
    Workspace,
    drawn,
    normals,
    tasks_of,
    workspaces_for,
)
from torch_initpolicy.writing.commit import Write, commit, plainly
from torch_initpolicy.writing.crew import Crew, crew
from torch_initpolicy.writing.drawing import Drawing
from torch_initpolicy.writing.forward import hook_multipliers
from torch_initpolicy.writing.journal import Journal
from torch_initpolicy.writing.parametrized import Behind, behind, reading, store
from torch_initpolicy.writing.ranks import process_groups, same_everywhere, together
from torch_initpolicy.writing.shards import (
    Piece,
    multiply_,
    obstacles,
    pieces,
    shared,
    whole,
)
from torch_initpolicy.writing.streams import draws_on, isolated


@dataclass(frozen=True, slots=True)
class Written:
    """What one call wrote, and how.

    Attributes:
        seed: The seed, also where none was given.
        names: Canonical names of the sites that were written.
        devices: Types of the devices on which numbers were drawn.
        blocks: Blocks that this process drew; of a sharded tensor those it holds a part of.
        staging: Seconds spent on what was computed before the first write.
        writing: Seconds spent on writing.
    """

    seed: int
    names: tuple[str, ...]
    devices: tuple[str, ...]
    blocks: int
    staging: float
    writing: float


def apply_steps(
    pairs: Iterable[tuple[Site, Step]],
    drawing: Drawing,
    *,
    model: nn.Module | None = None,
) -> Written:
    """Write the values that steps describe into the tensors of their sites.

    The values depend on the seed, the canonical name, the logical shape, the initializer and the
    type of the device they are drawn on; not on threads, processes or what else is written. A
    site whose step says `Keep()` is left alone. Ties are one site and are written once; rows of
    padding become zero; the running statistics of a norm are reset with its weights.

    Args:
        pairs: Each site with its step.
        drawing: How numbers are drawn. Without a seed all processes of a model that is sharded, or
            wrapped by DDP, take that of the first.
        model: The model that the sites are of, for what no site shows: norms without weights, whose
            running statistics are reset together with the weights before them, and DDP.

    Returns:
        What was written.

    Raises:
        ApplyError: Something cannot be written, a callable of the user raised, or a
            parametrisation cannot be given its values. The message lists every case, and the
            model is exactly as it was before.
    """
    started = time.perf_counter()
    known = list(pairs)
    parameters = [parameter for site, _ in known for parameter in site.parameters]
    groups = process_groups(model, parameters)
    with ExitStack() as stack:
        stack.enter_context(opened(parameters))
        stack.enter_context(plainly())
        with together(groups):
            drawing.check()
            jobs = _jobs(known, drawing.draw_on)
            seed = drawing.settled()
        if drawing.seed is None:
            seed = same_everywhere(seed, groups)
        with together(groups):
            workspaces = workspaces_for(seed, jobs, drawing.threads or torch.get_num_threads())
            workers = stack.enter_context(crew(workspaces))
            staged = _resets(model, {site.owner: not step.keeps for site, step in known})
            staged += _staged(jobs, workers, workspaces[0])
        staged_at = time.perf_counter()
        commit(partial(_write, jobs, staged, workers), groups, workers, partial(_mark_filled, jobs))
        if model is not None:
            hook_multipliers(model, known)
    return Written(
        seed=seed,
        names=tuple(job.site.name for job in jobs),
        devices=tuple(sorted({job.origin.type for job in jobs})),
        blocks=sum(workspace.drawn for workspace in workspaces),
        staging=staged_at - started,
        writing=time.perf_counter() - staged_at,
    )


#
# Before anything is computed
#


def _jobs(pairs: Iterable[tuple[Site, Step]], draw_on: torch.device | str | None) -> list[Job]:
    """Return what is to be written.

    Raises:
        ApplyError: Lists every site that cannot be written.
    """
    written = [(site, step) for site, step in pairs if not step.keeps]
    made = [_job_or_why_not(site, step, draw_on) for site, step in written]
    cases = [str(job) for job in made if isinstance(job, ApplyError)]
    cases += shared(site for site, _ in written)
    if cases:
        raise ApplyError(f"nothing was written:\n{listing(cases)}")
    return [job for job in made if isinstance(job, Job)]


def _job_or_why_not(site: Site, step: Step, draw_on: torch.device | str | None) -> Job | ApplyError:
    try:
        return _job(site, step, draw_on)
    except (ApplyError, PolicyError) as error:
        return ApplyError(f"{site.name!r} {error}")


def _job(site: Site, step: Step, draw_on: torch.device | str | None) -> Job:
    for reason in _obstacles(site, step):
        raise ApplyError(reason)
    draws, working = _draws(step), working_dtype(site.dtype)
    lost = misfit((draw.spread for draw in draws), site.dtype)
    if lost is not None:
        raise ApplyError(f"({step.initializer}): {lost}")
    return Job(
        site=site,
        step=step,
        origin=torch.device(draw_on or draws_on(site.device)),
        held=pieces(site.parameters[0]) if site.storage == "plain" else (),
        draws=draws,
        working=working,
    )


def _obstacles(site: Site, step: Step) -> Iterator[str]:
    """Yield what keeps a site from being written by a step."""
    yield from obstacles(site)
    if tuple(step.shape) != site.shape:
        yield f"has shape {site.shape}, its step is for {tuple(step.shape)}; make a new plan"
    if any(map(torch.is_inference, site.owner.buffers(recurse=False))):
        yield "is held by a module whose buffers were made under torch.inference_mode()"


def _draws(step: Step) -> tuple[Draw, ...]:
    """Return the distributions of a step's packed blocks; nothing where it is drawn at once.

    Raises:
        PolicyError: The initializer does not fit the shape or its axes.
    """
    sampler = step.initializer.sampler(step.shape, step.axes)
    return sampler.draws if isinstance(sampler, Independent) else ()


#
# Staging: what could fail
#


def _staged(jobs: Sequence[Job], workers: Crew[Workspace], own: Workspace) -> list[Write]:
    """Compute what is not drawn in place; return what writes it.

    Args:
        jobs: What is to be written.
        workers: Threads for what any thread may compute.
        own: What this thread draws with, for code of the user.

    Raises:
        ApplyError: Lists every site whose values could not be computed.
    """
    threaded, serial = _split((job for job in jobs if not job.is_direct), _is_own_work)
    found: dict[str, Write | ApplyError] = {}

    def stage(job: Job, workspace: Workspace) -> None:
        found[job.site.name] = _attempt(job, workspace)

    threaded.sort(key=lambda job: -math.prod(job.site.shape))
    workers.finish(lambda: workers.share((partial(stage, job) for job in threaded), stops=True))
    for job in serial:
        stage(job, own)
    outcomes = [found[job.site.name] for job in (*threaded, *serial)]
    errors = [error for error in outcomes if isinstance(error, ApplyError)]
    if errors:
        failed = (job for job in jobs if isinstance(found.get(job.site.name), ApplyError))
        lines = [listing(list(map(str, errors))), *_remedies(failed)]
        raise ApplyError("\n".join(("nothing was written:", *lines))) from errors[0]
    return [write for write in outcomes if not isinstance(write, ApplyError)]


def _remedies(failed: Iterable[Job]) -> Iterator[str]:
    """Yield what would help with many failures at once."""
    steps = [job.step for job in failed]
    functions = any(isinstance(step.initializer, From) for step in steps)
    if functions and all(is_blanket(step.rule, step.role) for step in steps):
        yield WEIGHTS_ONLY


def _split(jobs: Iterable[Job], test: Callable[[Job], bool]) -> tuple[list[Job], list[Job]]:
    """Part the jobs that pass a test from those that do not."""
    parts: tuple[list[Job], list[Job]] = ([], [])
    for job in jobs:
        parts[not test(job)].append(job)
    return parts


def _is_own_work(job: Job) -> bool:
    """Tell whether any thread may compute a job: nothing of the user runs, and on the CPU."""
    known = not job.step.initializer.is_opaque
    return known and job.site.storage == "plain" and job.origin.type == "cpu"


def _attempt(job: Job, workspace: Workspace) -> Write | ApplyError:
    """Compute a job's values aside, or say why not."""
    try:
        return _prepared(job, workspace)
    except ApplyError as error:
        return error
    except Exception as error:  # noqa: BLE001 - whatever a user's callable may raise
        failure = _refused(job, f"raised {error!r}")
        failure.__cause__ = error
        return failure


def _prepared(job: Job, workspace: Workspace) -> Write:
    if _is_own_work(job):
        return _prepare(job, workspace)
    with isolated(job.origin, workspace.key(job, _GLOBAL)):
        return _prepare(job, workspace)


_GLOBAL = 1 << 63
"""Salt of the stream that stands in for torch's global generators."""


def _prepare(job: Job, workspace: Workspace) -> Write:
    site = job.site
    target = _target(job, workspace).to(site.device, site.dtype)
    _check_finite(job, target)
    _zero_padding(job, [whole(target)])
    if site.storage != "plain":
        return partial(store, site, _behind(job, target))
    return partial(_place, [(piece, _own(piece.part_of(target))) for piece in job.held])


def _behind(job: Job, target: Tensor) -> Behind:
    """Find what lies behind a parametrised site, multiplied after it has been filled if need be."""
    found = _reached(job, target)
    if not job.step.factors:
        return found
    multiplied = found.reading.clone()
    multiply_([whole(multiplied)], job.step.factors)
    return _reached(job, multiplied)


def _reached(job: Job, target: Tensor) -> Behind:
    """Find what lies behind a site, or raise in its name."""
    try:
        return behind(job.site, target, job.step.frozen)
    except ApplyError as error:
        raise ApplyError(f"{_title(job.site)}: {error}") from error


def _own(part: Tensor) -> Tensor:
    """Return a part that keeps no more memory alive than it needs."""
    return part if part.numel() * part.itemsize == part.untyped_storage().nbytes() else part.clone()


def _target(job: Job, workspace: Workspace) -> Tensor:
    """Return the whole logical tensor that a job asks for."""
    if job.draws:
        return drawn(job, workspace)
    sampler = job.step.initializer.sampler(job.site.shape, job.step.axes)
    if isinstance(sampler, Joint):
        return sampler.build(partial(normals, job, workspace, count()))
    return _called(job, workspace)


def _called(job: Job, workspace: Workspace) -> Tensor:
    """Let code of the user fill a copy of what the site holds now."""
    now = reading(job.site).to(job.origin, job.working)
    copy = now.clone(memory_format=torch.contiguous_format)
    job.step.initializer(copy, job.step.axes, generator=workspace.stream(job)(0))
    made, wanted = ((tuple(t.shape), t.dtype, t.device) for t in (copy, now))
    if made != wanted:
        raise _refused(job, f"made {_described(copy)} of a tensor {_described(now)}")
    return copy


def _described(tensor: Tensor) -> str:
    return f"of shape {tuple(tensor.shape)}, {dtype_name(tensor.dtype)}, on {tensor.device}"


def _check_finite(job: Job, target: Tensor) -> None:
    """Raise where values are not finite, be it for the dtype of the site alone."""
    wrong = int(target.isfinite().logical_not().sum())
    if wrong:
        raise _refused(
            job, f"gives {wrong} of {target.numel()} elements that are not finite in {target.dtype}"
        )


def _refused(job: Job, why: str) -> ApplyError:
    return ApplyError(f"{_title(job.site)}: {job.step.initializer} {why}")


def _title(site: Site) -> str:
    return f"{site.name!r} ({site.kind}, {site.shape})"


def _zero_padding(job: Job, held: Iterable[Piece]) -> None:
    """Zero the row of an embedding that stands for nothing."""
    row = job.step.padding
    if row is None:
        return
    for piece in held:
        first = piece.box[0].start
        piece.tensor[max(row - first, 0) : max(row + 1 - first, 0)].zero_()


#
# Writing
#


def _write(
    jobs: Sequence[Job], staged: list[Write], workers: Crew[Workspace], journal: Journal
) -> None:
    """Write what may fail first, then what is drawn in place."""
    devices = {job.site.device for job in jobs}
    _wait_for(devices)
    while staged:
        staged.pop(0)(journal)  # lets go of its memory
    direct = [job for job in jobs if job.is_direct]
    journal.keep([piece.tensor for job in direct for piece in job.held])
    try:
        _draw(direct, workers)
    except Exception:
        if journal.is_complete:
            raise
        _draw(direct, workers)  # there is no way back, but drawing again gives the same numbers
    for job in (job for job in jobs if job.step.factors and not job.is_direct):
        multiply_(job.held, job.step.factors)
    _wait_for(devices)


def _mark_filled(jobs: Iterable[Job]) -> None:
    for parameter in (parameter for job in jobs for parameter in job.site.parameters):
        mark_filled(parameter)


def _draw(direct: Sequence[Job], workers: Crew[Workspace]) -> None:
    threaded, serial = _split(direct, lambda job: job.origin.type == "cpu")
    workers.share(chain.from_iterable(map(tasks_of, threaded)))
    workers.lead(chain.from_iterable(map(tasks_of, serial)))
    for job in direct:
        _zero_padding(job, job.held)
        if job.step.factors:
            multiply_(job.held, job.step.factors)


def _wait_for(devices: Iterable[torch.device]) -> None:
    """Let accelerators finish what they do: each thread has a stream of its own there."""
    for device in (device for device in devices if device.type != "cpu"):
        torch.accelerator.synchronize(device)


def _place(parts: Iterable[tuple[Piece, Tensor]], journal: Journal) -> None:
    for piece, part in parts:
        journal.write(piece.tensor, part)


def _resets(model: nn.Module | None, owners: Mapping[nn.Module, bool]) -> list[Write]:
    """Return what resets the running statistics of norms.

    Args:
        model: The model, or None where only modules with weights are to be looked at.
        owners: Modules that hold sites, and whether these were written.
    """
    modules = owners if model is None else [module for _, module in canonical_modules(model)]
    resets: list[Write] = []
    fresh = False
    for module in modules:
        fresh = owners.get(module, fresh)
        for name, value in buffers_of(module).items() if fresh else ():
            resets.append(partial(Journal.write, tensor=module.get_buffer(name), values=value))
    return resets
