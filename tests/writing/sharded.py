"""What the processes of `test_distributed.py` do: each case is one way to spread a model.

Every process runs every case, against a model of its own that is not spread at all. Run alone:
`python -m tests.writing.sharded 4`.
"""

import sys
import tempfile
from collections.abc import Callable

import pytest
import torch
from torch import distributed, nn
from torch.distributed.checkpoint import load, save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from tests.laplace import Laplace
from tests.processes import everywhere, failures, outcomes
from tests.writing.helpers import fill, pairs
from torch_initpolicy import apply_policy, materialize, skip_init
from torch_initpolicy.errors import ApplyError, VerifyError
from torch_initpolicy.sites import Site, sites
from torch_initpolicy.tensors.initializers import (
    From,
    Initializer,
    Normal,
    Ones,
    Orthogonal,
    Sparse,
    TruncatedNormal,
    Zeros,
    he_normal,
)
from torch_initpolicy.writing import journal
from torch_initpolicy.writing.apply import Written, apply_steps
from torch_initpolicy.writing.drawing import Drawing
from torch_initpolicy.writing.fingerprint import fingerprints
from torch_initpolicy.writing.obstacles import obstacles
from torch_initpolicy.writing.shards import reshard
from torch_initpolicy.writing.verify import measure_steps

SEED = 7

FSDP_RUNS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7)
"""Whether FSDP2 can run a forward pass without an accelerator; torch 2.6 could not."""


class Net(nn.Module):
    """Two projections of any size, an embedding with padding, a norm, odd shapes and dtypes."""

    def __init__(self, width: int = 300, hidden: int = 700) -> None:
        super().__init__()
        self.embedding = nn.Embedding(90, width, padding_idx=41)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.short = nn.Linear(width, 130, bias=False, dtype=torch.bfloat16)
        self.kernel = nn.Parameter(torch.empty(13, 5, 3, 3))
        self.table = nn.Parameter(torch.empty(2, 3))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """A forward pass that uses what is large."""
        return self.down(self.up(self.norm(self.embedding(tokens))).relu())


def elementwise(site: Site) -> Initializer:
    """Initializers that may be drawn piece by piece."""
    return {
        "up.weight": he_normal(),
        "down.weight": TruncatedNormal(0.02),
        "norm.weight": Ones(),
        "up.bias": Zeros(),
    }.get(site.name, Normal(1.0))


def structured(site: Site) -> Initializer:
    """Initializers that need the whole tensor, and one of the user."""
    return {
        "up.weight": Orthogonal(),
        "down.weight": Sparse(0.5),
        "short.weight": Orthogonal(),
        "kernel": From(nn.init.xavier_normal_),
        "embedding.weight": From(lambda tensor: tensor.add_(1)),
    }.get(site.name, Normal(1.0))


def own(site: Site) -> Initializer:
    """An initializer from outside the package wherever there are fans."""
    return Laplace() if site.axes is not None and site.axes.inputs else elementwise(site)


_FOR_OWN = ("fsdp_other_axis", "fsdp_and_tensor_parallel")
"""Ways that are tried with an initializer from outside the package: one code serves them all."""

CHOICES: dict[str, Callable[[Site], Initializer]] = {
    "elementwise": elementwise,
    "structured": structured,
    "own": own,
}


class Computed(Net):
    """A model with what only its constructor can tell: a buffer, a constant, a tie."""

    def __init__(self) -> None:
        super().__init__(hidden=720)  # tensor parallel layers run only where it divides
        self.short.float()  # FSDP2 runs models of one dtype only
        nn.init.normal_(self.kernel, std=0.5)
        nn.init.constant_(self.table, 3.0)
        self.register_buffer("ramp", torch.arange(300) / 300, persistent=False)
        self.head = nn.Linear(300, 90, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """A forward pass that uses what is new."""
        return self.head(super().forward(tokens) * self.ramp)


#
# Ways to spread a model
#


def fsdp(model: Net, world: int) -> None:
    """FSDP2, layer by layer; small tensors leave some processes with nothing."""
    for child in (model.up, model.down):
        fully_shard(child)
    fully_shard(model)


def fsdp_other_axis(model: Net, world: int) -> None:
    """FSDP2 along the last axis wherever it divides."""

    def place(parameter: nn.Parameter) -> Shard:
        last = parameter.ndim - 1
        return Shard(last if parameter.shape[last] % world == 0 else 0)

    fully_shard(model, shard_placement_fn=place)


def offloaded(model: Net, world: int) -> None:
    """FSDP2 with the shards in host memory."""
    fully_shard(model, offload_policy=CPUOffloadPolicy(pin_memory=False))


def hsdp(model: Net, world: int) -> None:
    """Replicas of shards."""
    mesh = init_device_mesh("cpu", _factors(world), mesh_dim_names=("replicate", "shard"))
    fully_shard(model, mesh=mesh)


def tensor_parallel(model: Net, world: int) -> None:
    """Column-wise up and row-wise down."""
    _parallelize(model, init_device_mesh("cpu", (world,)))


def fsdp_and_tensor_parallel(model: Net, world: int) -> None:
    """Both: the up projection is cut twice along one axis, the down projection along two."""
    mesh = init_device_mesh("cpu", _factors(world), mesh_dim_names=("dp", "tp"))
    _parallelize(model, mesh["tp"])
    fully_shard(model, mesh=mesh["dp"])


def by_hand(model: Net, world: int) -> None:
    """Placements as one may write them: both axes, and one axis twice."""
    mesh = init_device_mesh("cpu", _factors(world))
    placements = {
        "up.weight": (Shard(0), Shard(1)),
        "down.weight": (Shard(1), Shard(1)),
        "kernel": (Shard(2), Shard(0)),
        "embedding.weight": (Replicate(), Shard(0)),
    }

    def place(name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for key, parameter in list(module.named_parameters(recurse=False)):
            where = placements.get(f"{name}.{key}".lstrip("."), (Replicate(), Replicate()))
            tensor = distribute_tensor(parameter.detach(), mesh, where)
            module.register_parameter(key, nn.Parameter(tensor))

    distribute_module(model, mesh, place)


def _parallelize(model: Net, mesh: DeviceMesh) -> None:
    parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def _factors(world: int) -> tuple[int, int]:
    return (2, world // 2) if world % 2 == 0 else (1, world)


WAYS: dict[str, Callable[[Net, int], None]] = {
    way.__name__: way
    for way in (
        fsdp,
        fsdp_other_axis,
        offloaded,
        hsdp,
        tensor_parallel,
        fsdp_and_tensor_parallel,
        by_hand,
    )
}

#
# Cases
#


def _made(seed: int = 0, **sizes: int) -> Net:
    """The same constructor's values in every process."""
    torch.manual_seed(seed)
    model = Net(**sizes)
    with torch.no_grad():
        for parameter in (model.kernel, model.table):
            parameter.fill_(3.0)
    return model


def _whole(model: nn.Module) -> dict[str, torch.Tensor]:
    """The logical tensors of a model, however it is spread."""
    return {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()
        for name, tensor in model.named_parameters()
    }


def _unequal(model: nn.Module, expected: nn.Module) -> list[str]:
    found, wanted = _whole(model), _whole(expected)
    return [name for name in wanted if not torch.equal(found[name], wanted[name])]


def spread(way: str, choice: str) -> None:
    """A spread model holds the bits of one that is not."""
    world = distributed.get_world_size()
    model, expected = _made(), _made()
    WAYS[way](model, world)
    assert world == 1 or any(isinstance(p, DTensor) for p in model.parameters())
    apply_steps(pairs(model, CHOICES[choice]), Drawing(SEED))
    apply_steps(pairs(expected, CHOICES[choice]), Drawing(SEED))

    assert _unequal(model, expected) == []
    assert fingerprints(sites(model)) == fingerprints(sites(expected))


def materialized(way: str) -> None:
    """A model that was built on meta and then spread has the bits of one built for real."""
    inputs = torch.zeros(2, 3, dtype=torch.int64, device="meta")
    with torch.device("meta"):
        model = Computed()
    WAYS[way](model, distributed.get_world_size())
    materialize(model, seed=SEED, example_inputs=inputs)
    with skip_init():
        expected = Computed()
    apply_policy(expected, seed=SEED, example_inputs=inputs)

    assert _unequal(model, expected) == []
    assert torch.equal(model.ramp, expected.ramp)
    assert model.head.weight is model.embedding.weight
    if FSDP_RUNS:
        output = model(torch.tensor([[1, 2, 41]]))
        torch.testing.assert_close(output, expected(torch.tensor([[1, 2, 41]])))


def odd_sizes() -> None:
    """Sizes that nothing divides, and fewer rows than processes."""
    world = distributed.get_world_size()
    for way in (fsdp, hsdp, by_hand, tensor_parallel, fsdp_and_tensor_parallel):
        sizes = {"width": 4 * world, "hidden": 11 * world if "tensor" in way.__name__ else 11}
        model, expected = _made(**sizes), _made(**sizes)
        way(model, world)
        apply_steps(pairs(model, elementwise), Drawing(SEED))
        apply_steps(pairs(expected, elementwise), Drawing(SEED))

        assert _unequal(model, expected) == [], way.__name__


def fails_together() -> None:
    """What one process cannot do raises on all, names the rank there, and writes nothing."""
    last = distributed.get_world_size() - 1

    def only_here(tensor: torch.Tensor) -> None:
        if distributed.get_rank() == last:
            raise ZeroDivisionError("no luck")
        tensor.fill_(1.0)

    for way in (fsdp, hsdp, fsdp_and_tensor_parallel):
        model = _made()
        way(model, last + 1)
        before = _whole(model)
        words = "no luck" if distributed.get_rank() == last else f"rank {last}: ApplyError: .*"
        with pytest.raises(ApplyError, match=words):
            apply_steps(pairs(model, lambda site: From(only_here)), Drawing(SEED))
        with pytest.raises(ApplyError, match="fit into 64 bits"):
            apply_steps(
                pairs(model, elementwise), Drawing(SEED if distributed.get_rank() else 2**64)
            )

        assert all(map(torch.equal, before.values(), _whole(model).values()))


def commits_together() -> None:
    """Where writing fails on one process, others undo what they wrote, of models of any size."""
    model = _made()
    fsdp(model, distributed.get_world_size())
    before = _whole(model)
    chosen = pairs(model, structured)
    for room in (journal.ROOM, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(journal, "ROOM", room)
            if distributed.get_rank() == 0:
                patch.setattr(journal.Journal, "save", _full)
            with pytest.raises(ApplyError, match=r"rank 0: MemoryError|writing raised MemoryError"):
                apply_steps(chosen, Drawing(SEED))

        assert all(map(torch.equal, before.values(), _whole(model).values()))


def other_bits() -> None:
    """Other bits on one process raise on all, with the tensor's name and the rank."""
    model = _made()
    fsdp(model, distributed.get_world_size())
    receipt = apply_policy(model, "he", seed=SEED)
    receipt.check_bits(model)
    with torch.no_grad():
        if distributed.get_rank() == 0:
            model.down.weight.to_local()[0, 0] += 1.0
    with pytest.raises(VerifyError, match=r"down\.weight"):
        receipt.check_bits(model)


def _full(self: journal.Journal, tensor: torch.Tensor) -> None:
    raise MemoryError


def blocks_drawn() -> None:
    """Each process draws its share of a transformer's matrices: of four each 0.3 at most."""
    sizes = ((768, 2304), (768, 768), (768, 3072), (3072, 768))
    model = nn.Sequential(*(nn.Linear(*size) for size in sizes))
    alone = _draw_weights(model).blocks
    fully_shard(model)

    assert _draw_weights(model).blocks / alone <= 1.2 / distributed.get_world_size()


def _draw_weights(model: nn.Module) -> Written:
    return fill(model, Normal(0.02), *(name for name, p in model.named_parameters() if p.ndim > 1))


def ddp() -> None:
    """Under DDP every process draws the same, under the names of the model that is wrapped."""
    model, expected = _made(), _made()
    apply_steps(pairs(nn.parallel.DistributedDataParallel(model), structured), Drawing(SEED))
    apply_steps(pairs(expected, structured), Drawing(SEED))

    assert _unequal(model, expected) == []


def no_seed() -> None:
    """Without a seed all processes take that of the first, whatever their generators."""
    for way in (fsdp, fsdp_and_tensor_parallel, nn.parallel.DistributedDataParallel):
        model, expected = _made(), _made()
        wrapped = way(model, distributed.get_world_size()) if way in WAYS.values() else way(model)
        torch.manual_seed(100 + distributed.get_rank())
        seed = apply_steps(pairs(model, elementwise), Drawing(), model=wrapped or model).seed
        apply_steps(pairs(expected, elementwise), Drawing(seed))
        torch.manual_seed(100)

        assert seed == int(torch.empty((), dtype=torch.int64).random_())
        assert _unequal(model, expected) == []


def outside() -> None:
    """A process outside a mesh holds nothing and writes nothing."""
    mesh = DeviceMesh("cpu", [0])
    model = nn.Linear(6, 5)
    expected = nn.Linear(6, 5)
    for name, parameter in list(model.named_parameters()):
        tensor = DTensor.from_local(
            parameter.detach() if distributed.get_rank() == 0 else torch.empty(0),
            mesh,
            [Replicate()],
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )
        model.register_parameter(name, nn.Parameter(tensor))
    fill(model, Normal(1.0))
    fill(expected, Normal(1.0))

    assert distributed.get_rank() or torch.equal(model.weight.to_local(), expected.weight)


def partial() -> None:
    """A tensor whose values are sums over processes has no elements to write, and says so."""
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    model = nn.Module()
    model.weight = nn.Parameter(DTensor.from_local(torch.ones(2, 2), mesh, [Partial()]))
    (site,) = sites(model)

    assert ["holds no values of its own" in reason for reason in obstacles(site)] == [True]


def checkpoint() -> None:
    """A distributed checkpoint gives the values back to a model that is spread otherwise."""
    model, other = _made(), _made(seed=1)
    fsdp(model, distributed.get_world_size())
    hsdp(other, distributed.get_world_size())
    apply_steps(pairs(model, elementwise), Drawing(SEED))
    folder = [tempfile.mkdtemp()]
    distributed.broadcast_object_list(folder)
    save(model.state_dict(), checkpoint_id=folder[0])
    held = other.state_dict()
    load(held, checkpoint_id=folder[0])

    assert _unequal(other, model) == []


def trains() -> None:
    """A sharded model that has been filled runs forward and backward."""
    model = nn.Sequential(nn.Linear(30, 70), nn.ReLU(), nn.Linear(70, 3))
    fully_shard(model)
    fill(model, Normal(1.0))
    model(torch.ones(2, 30)).square().mean().backward()

    assert model[0].weight.grad is not None


def gathered() -> None:
    """After a forward pass alone the outermost parameters are whole; they are sharded again."""
    model = nn.Sequential(nn.Linear(30, 70), nn.ReLU(), nn.Linear(70, 3))
    expected = nn.Sequential(nn.Linear(30, 70), nn.ReLU(), nn.Linear(70, 3))
    fully_shard(model)
    with torch.no_grad():
        model(torch.ones(2, 30))
    assert not isinstance(model[0].weight, DTensor)
    reshard(model)
    fill(model, Normal(1.0))
    fill(expected, Normal(1.0))

    assert _unequal(model, expected) == []


def verified() -> None:
    """Each process measures what it holds; an error in one shard is found there."""
    model = _made()
    fsdp(model, distributed.get_world_size())
    chosen = pairs(model, lambda site: Orthogonal() if site.name == "up.weight" else Normal(0.1))
    apply_steps(chosen, Drawing(SEED))
    assert measure_steps(chosen).findings == ()
    if distributed.get_rank() == 0:
        with torch.no_grad():
            model.down.weight.to_local().mul_(1.1)
    names = [finding.name for finding in measure_steps(chosen).findings]

    assert names == (["down.weight"] if distributed.get_rank() == 0 else [])


CASES: dict[str, Callable[[], None]] = {
    **{
        f"{way}-{choice}": lambda way=way, choice=choice: spread(way, choice)
        for way in WAYS
        for choice in CHOICES
        if choice != "own" or way in _FOR_OWN
    },
    **{
        f"materialized-{way}": lambda way=way: materialized(way)
        for way in WAYS
        if way != "by_hand"  # `distribute_tensor` copies values, and there are none on meta
    },
    **{
        case.__name__: case
        for case in (
            odd_sizes,
            fails_together,
            commits_together,
            other_bits,
            blocks_drawn,
            ddp,
            no_seed,
            outside,
            partial,
            checkpoint,
            verified,
            *((trains, gathered) if FSDP_RUNS else ()),
        )
    },
}

#
# Processes
#


def run(world: int) -> dict[str, list[str]]:
    """Run all cases on some processes; return for each case what went wrong, by rank."""
    return failures(everywhere(_work, world, threads=2))


def _work() -> dict[str, str]:
    return outcomes(CASES)


if __name__ == "__main__":
    for name, wrong in run(int(sys.argv[1])).items():
        print(name, "failed" if wrong else "passed", *wrong)  # noqa: T201
