"""What each of two processes does for `test_lsuv.py`: LSUV on its half of a batch.

Run alone: `python -m tests.engine.lsuv_ranks`.
"""

import copy
import json
import os
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from torch_initpolicy.engine.lsuv import lsuv_

WORLD = 2


def model() -> nn.Module:
    """Build the same network in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(12, 31), nn.ReLU(), nn.Linear(31, 7))


def batch() -> Tensor:
    """Return the whole batch; its halves have very different sizes."""
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(4))
    return x * torch.linspace(0.1, 5, 64)[:, None]


def whole(parameter: Tensor) -> Tensor:
    """Gather a sharded parameter."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _deviation(spread: nn.Module, own: Tensor) -> float:
    """Say how far a spread model's weights are from those of one process with all inputs."""
    alone = model()
    lsuv_(alone, batch(), orthogonal=False)
    lsuv_(spread, own, orthogonal=False)
    pairs = zip(alone.parameters(), spread.parameters(), strict=True)
    with torch.no_grad():
        return max((a - whole(b)).abs().max().item() for a, b in pairs)


def _work(rank: int, folder: str) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=WORLD,
        timeout=timedelta(seconds=60),
    )
    own = batch().chunk(WORLD)[rank]
    sharded = copy.deepcopy(model())
    fully_shard(sharded)
    found = {
        "ddp": _deviation(nn.parallel.DistributedDataParallel(model()), own),
        "fsdp": _deviation(sharded, own),
        "alone": _deviation(model(), own),  # what would happen without any reduction
    }
    Path(folder, str(rank)).write_text(json.dumps(found))
    distributed.destroy_process_group()


def run() -> list[dict[str, float]]:
    """Start the processes and return what each of them measured."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_work, (folder,), nprocs=WORLD)
        return [json.loads(Path(folder, str(rank)).read_text()) for rank in range(WORLD)]


if __name__ == "__main__":
    print(run())  # noqa: T201
