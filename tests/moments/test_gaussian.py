"""Moments of sums, products and means, and of functions of correlated numbers, against draws."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from torch_initpolicy.moments import gaussian
from torch_initpolicy.moments.gaussian import Size, activated, constant_size, mixture
from torch_initpolicy.tensors.gains import Activation

DRAWN, PLACES = 100_000, 4


def signal(size: Size, seed: int) -> Tensor:
    """Draw normal numbers of a size; the places of a row vary together as `shared` says."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(DRAWN, 1, generator=generator) * (size.shared - size.mean**2) ** 0.5
    own = torch.randn(DRAWN, PLACES, generator=generator) * (size.second - size.shared) ** 0.5
    return size.mean + common + own


@pytest.fixture(autouse=True)
def anew():
    """Integrate anew in every test."""
    gaussian._activated.cache_clear()


ONE, OTHER = Size(0.5, 1.25, 0.75, 0.75), Size(-1.0, 5.0, 2.0, 2.0)
A, B = signal(ONE, 1), signal(OTHER, 2)

COMBINED = {
    "sum": (lambda: ONE.plus(OTHER), A + B),
    "product": (lambda: ONE.times(OTHER), A * B),
    "scaled": (lambda: ONE.scaled(-1.5), -1.5 * A),
    "shifted": (lambda: ONE.plus(constant_size(2.0)), A + 2),
    "side by side": (lambda: mixture([(ONE, 0.5), (OTHER, 0.5)]), torch.cat((A, B))),
}


@pytest.mark.parametrize("name", COMBINED)
def test_combined(name):
    """Sums, products and mixtures of independent signals have the drawn moments within 5 %."""
    combine, drawn = COMBINED[name]
    size = combine()
    assert size.mean == pytest.approx(drawn.mean().item(), abs=0.03)
    assert size.second == pytest.approx(drawn.square().mean().item(), rel=0.03)
    pairs = (drawn.sum(1).square() - drawn.square().sum(1)).mean().item() / PLACES / (PLACES - 1)
    assert (size.shared, size.near) == pytest.approx((pairs, pairs), rel=0.05)


@pytest.mark.parametrize("mean", [Size.averaged, Size.pooled])
def test_means_over_places(mean: Callable[[Size, int], Size]):
    """A mean over the places of a row keeps what they share, and a share of the rest."""
    assert mean(ONE, PLACES).second == pytest.approx(A.mean(1).square().mean().item(), rel=0.02)
    assert mean(ONE, PLACES).mean == pytest.approx(0.5)


def test_neighbours_and_distant_places():
    """A window's mean goes by neighbours, a mean over all places by distant ones."""
    size = Size(0.0, 1.0, shared=0.2, near=0.6)
    assert size.averaged(4) == Size(0.0, pytest.approx(0.4), 0.2, 0.2)
    assert size.pooled(4) == Size(0.0, pytest.approx(0.7), 0.2, 0.6)


@pytest.mark.parametrize("name", ["relu", "gelu", "tanh"])
def test_activated(name):
    """Two places of a signal that is off its centre share behind a function what draws do."""
    function = getattr(torch, name, torch.nn.functional.gelu)
    drawn = function(A)
    size = activated(Activation(name), ONE)
    assert size.mean == pytest.approx(drawn.mean().item(), rel=0.02)
    assert size.second == pytest.approx(drawn.square().mean().item(), rel=0.02)
    assert size.shared == pytest.approx((drawn[:, 0] * drawn[:, 1]).mean().item(), rel=0.02)


def test_places_that_are_units_share_their_mean_alone():
    """A mean over units of its own is taken of independent numbers."""
    assert ONE.unshared() == Size(0.5, 1.25, 0.25, 0.25)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (Size(1.0, 3.0, 2.0, 2.5), (0.5, 0.75)),
        (Size(1.0, 3.0, 0.0, 9.0), (0.0, 1.0)),
        (Size(2.0, 4.0, 4.0, 4.0), (1.0, 1.0)),
    ],
    ids=["partly", "out of range", "a number"],
)
def test_correlations(size, expected):
    """What places vary together, next to what each varies alone; between 0 and 1."""
    assert (size.correlation, size.nearness) == expected


def test_windows_far_apart_and_side_by_side():
    """The largest of windows whose places vary together as neighbours do, and as distant ones."""
    generator = torch.Generator().manual_seed(0)
    everywhere, window, alone = 0.3**0.5, 0.4**0.5, 0.3**0.5
    common = torch.randn(200_000, 1, 1, generator=generator) * everywhere
    each = torch.randn(200_000, 2, 1, generator=generator) * window
    own = torch.randn(200_000, 2, 4, generator=generator) * alone
    largest = torch.relu((common + each + own).amax(-1))
    size = activated(Activation("relu"), Size(0.0, 1.0, shared=0.3, near=0.7), largest_of=4)

    assert size.second == pytest.approx(largest.square().mean().item(), rel=0.02)
    assert size.shared == pytest.approx(largest.prod(1).mean().item(), rel=0.03)
    assert size.near == pytest.approx(beside(0.7), rel=0.05)


def beside(common):
    """Draw two windows side by side, which share what varies together."""
    generator = torch.Generator().manual_seed(1)
    both = torch.randn(200_000, 1, 1, generator=generator) * common**0.5
    own = torch.randn(200_000, 2, 4, generator=generator) * (1 - common) ** 0.5
    return torch.relu((both + own).amax(-1)).prod(1).mean().item()


def test_a_weight_brings_the_second_moment_to_one():
    """Units of a layer have no mean, and share as much of their square as what they read does."""
    assert ONE.weighed() == Size(0.0, 1.0, pytest.approx(0.6), pytest.approx(0.6))
    assert Size(0.0, 2.0, 2.1, 2.2).weighed() == Size(0.0, 1.0, 1.0, 1.0)


def test_measured_moments_hold_under_a_standard_normal_alone():
    """An activation that is known by three numbers says nothing of another input."""
    measured = Activation("mine", moments=(0.4, 0.5, 0.5))
    assert activated(measured, Size(0.0, 1.02)).second == 0.5
    partly = activated(measured, Size(0.02, 1.0, 0.5, 0.75))
    assert (partly.mean, partly.second) == (0.4, 0.5)
    assert partly.shared == pytest.approx(0.16 + 0.34 * 0.5, abs=1e-3)
    assert partly.near == pytest.approx(0.16 + 0.34 * 0.75, abs=1e-3)
    with pytest.raises(ValueError, match="standard normal"):
        activated(measured, Size(0.1, 1.0))
    with pytest.raises(ValueError, match="standard normal"):
        activated(measured, Size(), largest_of=2)
    with pytest.raises(ValueError, match="standard normal"):
        activated(measured, Size(0.0, 1.2))


def test_huge_signals():
    """Large squares are followed as far as floats go."""
    huge = Size(1e120, 1e241, 0.0, 0.0)
    assert huge.times(constant_size(1e10)).second == pytest.approx(1e261)
    assert activated(Activation("relu"), Size(0.0, 1e200)).second == pytest.approx(5e199)


RELU_MAP = {1: 0.318, 5: 0.736, 10: 0.872, 30: 0.972}  # traps D15


def test_the_correlation_map_of_relu():
    """From independent inputs, depth makes ReLU nets' outputs alike as the table says."""
    size = Size()
    for depth in range(1, 31):
        size = activated(Activation("relu"), size).weighed()
        if depth in RELU_MAP:
            assert size.shared == pytest.approx(RELU_MAP[depth], abs=2e-3)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_the_largest_of_several(correlation):
    """The moments of a max pool of ReLU agree with a million draws within 1 %."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1, 250_000, generator=generator) * correlation**0.5
    own = torch.randn(4, 250_000, generator=generator) * (1 - correlation) ** 0.5
    drawn = torch.relu((common + own).amax(0)).double()
    size = activated(Activation("relu"), Size(0.0, 1.0, correlation, correlation), largest_of=4)
    assert size.mean == pytest.approx(drawn.mean().item(), rel=0.01)
    assert size.second == pytest.approx(drawn.square().mean().item(), rel=0.01)
