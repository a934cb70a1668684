"""`presets.constructor()` keeps the author's distributions, and draws them from our streams."""

import warnings

import pytest
import timm
import torch
import transformers
from torch import nn

from torch_initpolicy import (
    apply_policy,
    compare_inits,
    materialize,
    plan_policy,
    presets,
    skip_init,
)
from torch_initpolicy.errors import InitPolicyWarning
from torch_initpolicy.testing import assert_untouched

SMALL = {"hidden_size": 64, "num_hidden_layers": 1, "vocab_size": 96}


def own():
    """Build a model of torch's own layers."""
    return nn.Sequential(nn.Linear(24, 64), nn.LSTM(64, 32), nn.Embedding(40, 8, padding_idx=3))


def gpt2():
    """Build a small GPT-2, whose output projections have a standard deviation of their own."""
    config = transformers.GPT2Config(
        n_layer=2, n_embd=64, n_head=4, vocab_size=96, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def llama():
    """Build a small Llama."""
    config = transformers.LlamaConfig(
        **SMALL, intermediate_size=96, num_attention_heads=4, num_key_value_heads=2
    )
    return transformers.LlamaForCausalLM(config)


MODELS = {
    "own": own,
    "timm": lambda: timm.create_model("test_vit"),
    "gpt2": gpt2,
    "llama": llama,
}


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
class TestRebuilt:
    """A model that was built for real is built once more, to learn what its constructor draws."""

    def test_every_tensor_is_drawn_as_the_author_draws_it(self, build):
        """The result cannot be told from another object of the constructor's own."""
        model = build()
        apply_policy(model, "constructor", seed=0)

        assert compare_inits(model, build()).ok

    def test_values_depend_on_the_seed_alone(self, build):
        """Two models with different weights become one."""
        first, second = build(), build()
        for model in (first, second):
            apply_policy(model, "constructor", seed=3)

        pairs = zip(first.parameters(), second.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)

    def test_planning_changes_nothing(self, build):
        """The model is as it was, and the global random state too."""
        model = build()
        with assert_untouched(model):
            plan_policy(model, "constructor")


@pytest.mark.parametrize("build", MODELS.values(), ids=MODELS)
def test_however_it_is_built(build):
    """Built for real, under `skip_init` or on meta, a model starts with the same bits."""
    real = build()
    with skip_init():
        skipped = build()
    with torch.device("meta"):
        on_meta = build()
    apply_policy(real, "constructor", seed=1)
    apply_policy(skipped, "constructor", seed=1)
    materialize(on_meta, "constructor", seed=1)

    states = [model.state_dict() for model in (real, skipped, on_meta)]
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    assert [name for name in states[0] if not torch.equal(states[0][name], states[2][name])] == []


@pytest.mark.parametrize("mode", ["", "jax", "jax_nlhb", "moco", "reset"])
def test_init_weights_of_timm(mode):
    """Under `skip_init` any model's `init_weights` says what is drawn; what it sets, it sets."""

    def build():
        return timm.create_model("test_vit", num_classes=100)

    theirs, mine, other = build(), build(), build()
    theirs.init_weights(mode)
    for model in (mine, other):
        with skip_init():
            model.init_weights(mode)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            apply_policy(model, "constructor", seed=2)

    pairs = zip(mine.parameters(), other.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert compare_inits(mine, theirs).ok


class Computed(nn.Module):
    """Computes a parameter from a draw, which no record of fills can know."""

    def __init__(self):
        super().__init__()
        self.rates = nn.Parameter(torch.rand(16).exp() * 0.1)
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        return self.layer(x) * self.rates


def test_what_is_computed_from_a_draw_stays_with_a_warning():
    """Such a parameter keeps its values, and the warning names it and what to do."""
    model = Computed()
    before = model.rates.detach().clone()
    with pytest.warns(InitPolicyWarning, match=r"'rates' .*\n.*skip_init"):
        apply_policy(model, "constructor", seed=0)

    assert torch.equal(model.rates, before)


def test_a_constructor_that_cannot_be_called_again():
    """Where the arguments are not kept, its parameters stay, each one named."""

    class Once(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(width, width))

        def forward(self, x):
            return x @ self.weight

    with pytest.warns(InitPolicyWarning, match="1 parameter stay as they are"):
        plan = plan_policy(Once(4), "constructor")

    assert plan["weight"].keeps


def test_only_what_is_asked_for():
    """Filters hold: what is skipped keeps its values."""
    model = own()
    before = model[0].weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_policy(model, "constructor", seed=0, skip=["0.*"])

    assert torch.equal(model[0].weight, before)


class Overwriting(nn.Module):
    """It has other plans for its layers than they have themselves, and cannot be built again."""

    def __init__(self, *sizes):
        super().__init__()
        self.first, self.second = nn.Linear(*sizes), nn.Linear(*sizes)
        nn.init.normal_(self.first.weight, std=0.02)
        nn.init.constant_(self.first.bias, 0.5)


def test_a_part_that_is_built_again_is_believed_where_its_values_agree():
    """A layer's own constructor does not speak for the module that overwrote its values."""
    model = Overwriting(64, 64)
    with pytest.warns(InitPolicyWarning, match=r"first\.weight"):
        plan = plan_policy(model, presets.constructor())

    assert [step.keeps for step in plan] == [True, True, False, False]
