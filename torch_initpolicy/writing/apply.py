"""The only writer: carries out steps on the tensors of their sites.

First everything that could fail is looked for or computed aside. Then the model is written as one
commit, in threads that nothing interrupts: what was computed aside first, with a journal that
undoes it, then what is drawn in place, block by block. Processes that hold the model together
commit together, or not at all.

Beside the model this takes the staged tensors, which become the journal as they are written, the
old values of what is drawn in place where they fit into 64 MiB (`journal.ROOM`), and 1 MiB a
thread.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from torch_initpolicy.deferred.skip import opened
from torch_initpolicy.deferred.undrawn import mark_filled
from torch_initpolicy.errors import ApplyError, PolicyError, listing
from torch_initpolicy.sites import Site, canonical_modules
from torch_initpolicy.steps import Step, misfit
from torch_initpolicy.tensors.base import working_dtype
from torch_initpolicy.tensors.layers import buffers_of
from torch_initpolicy.tensors.memory import own_memory
from torch_initpolicy.tensors.samplers import Independent
from torch_initpolicy.writing.blocks import Job, Workspace, rehearse, tasks_of, workspaces_for
from torch_initpolicy.writing.commit import Write, commit, plainly
from torch_initpolicy.writing.crew import Crew, crew
from torch_initpolicy.writing.drawing import Drawing
from torch_initpolicy.writing.forward import hook_multipliers
from torch_initpolicy.writing.journal import Journal, fits
from torch_initpolicy.writing.obstacles import obstacles, shared
from torch_initpolicy.writing.ranks import process_groups, same_everywhere, together
from torch_initpolicy.writing.shards import multiply_, pieces
from torch_initpolicy.writing.staging import split, staged, zero_padding
from torch_initpolicy.writing.streams import draws_on


@dataclass(frozen=True, slots=True)
class Written:
    """What one call wrote, and how.

    Attributes:
        seed: The seed, also where none was given.
        names: Canonical names of the sites that were written.
        devices: Types of the devices on which numbers were drawn.
        blocks: Blocks that this process drew; of a sharded tensor those it holds a part of.
        seconds: What it took, from the first check to the last write.
    """

    seed: int
    names: tuple[str, ...]
    devices: tuple[str, ...]
    blocks: int
    seconds: float


def apply_steps(
    pairs: Iterable[tuple[Site, Step]], drawing: Drawing, *, model: nn.Module | None = None
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
            aside = _resets(model, {site.owner: not step.keeps for site, step in known})
            aside += staged(jobs, workers, workspaces[0])
        phases = partial(_put_aside, jobs, aside, workers), partial(_put_drawn, jobs, workers)
        commit(phases, groups, workers, partial(_mark_filled, jobs))
        if model is not None:
            hook_multipliers(model, known)
    return Written(
        seed=seed,
        names=tuple(job.site.name for job in jobs),
        devices=tuple(sorted({job.origin.type for job in jobs})),
        blocks=sum(workspace.drawn for workspace in workspaces),
        seconds=time.perf_counter() - started,
    )


# What is to be written


def _jobs(pairs: Iterable[tuple[Site, Step]], draw_on: torch.device | str | None) -> list[Job]:
    """Return what is to be written, or raise with every site that cannot be."""
    written = [(site, step) for site, step in pairs if not step.keeps]
    jobs, cases = [], []
    for site, step in written:
        try:
            jobs.append(_job(site, step, draw_on))
        except (ApplyError, PolicyError) as error:  # noqa: PERF203 - all are collected
            cases.append(f"{site.name!r} {error}")
    cases += shared(site for site, _ in written)
    if cases:
        raise ApplyError(f"nothing was written:\n{listing(cases)}")
    return jobs


def _job(site: Site, step: Step, draw_on: torch.device | str | None) -> Job:
    for reason in _obstacles(site, step):
        raise ApplyError(reason)
    sampler = step.initializer.sampler(step.shape, step.axes)
    draws = sampler.draws if isinstance(sampler, Independent) else ()
    working = working_dtype(site.dtype)
    lost = misfit((draw.spread for draw in draws), site.dtype)
    if lost is not None:
        raise ApplyError(f"({step.initializer}): {lost}")
    origin = torch.device(draw_on or draws_on(site.device))
    held = pieces(site.parameters[0]) if site.storage == "plain" else ()
    return Job(site, step, origin, held, draws, working)


def _obstacles(site: Site, step: Step) -> Iterator[str]:
    """Yield what keeps a site from being written by a step."""
    yield from obstacles(site)
    if tuple(step.shape) != site.shape:
        yield f"has shape {site.shape}, its step is for {tuple(step.shape)}; make a new plan"
    if any(map(torch.is_inference, site.owner.buffers(recurse=False))):
        yield "is held by a module whose buffers were made under torch.inference_mode()"


def _resets(model: nn.Module | None, owners: Mapping[nn.Module, bool]) -> list[Write]:
    """Return what resets the running statistics of norms; `owners` says which were written."""
    modules = owners if model is None else [module for _, module in canonical_modules(model)]
    resets: list[Write] = []
    fresh = False
    for module in modules:
        fresh = owners.get(module, fresh)
        for name, value in buffers_of(module).items() if fresh else ():
            resets.append(partial(Journal.write, tensor=module.get_buffer(name), values=value))
    return resets


# Writing


def _put_aside(
    jobs: Sequence[Job], aside: list[Write], workers: Crew[Workspace], journal: Journal
) -> None:
    """Do all that may fail, which can be undone whatever the model's size."""
    _wait_for(jobs)
    workers.lead([partial(rehearse, [job for job in jobs if job.is_direct])])
    drawn = _drawn_in_place(jobs)
    for tensor in drawn:
        own_memory(tensor)
    while aside:
        aside.pop(0)(journal)  # lets go of its memory
    for tensor in drawn if fits(drawn) else ():
        journal.save(tensor)


def _put_drawn(jobs: Sequence[Job], workers: Crew[Workspace], journal: Journal) -> None:
    """Draw in place, which has been rehearsed; should it fail, again: the numbers are the same."""
    journal.is_complete = fits(_drawn_in_place(jobs))
    try:
        _draw(jobs, workers)
    except Exception:  # noqa: BLE001 - raised again where it persists
        _draw(jobs, workers)
    _wait_for(jobs)


def _drawn_in_place(jobs: Iterable[Job]) -> list[Tensor]:
    return [piece.tensor for job in jobs if job.is_direct for piece in job.held]


def _draw(jobs: Iterable[Job], workers: Crew[Workspace]) -> None:
    direct = [job for job in jobs if job.is_direct]
    threaded, serial = split(direct, lambda job: job.origin.type == "cpu")
    workers.share(chain.from_iterable(map(tasks_of, threaded)))
    workers.lead(chain.from_iterable(map(tasks_of, serial)))
    for job in direct:
        zero_padding(job, job.held)
        multiply_(job.held, job.step.factors)


def _mark_filled(jobs: Iterable[Job]) -> None:
    for parameter in (parameter for job in jobs for parameter in job.site.parameters):
        mark_filled(parameter)


def _wait_for(jobs: Iterable[Job]) -> None:
    """Let accelerators finish what they do: each thread has a stream of its own there."""
    for device in {job.site.device for job in jobs if job.site.device.type != "cpu"}:
        torch.accelerator.synchronize(device)
