"""Whole forward passes: sizes that cannot be followed are said to be lost, and why."""

import pytest
import torch
from torch import nn

from torch_initpolicy import plan_policy


class Doubling(nn.Module):
    """A signal that is multiplied by itself, again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = 3 + self.first(x)
        for _ in range(12):
            x = x * x
        return self.last(x)


def test_growth_without_bounds():
    """Where numbers outgrow what can be counted, the size is unknown and the plan is made."""
    plan = plan_policy(Doubling(), "signal", example_inputs=torch.zeros(2, 8))

    assert plan["first.weight"].std == pytest.approx(8**-0.5)
    assert "grow" in plan["last.weight"].reason
