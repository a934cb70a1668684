"""Processes that hold one model together: what fails on one of them fails on all."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from torch_initpolicy import errors
from torch_initpolicy.errors import ApplyError, InitPolicyError, listing
from torch_initpolicy.writing.shards import is_sharded

Groups = Sequence["distributed.ProcessGroup"]
"""The groups of processes that hold a model, in one order on all of them."""


def process_groups(model: nn.Module | None, parameters: Iterable[Tensor] = ()) -> Groups:
    """Return the groups that hold a model, or some parameters where no model is given, each once.

    Those are the groups along the axes of the meshes of sharded parameters, and those of wrappers
    that keep a group: DDP and FSDP.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return ()
    modules = () if model is None else model.modules()
    wrappers = (m.process_group for m in modules if isinstance(m, _wrappers()))
    held = parameters if model is None else model.parameters()
    meshes = dict.fromkeys(p.device_mesh for p in held if is_sharded(p))
    inside = (mesh for mesh in meshes if mesh.get_coordinate() is not None)
    along = (group for mesh in inside for group in mesh.get_all_groups())
    return tuple(dict.fromkeys((*along, *wrappers)))


def _wrappers() -> tuple[Any, ...]:
    """Return the classes of wrappers that keep a process group, of those that are imported."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    whole = (nn.parallel.DistributedDataParallel,)
    return whole if fsdp is None else (*whole, fsdp.FullyShardedDataParallel)


def _device_of(group: "distributed.ProcessGroup") -> torch.device:
    """Return where a group's tensors live: on the CPU, where its backend takes them there."""
    # The configuration reads `cpu:gloo,cuda:nccl`.
    kinds = [pair.split(":")[0] for pair in distributed.get_backend_config(group).split(",")]
    return torch.device("cpu" if "cpu" in kinds else kinds[0])


def same_everywhere(number: int, groups: Groups) -> int:
    """Return the number that the first process of all groups has."""
    for group in groups:
        held = torch.tensor(number, device=_device_of(group))
        distributed.broadcast(held, distributed.get_global_rank(group, 0), group)
        number = int(held)
    return number


@contextmanager
def together(groups: Groups) -> Iterator[None]:
    """Raise on every process where the block raises on one of them.

    Each process of the groups enters the block and leaves it, so that none waits for another that
    has gone. Costs one number to each process where nothing is wrong.

    Raises:
        InitPolicyError: On the processes where the block went well; names those where it did not.
    """
    own: BaseException | None = None
    try:
        yield
    except BaseException as error:  # noqa: BLE001 - raised again below
        own = error
    others = _failures(groups, own) if groups else {}
    if own is not None:
        raise own
    if others:
        raise _one_error(others)


def _failures(groups: Groups, own: BaseException | None) -> dict[int, tuple[str, str]]:
    """Return the class and message of what was raised, by rank; the same on all processes."""
    found = {}
    if own is not None:
        found[distributed.get_rank()] = (type(own).__name__, str(own))
    count = len(found)
    for group in groups:  # along one axis of a mesh after another: this reaches all of it
        wrong = torch.tensor(count, device=_device_of(group))
        distributed.all_reduce(wrong, group=group)
        count = int(wrong)
        if count:
            gathered: list[dict[int, tuple[str, str]]] = [{}] * distributed.get_world_size(group)
            distributed.all_gather_object(gathered, found, group)
            found = {rank: failure for each in gathered for rank, failure in each.items()}
    return found


def _one_error(failures: dict[int, tuple[str, str]]) -> InitPolicyError:
    """Make one error of what other processes raised, of the kind that the first of them raised."""
    cases = [f"rank {rank}: {name}: {text}" for rank, (name, text) in sorted(failures.items())]
    kind = getattr(errors, failures[min(failures)][0], ApplyError)
    known = isinstance(kind, type) and issubclass(kind, InitPolicyError)
    made = kind if known and kind is not errors.MissingExtraError else ApplyError
    return made(f"other processes failed, so nothing was done here:\n{listing(cases)}")
