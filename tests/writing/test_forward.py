"""Forward multipliers: hooks that survive what people do with modules."""

import copy
import pickle

import pytest
import torch
from torch import nn

from torch_initpolicy import Plan, find_symmetry, plan_policy, presets
from torch_initpolicy.writing.forward import InputMultiplier, OutputMultiplier


class Model(nn.Module):
    """Attention over tokens, under a head that is tied to the embedding."""

    def __init__(self, width, heads=2):
        super().__init__()
        self.table = nn.Embedding(11, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.head = nn.Linear(width, 11)
        self.head.weight = self.table.weight
        self.heads = heads
        self.example_input_array = torch.arange(10).view(2, 5)

    def forward(self, tokens):
        """Predict tokens."""
        x = self.table(tokens)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(torch.relu(self.out(mixed.transpose(1, 2).flatten(2))))


TOKENS = torch.arange(10).view(2, 5)


def planned(width=32):
    """Plan for a model of four times the width of its base, and twice the size of heads."""
    policy = presets.mup(base=Model(8), forward_multipliers=True)
    return plan_policy(Model(width), policy)


def by_hand(model, tokens):
    """Compute what the hooks must: queries by 1/2, what the head reads by 1/4."""
    x = model.table(tokens)
    q, k, v = (
        part.unflatten(-1, (model.heads, -1)).transpose(1, 2)
        for part in nn.functional.linear(x, model.qkv.weight, model.qkv.bias).chunk(3, dim=-1)
    )
    mixed = nn.functional.scaled_dot_product_attention(q * 0.5, k, v)
    hidden = torch.relu(model.out(mixed.transpose(1, 2).flatten(2)))
    return nn.functional.linear(hidden * 0.25, model.head.weight, model.head.bias)


class TestHooks:
    """What the hooks compute, and that they stay."""

    def test_computes(self):
        """Queries alone are multiplied, and what the head reads."""
        plan = planned()
        plan.apply(seed=0)

        assert torch.allclose(plan.model(TOKENS), by_hand(plan.model, TOKENS), atol=1e-6)

    def test_in_the_plan(self):
        """A plan shows what is multiplied in the forward pass, and keeps it in its file."""
        plan = planned()

        assert "queries are x 0.5 in the forward pass" in str(plan)
        assert "the head reads x 0.25 in the forward pass" in str(plan)
        assert Plan.from_json(plan.to_json()) == plan

    def test_apply_twice(self):
        """A second plan takes the place of the first."""
        plan = planned()
        plan.apply(seed=0)
        plan.apply(seed=0)

        assert torch.allclose(plan.model(TOKENS), by_hand(plan.model, TOKENS), atol=1e-6)

    @pytest.mark.parametrize(
        "copied",
        [
            copy.deepcopy,
            lambda model: pickle.loads(pickle.dumps(model)),
            lambda model: torch.compile(model, backend="eager", fullgraph=True),
        ],
        ids=["deepcopy", "pickle", "compile"],
    )
    def test_survives(self, copied):
        """Copies, pickles and compiled models compute the same."""
        plan = planned()
        plan.apply(seed=0)
        expected = plan.model(TOKENS)

        assert torch.allclose(copied(plan.model)(TOKENS), expected, atol=1e-6)

    def test_state_dict(self):
        """A state_dict holds what it held before, and loading one leaves the hooks."""
        plain, plan = Model(32), planned()
        plan.apply(seed=0)
        state = plan.model.state_dict()
        expected = plan.model(TOKENS)
        plan.model.load_state_dict({name: value.clone() for name, value in state.items()})

        assert state.keys() == plain.state_dict().keys()
        assert torch.equal(plan.model(TOKENS), expected)

    def test_a_plan_of_the_hooked_model(self):
        """A model that has its hooks asks for the same again, but not for a second factor."""
        plan = planned()
        plan.apply(seed=0)
        policy = presets.mup(base=Model(8), forward_multipliers=True)
        plan_policy(plan.model, policy).apply(seed=0)

        assert torch.allclose(plan.model(TOKENS), by_hand(plan.model, TOKENS), atol=1e-6)

    def test_looking_leaves_them(self):
        """To search a hooked model changes nothing."""
        plan = planned()
        plan.apply(seed=0)
        expected = plan.model(TOKENS)
        find_symmetry(plan.model, TOKENS)

        assert torch.equal(plan.model(TOKENS), expected)

    def test_without_a_plan_there_are_none(self):
        """A model at the base's own size gets no hook."""
        plan = planned(8).apply(seed=0).plan

        assert not any(
            isinstance(hook, (InputMultiplier, OutputMultiplier))
            for module in plan.model.modules()
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        )


def test_units_of_a_convolution():
    """The units of a convolution lie before its positions."""
    output = torch.ones(2, 4, 3, 3)
    multiplied = OutputMultiplier(0.5, axis=-3, ranges=((0, 1), (2, 3)))(nn.Identity(), (), output)

    assert multiplied[0, :, 0, 0].tolist() == [0.5, 1.0, 0.5, 1.0]
