"""The loss with other numbers in some parameters, against the loss of a model that holds them."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.signal.nets import HE, batch, fill, kinds, plain
from torch_initpolicy.signal.run import audit_signal

pytestmark = pytest.mark.usefixtures("one_thread")


class Density(nn.Module):
    """A normal distribution: its mean, and its standard deviation as an exponential."""

    def __init__(self, log_sigma: float) -> None:
        super().__init__()
        self.body = fill(plain(2, 32, nn.Tanh), 1.0)[:-1]
        self.mean, self.spread = fill(nn.Linear(32, 1), 1.0), fill(nn.Linear(32, 1), 0.1)
        nn.init.constant_(self.spread.bias, log_sigma)

    def forward(self, x):
        x = self.body(x)
        return self.mean(x), self.spread(x).exp()


def surprise(out: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean negative logarithm of the density of zeros."""
    return -torch.distributions.Normal(*out).log_prob(torch.zeros(())).mean()


@pytest.mark.parametrize("log_sigma", [-6.0, 30.0])
def test_a_deviation_that_costs_too_much_is_named(log_sigma):
    """What makes a density's loss large is found among its heads, be it a bias."""
    signal = audit_signal(Density(log_sigma), batch(64, 32), loss_fn=surprise)
    assert signal.loss_of_zeros == pytest.approx(math.log(2 * math.pi) / 2)
    assert [(v.kind, v.sites) for v in signal.verdicts] == [("output too large", ("spread.bias",))]


def test_a_deviation_that_fits_is_well():
    """A standard deviation of about one is no large output, whatever its logarithm is of zeros."""
    assert kinds(Density(0.0), batch(64, 32), loss_fn=surprise) == []


class Tied(nn.Module):
    """Reads and writes words by the same table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 16)
        self.mix = fill(nn.Linear(16, 16), HE)
        nn.init.normal_(self.table.weight, std=0.25, generator=torch.Generator().manual_seed(0))

    def forward(self, x):
        return nn.functional.linear(self.mix(self.table(x)), self.table.weight).exp()


def test_a_head_that_is_used_before_is_not_silenced():
    """Where zeros in the head would change what comes to it, zeros stand for the outputs."""
    words = torch.arange(16)
    signal = audit_signal(Tied(), words, loss_fn=lambda out: (out - 1).square().mean())
    assert signal.loss_of_zeros == pytest.approx(1.0)


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), ("adam", 0.01)])
def test_the_loss_after_the_first_step(optimizer, lr):
    """It is what a step of torch's optimizer brings, and the model stays where it was."""
    net, x = fill(plain(2, 16), HE), batch(32, 16)
    labels = torch.arange(32) % 10

    def loss(out: Tensor) -> Tensor:
        return nn.functional.cross_entropy(out, labels)

    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = audit_signal(net, x, loss_fn=loss, optimizer=optimizer, lr=lr).loss_after_step
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    loss(net(x)).backward()
    {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](net.parameters(), lr=lr).step()
    assert found == pytest.approx(loss(net(x)).item(), rel=1e-4)


def test_a_step_that_throws_the_loss_up_is_said():
    """Weights of a thousandth under a factor of a thousand do not bear a rate of 0.01."""

    class Summed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = fill(plain(2, 32), HE)
            with torch.no_grad():
                self.net[0].weight.mul_(1e-3)

        def forward(self, x):
            return self.net(1e3 * x)

    def loss(out: Tensor) -> Tensor:
        return nn.functional.cross_entropy(out, torch.arange(64) % 10)

    net, x = Summed(), batch(64, 32)
    assert kinds(net, x, loss_fn=loss, optimizer="adam", lr=1e-2) == ["step too large"]
    assert kinds(net, x, loss_fn=loss, optimizer="adam", lr=1e-6) == []
