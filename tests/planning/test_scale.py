"""Carrying a plan over from a base: what is drawn there decides, however the base is given."""

import pytest
import torch
from torch import nn

from torch_initpolicy import plan_policy, presets
from torch_initpolicy.errors import PlanError


class Language(nn.Module):
    """An embedding, a normalised residual stream and a head, which may share the table."""

    def __init__(self, width, *, tied=False):
        super().__init__()
        self.table = nn.Embedding(50, width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.last = nn.LayerNorm(width)
        self.head = nn.Linear(width, 50, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens):
        x = self.table(tokens)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return self.head(self.last(x))


class Sine(nn.Module):
    """Two sine layers over coordinates, whose rule looks at fans."""

    def __init__(self, width):
        super().__init__()
        self.first, self.second = nn.Linear(2, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(torch.sin(30 * self.second(torch.sin(30 * self.first(x)))))


def shapes(model):
    """Tell of a model nothing but its shapes."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def scaled(build, base, policy="auto", **options):
    """Plan for a wide model from a base, and return how each parameter is drawn and learns."""
    plan = plan_policy(build(64), presets.mup(base=base, policy=policy, **options))
    return {step.name: (step.std, step.multipliers.lr("adamw")) for step in plan}


@pytest.mark.parametrize("build", [Language, Sine])
@pytest.mark.parametrize("policy", ["auto", "gpt2", "nanochat"])
def test_shapes_tell_as_much_as_the_model(build, policy):
    """Rules that look at a layer are asked again for the base's shape: embeddings, sines."""
    base = build(16)

    assert scaled(build, shapes(base), policy) == scaled(build, base, policy)


def test_tied_head():
    """Likewise where the table's own number goes with the width, by one over its root."""

    def build(width):
        return Language(width, tied=True)

    base = build(16)

    found = scaled(build, shapes(base), forward_multipliers=True)
    assert found["table.weight"][0] == pytest.approx(16**-0.5)
    assert found == scaled(build, base, forward_multipliers=True)


def test_what_shapes_do_not_tell():
    """What depends on the layer itself is refused, with what to give as base instead."""
    with pytest.raises(PlanError, match=r"'up.weight'.*give as base the model") as caught:
        scaled(Language, shapes(Language(16)), "torch_default")

    assert "norm.weight" not in str(caught.value)  # ones, at every size
