"""A recording leaves the model, its hooks and the process as they were."""

import copy
import random
import subprocess
import sys
import warnings

import pytest
import torch
from torch import Tensor, nn

from tests.trace.recording import record
from torch_initpolicy.trace.trees import Call


class Meddling(nn.Module):
    """A forward that leaves traces wherever it can, and then may raise."""

    def __init__(self, *, raises: bool) -> None:
        super().__init__()
        self.raises = raises
        self.linear = nn.Linear(4, 4)
        self.frozen_norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)
        self.cache: dict[str, Tensor] = {}
        self.seen: list[Tensor] = []
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.frozen_norm(self.linear(x)))
        self.steps += 1
        self.cache["x"] = x
        self.seen.append(x)
        self.last = x
        torch.rand(1)
        random.random()
        if self.raises:
            raise ValueError("half-way")
        return x


def snapshot(model: nn.Module) -> dict[str, object]:
    """Describe everything about a model that a recording could change."""
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "versions": [p._version for p in model.parameters()],
        "objects": [id(p) for p in (*model.parameters(), *model.buffers())],
        "flags": [module.training for module in model.modules()],
        "hooks": [
            (list(m._forward_pre_hooks), list(m._forward_hooks), list(m._backward_hooks))
            for m in model.modules()
        ],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "random": (torch.get_rng_state().tolist(), random.getstate()),
    }


def same(a: object, b: object) -> bool:
    """Compare two snapshots, tensors bit by bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


class TestUntouched:
    @pytest.mark.parametrize("on_meta", [True, False], ids=["meta", "real"])
    @pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
    @pytest.mark.parametrize("raises", [True, False], ids=["raises", "returns"])
    def test_model_and_random_states_are_as_they_were(self, raises, training, on_meta):
        """A recording changes no tensor, flag, hook, attribute, cache or random state."""
        model = Meddling(raises=raises)
        model.frozen_norm.eval()
        before = snapshot(model)
        call = Call((torch.zeros(3, 4),))
        if raises:
            with pytest.raises(ValueError, match="half-way"):
                record(model, call, on_meta=on_meta, training=training)
        else:
            record(model, call, on_meta=on_meta, training=training)

        assert same(before, snapshot(model))
        assert (model.cache, model.seen) == ({}, [])

    def test_a_snapshot_tells_a_flag_and_a_number_apart(self):
        """The comparison above can fail: one flag or one number makes a difference."""
        model = Meddling(raises=False)
        before, other = snapshot(model), copy.deepcopy(model)
        other.frozen_norm.running_mean[0] = 1
        model.frozen_norm.eval()

        assert not same(before["state"], snapshot(other)["state"])
        assert not same(before["flags"], snapshot(model)["flags"])

    def test_hooks_that_look_on_do_not_run_and_stay(self):
        """A hook that only notes what passes is not called, and is still there afterwards."""
        model = nn.Sequential(nn.Linear(2, 2))
        calls = []
        handle = model[0].register_forward_hook(lambda *_: calls.append(1))
        record(model, Call((torch.zeros(1, 2),)))

        assert (calls, list(model[0]._forward_hooks)) == ([], [handle.id])

    def test_hooks_that_compute_are_recorded(self):
        """A hook that returns another output takes part in the data flow."""
        model = nn.Sequential(nn.Linear(2, 2))
        model[0].register_forward_hook(lambda module, args, output: torch.tanh(output))
        graph = record(model, Call((torch.zeros(1, 2),)))

        assert [node.op for node in graph.nodes] == ["linear", "tanh"]

    def test_warnings_of_the_model_neither_show_nor_stop_a_recording(self):
        """What a forward warns of is for who runs it, also where warnings are errors."""

        class Net(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                warnings.warn("mind the gap", UserWarning, stacklevel=2)
                return x + 1

        assert [node.op for node in record(Net(), Call((torch.zeros(2),))).nodes] == ["add"]


def test_the_first_plan_of_a_process_imports_no_compiler():
    """`torch._dynamo` takes seconds to import, and nothing is compiled where it is not there."""
    code = """
import sys
from torch import nn
from torch_initpolicy import plan_policy
plan_policy(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Softmax(-1)))
print("torch._dynamo" in sys.modules)
"""
    command = [sys.executable, "-c", code]

    assert subprocess.check_output(command, text=True) == "False\n"
