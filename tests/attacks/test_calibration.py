"""Calibration: weights used any number of times, and replicated on any mesh, are scaled exactly."""

import copy
import random
import tempfile

import pytest
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from torch_initpolicy import apply_policy, lsuv_

pytestmark = pytest.mark.usefixtures("one_thread")


class Loop(nn.Module):
    """Layers that are used in turns, several times, on a stream or in a chain."""

    def __init__(self, layers, uses, activation, adds):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(layers))
        self.head = nn.Linear(16, 4)
        self.uses, self.activation, self.adds = uses, activation, adds

    def forward(self, x):
        """Run every layer in turns."""
        for _ in range(self.uses):
            for layer in self.layers:
                new = self.activation(layer(x))
                x = x + new if self.adds else new
        return self.head(x)


def test_weights_used_several_times(tries):
    """The variance of what a weight makes, averaged over its uses, is as wanted from outside."""
    rng = random.Random(0)
    for _ in tries(8):
        activation = rng.choice([torch.relu, torch.tanh, nn.functional.gelu, torch.sin])
        model = Loop(rng.randint(1, 3), rng.randint(2, 8), activation, adds=rng.random() < 0.3)
        std, batch = rng.choice([0.5, 1.0]), torch.randn(64, 16)
        report = lsuv_(model, batch, std=std)
        outputs = {layer: [] for layer in (*model.layers, model.head)}
        for layer, seen in outputs.items():
            layer.register_forward_hook(lambda *args, seen=seen: seen.append(args[2]))
        with torch.no_grad():
            model(batch)
        left = {entry.site for entry in report.left}
        names = {module: name for name, module in model.named_modules()}
        for layer, seen in outputs.items():
            if f"{names[layer]}.weight" not in left:
                variance = torch.stack([output.var(correction=0) for output in seen]).mean()
                assert variance.sqrt().item() == pytest.approx(std, rel=1e-3)
        assert not left


@pytest.fixture(scope="module")
def world():
    """A world of one process."""
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=0, world_size=1
        )
        yield
        distributed.destroy_process_group()


def _hybrid(model):
    fully_shard(model, mesh=init_device_mesh("cpu", (1, 1), mesh_dim_names=("a", "b")))


@pytest.mark.distributed
@pytest.mark.parametrize("spread", [fully_shard, _hybrid], ids=["fsdp", "hsdp"])
def test_replicated_weights_are_scaled_once(world, spread):
    """What one process holds whole, as a replica or a shard of one, is scaled as plain weights."""
    plain = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    sharded = copy.deepcopy(plain)
    spread(sharded)
    batch = 3 * torch.randn(32, 16)
    receipts = [apply_policy(each, seed=5, calibrate=batch) for each in (plain, sharded)]
    for wanted, got in zip(plain.parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(got.full_tensor(), wanted)
    for receipt, model in zip(receipts, (plain, sharded), strict=True):
        receipt.verify(model)
