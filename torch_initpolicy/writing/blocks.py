"""Drawing: the blocks of a tensor as tasks, and what a thread draws them with.

Drawing a block cannot fail: all that could is looked for before.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import cast

import torch
from torch import Tensor

from torch_initpolicy.sites import Site
from torch_initpolicy.steps import Step
from torch_initpolicy.tensors.samplers import Draw, fill_with
from torch_initpolicy.writing.shards import Piece, multiply_, whole
from torch_initpolicy.writing.streams import BLOCK, Seek, key, keys, seeker

Task = Callable[["Workspace"], None]
"""A piece of work that draws with the workspace of the thread that does it."""


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A site that is to be written.

    Its numbers are drawn on the device `origin`, in the dtype `working`, from the distributions
    `draws` of its packed blocks, none where it is not element-wise. This process has the pieces
    `held` of it, none where it is parametrised.
    """

    site: Site
    step: Step
    origin: torch.device
    held: tuple[Piece, ...]
    draws: tuple[Draw, ...]
    working: torch.dtype

    @property
    def is_own_work(self) -> bool:
        """Whether no code but this package's runs, which any thread may do."""
        initializer = self.step.initializer
        plain = self.site.storage == "plain" and not initializer.is_opaque
        return plain and not initializer.is_foreign

    @property
    def is_direct(self) -> bool:
        """Whether it can be written element by element, in place, and without failing."""
        return len(self.draws) > 0 and self.is_own_work

    @property
    def constant(self) -> float | None:
        """The one value that all elements get, or None."""
        first, *others = {draw.spread for draw in self.draws}
        return first.mean if first.std == 0 and not others else None


# Threads


class Workspace:
    """What one thread draws with: a generator and room for one block on each device."""

    def __init__(self, seed: int, devices: Iterable[torch.device]) -> None:
        self.drawn = 0
        self.wrote: set[int] = set()  # functions of the user, by their `id`
        self._seed = seed
        self._seeks: dict[torch.device, Seek] = {device: seeker(device) for device in devices}
        self._rooms = {
            device: torch.empty(_ROOM, dtype=torch.uint8, device=device) for device in self._seeks
        }

    def key(self, job: Job, salt: int) -> int:
        """Return the key of the first block of one of a job's streams."""
        return key(self._seed, job.site.name, 0, salt=salt)

    def stream(self, job: Job, salt: int = 0) -> Seek:
        """Return a function from the number of a block to the generator at the block's start."""
        seek, of = self._seeks[job.origin], keys(self._seed, job.site.name, salt=salt)
        return lambda block: seek(of(block))

    def room(self, job: Job, count: int) -> Tensor:
        """Return undefined memory for `count` elements, until the next call."""
        return self._rooms[job.origin][: count * job.working.itemsize].view(job.working)


_ROOM = BLOCK * torch.complex128.itemsize
_WORTH = 4
"""Blocks of work that make up for starting a thread."""


def workspaces_for(seed: int, jobs: Sequence[Job], threads: int) -> list[Workspace]:
    """Return one workspace per thread that has something to do."""
    elements = sum(math.prod(job.site.shape) for job in jobs)
    threads = max(1, min(threads, elements // (BLOCK * _WORTH)))
    devices = {job.origin for job in jobs}
    processor = {device for device in devices if device.type == "cpu"}
    return [Workspace(seed, devices), *(Workspace(seed, processor) for _ in range(threads - 1))]


# Blocks


def tasks_of(job: Job) -> Iterator[Task]:
    """Yield the work on one site: a fill where all values are one, else a draw for each block."""
    if job.constant is not None:
        yield partial(_fill_all, job.held, job.constant)
        return
    yield from chain.from_iterable(draws_of(job, piece) for piece in job.held)


def _fill_all(held: Iterable[Piece], value: float, workspace: Workspace) -> None:
    for piece in held:
        piece.tensor.fill_(value)


def draws_of(job: Job, piece: Piece) -> Iterator[Task]:
    """Yield the drawing of all blocks of a piece, in place where memory is what they look like."""
    flat = piece.flat if _is_as_drawn(piece.tensor, job) else None
    inside = range(0) if flat is None else _whole_blocks(piece)
    for blocks in _batches(inside, _VIEWED):
        start, stop = (number * BLOCK - piece.run.start for number in (blocks.start, blocks.stop))
        views = torch.split(cast("Tensor", flat)[start:stop], BLOCK)
        for few in _batches(range(len(views)), _AT_ONCE):
            first = blocks.start + few.start
            yield partial(_draw_blocks, job, first, views[few.start : few.stop])
    outside = (block for block in piece.blocks(BLOCK) if block not in inside)
    yield from (partial(_draw_aside, job, piece, block) for block in outside)


_AT_ONCE = 4
"""Blocks that a thread takes at once: fewer cost more, more leave threads idle at the end."""

_VIEWED = 64
"""Blocks whose views are made at once; all views of a large tensor would take megabytes."""


def _is_as_drawn(tensor: Tensor, job: Job) -> bool:
    """Tell whether a job's numbers can be drawn where they belong, and mean there what they say."""
    same = tensor.dtype == job.working and tensor.device == job.origin
    return same and not tensor.is_conj() and not tensor.is_neg()


def _whole_blocks(piece: Piece) -> range:
    """Return the blocks that lie within a piece; the last block of a tensor may be short."""
    start, stop = piece.run.start, piece.run.stop
    return range(-(-start // BLOCK), -(-stop // BLOCK) if stop == piece.elements else stop // BLOCK)


def _batches(numbers: range, size: int) -> Iterator[range]:
    return (numbers[at : at + size] for at in range(0, len(numbers), size))


def _draw_blocks(job: Job, first: int, views: Sequence[Tensor], workspace: Workspace) -> None:
    """Draw consecutive blocks, each into its own tensor."""
    shape, axes, stream = job.site.shape, job.step.axes, workspace.stream(job)
    for block, values in enumerate(views, first):
        generator = stream(block)
        fill_with(job.draws, values, shape, axes, start=block * BLOCK, generator=generator)
    workspace.drawn += len(views)


def _draw_aside(job: Job, piece: Piece, block: int, workspace: Workspace) -> None:
    """Draw a block aside, and write what the piece holds of it."""
    start = block * BLOCK
    values = workspace.room(job, min(BLOCK, piece.elements - start))
    _draw_blocks(job, block, [values], workspace)
    piece.put(values, start)


def rehearse(jobs: Iterable[Job], workspace: Workspace) -> None:
    """Draw one number of each kind aside: what torch cannot do is raised before it is needed."""
    for job in {_kind(job): job for job in jobs if math.prod(job.site.shape)}.values():
        tensor = torch.empty(1, dtype=job.site.dtype, device=job.site.device)
        values = workspace.room(job, 1)
        generator = workspace.stream(job)(0)
        fill_with(job.draws, values, job.site.shape, job.step.axes, generator=generator)
        tensor.copy_(values)
        multiply_([whole(tensor.fill_(0.0))], job.step.factors[:1])


def _kind(job: Job) -> tuple[object, ...]:
    """Return what decides which of torch's kernels write a job."""
    standards = frozenset(type(draw.standard) for draw in job.draws)
    return job.origin, job.site.device, job.site.dtype, standards, len(job.draws) > 1


def blocks_drawn(job: Job, workspace: Workspace) -> Tensor:
    """Draw all blocks of a tensor that is written otherwise than in place."""
    target = torch.empty(job.site.shape, dtype=job.working, device=job.origin)
    for task in draws_of(job, whole(target)):
        task(workspace)
    return target


def normals(job: Job, workspace: Workspace, salts: Iterator[int], shape: Sequence[int]) -> Tensor:
    """Draw standard normals from the next stream of the job at each call."""
    stream = workspace.stream(job, next(salts))
    values = torch.empty(shape, dtype=job.working, device=job.origin)
    for block, part in enumerate(torch.split(values.view(-1), BLOCK)):
        part.normal_(generator=stream(block))
    return values
