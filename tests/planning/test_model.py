"""A plan for a live model: its flow is read, what was meant stays, and what is odd is a warning."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy import InitPolicy, Rule, initializers, match, presets
from torch_initpolicy.deferred.skip import opened, skip_init
from torch_initpolicy.errors import OverwrittenWarning, UnknownOperatorWarning, UnusedRuleWarning
from torch_initpolicy.planning.model import (
    plan_model,
    warn_of_overwriting,
    warn_of_unknown_parameters,
)
from torch_initpolicy.planning.plan import Plan
from torch_initpolicy.planning.selection import Selection


def planned(
    model: nn.Module, policy: InitPolicy | None = None, x: Tensor | None = None, **options
) -> Plan:
    """Plan with the preset `auto`."""
    with opened(model):
        return plan_model(model, policy or presets.auto(), x, Selection.of(**options))


class Odd(nn.Module):
    """A weight, and a parameter that only makes a function of a whole matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.skew = nn.Linear(4, 4), nn.Parameter(torch.rand(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) @ torch.linalg.matrix_exp(self.skew - self.skew.t())


class TestWhatWasMeant:
    @pytest.mark.parametrize("skips", [False, True], ids=["built", "skipped"])
    def test_a_zero_head_stays(self, skips):
        """Whether its constructor has run, or its draws were left out."""

        def build() -> nn.Module:
            model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
            nn.init.zeros_(model[2].weight)
            return model

        if skips:
            with skip_init():
                model = build()
        else:
            model = build()

        assert planned(model)["2.weight"].keeps
        assert not planned(model, keep="nothing")["2.weight"].keeps
        assert not planned(model)["0.weight"].keeps

    def test_numbers_decide_nothing_else(self):
        """Other random weights make the same plan."""
        plans = [planned(nn.Sequential(nn.Linear(4, 4), nn.Tanh())) for _ in range(2)]

        assert plans[0] == plans[1]


class TestUnknown:
    def test_operators(self):
        """An operator of unknown role is a warning with the way to say what it computes."""

        class Strange(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return torch.linalg.matrix_exp(super().forward(x))

        with pytest.warns(UnknownOperatorWarning, match=r"linalg_matrix_exp \(1x\)"):
            plan = planned(Strange(4, 4), x=torch.zeros(4, 4))
        assert plan.unknown_operators == (("linalg_matrix_exp", 1),)

    def test_parameters(self):
        """What a preset keeps since nobody knows what it does is a warning, with its name."""
        plan = planned(Odd(), x=torch.zeros(2, 4))

        with pytest.warns(
            UnusedRuleWarning, match=r"(?s)what they do:\n.*'skew' \(Odd, \(4, 4\)\)"
        ):
            warn_of_unknown_parameters(plan, presets.auto())

    def test_parameters_that_a_rule_of_the_users_keeps(self):
        """Who says that they shall stay is not warned."""
        policy = presets.auto().override(Rule(match.name("skew"), initializers.Keep()))
        plan = planned(Odd(), policy, torch.zeros(2, 4))

        assert plan["skew"].keeps
        warn_of_unknown_parameters(plan, policy)


class TestOverwriting:
    def test_norms_that_have_moved(self):
        """A model whose norms differ from channel to channel looks trained."""
        model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        warn_of_overwriting(planned(model).pairs())
        with torch.no_grad():
            model[1].weight.uniform_(0.5, 1.5)
            model[1].bias.uniform_(-1, 1)

        with pytest.warns(OverwrittenWarning, match="1.weight"):
            warn_of_overwriting(planned(model).pairs())

    def test_norms_that_were_only_drawn(self):
        """Random scales beside a bias of zeros come from a constructor, as in DCGAN."""
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        nn.init.normal_(model[1].weight, 1.0, 0.02)
        with warnings.catch_warnings(record=True) as given:
            warn_of_overwriting(planned(model, x=torch.zeros(2, 3, 8, 8)).pairs())

        assert given == []
