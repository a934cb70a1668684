"""In what plans differ, in words."""

import pytest
from torch import nn

from torch_initpolicy import InitPolicy, Rule, initializers, match, plan_policy, presets


def plan(std):
    """Plan a net with one standard deviation for all weights."""
    rule = Rule(match.role("weight"), initializers.Normal(std))
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    return plan_policy(model, InitPolicy([rule]).otherwise(presets.auto()))


@pytest.mark.parametrize("other", [0.2, 0.1 + 1e-12])
def test_a_difference_shows(other):
    """What stands on both sides of an arrow differs, however small the difference is."""
    lines = str(plan(0.1).diff(plan(other))).splitlines()

    assert lines
    for line in lines:
        before, after = line.split("  ", 1)[1].split(" -> ")
        assert before != after


def test_a_prompt_is_not_flooded():
    """What a Python prompt echoes are the counts."""
    difference = plan(0.1).diff(plan(0.2))

    assert repr(difference) == "<Difference: 0 added, 0 removed, 2 changed: print it>"
