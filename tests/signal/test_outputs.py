"""Outputs are judged by what they are: logits, priors, products of signals."""

import pytest
import torch
from torch import nn

from tests.signal.nets import HE, Contrasted, batch, fill, kinds_and_places
from torch_initpolicy.signal.run import audit_signal

pytestmark = pytest.mark.usefixtures("one_thread")


def test_heads_are_judged_in_any_order():
    """A head that runs first, and is far too large, is named; small priors beside it are not."""

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.large = nn.Linear(32, 64), nn.Linear(64, 10)
            self.prior, self.last = nn.Linear(64, 20), nn.Linear(64, 4)

        def forward(self, x):
            h = torch.relu(self.trunk(x))
            return self.large(h), self.prior(h).sigmoid(), self.last(h)

    net = fill(Heads(), HE)
    with torch.no_grad():
        net.large.weight.mul_(100)
        net.prior.weight.normal_(std=1e-3)
        net.prior.bias.fill_(-4.6)

    assert kinds_and_places(net, batch(64, 32)) == {"output too large": "large.weight"}


def test_generated_weights_are_judged_by_what_they_make():
    """Behind a hypernetwork the output is judged, not only weights that are parameters."""

    class Hyper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code, self.make = nn.Linear(16, 16), nn.Linear(16, 16 * 4)

        def forward(self, x):
            weight = self.make(torch.relu(self.code(x.mean(0)))).view(4, 16)
            return nn.functional.linear(x, 1e4 * weight)

    assert "output too large" in kinds_and_places(fill(Hyper(), HE), batch(32, 16))


def test_a_temperature_is_named_for_what_it_makes_large():
    """No weight before a normalisation makes its output large: the factor behind it does."""
    x = (batch(32, 16), batch(32, 16).flip(0))
    (verdict,) = audit_signal(Contrasted(1e3), x).verdicts
    assert (verdict.kind, verdict.where) == ("output too large", "scale")
    assert verdict.structural  # no policy writes a temperature
    assert audit_signal(Contrasted(1 / 0.07), x).ok
