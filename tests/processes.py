"""Several processes that stand for several machines: each runs the same function, over gloo."""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import distributed, multiprocessing


class Place(NamedTuple):
    """Where the processes of one world meet, and leave what they found."""

    folder: str
    world: int
    threads: int


def everywhere(work: Callable[[], Any], world: int, threads: int = 1) -> list[Any]:
    """Run a function of a module in each process of a world; return what each of them returned.

    What it returns must be writable as JSON.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Place(folder, world, threads)
        multiprocessing.spawn(_process, (work, place), nprocs=world)
        return [json.loads(Path(folder, str(rank)).read_text()) for rank in range(world)]


def _process(rank: int, work: Callable[[], Any], place: Place) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(place.threads)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{place.folder}/rendezvous",
        rank=rank,
        world_size=place.world,
        timeout=timedelta(seconds=300),  # a slow machine is no failure; what hangs still ends
    )
    Path(place.folder, str(rank)).write_text(json.dumps(work()))
    distributed.barrier()
    distributed.destroy_process_group()
    # DTensor's caches keep gloo's threads alive, and one that lets go of a tensor while Python is
    # being torn down aborts the process: https://github.com/pytorch/pytorch/issues/190489
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def outcomes(cases: Mapping[str, Callable[[], None]]) -> dict[str, str]:
    """Run cases in this process; return for each what went wrong, or nothing."""
    return {name: _outcome(case) for name, case in cases.items()}


def _outcome(case: Callable[[], None]) -> str:
    try:
        case()
    except Exception:  # noqa: BLE001 - the test shows it
        return traceback.format_exc()
    return ""


def failures(ranks: list[dict[str, str]]) -> dict[str, list[str]]:
    """Return for each case what went wrong in any process."""
    return {case: [found[case] for found in ranks if found[case]] for case in ranks[0]}
