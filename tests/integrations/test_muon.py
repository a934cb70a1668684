"""Muon, per packed matrix: the same steps as if q, k and v were layers of their own."""

import pytest
import torch
from torch import nn

from torch_initpolicy import plan_policy
from torch_initpolicy.integrations.muon import Muon

WIDTH = 16


class Packed(nn.Module):
    """Attention whose q, k and v are one layer, or three."""

    def __init__(self, *, packed):
        super().__init__()
        self.embed = nn.Embedding(7, WIDTH)
        sizes = (3 * WIDTH,) if packed else (WIDTH,) * 3
        self.into = nn.ModuleList(nn.Linear(WIDTH, size, bias=False) for size in sizes)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, tokens):
        x = self.embed(tokens)
        q, k, v = torch.cat([layer(x) for layer in self.into], -1).chunk(3, dim=-1)
        return self.head(self.out(nn.functional.scaled_dot_product_attention(q, k, v)))


TOKENS = torch.arange(14).reshape(2, 7) % 7


def moved(model, kind):
    """Take three steps along given gradients; return what q, k and v moved by."""
    groups = plan_policy(model, example_inputs=TOKENS).param_groups("muon", lr=0.1)
    optimizer = kind([group for group in groups if group["algorithm"] == "muon"])
    before = torch.cat([layer.weight.detach().clone() for layer in model.into])
    for gradient in torch.randn(3, 3 * WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)):
        for layer, part in zip(model.into, gradient.chunk(len(model.into)), strict=True):
            layer.weight.grad = part.clone()
        optimizer.step()
    return torch.cat([layer.weight.detach() for layer in model.into]) - before


@pytest.mark.parametrize(("kind", "same"), [(Muon, True), (torch.optim.Muon, False)])
def test_steps_as_of_separate_layers(kind, same):
    """Packed matrices move as separate ones do; under torch's own optimizer they do not."""
    difference = moved(Packed(packed=True), kind) - moved(Packed(packed=False), torch.optim.Muon)

    assert bool(difference.abs().max() < 1e-6) is same
