"""Steps as data: what is known survives, and what is no step is refused."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.planning.decide import make_plan
from torch_initpolicy.planning.plan import Plan
from torch_initpolicy.policy import match, presets
from torch_initpolicy.policy.rules import InitPolicy, Rule
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.gains import Activation, Moments
from torch_initpolicy.tensors.initializers import (
    Zeros,
)
from torch_initpolicy.trace.facts import Facts


def plan(policy="auto"):
    """Plan for one layer, of which nothing but its type is known."""
    return make_plan(nn.Sequential(nn.Linear(8, 4)), {}, presets.policy(policy))


class TestSteps:
    """Steps as objects of JSON."""

    def test_first_format(self):
        """Files of the first format, which had fewer facts in a step, are still read."""
        step = {
            "name": "0.weight", "names": ["0.weight"], "shape": [50, 8], "dtype": "float32",
            "owner": "Linear", "role": "weight", "op": "linear", "meets": "relu", "fed_by": None,
            "fan_in": 8, "fan_out": 50, "initializer": {"class": "Zeros"}, "std": 0.0,
            "rule": "role('weight')", "evidence": "traced", "reason": "zeros",
            "axes": {"class": "Axes", "inputs": [1], "outputs": [0]}, "feeds_output": True,
            "ends_residual": False, "neighbours": ["2.weight"], "factors": [],
        }  # fmt: skip
        text = json.dumps({"format": 1, "policy": "he", "unknown_operators": {}, "steps": [step]})
        (read,) = Plan.from_json(text)

        assert (read.meets, read.fan_in, read.evidence) == ("relu", 8, "traced")
        assert (read.facts.feeds_output, read.facts.neighbours) == (True, ("2.weight",))

    def test_facts(self):
        """Everything that is known of a site survives, activations with parameters included."""
        leaky, odd = Activation("leaky_relu", 0.3), Activation("own", moments=Moments(0.0, 0.5, 1))
        axes = Axes((1,), (0,), blocks=(2, 4))
        whole = Facts("weight", axes, meets=leaky, fed_by=odd, residual_branches=3, evidence="ran")
        first = dataclasses.replace(whole, meets=None)
        known = {"weight": dataclasses.replace(whole, blocks=(first, whole))}
        made = make_plan(nn.Linear(4, 6), known, presets.he())

        assert Plan.from_json(made.to_json()) == made
        assert made["weight"].meets == "leaky_relu"

    def test_code_of_the_users(self):
        """A function of the user's is kept by name, and refused when it is to run."""

        def half(tensor):
            tensor.fill_(0.5)

        made = plan(InitPolicy([Rule(match.role("weight"), half)]).otherwise(Zeros()))
        again = Plan.from_json(made.to_json())

        assert "half" in made.to_json()
        assert again.to_json() == made.to_json()
        assert again.hash == made.hash
        with pytest.raises(PolicyError, match="half by name only"):
            again["0.weight"].initializer(torch.zeros(2))

    @pytest.mark.parametrize(
        ("field", "value", "words"),
        [
            ("role", "wieght", r"plan\.steps\[0\]\.role must be"),
            ("dtype", "float23", "did you mean 'float32'"),
            ("std", "0.5", "std must be"),
            ("initializer", {"class": "Popen"}, "no class is called 'Popen'"),
            ("evidence", "guessed", "evidence must be"),
        ],
    )
    def test_refused_step(self, field, value, words):
        """What is no step is refused, at its place."""
        data = json.loads(plan().to_json())
        data["steps"][0][field] = value

        with pytest.raises(PolicyError, match=words):
            Plan.from_json(json.dumps(data))
