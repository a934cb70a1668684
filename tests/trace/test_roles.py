"""What a raw parameter does is read from the operator that consumes it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read


class Multiplied(nn.Module):
    """A parameter multiplied or added to something; `how` says how."""

    def __init__(self, how: Callable[["Multiplied", Tensor], Tensor], size: int) -> None:
        super().__init__()
        self.how = how
        self.norm = nn.LayerNorm(4, elementwise_affine=False)
        self.linear, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.p = nn.Parameter(torch.full((size,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def role_of(model: Multiplied) -> str:
    """Return the role that is read of the parameter."""
    return read(model, sites(model), torch.ones(2, 4)).facts["p"].role


def unit(x: Tensor) -> Tensor:
    """Divide by the length."""
    return x / x.norm(dim=-1, keepdim=True)


MULTIPLIED = {
    "a norm's weight": (lambda m, x: m.p * F.layer_norm(m.linear(x), (4,)), 4, "norm_weight"),
    "written out": (
        lambda m, x: m.p * (x * x.square().mean(-1, keepdim=True).rsqrt()), 4, "norm_weight",
    ),
    "logit scale": (lambda m, x: m.p.exp() * unit(m.linear(x)) @ unit(m.other(x)).t(), 1, "scale"),
    "logit scale behind": (
        lambda m, x: unit(m.linear(x)) @ unit(m.other(x)).t() * m.p.exp(), 1, "scale",
    ),
    "cosine scale": (lambda m, x: m.p * F.normalize(m.linear(x)), 1, "scale"),
    "temperature per feature": (lambda m, x: m.p.exp() * F.normalize(m.linear(x)), 4, "scale"),
    "branch behind a norm": (lambda m, x: x + m.p * m.norm(m.linear(x)), 4, "scale"),
    "zero branch behind a norm": (lambda m, x: x + m.p * m.norm(m.linear(x)), 1, "scale"),
}  # fmt: skip


@pytest.mark.parametrize("name", MULTIPLIED)
def test_norm_weight_or_scale(name):
    """Only what a module multiplies to its own normalised signal, unit by unit, is its weight."""
    how, size, role = MULTIPLIED[name]

    assert role_of(Multiplied(how, size)) == role


def test_gate_of_a_weight():
    """A parameter that gates a weight through an activation is no weight itself."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.logits = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(F.linear(x, self.weight * self.logits.sigmoid()))

    model = Gated()
    facts = read(model, sites(model), torch.ones(2, 4)).facts

    assert {name: of.role for name, of in facts.items()} == {"weight": "weight", "logits": "gate"}


ADDED = {
    "to each unit": (lambda m, x: m.linear(x) + m.p, 4, "bias"),
    "to each position": (lambda m, x: m.linear(x) + m.p[:, None], 2, "position"),
    "to what nothing here has made": (lambda m, x: m.norm(x + m.p), 4, "position"),
    "to scores": (
        lambda m, x: (m.linear(x) @ m.other(x).t() + m.p.view(2, 2)).softmax(-1), 4, "table",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ADDED)
def test_bias_position_or_table(name):
    """What is added unit by unit to a layer beside it is a bias, else a position or a table."""
    how, size, role = ADDED[name]

    assert role_of(Multiplied(how, size)) == role
