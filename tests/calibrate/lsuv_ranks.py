"""What each of two processes does for `test_passes.py`: LSUV on its half of a batch.

Run alone: `python -m tests.calibrate.lsuv_ranks`.
"""

import copy

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.processes import everywhere
from torch_initpolicy.calibrate.lsuv import lsuv_

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


def _work() -> dict[str, float]:
    own = batch().chunk(WORLD)[distributed.get_rank()]
    sharded = copy.deepcopy(model())
    fully_shard(sharded)
    return {
        "ddp": _deviation(nn.parallel.DistributedDataParallel(model()), own),
        "fsdp": _deviation(sharded, own),
        "alone": _deviation(model(), own),  # what would happen without any reduction
    }


def run() -> list[dict[str, float]]:
    """Start the processes and return what each of them measured."""
    return everywhere(_work, WORLD)


if __name__ == "__main__":
    print(run())  # noqa: T201
