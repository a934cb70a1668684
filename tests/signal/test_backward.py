"""Verdicts on the way back: gradients that vanish, stop, or are small on purpose."""

import pytest
import torch
from torch import nn

from tests.signal.nets import batch, fill, kinds, plain
from torch_initpolicy.signal.run import audit_signal

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("last", "what"), [(nn.Softmax(dim=1), "softmax"), (nn.LayerNorm(1), "layer_norm")]
)
def test_a_gradient_that_stops(last, what):
    """Behind one class, or one feature, nothing is learnt: no start changes that."""
    net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1), last)
    verdict = audit_signal(net, batch(64, 32)).verdicts[0]
    assert (verdict.kind, verdict.where) == ("gradient stops", f"3:{what}")
    assert verdict.structural


def test_small_scales_open_in_training():
    """A LayerScale of 1e-5 keeps gradients small on purpose; a bias of 1e-2 excuses nothing."""

    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((128,), scale))

        def forward(self, x):
            return x * self.scale

    scaled = nn.Sequential(*(nn.Sequential(nn.Linear(128, 128), Scaled(1e-4)) for _ in range(4)))
    assert "gradient vanishes" not in kinds(scaled, batch(32, 128))
    biased = fill(plain(30), 1.0)
    nn.init.constant_(biased[0].bias, 1e-2)
    assert "gradient vanishes" in kinds(biased, batch(32, 128))


def test_a_cell_that_runs_often_learns_from_its_later_calls():
    """Where the gradient vanishes over time the weights still get one: that is a warning."""

    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.keep = nn.Linear(8, 32), nn.Linear(32, 32)
            self.head = nn.Linear(32, 4)

        def forward(self, x):
            h = x.new_zeros(len(x), 32)
            for step in x.unbind(1):
                h = torch.tanh(self.read(step) + self.keep(h))
            return self.head(h)

    signal = audit_signal(fill(Cell(), 0.4), batch(16, 40, 8))
    (verdict,) = [v for v in signal.verdicts if v.kind == "gradient vanishes"]
    lines = [line.split("  ")[0] for line in str(signal).splitlines()]
    assert [line for line in lines if "keep.weight" in line and "call" in line][:2] == [
        "keep.weight (call 1 of 40)", "keep.weight (call 40 of 40)",
    ]  # fmt: skip
    assert verdict.mild
    assert "learns from its later calls alone" in verdict.reason


@pytest.mark.parametrize("signed", [True, False])
def test_adam_does_not_mind_the_size_of_a_gradient(signed):
    """Its step is as long whatever the gradient; that of plain descent vanishes with it."""
    net = fill(plain(20), 1.0)
    optimizer = "adam" if signed else "sgd"
    found = kinds(net, batch(32, 128), optimizer=optimizer, lr=1e-3)
    assert ("gradient vanishes" in found) is not signed
