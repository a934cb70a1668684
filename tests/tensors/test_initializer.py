"""The base of all initializers: one that is written outside the package is treated like its own."""

import dataclasses
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from tests.laplace import LAPLACE, Laplace
from torch_initpolicy import InitPolicy, Plan, Receipt, Rule, apply_policy, match, plan_policy
from torch_initpolicy.errors import PolicyError, VerifyError
from torch_initpolicy.policy import presets
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.initializer import Initializer, Scaled, register
from torch_initpolicy.tensors.initializers import (
    ICNR,
    Blocks,
    BranchScaled,
    Draw,
    From,
    Independent,
    Keep,
    Normal,
    Zeros,
)

POLICY = InitPolicy([Rule(match.role("weight"), Laplace("meets"))]).otherwise(presets.auto())


def network():
    """Two layers of which the first meets a ReLU."""
    return nn.Sequential(nn.Linear(300, 400), nn.ReLU(), nn.Linear(400, 100))


class TestOutsideThePackage:
    """Laplace's distribution, scaled by the fan-in, as a user would write it."""

    def test_planned(self):
        """The plan shows the standard deviation: the gain that is met over the root of fan_in."""
        plan = plan_policy(network(), POLICY)

        assert plan["0.weight"].initializer == Laplace(plan["0.weight"].initializer.gain)
        assert plan["0.weight"].std == pytest.approx(math.sqrt(2 / 300))
        assert plan["2.weight"].std == pytest.approx(math.sqrt(1 / 400))

    def test_drawn_in_blocks(self):
        """Threads and neighbours do not matter; the numbers are Laplace's."""
        one, two, alone = network(), network(), network()
        apply_policy(one, POLICY, seed=3, threads=1)
        apply_policy(two, POLICY, seed=3, threads=3)
        apply_policy(alone, POLICY, seed=3, only="0.weight")
        values = one[0].weight.detach()
        std = math.sqrt(2 / 300)

        assert torch.equal(values, two[0].weight)
        assert torch.equal(values, alone[0].weight)
        assert values.std().item() == pytest.approx(std, rel=0.01)
        assert values.abs().mean().item() == pytest.approx(std / math.sqrt(2), rel=0.01)

    def test_verified(self):
        """A receipt measures its tensors, and finds one that is 5 % off."""
        model = network()
        receipt = apply_policy(model, POLICY, seed=3)

        assert "0.weight" in receipt.verify(model).measured
        with torch.no_grad():
            model[0].weight.mul_(1.05)
        with pytest.raises(VerifyError, match=r"0\.weight.*std"):
            receipt.verify(model)

    def test_saved_and_loaded(self, tmp_path):
        """Policies, plans and receipts go through files."""
        model, other = network(), network()
        receipt = apply_policy(model, POLICY, seed=3)
        POLICY.save(tmp_path / "policy.json")

        assert InitPolicy.load(tmp_path / "policy.json") == POLICY
        assert Plan.from_json(receipt.plan.to_json()) == receipt.plan
        Receipt.from_json(receipt.to_json()).reproduce(other)
        assert torch.equal(model[0].weight, other[0].weight)

    def test_built_upon(self):
        """It stands within blocks, patches and branches as the package's own do."""
        packed = Axes((1,), (0,), blocks=(8, 8))
        weight = torch.empty(16, 8)
        Blocks((Laplace(), Zeros()))(weight, packed)

        assert weight[:8].count_nonzero() == 64
        assert not weight[8:].any()
        ICNR(Laplace())(torch.empty(16, 4, 3, 3))
        assert BranchScaled(Laplace()).inner == Laplace()

    def test_packed(self):
        """Each packed block has the fans of its own."""
        axes = Axes((0,), (1,), blocks=(30, 10))
        spread = replace(Laplace(), gain=2.0).spread((25, 40), axes)

        assert spread.std == pytest.approx(0.4)

    def test_halves(self):
        """Where packed halves meet different things, each half is planned on its own."""

        class Gated(nn.Module):
            def __init__(self):
                super().__init__()
                self.up = nn.Linear(64, 128)

            def forward(self, x):
                gate, value = self.up(x).chunk(2, dim=-1)
                return torch.relu(gate) * value

        plan = plan_policy(Gated(), POLICY, example_inputs=torch.zeros(2, 64))

        assert plan["up.weight"].std == pytest.approx((math.sqrt(2 / 64), math.sqrt(1 / 64)))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64], ids=str)
    def test_dtypes(self, dtype):
        """Every dtype is filled."""
        weight = torch.empty(300, 200, dtype=dtype)
        Laplace()(weight, generator=torch.Generator().manual_seed(0))

        assert weight.abs().double().square().mean().sqrt() == pytest.approx(200**-0.5, rel=0.02)

    def test_calibrated(self):
        """A batch scales the weights, and the receipt still verifies them."""
        model = network()
        receipt = apply_policy(model, POLICY, seed=0, calibrate=torch.randn(64, 300))

        assert "0.weight" in receipt.calibrated
        assert "0.weight" in receipt.verify(model).measured


class TestScaled:
    """Any initializer times a number."""

    def test_of_a_class_that_knows_no_scale(self):
        """Without a `scaled` of its own an initializer is wrapped, and keeps its numbers."""
        first, second = torch.empty(2, 40, 40)
        Laplace()(first, generator=torch.Generator().manual_seed(0))
        Laplace().scaled(2.0)(second, generator=torch.Generator().manual_seed(0))

        assert Laplace().scaled(2.0) == Scaled(Laplace(), 2.0)
        assert torch.allclose(second, 2 * first)

    def test_factors_are_multiplied(self):
        """Scaled twice is scaled once."""
        assert Scaled(Laplace(), 2.0).scaled(3.0) == Scaled(Laplace(), 6.0)


@dataclass(frozen=True, slots=True)
class Unregistered(Initializer):
    """A fine initializer that files do not know."""

    def sampler(self, shape, axes):
        """Draw Laplace's distribution."""
        return Independent((Draw(LAPLACE),))


class TestRegister:
    """What files may hold."""

    def test_unregistered(self):
        """It works everywhere but in files, and the error says what is missing."""
        model = nn.Linear(8, 8)
        policy = InitPolicy([Rule(match.anything(), Unregistered())])
        receipt = apply_policy(model, policy, seed=0)

        assert receipt.plan["weight"].std == pytest.approx(math.sqrt(2))
        with pytest.raises(PolicyError, match="register"):
            policy.to_json()

    def test_twice(self):
        """A second class of the same name is refused: files could not tell them apart."""
        with pytest.raises(PolicyError, match="'Laplace' is registered already"):
            register(dataclasses.make_dataclass("Laplace", [], bases=(Unregistered,), frozen=True))

    @pytest.mark.parametrize(
        "wrong",
        [Initializer, Normal(1.0), int, nn.Linear, lambda: None],
        ids=["base", "value", "int", "module", "function"],
    )
    def test_not_a_class_of_initializers(self, wrong):
        """Only final classes of initializers are taken."""
        with pytest.raises(PolicyError, match="register takes a frozen dataclass derived"):
            register(wrong)


def test_abstract():
    """The base cannot be made."""
    with pytest.raises(TypeError, match="abstract"):
        Initializer()


@pytest.mark.parametrize(
    "opaque",
    [Keep(), From(nn.init.zeros_), nn.init.zeros_, 3],
    ids=lambda value: type(value).__name__,
)
def test_nothing_is_built_on_what_says_nothing(opaque):
    """A function or `Keep` cannot be scaled."""
    with pytest.raises(PolicyError, match="initializers that say what they draw"):
        Scaled(opaque, 2.0)


def test_a_function_may_take_axes():
    """A bare function is wrapped; one that asks for the axes of its tensor is given them."""
    seen = []

    def own(tensor, axes=None, *, generator=None):
        seen.append((axes, generator is not None))
        tensor.normal_(generator=generator)

    apply_policy(
        nn.Conv2d(4, 8, 3), InitPolicy([Rule(match.role("weight"), own)]).otherwise(Zeros())
    )

    assert seen == [(Axes((1,), (0,)), True)]
