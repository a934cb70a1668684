"""Biases and positions: what a summand varies along says which it is."""

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read
from torch_initpolicy.trace.units import varying


class Summed(nn.Module):
    """A raw weight, a raw summand, and what lies between them."""

    def __init__(self, weight: tuple[int, ...], summand: tuple[int, ...], make) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(weight)), nn.Parameter(torch.ones(summand))
        self.child = nn.Linear(6, 4)
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        return self.make(self, x)


EDGES = torch.tensor([0, 0, 1, 2, 4])

CASES = {
    "of each unit": ((6, 4), (4,), "bias", lambda m, x: x @ m.w + m.b),
    "behind an aggregation": (
        (6, 4), (4,), "bias", lambda m, x: torch.eye(5) @ (x @ m.w) + m.b,
    ),
    "behind an aggregation by the signal": (
        (6, 4), (4,), "bias", lambda m, x: (x @ x.mT).softmax(-1) @ (x @ m.w) + m.b,
    ),
    "behind a sum over edges": (
        (6, 4), (4,), "bias",
        lambda m, x: torch.zeros(5, 4).index_add(0, EDGES, (x @ m.w)[0]) + m.b,
    ),
    "behind a mean over places": ((6, 4), (4,), "bias", lambda m, x: (x @ m.w).mean(1) + m.b),
    "beside a child": ((1,), (4,), "bias", lambda m, x: m.child(x) * m.w + m.b),
    "of each expert": ((2, 6, 4), (2, 1, 4), "bias", lambda m, x: torch.bmm(x, m.w) + m.b),
    "of each head": ((6, 4), (2, 2), "bias", lambda m, x: (x @ m.w).unflatten(-1, (2, 2)) + m.b),
    "of each channel": (
        (4, 5, 3), (4, 1), "bias", lambda m, x: torch.conv1d(x, m.w) + m.b,
    ),
    "of each place": ((6, 4), (5, 4), "position", lambda m, x: x @ m.w + m.b),
    "of each pair of places": (
        (6, 4), (5, 5), "table",
        lambda m, x: torch.softmax((x @ m.w) @ (x @ m.w).mT + m.b, -1),
    ),
    "of the input": ((6, 4), (6,), "position", lambda m, x: (x + m.b) @ m.w),
}  # fmt: skip
"""Shape of the weight and of the summand, its role, and the model."""


@pytest.mark.parametrize("name", CASES)
def test_a_bias_varies_along_units_alone(name):
    """What is added to units is a bias; what is added to places is a position, or a table."""
    weight, summand, role, make = CASES[name]
    model = Summed(weight, summand, make)

    assert read(model, sites(model), torch.zeros(2, 5, 6)).facts["b"].role == role


def test_dimensions_of_one_element_do_not_vary():
    """They are counted from the last one, whatever a tensor is broadcast to."""
    assert varying((1, 3, 1)) == {-2}
