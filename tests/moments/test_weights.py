"""What weights make of what they read."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.moments.probing import reads_of
from torch_initpolicy.moments.state import WrittenMoments


def test_tables_that_are_heads_too():
    """A tied embedding is as small as a head: its rows make logits of second moment 1."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = nn.Embedding(50, 16), nn.LayerNorm(16)

        def forward(self, x):
            return self.norm(self.table(x)) @ self.table.weight.T

    model = Tied()
    found = reads_of(model, torch.zeros(2, 7, dtype=torch.int64))
    assert found["table.weight"].second == pytest.approx(8.5, abs=8)


WIDTH = 16


@pytest.mark.parametrize("bias", [False, True])
def test_what_a_weight_makes(bias):
    """Weights that are written with numbers of their own make what a drawn layer makes."""
    first = nn.Linear(WIDTH, 512, bias=bias)
    model = nn.Sequential(first, nn.Linear(512, 4))
    written = {"0.weight": WrittenMoments(0.0, 0.25), "0.bias": WrittenMoments(0.5, 1.25)}
    found = reads_of(model, torch.empty(8, WIDTH, device="meta"), **written)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        first.weight.normal_(std=0.5, generator=generator)
        if bias:
            first.bias.normal_(mean=0.5, generator=generator)
        drawn = first(torch.randn(512, WIDTH, generator=generator)).square().mean().item()
    assert found["1.weight"].second == pytest.approx(drawn, rel=0.1)


def test_weights_with_a_mean_are_lost():
    """A sum over many inputs with one sign is no normal signal."""
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4))
    written = {"0.weight": WrittenMoments(0.5, 0.5)}
    found = reads_of(model, torch.empty(8, WIDTH, device="meta"), **written)
    assert "'0.weight' have a mean" in found["1.weight"].reason


def test_standardised_weights():
    """What the operator makes of its own weight is read next, whatever the policy writes."""

    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
            self.gain = nn.Parameter(torch.full((WIDTH,), 0.5))

        def forward(self, x):
            rows = self.first.weight[None]
            standard = F.batch_norm(rows, None, None, weight=self.gain, training=True)[0]
            return self.last(F.linear(x, standard))

    model = Standardised()
    found = reads_of(model, torch.empty(8, WIDTH, device="meta"))
    assert found["first.weight"].reason == "its operator fixes the weight's size"
    assert found["last.weight"].second == pytest.approx(WIDTH * 0.5**2)


def test_recurrent_layers_read_their_input_and_hide_their_state():
    """What comes in is known; what the state feeds is not."""
    model = nn.LSTM(WIDTH, WIDTH, num_layers=2)
    found = reads_of(model, torch.empty(5, 8, WIDTH, device="meta"))
    assert found["weight_ih_l0"].second == 1.0
    assert {found[name].second for name in ("weight_hh_l0", "weight_ih_l1")} == {None}
