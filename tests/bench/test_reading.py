"""How reading a forward pass grows with the model: the slope over a fourfold number of tensors."""

import pytest
import torch
from torch import nn

from tests.bench.ratios import ROWS, Row, seconds
from torch_initpolicy import plan_policy

pytestmark = pytest.mark.bench


def in_sequence(count: int) -> nn.Module:
    """Build a chain of linear layers."""
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(count // 2)))


def beside(count: int) -> nn.Module:
    """Build a sum of raw matrices."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ParameterList(nn.Parameter(torch.ones(4, 4)) for _ in range(count))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum((x @ part for part in self.parts), x)

    return Sum()


@pytest.mark.parametrize("build", [in_sequence, beside])
def test_a_plan_is_linear_in_the_number_of_tensors(build):
    """Four times as many tensors take at most six times as long."""
    small, large = build(2000), build(8000)
    plan_policy(small)
    one, four = (seconds(lambda m=model: plan_policy(m)) for model in (small, large))
    how = f"{one * 1e3 / 2:.0f} us a tensor of 2,000, {four * 1e3 / 8:.0f} us of 8,000"
    ROWS.append(Row(f"plan, {build.__name__}", f"{four / one:.1f}", "<= 6", how))

    assert four / one <= 6
