"""Averages by attention weights, against draws: how small they are, and where they lean."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.moments.probing import Probe, measured, reads_of


def attend(x):
    """Attend to all other rows."""
    x = x.view(1, 64, 256)
    return F.scaled_dot_product_attention(x, x.roll(1, -1), x).flatten(0, 1)


def test_attention_averages():
    """Attention over independent rows reads little: the weights' squares, not the weights."""
    probe = Probe(attend)
    found = reads_of(probe, torch.empty(probe.shape, device="meta"))
    assert found["last.weight"].second == pytest.approx(measured(probe), rel=0.25)
    assert found["last.weight"].second < 0.6


class Attention(nn.Module):
    """Self-attention with two heads, fused, written out, or as torch's layer."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.layer = nn.MultiheadAttention(WIDTH, 2, bias=False) if kind == "layer" else None
        if kind != "layer":
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
            self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        if self.layer is not None:
            return self.layer(x, x, x, need_weights=False)[0]
        q, k, v = self.qkv(x).view(TOKENS, 3, 2, WIDTH // 2).permute(1, 2, 0, 3)
        if self.kind == "fused":
            attended = F.scaled_dot_product_attention(q, k, v)
        else:
            q = q * (WIDTH // 2) ** -0.5
            attended = torch.softmax(q @ k.transpose(-2, -1), -1) @ v
        return self.out(attended.transpose(0, 1).reshape(TOKENS, WIDTH))


TOKENS, WIDTH = 256, 64


def attended() -> float:
    """Return the mean square of attention's average, counted out for normal tokens and weights."""
    seconds = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(TOKENS, WIDTH, generator=generator)
        weights = torch.randn(3, WIDTH, WIDTH // 2, generator=generator) / WIDTH**0.5
        q, k, v = x @ weights
        likes = torch.exp(q @ k.T / (WIDTH // 2) ** 0.5)
        seconds.append((likes @ v / likes.sum(1, keepdim=True)).square().mean().item())
    return sum(seconds) / len(seconds)


@pytest.mark.parametrize("kind", ["fused", "written out", "layer"])
def test_attention_leans_towards_its_query(kind):
    """Keys and values of the same tokens vary together: the average is twice what chance gives.

    By chance alone it would be `(e + 1) / 256`; forty nets have a relative error of 3 %.
    """
    model = Attention(kind)
    found = reads_of(model, torch.empty(TOKENS, WIDTH, device="meta"))
    name = "layer.out_proj.weight" if kind == "layer" else "out.weight"
    measured = attended()
    assert found[name].second == pytest.approx(measured, rel=0.12)
    assert (math.e + 1) / TOKENS < 0.7 * measured
