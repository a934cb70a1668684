"""Bases: a model, its plan, its shapes or a file of these say the same."""

import json

import pytest
import torch
from torch import nn

from tests.policy.hand import Layouts, Residual
from torch_initpolicy import plan_policy, presets
from torch_initpolicy.errors import PlanError, PolicyError


class TestBases:
    """What may stand for a base."""

    @pytest.fixture
    def expected(self):
        """The plan against the base model itself."""
        return plan_policy(Residual(32, 4), presets.mup(base=Residual(8, 2)))

    def test_plan(self, expected):
        """A plan of the base."""
        base = plan_policy(Residual(8, 2))

        assert plan_policy(Residual(32, 4), presets.mup(base=base)).steps == expected.steps

    def test_file(self, expected, tmp_path):
        """A file of a plan, of a receipt."""
        plan = plan_policy(Residual(8, 2))
        for text in (plan.to_json(), plan.apply(seed=0).to_json()):
            (tmp_path / "base.json").write_text(text)
            policy = presets.mup(base=tmp_path / "base.json")
            assert plan_policy(Residual(32, 4), policy).steps == expected.steps

    def test_shapes(self, tmp_path):
        """Shapes by name, or a file of such."""
        expected = plan_policy(Residual(32, 2), presets.mup(base=Residual(8, 2)))
        shapes = {name: tuple(p.shape) for name, p in Residual(8, 2).named_parameters()}
        (tmp_path / "base.json").write_text(json.dumps(shapes))

        for base in (shapes, str(tmp_path / "base.json")):
            assert plan_policy(Residual(32, 2), presets.mup(base=base)).steps == expected.steps

    def test_shapes_of_grouped_and_packed(self):
        """Groups and packed blocks are carried over in proportion."""
        shapes = {name: tuple(p.shape) for name, p in Layouts(16).named_parameters()}
        plan = plan_policy(Layouts(64), presets.mup(base=shapes))
        expected = plan_policy(Layouts(64), presets.mup(base=Layouts(16)))

        assert [s.multipliers for s in plan] == [s.multipliers for s in expected]

    @pytest.mark.parametrize("base", [3, [], {"weight": "8x8"}, {}, "nothing.json"])
    def test_none(self, base):
        """What is no base is refused, with what would be one."""
        with pytest.raises(PolicyError, match="base"):
            presets.mup(base=base)

    def test_another_number_of_axes(self):
        """A counterpart of another number of axes is none."""
        base = {"weight": (4, 4, 3), "bias": (4,)}

        with pytest.raises(PlanError, match=r"shape \(8, 8\), in the base \(4, 4, 3\)"):
            plan_policy(nn.Linear(8, 8), presets.mup(base=base))

    def test_axes_that_are_not_known(self):
        """Where two axes grow and nothing tells which faces inputs, the plan says so."""

        class Table(nn.Module):
            def __init__(self, width):
                super().__init__()
                self.table = nn.Parameter(torch.zeros(width, width))
                self.example_input_array = torch.zeros(2, width, width)

            def forward(self, x):
                return torch.relu(x + self.table)

        plan = plan_policy(Table(8), presets.mup(base=Table(4)))
        assert "which of its axes faces inputs is not known" in plan["table"].reason

    def test_what_no_forward_pass_reads(self):
        """What is not read and grows along two axes counts as a matrix, which the plan says."""

        class Unread(nn.Linear):
            def __init__(self, width):
                super().__init__(width, 3)
                self.experts = nn.Parameter(torch.zeros(4, width, 2 * width))

        step = plan_policy(Unread(8), presets.mup(base=Unread(4)))["experts"]
        assert step.multipliers.lr("adamw") == 0.5
        assert "which of its axes faces inputs is not known" in step.reason

    def test_meta(self, expected):
        """A base needs no memory."""
        with torch.device("meta"):
            base = Residual(8, 2)

        assert plan_policy(Residual(32, 4), presets.mup(base=base)).steps == expected.steps
