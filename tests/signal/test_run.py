"""The run itself: inputs, errors, and a model that is left as it was."""

import copy
import random

import pytest
import torch
from torch import nn

from tests.signal.nets import HE, Functional, batch, fill, plain
from torch_initpolicy.errors import TraceError
from torch_initpolicy.signal.run import audit_signal

pytestmark = pytest.mark.usefixtures("one_thread")


class Watched(nn.Module):
    """Everything that a forward pass could move: statistics, dropout, flags, hooks, attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(8).eval()
        self.calls, self.fails = 0, False

    def forward(self, x):
        self.calls += 1
        x = self.frozen(self.drop(self.norm(self.first(x))))
        if self.fails:
            raise RuntimeError("half-way")
        return x


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_the_model_is_untouched(fails):
    """Parameters, gradients, buffers, flags, attributes, hooks and random states are the old."""
    model = Watched()
    model.fails = fails
    fired = []
    model.first.weight.register_hook(fired.append)
    model.first.weight.grad = torch.ones(8, 8)
    state, versions = copy.deepcopy(model.state_dict()), [p._version for p in model.parameters()]
    rng = torch.random.get_rng_state(), random.getstate()
    if fails:
        with pytest.raises(TraceError, match="half-way"):
            audit_signal(model, batch(4, 8))
    else:
        audit_signal(model, batch(4, 8))
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert [p._version for p in model.parameters()] == versions
    assert torch.equal(model.first.weight.grad, torch.ones(8, 8))
    assert not fired
    assert model.calls == 0
    assert [m.training for m in model.modules()] == [True, True, True, True, False]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(rng[0], torch.random.get_rng_state())
    assert rng[1] == random.getstate()


def test_the_same_audit_twice():
    """Dropout and the random direction come from fixed states: two audits agree exactly."""
    model, x = Watched(), batch(4, 8)
    assert audit_signal(model, x) == audit_signal(model, x)


def test_inputs_are_drawn_where_none_are_given():
    """The shapes come from the forward pass that planning finds, the numbers are random."""
    signal = audit_signal(fill(plain(2, 16), HE))
    assert signal.inputs == 64
    assert signal.points[0].likeness < 0.3
    assert audit_signal(Functional()).inputs == 16


def test_errors_say_what_to_write():
    """A wrong shape and a loss that is no scalar are the user's to mend."""
    model = plain(1, 8)
    with pytest.raises(TraceError, match="give what forward takes"):
        audit_signal(model, batch(4, 9))
    with pytest.raises(TraceError, match=r"scalar tensor, got one of shape \(4, 10\)"):
        audit_signal(model, batch(4, 8), loss_fn=lambda out: out)


@pytest.mark.parametrize("inputs", [None, batch(4, 3)], ids=["found", "given"])
@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda: nn.LazyLinear(4), "one batch first"),
     (lambda: nn.Linear(3, 4, device="meta"), "materialize")],
    ids=["lazy", "meta"],
)  # fmt: skip
def test_parameters_without_values_are_refused(make, words, inputs):
    """No signal goes through weights that are not there; the message says what to do."""
    with pytest.raises(TraceError, match=words):
        audit_signal(make(), inputs)
