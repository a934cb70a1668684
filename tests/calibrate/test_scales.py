"""Scales over the passes: one use is settled at once, several by a search, hopeless ones not."""

import math

import pytest
import torch
from torch import nn

from torch_initpolicy.calibrate.calibration import ScaledWeight
from torch_initpolicy.calibrate.copies import Copies
from torch_initpolicy.calibrate.scales import History, Scales, Target
from torch_initpolicy.sites import sites


class Power:
    """A standard deviation that grows with a power of what the copy is multiplied by."""

    def __init__(self, copy, power, *, count=10.0):
        self.copy, self.power, self.count = copy, power, count

    def std(self, scale):
        """Return the deviation as if the copy were multiplied once more."""
        return (self.copy[0, 0].item() * scale) ** self.power

    def solve(self, std):
        """Return what one division gives, whatever the power."""
        return std / self.std(1.0)


@pytest.fixture
def layer():
    """Return a layer whose weights are all 4."""
    made = nn.Linear(2, 2, bias=False)
    nn.init.constant_(made.weight, 4.0)
    return made


def setting(layer, std=1.0):
    """Return scales, a target that is the whole weight, and its copy."""
    copies = Copies(sites(layer))
    copy = copies.of(layer.weight)
    return Scales(std, copies), Target(("weight",), "linear", (copy,)), copy


def test_one_use_is_settled_at_once(layer):
    """The copy is multiplied by the solution, and the report says before, after and factor."""
    scales, target, copy = setting(layer, std=2.0)
    scales.begin()

    assert scales.settle(target, Power(copy, 1)) == 0.5
    assert copy.unique().tolist() == [2.0]
    assert scales.unsettled() == []
    assert scales.scaled() == (ScaledWeight("weight", "linear", 4.0, 2.0, 0.5),)


def test_the_report_names_every_site_and_the_block(layer):
    """Weights that are scaled together have an entry each; a block is said to be one."""
    scales, _, copy = setting(layer)
    scales.settle(Target(("weight",), "value", (copy,), block=2), Power(copy, 1))

    assert scales.scaled() == (ScaledWeight("weight", "value", 4.0, 1.0, 0.25, block=2),)


def test_later_uses_in_a_pass_are_only_measured(layer):
    """The second operator that applies a weight sees it as the first has left it."""
    scales, target, copy = setting(layer)
    scales.begin()
    scales.settle(target, Power(copy, 1, count=30.0))

    assert scales.settle(target, Power(copy, 2, count=10.0)) == 1.0
    assert copy.unique().tolist() == [1.0]
    assert scales.unsettled() == []


def test_uses_are_weighed_by_their_elements():
    """Thirty numbers of deviation 1 and ten of deviation 3 have `(30 + 90) / 40` together."""
    history = History(Target(("w",), "linear", ()), 1.0, used=[(30.0, 1.0), (10.0, 3.0)])

    assert history.std == pytest.approx(math.sqrt(3))
    assert not history.is_settled(1.0)
    assert history.is_settled(math.sqrt(3) * (1 + 9e-5))
    assert not history.is_settled(math.sqrt(3) * (1 + 2e-4))


@pytest.mark.parametrize("powers", [(1, 3), (2, 2), (1, 4)])
def test_several_uses_settle_over_passes(layer, powers):
    """Uses that grow with powers of the scale get the wanted deviation together."""
    scales, target, copy = setting(layer, std=1.5)
    for _ in range(20):
        scales.begin()
        for power in powers:
            scales.settle(target, Power(copy, power))
        if not scales.unsettled():
            break

    value = copy[0, 0].item()
    joint = math.sqrt(sum(value ** (2 * power) for power in powers) / len(powers))
    assert joint == pytest.approx(1.5, rel=2e-4)
    (scaled,) = scales.scaled()
    assert scaled.before == 4.0 ** powers[0]
    assert scaled.factor == pytest.approx(value / 4)


def test_what_does_not_settle_is_restored_and_refused(layer):
    """A weight that is given up reads as at first, is named with its uses, and stays."""
    scales, target, copy = setting(layer)
    scales.begin()
    scales.settle(target, Power(copy, 1))
    scales.settle(target, Power(copy, 0, count=1e6))
    scales.settle(target, Power(copy * 50, 1))

    ((name, reason),) = scales.give_up()

    assert name == "weight"
    assert "3 uses" in reason
    assert copy.unique().tolist() == [4.0]
    scales.begin()
    assert scales.settle(target, Power(copy, 1)) == 1.0
    assert scales.scaled() == ()


def test_a_reason_is_handed_on(layer):
    """What has no scale is not multiplied."""
    scales, target, copy = setting(layer)

    class Hopeless(Power):
        def solve(self, std):
            return "no"

    assert scales.settle(target, Hopeless(copy, 1)) == "no"
    assert torch.equal(copy, layer.weight)
