"""One forward pass under calibration: what it may do, and what it leaves as it was."""

import copy
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.calibrate.measuring import TOLERANCE, Images, batch, deviation
from torch_initpolicy.calibrate.lsuv import lsuv_
from torch_initpolicy.errors import TraceError


class Energy(nn.Module):
    """A forward that takes a gradient itself, and weighs it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x.requires_grad_()
        energy = F.softplus(self.inner(x)).square().sum()
        return self.outer(torch.autograd.grad(energy, x, create_graph=True)[0])


def test_a_forward_that_takes_gradients_is_scaled():
    """What the forward makes of its gradient is that of the scaled weights."""
    model, x = Energy(), batch(64, 16)
    report = lsuv_(model, x)

    assert {scaled.site for scaled in report.scaled} == {"inner.weight", "outer.weight"}
    assert deviation(model.inner(x)) < TOLERANCE
    assert deviation(model(batch(64, 16))) < TOLERANCE
    assert not x.requires_grad
    assert [parameter.grad for parameter in model.parameters()] == [None, None]


def test_what_runs_inside_vmap_is_left():
    """There the outputs of an operator are not all in sight; what lies outside is scaled."""

    class Net(Energy):
        def forward(self, x: Tensor) -> Tensor:
            return self.outer(torch.vmap(self.inner)(x))

    model, x = Net(), batch(64, 16)
    report = lsuv_(model, x)

    assert [str(left.reason) for left in report.left] == [
        "its operator runs inside torch.vmap or torch.func.grad"
    ]
    assert deviation(model(x)) < TOLERANCE


class Raising(nn.Module):
    """Raises behind its second layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)

    def forward(self, x):
        self.second(self.norm(self.first(x)))
        raise RuntimeError("too late")


@pytest.mark.parametrize("orthogonal", [False, True], ids=["scaling", "orthogonal start"])
def test_an_error_leaves_the_model_as_it_was(orthogonal):
    """Where the forward raises, every parameter, buffer, flag and random state is the old one."""
    model = Raising()
    model.norm.eval()
    state, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    rng = torch.random.get_rng_state()
    with pytest.raises(TraceError, match="too late"):
        lsuv_(model, batch(8, 6), orthogonal=orthogonal)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(rng, torch.random.get_rng_state())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_running_statistics_stay():
    """The pass runs in training mode on copies of the buffers."""
    model = Images()
    lsuv_(model, batch(8, 3, 16, 16), orthogonal=False)
    assert model.norm.num_batches_tracked == 0
    assert torch.equal(model.norm.running_var, torch.ones(16))


class Living(TorchDispatchMode):
    """Counts the bytes of the tensors that were made under it and live, and the most ever."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, object] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operator, and count what it makes; a lazy clone has no memory of its own."""
        del types
        result = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in tree_leaves(args) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                if not (func is torch.ops.aten._lazy_clone.default or storage._cdata in given):
                    self.count(storage)
        return result

    def count(self, storage):
        """Count a storage until it dies."""
        key, size = storage._cdata, storage.nbytes()
        if key not in self.storages:
            self.now += size
            self.most = max(self.most, self.now)
            self.storages[key] = weakref.ref(storage, lambda _: self.drop(key, size))

    def drop(self, key, size):
        """Take off a storage that has died."""
        del self.storages[key]
        self.now -= size


@pytest.mark.parametrize("orthogonal", [True, False])
def test_memory_is_that_of_a_forward_pass(orthogonal):
    """No activation outlives its use: all that is added are the weights, and pieces of outputs."""
    model = nn.Sequential(*(f() for _ in range(8) for f in (lambda: nn.Linear(32, 32), nn.ReLU)))
    x = batch(2**15, 32)
    with Living() as plain, torch.no_grad():
        model(x)
    with Living() as calibrating:
        lsuv_(model, x, orthogonal=orthogonal)

    assert plain.most >= 2 * x.nbytes
    assert calibrating.most <= 1.3 * plain.most
