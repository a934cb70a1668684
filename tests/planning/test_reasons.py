"""Reasons: what a step says to people."""

import pytest

from tests.planning.hand import facts, network, plan
from torch_initpolicy.planning.decide import make_plan
from torch_initpolicy.policy import match, presets
from torch_initpolicy.policy.rules import Rule
from torch_initpolicy.tensors.gains import Activation, Moments
from torch_initpolicy.tensors.initializers import (
    Ones,
    Zeros,
)


class TestReasons:
    """Which fact a reason names."""

    def test_offset(self):
        """A norm that computes `1 + weight` starts at zero (D29)."""
        known = facts(network(), **{"2_weight": {"offset": 1.0}})
        step = make_plan(network(), known, presets.auto())["2.weight"]

        assert step.initializer == Zeros()
        assert step.reason == "norm weight: zeros, as 1 is added to it"

    @pytest.mark.parametrize(
        ("activation", "name", "word"),
        [
            (Activation("leaky_relu", 0.2), "leaky_relu", "leaky_relu(0.2)"),
            (Activation("hardtanh", (-2.0, 2.0)), "hardtanh", "hardtanh(-2/2)"),
            (Activation("product", moments=Moments(0.1, 0.25, 0.3)), "product", "product"),
            (None, None, "nothing"),
        ],
        ids=str,
    )
    def test_meets(self, activation, name, word):
        """The field is the name alone, the reason has the parameter too."""
        known = facts(network(), **{"0_weight": {"meets": activation}})
        step = make_plan(network(), known, presets.auto())["0.weight"]

        assert step.meets == name
        assert step.reason.startswith(f"meets {word}: ")

    def test_what_stopped_the_walk(self):
        """An operator of unknown role is named where it hides what is met."""
        known = facts(network(), **{"0_weight": {"stopped_by": "my_op"}})
        step = make_plan(network(), known, presets.auto())["0.weight"]

        assert step.reason.startswith("meets my_op, of unknown role: Xavier")

    def test_what_is_met_in_spite_of_a_stop(self):
        """Where one path stops and another leads to an activation, that is what decides."""
        known = facts(
            network(), **{"0_weight": {"stopped_by": "my_op", "meets": Activation("relu")}}
        )

        assert make_plan(network(), known, presets.auto())["0.weight"].reason.startswith(
            "meets relu: He"
        )

    def test_what_is_not_used(self):
        """A weight that took no part in the forward pass is not said to meet nothing."""
        known = facts(network(), **{"0_weight": {"used": False}})

        assert make_plan(network(), known, presets.auto())["0.weight"].reason.startswith(
            "not used by the forward pass: Xavier"
        )

    def test_note(self):
        """A rule's note ends the reason."""
        rule = Rule(match.name("0.bias"), Ones(), "an old habit")

        assert plan(network(), rule)["0.bias"].reason == "bias: ones (an old habit)"
