"""The only writer: carries out steps on the tensors of their sites.

First everything that could fail is looked for or computed aside: memory that cannot be written,
callables of the user, matrices that are built as a whole, parametrisations that must be inverted.
Only then is the model written, by threads that share one list of blocks; from there on nothing is
left that could fail, short of the machine itself. Beside the staged tensors this takes 1 MiB a
thread.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from typing import cast

import torch
from torch import Tensor, distributed, nn

from torch_initpolicy.engine.guard import mark_filled
from torch_initpolicy.engine.parametrized import Behind, behind, reading, store
from torch_initpolicy.engine.steps import Step
from torch_initpolicy.engine.storage import (
    Piece,
    is_sharded,
    obstacles,
    pieces,
    whole,
)
from torch_initpolicy.engine.streams import (
    BLOCK,
    Seek,
    as_seed,
    draws_on,
    isolated,
    key,
    keys,
    seeker,
)
from torch_initpolicy.errors import ApplyError, PolicyError, listing
from torch_initpolicy.sites import Site, canonical_modules
from torch_initpolicy.tensors.elementwise import fill_with
from torch_initpolicy.tensors.initializers import (
    BUILTIN,
    Draw,
    Elementwise,
    From,
    Initializer,
    Structured,
    is_elementwise,
    working_dtype,
)
from torch_initpolicy.tensors.layers import buffers_of

Task = Callable[["Hand"], None]
"""A piece of work that draws with the hand of the thread that does it."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A site that is to be written.

    Attributes:
        site: The site.
        step: What its plan says.
        origin: Device on which its numbers are drawn.
        held: What this process holds of it; nothing where it is parametrised.
        draws: Distributions of its packed blocks, or nothing where it is not element-wise.
        working: The dtype in which its values are computed.
    """

    site: Site
    step: Step
    origin: torch.device
    held: tuple[Piece, ...]
    draws: tuple[Draw, ...]
    working: torch.dtype

    @property
    def is_direct(self) -> bool:
        """Whether it can be written element by element, in place, and without failing."""
        return self.site.storage == "plain" and len(self.draws) > 0

    @property
    def constant(self) -> float | None:
        """The one value that all elements get, or None."""
        first, *others = {draw.spread for draw in self.draws}
        return first.mean if first.std == 0 and not others else None


def apply_steps(
    pairs: Iterable[tuple[Site, Step]],
    seed: int | None = None,
    *,
    threads: int | None = None,
    draw_on: torch.device | str | None = None,
    model: nn.Module | None = None,
) -> Written:
    """Write the values that steps describe into the tensors of their sites.

    The values depend on the seed, the canonical name, the logical shape, the initializer and the
    type of the device they are drawn on; not on threads, processes or what else is written. A
    site whose step says `Keep()` is left alone. Ties are one site and are written once; rows of
    padding become zero; the running statistics of a norm are reset with its weights.

    Args:
        pairs: Each site with its step.
        seed: Seed of the random streams, 64 bits. None draws one from torch's global generator;
            of a model that is sharded, or wrapped by DDP, all processes then take that of the
            first.
        threads: Threads that draw on the CPU; None: as many as torch computes with.
        draw_on: Device that draws, `"cpu"` for the same bits on every device; None: the device
            that each tensor lives on.
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
    with _plainly():
        known = list(pairs)
        jobs = _jobs(known, draw_on)
        seed = _agreed(seed, jobs, model)
        hands = _hands(seed, jobs, torch.get_num_threads() if threads is None else threads)
        staged = _staged(jobs, hands)
        staged_at = time.perf_counter()
        _write(jobs, staged, hands)
        _reset(model, {site.owner: not step.keeps for site, step in known})
    return Written(
        seed=seed,
        names=tuple(job.site.name for job in jobs),
        devices=tuple(sorted({job.origin.type for job in jobs})),
        blocks=sum(hand.drawn for hand in hands),
        staging=staged_at - started,
        writing=time.perf_counter() - staged_at,
    )


@contextmanager
def _plainly() -> Iterator[None]:
    """Run torch without the modes that happen to be on: gradients, inference, `skip_init`."""
    off = torch._C.DisableTorchFunction()  # noqa: SLF001 - what torch's notes on extending name
    with torch.inference_mode(mode=False), torch.no_grad(), off:
        yield


#
# Before anything is computed
#


def _jobs(pairs: Iterable[tuple[Site, Step]], draw_on: torch.device | str | None) -> list[Job]:
    """Return what is to be written.

    Raises:
        ApplyError: Lists every site that cannot be written.
    """
    made = [_job_or_why_not(site, step, draw_on) for site, step in pairs if not step.keeps]
    cases = [str(job) for job in made if isinstance(job, ApplyError)]
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
    return Job(
        site=site,
        step=step,
        origin=torch.device(draw_on or draws_on(site.device)),
        held=pieces(site.parameters[0]) if site.storage == "plain" else (),
        draws=_draws(step),
        working=working_dtype(site.dtype),
    )


def _obstacles(site: Site, step: Step) -> Iterator[str]:
    """Yield what keeps a site from being written by a step."""
    yield from obstacles(site)
    if tuple(step.shape) != site.shape:
        yield f"has shape {site.shape}, its step is for {tuple(step.shape)}; make a new plan"
    if any(map(torch.is_inference, site.owner.buffers(recurse=False))):
        yield "is held by a module whose buffers were made under torch.inference_mode()"


def _draws(step: Step) -> tuple[Draw, ...]:
    """Return the distributions of an element-wise initializer's packed blocks, else nothing.

    Raises:
        PolicyError: One of the package's own initializers does not fit the shape or its axes.
    """
    initializer = step.initializer
    if is_elementwise(initializer):
        return cast("Elementwise", initializer).draws(step.shape, step.axes)
    if _is_known(initializer):
        cast("Structured", initializer).spread(step.shape, step.axes)
    return ()


def _is_known(initializer: Initializer) -> bool:
    """Tell the package's own initializers from code of the user."""
    return isinstance(initializer, BUILTIN) and not isinstance(initializer, From)


def _agreed(seed: int | None, jobs: Sequence[Job], model: nn.Module | None) -> int:
    """Return the seed; where none is given, the one that the first of all processes drew."""
    own = as_seed(seed)
    if seed is not None or not jobs:
        return own
    device, groups = _common(jobs, model)
    number = torch.tensor(own, device=device)
    for group in groups:
        distributed.broadcast(number, distributed.get_global_rank(group, 0), group)
    return int(number)


def _common(
    jobs: Sequence[Job], model: nn.Module | None
) -> tuple[torch.device | str, list[distributed.ProcessGroup]]:
    """Return where processes meet that hold the model, and the groups along which they agree."""
    parameters = (parameter for job in jobs for parameter in job.site.parameters)
    meshes = [parameter.device_mesh for parameter in parameters if is_sharded(parameter)]
    if meshes:
        mesh = max(meshes, key=lambda mesh: mesh.size())
        return mesh.device_type, mesh.get_all_groups()
    modules = () if model is None else model.modules()
    wrappers = (m for m in modules if isinstance(m, nn.parallel.DistributedDataParallel))
    return jobs[0].site.device, [wrapper.process_group for wrapper in wrappers]


#
# Threads
#


class Hand:
    """What one thread draws with: a generator and room for one block on each device."""

    def __init__(self, seed: int, devices: Iterable[torch.device]) -> None:
        self.drawn = 0
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


def _hands(seed: int, jobs: Sequence[Job], threads: int) -> list[Hand]:
    """Return one hand per thread that has something to do."""
    elements = sum(math.prod(job.site.shape) for job in jobs)
    threads = max(1, min(threads, elements // (BLOCK * _WORTH)))
    devices = {job.origin for job in jobs}
    processor = {device for device in devices if device.type == "cpu"}
    return [Hand(seed, devices), *(Hand(seed, processor) for _ in range(threads - 1))]


def _share(tasks: Iterable[Task], hands: Sequence[Hand]) -> None:
    """Do all tasks, with one thread per hand that takes the next task from a common list.

    Each thread computes on one core: the threads share the cores already, and linear algebra
    gives other bits on more of them.
    """
    left = iter(tasks)
    lock = threading.Lock()

    def take() -> Task | None:
        with lock:
            return next(left, None)

    def work(hand: Hand) -> None:
        torch.set_num_threads(1)
        with torch.no_grad():
            for task in iter(take, None):
                task(hand)

    with _cores_restored():
        if len(hands) < 2:
            for hand in hands:
                work(hand)
            return
        with ThreadPoolExecutor(len(hands)) as pool:
            list(pool.map(work, hands))


@contextmanager
def _cores_restored() -> Iterator[None]:
    """Let torch compute on as many cores as before.

    `set_num_threads` is for the thread that calls it, and also for all that start after it.
    """
    cores = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(cores)


#
# Staging: what could fail
#


def _staged(jobs: Iterable[Job], hands: Sequence[Hand]) -> list[Task]:
    """Compute what is not drawn in place; return what remains to be done with it.

    Raises:
        ApplyError: Lists every site whose values could not be computed.
    """
    threaded, serial = _parted((job for job in jobs if not job.is_direct), _is_own_work)
    found: dict[str, Task | ApplyError] = {}

    def stage(job: Job, hand: Hand) -> None:
        found[job.site.name] = _attempt(job, hand)

    threaded.sort(key=lambda job: -math.prod(job.site.shape))
    _share((partial(stage, job) for job in threaded), hands[: len(threaded)])
    _share((partial(stage, job) for job in serial), hands[:1])
    outcomes = [found[job.site.name] for job in (*threaded, *serial)]
    errors = [error for error in outcomes if isinstance(error, ApplyError)]
    if errors:
        raise ApplyError(f"nothing was written:\n{listing(list(map(str, errors)))}") from errors[0]
    return [task for task in outcomes if not isinstance(task, ApplyError)]


def _parted(jobs: Iterable[Job], test: Callable[[Job], bool]) -> tuple[list[Job], list[Job]]:
    """Part the jobs that pass a test from those that do not."""
    parts: tuple[list[Job], list[Job]] = ([], [])
    for job in jobs:
        parts[not test(job)].append(job)
    return parts


def _is_own_work(job: Job) -> bool:
    """Tell whether any thread may compute a job: nothing of the user runs, and on the CPU."""
    known = _is_known(job.step.initializer)
    return known and job.site.storage == "plain" and job.origin.type == "cpu"


def _attempt(job: Job, hand: Hand) -> Task | ApplyError:
    """Compute a job's values aside, or say why not."""
    try:
        return _prepared(job, hand)
    except ApplyError as error:
        return error
    except Exception as error:  # noqa: BLE001 - whatever a user's callable may raise
        title = f"{job.site.name!r} ({job.site.kind}, {job.site.shape})"
        failure = ApplyError(f"{title}: {job.step.initializer} raised {error!r}")
        failure.__cause__ = error
        return failure


def _prepared(job: Job, hand: Hand) -> Task:
    if _is_own_work(job):
        return _prepare(job, hand)
    with isolated(job.origin, hand.key(job, _GLOBAL)):
        return _prepare(job, hand)


_GLOBAL = 1 << 63
"""Salt of the stream that stands in for torch's global generators."""


def _prepare(job: Job, hand: Hand) -> Task:
    site = job.site
    target = _target(job, hand).to(site.device, site.dtype)
    _zero_padding(job, [whole(target)])
    if site.storage != "plain":
        return partial(_store, site, behind(site, target))
    return partial(_place, [(piece, _own(piece.part_of(target))) for piece in job.held])


def _own(part: Tensor) -> Tensor:
    """Return a part that keeps no more memory alive than it needs."""
    return part if part.numel() * part.itemsize == part.untyped_storage().nbytes() else part.clone()


def _target(job: Job, hand: Hand) -> Tensor:
    """Return the whole logical tensor that a job asks for."""
    initializer = job.step.initializer
    if job.draws:
        return _drawn(job, hand)
    if _is_known(initializer):
        normal = partial(_normal, job, hand, count())
        return cast("Structured", initializer).build(job.site.shape, job.step.axes, normal)
    return _called(job, hand)


def _drawn(job: Job, hand: Hand) -> Tensor:
    """Draw all blocks of a tensor that is written otherwise than in place."""
    target = torch.empty(job.site.shape, dtype=job.working, device=job.origin)
    for task in _draws_of(job, whole(target)):
        task(hand)
    return target


def _normal(job: Job, hand: Hand, salts: Iterator[int], shape: Sequence[int]) -> Tensor:
    """Hand out standard normals, from the next stream of the job at each call."""
    stream = hand.stream(job, next(salts))
    values = torch.empty(shape, dtype=job.working, device=job.origin)
    for block, part in enumerate(torch.split(values.view(-1), BLOCK)):
        part.normal_(generator=stream(block))
    return values


def _called(job: Job, hand: Hand) -> Tensor:
    """Let code of the user fill a copy of what the site holds now."""
    now = reading(job.site).to(job.origin, job.working)
    copy = now.clone(memory_format=torch.contiguous_format)
    job.step.initializer(copy, job.step.axes, generator=hand.stream(job)(0))
    if tuple(copy.shape) != job.site.shape:
        raise ApplyError(
            f"{job.site.name!r}: {job.step.initializer} made {tuple(copy.shape)} of it"
        )
    return copy


def _zero_padding(job: Job, held: Iterable[Piece]) -> None:
    """Zero the row of an embedding that stands for nothing."""
    row = job.step.padding
    if row is None:
        return
    for piece in held:
        first = piece.box[0].start
        piece.tensor[max(row - first, 0) : max(row + 1 - first, 0)].zero_()


#
# Writing: what cannot fail
#


def _write(jobs: Sequence[Job], staged: Sequence[Task], hands: Sequence[Hand]) -> None:
    direct = [job for job in jobs if job.is_direct]
    threaded, serial = _parted(direct, lambda job: job.origin.type == "cpu")
    _wait_for([job.site.device for job in threaded])
    _share(chain(staged, chain.from_iterable(map(_tasks, threaded))), hands)
    _share(chain.from_iterable(map(_tasks, serial)), hands[:1])
    for job in direct:
        _zero_padding(job, job.held)
    for parameter in (parameter for job in jobs for parameter in job.site.parameters):
        mark_filled(parameter)


def _wait_for(devices: Iterable[torch.device]) -> None:
    """Let accelerators finish what they do, where threads of the CPU are going to write on them."""
    for device in {device for device in devices if device.type != "cpu"}:
        torch.accelerator.synchronize(device)


def _tasks(job: Job) -> Iterator[Task]:
    """Yield the work on one site: a fill where all values are one, else a draw for each block."""
    if job.constant is not None:
        yield partial(_fill, job.held, job.constant)
        return
    yield from chain.from_iterable(_draws_of(job, piece) for piece in job.held)


def _fill(held: Iterable[Piece], value: float, hand: Hand) -> None:
    for piece in held:
        piece.tensor.fill_(value)


def _draws_of(job: Job, piece: Piece) -> Iterator[Task]:
    """Yield the drawing of all blocks of a piece, in place where memory is what they look like."""
    same = piece.tensor.dtype == job.working and piece.tensor.device == job.origin
    flat = piece.flat if same else None
    inside = range(0) if flat is None else _inside(piece)
    for blocks in _cut(inside, _AT_ONCE * 16):
        start, stop = (number * BLOCK - piece.run.start for number in (blocks.start, blocks.stop))
        views = torch.split(cast("Tensor", flat)[start:stop], BLOCK)
        for few in _cut(range(len(views)), _AT_ONCE):
            first = blocks.start + few.start
            yield partial(_draw, job, first, views[few.start : few.stop])
    outside = (block for block in piece.blocks(BLOCK) if block not in inside)
    yield from (partial(_draw_apart, job, piece, block) for block in outside)


_AT_ONCE = 4
"""Blocks that a thread takes at once: fewer cost more, more leave threads idle at the end."""


def _inside(piece: Piece) -> range:
    """Return the blocks that lie within a piece; the last block of a tensor may be short."""
    start, stop = piece.run.start, piece.run.stop
    return range(-(-start // BLOCK), -(-stop // BLOCK) if stop == piece.elements else stop // BLOCK)


def _cut(numbers: range, size: int) -> Iterator[range]:
    return (numbers[at : at + size] for at in range(0, len(numbers), size))


def _draw(job: Job, first: int, views: Sequence[Tensor], hand: Hand) -> None:
    """Draw consecutive blocks, each into its own tensor."""
    shape, axes, stream = job.site.shape, job.step.axes, hand.stream(job)
    for block, values in enumerate(views, first):
        generator = stream(block)
        fill_with(job.draws, values, shape, axes, start=block * BLOCK, generator=generator)
    hand.drawn += len(views)


def _draw_apart(job: Job, piece: Piece, block: int, hand: Hand) -> None:
    """Draw a block aside, and write what the piece holds of it."""
    start = block * BLOCK
    values = hand.room(job, min(BLOCK, piece.elements - start))
    _draw(job, block, [values], hand)
    piece.put(values, start)


def _place(parts: Iterable[tuple[Piece, Tensor]], hand: Hand) -> None:
    for piece, part in parts:
        piece.tensor.copy_(part)


def _store(site: Site, found: Behind, hand: Hand) -> None:
    store(site, found)


def _reset(model: nn.Module | None, owners: Mapping[nn.Module, bool]) -> None:
    """Reset the running statistics of norms.

    Args:
        model: The model, or None where only modules with weights are to be looked at.
        owners: Modules that hold sites, and whether these were written.
    """
    modules = owners if model is None else [module for _, module in canonical_modules(model)]
    fresh = False
    for module in modules:
        fresh = owners.get(module, fresh)
        for name, value in buffers_of(module).items() if fresh else ():
            module.get_buffer(name).fill_(value)
