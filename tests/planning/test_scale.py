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


class Gated(nn.Module):
    """A packed projection whose first block grows with the width, and whose others do not."""

    def __init__(self, width):
        super().__init__()
        self.rank = width // 16
        self.read = nn.Linear(4, width)
        self.packed = nn.Linear(width, self.rank + 8 + 8, bias=False)
        self.step = nn.Linear(self.rank, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        step, left, right = self.packed(torch.relu(self.read(x))).split([self.rank, 8, 8], -1)
        mixed = torch.sigmoid(self.step(step)) * torch.cat([left.tanh(), right], -1)
        return self.head(mixed)


@pytest.mark.parametrize("width", [64, 128, 256])
def test_blocks_that_are_as_large_at_one_width(width):
    """Blocks of one size here and of several there are compared one by one."""
    step = plan_policy(Gated(width), presets.mup(base=Gated(64), policy="xavier"))["packed.weight"]
    ratio = width / 64
    stds = step.std if isinstance(step.std, tuple) else (step.std,) * 3

    base = [(2 / (64 + units)) ** 0.5 for units in (4, 8, 8)]
    expected = [base[0] * ratio**-0.5, base[1] / ratio, base[2] / ratio]
    assert list(stds) == pytest.approx(expected)
