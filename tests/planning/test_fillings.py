"""Numbers that depend on the signal are right whatever else the policy writes."""

import math

import pytest
import torch
from torch import nn

from torch_initpolicy import InitPolicy, Rule, apply_policy, match, plan_policy
from torch_initpolicy.planning import fillings
from torch_initpolicy.policy import presets
from torch_initpolicy.tensors.initializers import (
    Constant,
    From,
    Identity,
    Keep,
    Normal,
    Uniform,
    VarianceScaling,
    Zeros,
)

WIDTH = 400


def network():
    """Four layers: rectified, saturated and normalised signals."""
    return nn.Sequential(
        *(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.Tanh()),
        *(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH)),
    )


def second_moments(model):
    """Return the mean square of what each layer makes of standard normal inputs."""
    x, found = torch.randn(2000, WIDTH, generator=torch.Generator().manual_seed(1)), []
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            found += [x.square().mean().item()] if isinstance(layer, nn.Linear) else []
    return found


RULES = {
    "nothing": (),
    "narrow": (Rule(match.name("0.weight"), Normal(0.01)),),
    "wide": (Rule(match.name("0.weight"), Uniform(-1.0, 1.0)),),
    "two of them": (
        Rule(match.name("0.weight"), Normal(0.2)),
        Rule(match.name("2.weight"), VarianceScaling(4.0, "fan_avg")),
    ),
    "biases": (Rule(match.name("0.bias", "2.bias"), Normal(1.5)),),
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_signal_below_other_rules(rules):
    """Every layer that `signal` decides about has an output of second moment 1, within 10 %.

    A rule above it changes what later weights read; taken to have made an output of 1, as the
    preset alone would, the narrow one leaves the next layer 25 times too small.
    """
    model = network()
    policy = InitPolicy(rules).otherwise(presets.signal())
    plan = apply_policy(model, policy, seed=0).plan
    ruled = {str(step.name) for step in plan if step.rule.startswith("name(")}
    layers = [f"{number}.weight" for number in (0, 2, 4, 6)]
    with torch.no_grad():  # what is added to an output is no matter of its weight
        biases = [model[number].bias.square().mean().item() for number in (0, 2, 4, 6)]
    moments = zip(layers, second_moments(model), biases, strict=True)
    left = [moment - bias for name, moment, bias in moments if name not in ruled]

    assert left == pytest.approx([1.0] * len(left), rel=0.1)


def test_kept_weights_are_measured():
    """A weight that keeps its values scales the signal by what they are."""
    model = network()
    with torch.no_grad():
        model[0].weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    apply_policy(model, "signal", seed=0, skip="0.weight")

    assert second_moments(model)[1:] == pytest.approx([1.0] * 3, rel=0.1)


@pytest.mark.parametrize(
    ("initializer", "said"),
    [
        (Constant(0.1), "have a mean"),
        (Identity(), "Identity"),
        (From(nn.init.normal_), "normal_"),
        (Zeros(), "nothing but zeros"),
    ],
    ids=["constant", "identity", "function", "zeros"],
)
def test_what_cannot_be_followed(initializer, said):
    """Behind weights that are no centred draw nothing is known, and the reason says why."""
    rule = Rule(match.name("0.weight"), initializer)
    plan = plan_policy(network(), InitPolicy([rule]).otherwise(presets.signal()))

    assert "unknown behind" in plan["2.weight"].reason
    assert said in plan["2.weight"].reason
    assert "fed by relu" in plan["2.weight"].reason
    assert plan["2.weight"].std == pytest.approx(math.sqrt(2 / WIDTH))


def test_without_a_forward_pass():
    """Where nothing was traced, the gain is that of what feeds the layer."""
    model = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
    plan = plan_policy(model, "signal")

    assert plan["1.weight"].std == pytest.approx(8**-0.5)
    assert "mean square" not in plan["1.weight"].reason


@pytest.mark.parametrize("name", ["auto", "he", "gpt2", "orthogonal"])
def test_moments_are_followed_on_demand(name, monkeypatch):
    """A policy that does not ask what its weights read does not pay for it."""
    monkeypatch.setattr(fillings, "reads", None)

    assert plan_policy(network(), name)["0.weight"].std


def test_own_initializer_that_asks():
    """An initializer asks by its context; in a block of its own too."""
    asking = VarianceScaling(1.0, "fan_in", "uniform", "signal")
    policy = InitPolicy([Rule(match.name("4.weight"), asking)]).otherwise(Keep())
    model = network()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
            layer.bias.zero_()
    apply_policy(model, policy, seed=0)

    assert second_moments(model)[2] == pytest.approx(1.0, rel=0.1)
