"""Presets by structure, on networks whose branches are known by hand."""

import pytest
import torch
from torch import nn

from torch_initpolicy.api import plan_policy
from torch_initpolicy.tensors.initializers import Zeros


class Branches(nn.Module):
    """Four residual branches, each closed by something else."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(width, width), nn.Linear(width, 4)
        self.first = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.second = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.BatchNorm1d(width)
        )
        self.third = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.gain = nn.Parameter(torch.ones(1))
        self.fourth = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.fourth.append(nn.Linear(width, width))
        self.closes = ("first.2.weight", "second.3.weight", "gain", "fourth.3.weight")

    def forward(self, x):
        x = self.stem(x)
        x = x + self.first(x)
        x = x + self.second(x)
        x = x + self.gain * self.third(x)
        x = x + self.fourth(x)
        return self.head(x)


def zeroed(plan):
    """Name what a plan starts at zero, biases apart."""
    return {s.name for s in plan if s.initializer == Zeros() and "bias" not in s.role}


def test_zero_residual_closes_each_branch_once():
    """One parameter of each branch is zero: weight, norm or scalar; two would be dead for ever."""
    model = Branches()
    x = torch.randn(4, 16)
    plan = plan_policy(model, "zero_residual", example_inputs=x)
    assert zeroed(plan) == set(model.closes)
    plan.apply(seed=0)
    torch.testing.assert_close(model(x), model.head(model.stem(x)))


def test_rezero_closes_those_that_have_a_scalar():
    """The scalar of the third branch starts at zero, beside the norm that `auto` closes."""
    plan = plan_policy(Branches(), "rezero", example_inputs=torch.randn(4, 16))
    assert zeroed(plan) == {"gain", "second.3.weight"}


def test_depth_scaled_divides_the_last_weights():
    """The last weight of each of four branches is half as large as Xavier has it."""
    x = torch.randn(4, 16)
    plain, scaled = (
        plan_policy(Branches(), p, example_inputs=x) for p in ("xavier", "depth_scaled")
    )
    ratios = {step.name: scaled[step.name].std / step.std for step in plain if step.std}
    halved = {name for name, ratio in ratios.items() if ratio == pytest.approx(0.5)}
    assert halved == {"first.2.weight", "second.2.weight", "third.2.weight", "fourth.3.weight"}


def test_fixup_scales_inside_and_closes():
    """Two weights a branch: the inner one times `4 ** -1/2`, the last one and the head zero."""
    plan = plan_policy(Branches(), "fixup", example_inputs=torch.randn(4, 16))
    assert plan["first.0.weight"].std == pytest.approx((2 / 16) ** 0.5 / 2)
    assert {"first.2.weight", "head.weight"} <= zeroed(plan)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "convnext_atto"])
def test_real_models_start_as_their_skips(name):
    """As many parameters are closed as there are branches."""
    timm = pytest.importorskip("timm")
    plan = plan_policy(timm.create_model(name), "zero_residual")
    branches = {"resnet10t": 4, "vit_tiny_patch16_224": 24, "convnext_atto": 12}[name]
    assert len(zeroed(plan)) == branches
