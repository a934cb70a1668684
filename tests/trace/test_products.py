"""Dot products of two signals: which parameters make them, and how large they are."""

import math

import pytest
import torch
from torch import nn

from torch_initpolicy import plan_policy


class Attention(nn.Module):
    """One layer of attention, written in one of the ways in which people write it."""

    def __init__(self, way, width=32, heads=4, scale=None):
        super().__init__()
        self.way, self.heads = way, heads
        self.size = width // heads
        self.scale = self.size**-0.5 if scale is None else scale
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(self.size) if way == "normed" else nn.Identity()
        self.out = nn.Linear(width, width)

    def forward(self, x):
        """Attend."""
        split = (x.shape[0], x.shape[1], self.heads, self.size)
        q, k, v = (part(x).view(split).transpose(1, 2) for part in (self.q, self.k, self.v))
        return self.out(self.mixed(self.norm(q), k, v).transpose(1, 2).flatten(2))

    def mixed(self, q, k, v):
        """Weigh the values."""
        if self.way == "fused":
            return nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        if self.way == "einsum":
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * self.scale
        elif self.way == "query":
            scores = (q * self.scale) @ k.transpose(-2, -1)
        elif self.way == "both":
            scores = (q * self.scale**0.5) @ (k * self.scale**0.5).transpose(-2, -1)
        else:
            scores = q @ k.transpose(-2, -1) / (1 / self.scale)
        return scores.softmax(-1) @ v


WAYS = ("fused", "einsum", "query", "both", "divided", "normed")
INPUTS = torch.zeros(2, 5, 32)


def sizes(model):
    """Return the dot products of a model, by the parameter that makes their first factor."""
    plan = plan_policy(model, example_inputs=INPUTS)
    return {step.name: step.facts.dot_product for step in plan if step.facts.dot_product}


class TestDotProducts:
    """The length of a sum, times every number on the way."""

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize("heads", [2, 8])
    def test_attention(self, way, heads):
        """However attention is written, queries enter with d / sqrt(d)."""
        name = "norm.weight" if way == "normed" else "q.weight"

        assert sizes(Attention(way, heads=heads)) == {name: pytest.approx(math.sqrt(32 / heads))}

    @pytest.mark.parametrize("way", WAYS[:5])
    def test_own_scale(self, way):
        """A model that divides by d has products of one."""
        assert sizes(Attention(way, scale=1 / 8)) == {"q.weight": pytest.approx(1.0)}

    def test_cosines_with_a_bias(self):
        """What is added to the products of normed signals does not change how long these are."""

        class Cosines(Attention):
            def mixed(self, q, k, v):
                q, k = (nn.functional.normalize(x, dim=-1) for x in (q, k))
                return (3 * q @ k.mT + torch.ones(5, 5).relu()).softmax(-1) @ v

        assert sizes(Cosines("cosines")) == {"q.weight": pytest.approx(3 * 8)}

    def test_packed(self):
        """Torch's own attention packs its queries with keys and values."""
        model = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)

        assert sizes(model) == {"self_attn.in_proj_weight": pytest.approx(4.0)}

    def test_none(self):
        """A weight is no signal, nor is a product element by element a sum."""
        assert sizes(nn.Sequential(nn.Linear(32, 8), nn.GLU())) == {}


class TestTies:
    """Embeddings that make logits too."""

    @pytest.mark.parametrize("tied", [True, False])
    def test_head(self, tied):
        """Looked up by index, and multiplied to a signal."""
        model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11, bias=False))
        if tied:
            model[1].weight = model[0].weight
        plan = plan_policy(model, example_inputs=torch.zeros(2, 5, dtype=torch.int64))

        assert plan["0.weight"].facts.tied_head == (1.0 if tied else None)

    def test_scaled_logits(self):
        """Numbers before and behind the head count."""

        class Scaled(nn.Embedding):
            def forward(self, tokens):
                hidden = torch.relu(super().forward(tokens) * 3.0)
                return (hidden * 0.5) @ self.weight.T * 0.25

        plan = plan_policy(Scaled(11, 8), example_inputs=torch.zeros(2, 5, dtype=torch.int64))
        assert plan["weight"].facts.tied_head == 0.125
