"""What each process does for `test_shards.py`: searches of models that are spread over a mesh.

Run alone: `python -m tests.symmetry.spread 2`.
"""

import copy
import sys
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from tests.processes import everywhere, failures, outcomes
from tests.symmetry.cases import copy_unit, fill
from torch_initpolicy.errors import SymmetricInitWarning
from torch_initpolicy.sites import sites
from torch_initpolicy.symmetry.find import find_symmetry
from torch_initpolicy.symmetry.findings import Report
from torch_initpolicy.symmetry.scan import scan
from torch_initpolicy.symmetry.shards import signatures
from torch_initpolicy.symmetry.units import View
from torch_initpolicy.symmetry.watch import warn_on_symmetry


def network() -> nn.Module:
    """Build the same network in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)
        )


def inputs() -> Tensor:
    """Return the same inputs in every process."""
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(4))


def mesh() -> DeviceMesh:
    """Return a mesh of one dimension over all processes."""
    return init_device_mesh("cpu", (distributed.get_world_size(),))


def sharded(model: nn.Module, over: DeviceMesh | None = None) -> nn.Module:
    """Shard a model by FSDP2, layer by layer."""
    spread = copy.deepcopy(model)
    for layer in spread:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=over or mesh())
    fully_shard(spread, mesh=over or mesh())
    return spread


def names(report: Report, *verdicts: str) -> set[str]:
    """Return the names of the findings with some verdicts."""
    return {finding.name for finding in report.of(*verdicts)}


def same(expected: object, found: object) -> None:
    """Compare, and show both where they differ."""
    assert expected == found, f"expected {expected}, found {found}"


#
# Cases
#


def healthy() -> None:
    """A model that was sharded after its initialisation has no findings."""
    same((), find_symmetry(sharded(network()), inputs()).findings)


def identical_shards() -> None:
    """Each process draws its shard from one seed: every weight is copies of one block."""
    model = sharded(network())
    torch.manual_seed(7)
    for layer in (model[0], model[2], model[4]):
        nn.init.normal_(layer.weight, std=0.4)

    report = find_symmetry(model, inputs())

    world = distributed.get_world_size()
    found = {f.name: f for f in report.of("tied") if f.along == "shards"}
    same({"0.weight", "2.weight", "4.weight"}, set(found))
    same({(tuple(range(world)),)}, {f.units for f in found.values()})
    assert not report.ok


def constants_are_no_copies() -> None:
    """Equal shards of zeros, or of a norm's ones, mean nothing."""
    model = nn.Sequential(network(), nn.LayerNorm(4), nn.Linear(4, 4))
    fill(model[2], 0.0)
    fully_shard(model, mesh=mesh())

    report = find_symmetry(model, inputs())

    assert report.ok
    same({"2.weight"}, names(report, "harmless"))


def planted_across_processes() -> None:
    """Units copied from the first process' shard to the last's are numbered as in the whole."""
    model = network()
    copy_unit(model[0], model[2], 1, 7)
    whole = find_symmetry(model, inputs())

    spread = find_symmetry(sharded(model), inputs())

    same({((1, 7),)}, {finding.units for finding in whole.of("tied")})
    same(whole.findings, spread.findings)


def constant_network() -> None:
    """What is tied in one process is tied in many."""
    model = fill(network(), 0.3)
    same(find_symmetry(model, inputs()).findings, find_symmetry(sharded(model), inputs()).findings)


def diverged_replicas() -> None:
    """Replicas drawn from seeds of their own are found."""
    rank = distributed.get_rank()
    model = network()
    torch.manual_seed(rank)
    own = nn.init.normal_(torch.empty(8, 6))
    replicated = DTensor.from_local(own, mesh(), [Replicate()], run_check=False)
    model[0].weight = nn.Parameter(replicated)

    report = find_symmetry(model)

    same({"0.weight"}, names(report, "diverged"))
    assert not report.ok


def equal_replicas() -> None:
    """Replicas that are equal are no finding."""
    model = network()
    model[0].weight = nn.Parameter(
        distribute_tensor(model[0].weight.detach(), mesh(), [Replicate()])
    )
    same((), find_symmetry(model).findings)


def tensor_parallel() -> None:
    """Under tensor parallelism the same units are tied, and under the same numbers."""
    model = network()
    copy_unit(model[0], model[2], 1, 7)
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    spread = parallelize_module(copy.deepcopy(model), mesh(), plan)

    same(find_symmetry(model, inputs()).findings, find_symmetry(spread, inputs()).findings)


def signatures_do_not_depend_on_placement() -> None:
    """However a tensor is cut, equal units have equal signatures and others do not."""
    whole = torch.randn(8, 6, 5, generator=torch.Generator().manual_seed(1))
    whole[6] = whole[1]
    for placement in (Shard(0), Shard(1), Shard(2), Replicate()):
        cut = distribute_tensor(whole, mesh(), [placement])
        for axes in ((0,), (1,), (0, 2)):
            view = View("outputs", (8, 6, 5), axes)
            rows = signatures(cut, view)
            plain = signatures(distribute_tensor(whole, mesh(), [Replicate()]), view)
            assert torch.allclose(rows, plain, rtol=1e-12, atol=1e-12)
        rows = signatures(cut, View("outputs", (8, 6, 5), (0,)))
        assert torch.allclose(rows[6], rows[1], rtol=1e-12)
        assert not torch.allclose(rows[5], rows[1], rtol=1e-3)


def weights_do_not_travel() -> None:
    """The scan of a sharded model gathers no parameter."""
    model = sharded(network())
    gathered: list[object] = []
    original = DTensor.full_tensor
    DTensor.full_tensor = lambda self, **_: gathered.append(self) or original(self)  # type: ignore[method-assign]
    try:
        scan(sites(model))
    finally:
        DTensor.full_tensor = original  # type: ignore[method-assign]
    same([], gathered)


def model_is_untouched() -> None:
    """Shards, hooks and flags are what they were, and the model still trains."""
    model = sharded(fill(network(), 0.3))
    before = [p.to_local().clone() for p in model.parameters()]
    hooks = [dict(m._forward_pre_hooks) for m in model.modules()]
    find_symmetry(model, inputs())
    same(hooks, [dict(m._forward_pre_hooks) for m in model.modules()])
    assert all(
        torch.equal(a, p.to_local()) for a, p in zip(before, model.parameters(), strict=True)
    )
    model(inputs()).sum().backward()


def _train(model: nn.Module, steps: int = 4) -> list[str]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught, warn_on_symmetry(model):
        warnings.simplefilter("always")
        for _ in range(steps):
            optimizer.zero_grad()
            model(inputs()).pow(2).sum().backward()
            optimizer.step()
    return [str(w.message) for w in caught if issubclass(w.category, SymmetricInitWarning)]


def watched_fsdp() -> None:
    """A sharded training of a constant network is warned of once, in every process."""
    (text,) = _train(sharded(fill(network(), 0.3)))
    assert "0.weight: 8 units tied" in text
    same([], _train(sharded(network())))


def watched_ddp() -> None:
    """So is a replicated one, under the names of the model inside."""
    (text,) = _train(nn.parallel.DistributedDataParallel(fill(network(), 0.3)))
    assert "  - 0.weight: 8 units tied" in text
    same([], _train(nn.parallel.DistributedDataParallel(network())))


def hybrid() -> None:
    """With replicas of shards both mistakes are found: copied shards and diverged replicas."""
    over = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    same((), find_symmetry(sharded(network(), over), inputs()).findings)
    copied = sharded(network(), over)
    torch.manual_seed(7)
    nn.init.normal_(copied[2].weight)
    same({"2.weight"}, names(find_symmetry(copied), "tied"))
    apart = sharded(network(), over)
    torch.manual_seed(distributed.get_rank())
    nn.init.normal_(apart[2].weight)
    same({"2.weight"}, names(find_symmetry(apart), "diverged"))


_ANY = (
    healthy,
    identical_shards,
    constants_are_no_copies,
    planted_across_processes,
    constant_network,
    diverged_replicas,
    equal_replicas,
    tensor_parallel,
    signatures_do_not_depend_on_placement,
    weights_do_not_travel,
    model_is_untouched,
    watched_fsdp,
    watched_ddp,
)

CASES: dict[int, dict[str, Callable[[], None]]] = {
    2: {case.__name__: case for case in _ANY},
    4: {case.__name__: case for case in (*_ANY, hybrid)},
}
"""What is tried in a world of so many processes."""


#
# Processes
#


def run(world: int) -> dict[str, list[str]]:
    """Run all cases on some processes; return for each case what went wrong, by rank."""
    return failures(everywhere(_work, world))


def _work() -> dict[str, str]:
    return outcomes(CASES[distributed.get_world_size()])


if __name__ == "__main__":
    for name, wrong in run(int(sys.argv[1])).items():
        print(name, "failed" if wrong else "passed", *wrong)  # noqa: T201
