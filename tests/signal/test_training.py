"""What is known of the training: its loss, and its first step."""

import pytest
import torch
from torch import Tensor, nn

from tests.signal.nets import HE, batch, fill, kinds_and_places, plain
from tests.signal.test_measure import Complex
from torch_initpolicy.errors import TraceError, UnknownNameError
from torch_initpolicy.signal.run import audit_signal

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_complex_loss_is_refused():
    """A loss is a real number; the message says what came instead."""
    with pytest.raises(
        TraceError, match=r"a real scalar tensor, got one of shape \(\) and torch.complex64"
    ):
        audit_signal(Complex(), torch.ones(2, 6, dtype=torch.complex64), loss_fn=torch.sum)


class Answering(nn.Module):
    """A layer whose output is answered in one way or another."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.layer, self.answer = nn.Linear(64, 64), answer

    def forward(self, x):
        return self.answer(self.layer(x))


UNGRADED = {
    "indices": (lambda y: y.argmax(-1), None, "the model returns int64, which have none"),
    "truths": (lambda y: (y > 0, y.argmax()), None, "returns bool and int64, which have none"),
    "nothing": (lambda y: None, None, "the model returns no tensors"),
    "detached": (Tensor.detach, None, "what the model returns depends on no parameter"),
    "loss": (Tensor.neg, lambda y: y.argmax().float(), "the loss depends on no parameter"),
}


@pytest.mark.parametrize(("answer", "loss_fn", "why"), UNGRADED.values(), ids=UNGRADED)
def test_a_gradient_that_does_not_exist_is_said(answer, loss_fn, why):
    """Nothing is claimed of a way back that nobody could go; the numbers ahead stay."""
    signal = audit_signal(Answering(answer), batch(32, 64), loss_fn=loss_fn)
    assert signal.weighted[0].gradient is None
    assert signal.loss is None
    assert signal.ok
    assert why in signal.note
    assert "the signal keeps its size on its way forward\n" in str(signal)
    assert "no gradients were followed" in " ".join(str(signal).split())


def test_a_loss_is_compared_with_that_of_zeros():
    """With a loss the output is judged by it: `ln(10)` is what zeros cost."""
    net, x = fill(plain(2, 32), HE), batch(64, 32)
    labels = torch.randint(10, (64,), generator=torch.Generator().manual_seed(0))

    def loss(out: Tensor) -> Tensor:
        return nn.functional.cross_entropy(out, labels)

    assert audit_signal(net, x, loss_fn=loss).ok
    with torch.no_grad():
        net[-1].weight.mul_(50)
    signal = audit_signal(net, x, loss_fn=loss)
    assert signal.loss_of_zeros == pytest.approx(2.302585, rel=1e-5)
    assert [verdict.kind for verdict in signal.verdicts] == ["output too large"]


def test_the_first_step_of_an_optimizer():
    """Adam moves each element by the learning rate; gradient descent by that times the gradient."""
    net, x = fill(plain(2, 16), HE), batch(32, 16)
    signal = audit_signal(net, x, optimizer="adamw", lr=1e-3)
    steps = {update.site: update for update in signal.updates if "weight" in update.site}
    for update in steps.values():
        assert update.step == pytest.approx(1e-3 / update.second**0.5)
    assert "step too large" in kinds_and_places(net, x, optimizer="adamw", lr=1.0)
    with pytest.raises(UnknownNameError, match="adam"):
        audit_signal(net, x, optimizer="atom", lr=1e-3)


@pytest.mark.parametrize("small", ["head", "scale"])
def test_what_starts_small_is_to_grow(small):
    """A head of 0.01, as PPO has it, and a LayerScale of 1e-5 are no reason for a lower rate."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((16,), 1e-5 if small == "scale" else 1.0))

        def forward(self, x):
            return x + self.scale * torch.tanh(x)

    net = fill(nn.Sequential(nn.Linear(16, 16), Scaled(), nn.Linear(16, 4)), 1.0)
    with torch.no_grad():
        net[1].scale.fill_(1e-5 if small == "scale" else 1.0)
        net[2].weight.mul_(1e-3 if small == "head" else 1.0)

    assert "step too large" not in kinds_and_places(net, batch(32, 16), optimizer="adam", lr=1e-3)
    assert "step too large" in kinds_and_places(net, batch(32, 16), optimizer="adam", lr=1.0)
