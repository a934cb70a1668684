"""Mean field theory: the critical line of tanh to six digits, phases, and a wide net's own."""

import math

import pytest
import torch

from torch_initpolicy.tensors.gains import moments
from torch_initpolicy.tensors.meanfield import critical, fixed_point, slope

TANH = {  # traps D13
    16: (1.115381, 2.3688e-4),
    32: (1.059868, 3.4284e-5),
    64: (1.030558, 4.6513e-6),
    128: (1.015447, 6.0736e-7),
}


@pytest.mark.parametrize("inverse", TANH)
def test_the_critical_line_of_tanh(inverse):
    """Weight and bias variances agree with the table; a fixed point 5 % off would not."""
    weight, bias = critical("tanh", 1 / inverse)
    assert weight == pytest.approx(TANH[inverse][0], abs=1e-6)
    assert bias == pytest.approx(TANH[inverse][1], rel=1e-4)
    assert abs(critical("tanh", 1.05 / inverse).weight - TANH[inverse][0]) > 1e-5


@pytest.mark.parametrize("name", ["tanh", "erf", "softsign", "hardtanh", "sin", "atan"])
@pytest.mark.parametrize("q", [1 / 64, 0.25])
def test_critical_points_are_fixed_and_of_slope_one(name, q):
    """The signal stays where it is and differences keep their size, for odd activations."""
    weight, bias = critical(name, q)
    found = moments(name, std=math.sqrt(q))
    assert weight * found.second + bias == pytest.approx(q, rel=1e-9)
    assert slope(name, weight, q) == pytest.approx(1, rel=1e-9)


def test_rectifiers_are_critical_everywhere():
    """For a ReLU He's variance is critical at any size, without a bias."""
    for q in (0.01, 1.0, 50.0):
        assert critical("relu", q) == pytest.approx((2.0, 0.0), abs=1e-9)


def test_no_critical_point():
    """A function whose criticality would need a negative variance says so."""
    with pytest.raises(ValueError, match="softplus has no critical point"):
        critical("softplus", 0.01)


PHASES = {
    "torch's tanh is chaotic": ("tanh", (5 / 3) ** 2, 0.0, 1.178, 5e-4),
    "xavier's tanh dies": ("tanh", 0.9, 0.0, 0.0, 1e-8),
    "relu explodes": ("relu", 2.5, 0.0, math.inf, 0.0),
    "relu with a bias settles": ("relu", 1.0, 0.5, 1.0, 1e-6),
}


@pytest.mark.parametrize("name", PHASES)
def test_fixed_points(name):
    """The signal settles, dies or explodes as is known."""
    activation, weight, bias, expected, error = PHASES[name]
    assert fixed_point(activation, weight, bias) == pytest.approx(expected, abs=error)


def test_a_wide_net_settles_there():
    """Width 1024, 30 layers of tanh: the mean square is that of the fixed point within 5 %.

    Seed 0; the deviation of one net is a few percent. With a weight variance
    5 % larger the fixed point would be more than 8 % off.
    """
    generator = torch.Generator().manual_seed(0)
    weight, n = 2.0, 1024
    x = torch.randn(64, n, generator=generator)
    for _ in range(30):
        x = torch.tanh(x) @ torch.randn(n, n, generator=generator) * math.sqrt(weight / n)
    found = x.square().mean().item()
    assert found == pytest.approx(fixed_point("tanh", weight), rel=0.05)
    assert abs(fixed_point("tanh", weight * 1.05) / fixed_point("tanh", weight) - 1) > 0.08
