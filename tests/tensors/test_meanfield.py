"""Mean field theory: the critical line of tanh to six digits, and where there is none."""

import math

import pytest

from torch_initpolicy.tensors.gains import moments
from torch_initpolicy.tensors.meanfield import critical_point

TANH = {  # traps D13
    16: (1.115381, 2.3688e-4),
    32: (1.059868, 3.4284e-5),
    64: (1.030558, 4.6513e-6),
    128: (1.015447, 6.0736e-7),
}


@pytest.mark.parametrize("inverse", TANH)
def test_the_critical_line_of_tanh(inverse):
    """Weight and bias variances agree with the table; a fixed point 5 % off would not."""
    weight, bias = critical_point("tanh", 1 / inverse)
    assert weight == pytest.approx(TANH[inverse][0], abs=1e-6)
    assert bias == pytest.approx(TANH[inverse][1], rel=1e-4)
    assert abs(critical_point("tanh", 1.05 / inverse).weight - TANH[inverse][0]) > 1e-5


@pytest.mark.parametrize("name", ["tanh", "erf", "softsign", "hardtanh", "sin", "atan"])
@pytest.mark.parametrize("q", [1 / 64, 0.25])
def test_critical_points_are_fixed_and_of_slope_one(name, q):
    """The signal stays where it is and differences keep their size, for odd activations."""
    weight, bias = critical_point(name, q)
    found = moments(name, std=math.sqrt(q))
    assert weight * found.second + bias == pytest.approx(q, rel=1e-9)
    assert weight * found.slope == pytest.approx(1, rel=1e-9)


def test_rectifiers_are_critical_everywhere():
    """For a ReLU He's variance is critical at any size, without a bias."""
    for q in (0.01, 1.0, 50.0):
        assert critical_point("relu", q) == pytest.approx((2.0, 0.0), abs=1e-9)


def test_no_critical_point():
    """A function whose criticality would need a negative variance says so."""
    with pytest.raises(ValueError, match="softplus has no critical point"):
        critical_point("softplus", 0.01)
