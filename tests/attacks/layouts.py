"""Ways to spread one model over processes, each of which leaves one fingerprint.

Every process builds the model as its layout has it, and carries out the same plan, which was made
on meta for the whole model. Run alone: `python -m tests.attacks.layouts 4`.
"""

import functools
import sys
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import Replicate, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from tests.processes import everywhere
from torch_initpolicy import Plan, Receipt, materialize, plan_policy, skip_init
from torch_initpolicy.planning.parts import joined

SEED, WIDTH, HIDDEN, WORDS, LAYERS, EXPERTS = 11, 24, 66, 50, 4, 8


class Block(nn.Module):
    """A residual branch of two projections, which nothing divides."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        return x + self.down(self.up(self.norm(x)).relu())


class Net(nn.Module):
    """An embedding that is the head, too, blocks in a row, and a mixture of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.layers = nn.ModuleList(Block() for _ in range(LAYERS))
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Run everything in a row."""
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(sum(expert(x).relu() for expert in self.experts))


@functools.cache
def plan() -> Plan:
    """The plan of the whole model, by a preset that counts its branches."""
    return plan_policy(_on_meta(), "depth_scaled", example_inputs=torch.zeros(1, 3).long())


def _on_meta() -> Net:
    with torch.device("meta"):
        return Net()


def _apply(model: nn.Module) -> Receipt:
    return plan().apply(model, seed=SEED)


def _mesh(*names: str) -> distributed.DeviceMesh:
    world = distributed.get_world_size()
    sizes = (world,) if len(names) == 1 else (2, world // 2) if world % 2 == 0 else (1, world)
    return init_device_mesh("cpu", sizes, mesh_dim_names=names)


#
# Layouts
#


def alone() -> Receipt:
    """Each process has the whole model."""
    return _apply(Net())


def ddp() -> Receipt:
    """Replicas that are kept equal."""
    model = Net()
    return _apply(nn.parallel.DistributedDataParallel(model))


def fsdp() -> Receipt:
    """FSDP2, block by block."""
    model = Net()
    for layer in model.layers:
        fully_shard(layer)
    fully_shard(model)
    return _apply(model)


def fsdp_uneven() -> Receipt:
    """FSDP2 of single layers, whose rows no number of processes but two and three divides."""
    model = Net()
    for layer in model.layers:
        fully_shard(layer.up)
        fully_shard(layer.down)
    return _apply(model)


def offloaded() -> Receipt:
    """FSDP2 with its shards in host memory."""
    model = Net()
    fully_shard(model, offload_policy=CPUOffloadPolicy(pin_memory=False))
    return _apply(model)


def hsdp() -> Receipt:
    """Replicas of shards."""
    model = Net()
    fully_shard(model, mesh=_mesh("replicate", "shard"))
    return _apply(model)


def _parallelized(model: Net, mesh: distributed.DeviceMesh) -> Net:
    for layer in model.layers:
        parallelize_module(layer, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})
    return model


def tensor_parallel() -> Receipt:
    """Tensor parallelism alone; what it leaves out is whole on each process."""
    return materialize(
        _parallelized(_on_meta(), _mesh("tp")),
        "depth_scaled",
        seed=SEED,
        example_inputs=torch.zeros(1, 3).long(),
    )


def fsdp_and_tensor_parallel() -> Receipt:
    """Shards of shards."""
    mesh = _mesh("dp", "tp")
    model = _parallelized(_on_meta(), mesh["tp"])
    fully_shard(model, mesh=mesh["dp"])
    inputs = torch.zeros(1, 3).long()
    return materialize(model, "depth_scaled", seed=SEED, example_inputs=inputs)


def replicated() -> Receipt:
    """DTensors that every process has all of."""
    model, mesh = Net(), _mesh("all")

    def place(name: str, module: nn.Module, mesh: distributed.DeviceMesh) -> None:
        for key, parameter in list(module.named_parameters(recurse=False)):
            tensor = nn.Parameter(distribute_tensor(parameter.detach(), mesh, [Replicate()]))
            module.register_parameter(key, tensor)

    distribute_module(model, mesh, place)
    model.head.weight = model.embedding.weight
    return _apply(model)


def flat() -> Receipt:
    """FSDP1, whose flat pieces are gathered for the time of writing, and keep what is written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        model = FullyShardedDataParallel(
            Net(), use_orig_params=True, device_id=torch.device("cpu"), sync_module_states=False
        )
        with FullyShardedDataParallel.summon_full_params(model):
            receipt = _apply(model)
        with FullyShardedDataParallel.summon_full_params(model):
            receipt.check_bits(model)
    return receipt


def _joined(own: Receipt) -> Receipt:
    """The receipt of the whole, out of those that processes have of parts."""
    gathered = [""] * distributed.get_world_size()
    distributed.all_gather_object(gathered, own.to_json())
    return joined(map(Receipt.from_json, gathered))


class Stage(nn.Module):
    """A pipeline stage, which calls what it holds by names of its own."""

    def __init__(self, rank: int, world: int) -> None:
        super().__init__()
        if rank == 0:
            self.words = nn.Embedding(WORDS, WIDTH, padding_idx=0)
        self.own = nn.ModuleList(Block() for _ in range(rank, LAYERS, world))
        if rank == world - 1:
            self.mix = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS))
            self.out = nn.Linear(WIDTH, WORDS, bias=False)


def pipeline() -> Receipt:
    """Stages under names of their own; the tied matrix is in the first and in the last."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    if world == 1:
        return alone()
    blocks = {f"own.{n}": f"layers.{at}" for n, at in enumerate(range(rank, LAYERS, world))}
    names = {"words": "embedding", "mix": "experts", "out": "head", **blocks}
    with skip_init():
        stage = Stage(rank, world)
    part = plan().on(stage, names)
    receipt = part.apply(seed=SEED)
    part.verify()
    receipt.check_bits(stage)
    return _joined(receipt)


def expert_parallel() -> Receipt:
    """Each process has some of the experts, numbered from zero, and all of the rest."""
    rank, world = distributed.get_rank(), distributed.get_world_size()
    model, own = Net(), range(rank, EXPERTS, world)
    model.experts = nn.ModuleList(model.experts[number] for number in own)
    names = {f"experts.{n}": f"experts.{number}" for n, number in enumerate(own)}
    return _joined(plan().on(model, names).apply(seed=SEED))


LAYOUTS: dict[str, Callable[[], Receipt]] = {
    layout.__name__: layout
    for layout in (
        alone,
        ddp,
        fsdp,
        fsdp_uneven,
        offloaded,
        hsdp,
        tensor_parallel,
        fsdp_and_tensor_parallel,
        replicated,
        flat,
        pipeline,
        expert_parallel,
    )
}


def fingerprints() -> dict[str, str]:
    """The fingerprint that each layout leaves, seen from this process."""
    return {name: layout().fingerprint for name, layout in LAYOUTS.items()}


def on(world: int) -> list[dict[str, str]]:
    """The fingerprints of all layouts, for each process of a world."""
    return everywhere(fingerprints, world)


if __name__ == "__main__":
    for found in on(int(sys.argv[1])):
        print(found)  # noqa: T201
