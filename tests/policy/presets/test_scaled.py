"""Presets that scale: any policy may give the base its values, and `spectral` needs no base."""

import json
import math

import pytest
import torch
from torch import nn

from tests.policy.hand import Layouts, Residual, tower
from torch_initpolicy import (
    InitPolicy,
    Plan,
    Rule,
    initializers,
    match,
    plan_policy,
    presets,
    skip_init,
)
from torch_initpolicy.errors import PlanError, PolicyError
from torch_initpolicy.policy.scaling import Scaling


class TestComposition:
    """Any policy may give the base its values."""

    @pytest.mark.parametrize(
        "policy",
        [
            "auto",
            "gpt2",
            "constructor",
            "torch_default",
            "orthogonal",
            "xavier",
            "fixup",
            "timm_vit",
        ],
    )
    @pytest.mark.parametrize("scale", [presets.mup, presets.complete_p])
    def test_nothing_changes_at_the_base(self, policy, scale):
        """At the base's own size the draws are those of the policy, bit for bit."""
        plain, scaled = (Residual(8, 2) for _ in range(2))
        plan_policy(plain, policy).apply(seed=0)
        plan_policy(scaled, scale(base=Residual(8, 2), policy=policy)).apply(seed=0)

        for name, parameter in plain.named_parameters():
            assert torch.equal(parameter, scaled.get_parameter(name))

    def test_what_torch_draws(self):
        """Torch's default goes with fans by itself; the scaled draws do once, and not twice."""
        plan = plan_policy(Layouts(64), presets.mup(base=Layouts(16), policy="torch_default"))
        base = plan_policy(Layouts(16), "torch_default")

        assert plan["plain.weight"].std == pytest.approx(base["plain.weight"].std / 2)
        assert plan["plain.bias"].std == pytest.approx(base["plain.bias"].std)
        assert plan["head.weight"].std == pytest.approx(base["head.weight"].std / 4)

    def test_what_torch_draws_from_shapes_alone(self):
        """Shapes alone do not say what a layer of torch's draws: an error, no guess."""
        shapes = {name: tuple(p.shape) for name, p in Residual(8, 2).named_parameters()}

        with pytest.raises(PlanError, match="give as base the model"):
            plan_policy(Residual(32, 2), presets.mup(base=shapes, policy="torch_default"))

    @pytest.mark.parametrize("base", ["plan", "skipped"])
    def test_what_the_constructor_draws(self, base):
        """What the base's constructor draws is scaled, whatever the larger one's would draw."""
        with skip_init():
            skipped = Residual(8, 2)
        given = {"plan": plan_policy(Residual(8, 2), "constructor"), "skipped": skipped}[base]
        plan = plan_policy(Residual(32, 2), presets.mup(base=given, policy="constructor"))
        plan.apply(seed=0)

        torch_std = 8**-0.5 / 3**0.5  # of nn.Linear(8, ...), weight and bias alike
        assert plan["blocks.0.1.weight"].std == pytest.approx(torch_std / 2)
        assert plan["blocks.0.1.bias"].std == pytest.approx(torch_std)
        assert plan["head.weight"].std == pytest.approx(torch_std / 4)
        plan.verify()

    def test_a_constructor_that_has_drawn_already(self):
        """A base that was built says nothing of what was drawn: an error with two ways out."""
        policy = presets.mup(base=Residual(8, 2), policy="constructor")

        with pytest.raises(PlanError, match=r"give as base its plan.*skip_init\(\)"):
            plan_policy(Residual(32, 2), policy)

    def test_rules_of_ones_own(self):
        """A rule before the preset's is scaled too."""
        rule = Rule(match.name("head.weight"), initializers.Normal(1.0))
        policy = presets.mup(base=Residual(8, 2)).override(rule)
        plan = plan_policy(Residual(32, 2), policy)

        assert plan["head.weight"].std == pytest.approx(0.25)
        assert InitPolicy([rule]).otherwise(presets.mup(base=Residual(8, 2))).scaling is not None

    def test_a_function(self):
        """The numbers of a function cannot be scaled, which is an error of the plan."""
        rule = Rule(match.name("head.weight"), nn.init.xavier_uniform_)
        policy = presets.mup(base=Residual(8, 2)).override(rule)

        with pytest.raises(PlanError, match=r"head\.weight.*function"):
            plan_policy(Residual(32, 2), policy)

    def test_two_scalings(self):
        """Two policies that scale are not one."""
        other = presets.spectral()

        with pytest.raises(PolicyError, match="both policies scale"):
            presets.mup(base=Residual(8, 2)).otherwise(other)

    def test_kept(self):
        """What is kept is not scaled, and the plan says so; it still learns as it must."""
        plan = plan_policy(Residual(32, 2), presets.mup(base=Residual(8, 2)), skip="head.weight")

        assert plan["head.weight"].reason.endswith("but its values are kept")
        assert plan["head.weight"].multipliers.lr("adamw") == 0.25

    def test_a_value(self):
        """Policies that scale are compared, hashed and kept in files; so are their plans."""
        policy = presets.mup(base=Residual(8, 2), policy="gpt2")
        plan = plan_policy(Residual(32, 2), policy)

        assert InitPolicy.from_json(policy.to_json()) == policy
        assert policy.hash == presets.mup(base=Residual(8, 2), policy="gpt2").hash
        assert policy.hash != presets.mup(base=Residual(16, 2), policy="gpt2").hash
        assert Plan.from_json(plan.to_json()) == plan

    def test_malformed_file(self):
        """What stands for a scaling in a file must be one."""
        text = json.dumps({"format": 1, "rules": [], "scaling": {"class": "Zeros"}})

        with pytest.raises(PolicyError, match="scaling"):
            InitPolicy.from_json(text)


class TestSpectral:
    """The spectral condition needs no base."""

    def test_spectral_norms(self):
        """Norms of weights go with sqrt(fan_out / fan_in), up to what a Gaussian matrix has."""
        model = tower(256, 3)
        plan_policy(model, presets.spectral(policy="lecun")).apply(seed=0)
        ratios = []
        for layer in (model[2], model[6]):
            norm = torch.linalg.matrix_norm(layer.weight.detach(), ord=2).item()
            ratios.append(norm / math.sqrt(layer.out_features / layer.in_features))

        assert all(0.9 < ratio < 2.1 for ratio in ratios)

    def test_learning_rates(self):
        """Adam's learning rate goes with one over fan_in, SGD's with fan_out over fan_in."""
        plan = plan_policy(tower(256, 3), presets.spectral())

        assert plan["6.weight"].multipliers.lr("adam") == 1 / 256
        assert plan["6.weight"].multipliers.lr("sgd") == 3 / 256
        assert plan["2.bias"].multipliers.lr("adam") == 1.0

    def test_value(self):
        """It is a policy like others."""
        assert presets.spectral().scaling == Scaling("spectral")
        assert InitPolicy.from_json(presets.spectral().to_json()) == presets.spectral()
