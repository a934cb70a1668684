"""Families: which parameter of a base model stands for which of a model of another size."""

import pytest

from tests.policy.hand import Residual, multiplied, tower
from torch_initpolicy import plan_policy, presets
from torch_initpolicy.errors import PlanError


class TestCounterparts:
    """Models of other depths."""

    def test_names_of_other_depths(self):
        """Blocks that the base has not stand beside those that do the same."""
        plan = plan_policy(Residual(32, 6), presets.mup(base=Residual(8, 2)))

        for block in range(6):
            assert multiplied(plan, f"blocks.{block}.1.weight") == (0.5, 0.25, 1.0)

    def test_by_what_they_do(self):
        """Where the head of one has the name of a hidden layer of the other, the part tells."""
        plan = plan_policy(tower(32, 4), presets.mup(base=tower(8, 2)))

        assert [plan[f"{2 * i}.weight"].multipliers.like for i in range(5)] == [
            *("input", "hidden", "hidden", "hidden", "output"),
        ]

    def test_nothing_stands_for_it(self):
        """Every parameter without a counterpart is named."""
        with pytest.raises(PlanError, match=r"nothing that stands for.*\n.*stem.weight"):
            plan_policy(Residual(8, 2), presets.mup(base=tower(8, 2)))
