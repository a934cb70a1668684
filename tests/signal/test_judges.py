"""What is said alone, and what is no verdict."""

import pytest
import torch
from torch import nn

from tests.signal.nets import HE, batch, fill, kinds, kinds_and_places, plain
from torch_initpolicy.signal.run import audit_signal

pytestmark = pytest.mark.usefixtures("one_thread")


class Causal(nn.Module):
    """Attention whose mask is written out, as that of many a GPT."""

    def __init__(self, masked: float) -> None:
        super().__init__()
        self.masked = masked
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (q @ k.mT).masked_fill(future, self.masked)
        return self.proj(scores.softmax(-1) @ v)


@pytest.mark.parametrize("masked", [-torch.inf, torch.finfo(torch.float32).min], ids=str)
def test_a_mask_is_no_overflow(masked):
    """Scores that a mask sets to minus infinity, for softmax to make zeros of, are no signal."""
    assert audit_signal(fill(Causal(masked), 1.0), batch(4, 6, 16)).ok


def test_an_overflow_before_a_mask_is_one():
    """Where the scores are not finite of themselves, the mask excuses nothing."""
    assert kinds(fill(Causal(-torch.inf), 1e30), batch(4, 6, 16)) == ["overflows"]


def test_what_cuts_the_signal_off_is_said_alone():
    """Behind a layer that is dead as a whole all is constant: that is the cause, not a finding."""
    model = fill(plain(8), HE)
    for layer in model[:-1:2]:
        nn.init.constant_(layer.bias, -60.0)
    assert kinds_and_places(model, batch(64, 128)) == {"dies": "1:relu"}


def test_values_that_are_not_finite_are_told_of_the_weight():
    """A nan in a weight is said of it, and not of the sum in which it is seen first."""
    net = fill(plain(3, 16), HE)
    with torch.no_grad():
        net[2].weight[0, 0] = torch.nan
    assert kinds_and_places(net, batch(8, 16)) == {"not finite": "2.weight"}
