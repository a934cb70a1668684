"""Scaling: widths are counted from the axes, whatever the layout; at the base nothing changes."""

import pytest
import torch
from torch import nn

from tests.policy.hand import Layouts, Residual, multiplied
from torch_initpolicy import plan_policy, presets
from torch_initpolicy.errors import PlanError

HIDDEN = ("plain", "grouped", "transposed", "packed", "by_right", "experts")
EXPECTED = {  # std, Adam's learning rate, SGD's, at four times the width
    **dict.fromkeys(HIDDEN, (1 / 2, 1 / 4, 1.0)),
    **dict.fromkeys(("stem", "depthwise", "widen", "gamma"), (1.0, 1.0, 4.0)),
    **dict.fromkeys(("squeeze", "head"), (1 / 4, 1 / 4, 1 / 4)),
    "norm": (1.0, 1.0, 4.0),
}


class TestTable8:
    """Tensor Programs V, table 8, for each layout."""

    @pytest.mark.parametrize("name", EXPECTED)
    def test_layouts(self, name):
        """A parameter's multipliers go by what its axes mean."""
        plan = plan_policy(Layouts(64), presets.mup(base=Layouts(16)))
        parameter = name if name in plan.model._parameters else f"{name}.weight"

        assert multiplied(plan, parameter) == EXPECTED[name]

    def test_shrinking(self):
        """A base may be larger than the model."""
        plan = plan_policy(Layouts(16), presets.mup(base=Layouts(64)))

        assert multiplied(plan, "plain.weight") == (2.0, 4.0, 1.0)
        assert multiplied(plan, "head.weight") == (4.0, 4.0, 4.0)

    def test_biases(self):
        """Biases of widths are vectors; that of the head does not grow."""
        plan = plan_policy(Layouts(64), presets.mup(base=Layouts(16)))

        assert multiplied(plan, "plain.bias") == (1.0, 1.0, 4.0)
        assert multiplied(plan, "head.bias") == (1.0, 1.0, 1.0)

    def test_packed_blocks_of_their_own(self):
        """Queries grow, keys and values of one head do not: each block has its own multiplier."""
        plan = plan_policy(OneKey(64), presets.mup(base=OneKey(16)))

        assert plan["packed.weight"].multipliers.std == (0.5, 0.25, 0.25)
        wide = plan_policy(OneKey(16))["packed.weight"].std
        assert plan["packed.weight"].std[0] == pytest.approx(wide[0] * 0.5)
        assert plan["packed.weight"].std[1] == pytest.approx(wide[1] * 0.25)

    def test_draws(self):
        """What is drawn is the base's standard deviation times the multiplier."""
        plan = plan_policy(Layouts(64), presets.mup(base=Layouts(16)))
        base = plan_policy(Layouts(16))
        plan.apply(seed=0)
        drawn = plan.model.plain.weight.std().item()

        assert drawn == pytest.approx(base["plain.weight"].std / 2, rel=0.05)
        plan.verify()


class OneKey(nn.Module):
    """Queries of several heads and one head of keys and values, in one matrix."""

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.packed = nn.Linear(width, width + 16)
        self.head = nn.Linear(width, 3)
        self.example_input_array = torch.randn(2, 5, width)

    def forward(self, x):
        """Attend."""
        q, k, v = self.packed(x).split((self.width, 8, 8), dim=-1)
        q = q.unflatten(-1, (-1, 8)).transpose(1, 2)
        mixed = (q @ k.unsqueeze(1).mT / 8**0.5).softmax(-1) @ v.unsqueeze(1)
        return self.head(mixed.transpose(1, 2).flatten(2))


class TestDepth:
    """Models of other depths."""

    def test_complete_p(self):
        """What closes a branch is divided by the ratio of depths; the rest goes with width."""
        plan = plan_policy(Residual(32, 6), presets.complete_p(base=Residual(8, 2)))
        inside, closing = plan["blocks.4.1.weight"], plan["blocks.4.3.weight"]
        base = plan_policy(Residual(8, 2))

        assert inside.std == pytest.approx(base["blocks.1.1.weight"].std / 2)
        assert closing.std == pytest.approx(base["blocks.1.3.weight"].std / 2 / 3)
        assert closing.multipliers.lr("adamw") == pytest.approx(1 / 4 / 3)
        assert plan["blocks.4.3.bias"].multipliers.lr("adamw") == pytest.approx(1 / 3)
        # arXiv:2505.01618, table 1: eps / (width * depth) inside, the same lr * decay everywhere
        assert inside.multipliers.eps("adamw") == pytest.approx(1 / 4 / 3)
        assert closing.multipliers.decay("adamw") == pytest.approx(4 * 3)

    def test_complete_p_takes_the_place_of_other_rules_of_depth(self):
        """GPT-2's own division by the root of the depth is that of the base."""
        deep = plan_policy(Residual(8, 8), presets.complete_p(base=Residual(8, 2), policy="gpt2"))
        base = plan_policy(Residual(8, 2), "gpt2")

        assert deep["blocks.5.3.weight"].std == pytest.approx(base["blocks.1.3.weight"].std / 4)

    def test_mup_leaves_depth_alone(self):
        """Under muP the policy itself says what depth does."""
        deep = plan_policy(Residual(8, 8), presets.mup(base=Residual(8, 2), policy="gpt2"))

        assert deep.diff(plan_policy(Residual(8, 8), "gpt2")).changed == ()


class Multiplied(nn.Module):
    """A model that multiplies by numbers of its own: embeddings, the branch, the logits."""

    def __init__(self, width, numbers):
        super().__init__()
        self.numbers = numbers
        self.table = nn.Embedding(11, width)
        self.inner = nn.Linear(width, width)
        self.head = nn.Linear(width, 11, bias=False)
        self.example_input_array = torch.zeros(2, 5, dtype=torch.int64)

    def forward(self, tokens):
        """Predict tokens."""
        before, after = self.numbers
        return self.head(torch.relu(self.inner(self.table(tokens) * before))) * after


class TestConstants:
    """What the model itself multiplies by is folded away where it goes with width."""

    @pytest.mark.parametrize("policy", ["auto", "gpt2"])
    def test_products_go_by_the_table(self, policy):
        """sqrt(width) at the embedding, one over width at the head: the products are muP's."""
        plan = plan_policy(
            Multiplied(64, (8.0, 1 / 64)),
            presets.mup(base=Multiplied(16, (4.0, 1 / 16)), policy=policy),
        )
        base = plan_policy(Multiplied(16, (4.0, 1 / 16)), policy)
        table, head = plan["table.weight"], plan["head.weight"]

        assert table.std * 8 == pytest.approx(base["table.weight"].std * 4)
        assert table.multipliers.lr("adamw") * 8 == pytest.approx(4)
        # Table 8 with its forward multiplier: std and Adam's learning rate stay.
        assert head.std == pytest.approx(base["head.weight"].std)
        assert head.multipliers.lr("adamw") == pytest.approx(1.0)

    def test_the_same_numbers_change_nothing(self):
        """Constants that do not go with width are the policy's matter."""
        plan = plan_policy(Multiplied(64, (3.0, 0.5)), presets.mup(base=Multiplied(16, (3.0, 0.5))))

        assert plan["table.weight"].multipliers.folded == 1.0
        assert plan["head.weight"].multipliers.lr("adamw") == 0.25


class TestObstacles:
    """What cannot be folded away is said, with the ways out."""

    def test_tied_head(self):
        """An embedding that makes logits too."""
        with pytest.raises(PlanError, match=r"tied to a head.*weight of its own.*forward_mult"):
            plan_policy(Tied(32), presets.mup(base=Tied(8)))

    def test_heads_that_grow(self):
        """Attention over larger heads, divided by the root of their size."""
        with pytest.raises(PlanError, match=r"dot products.*2 times.*size of heads.*forward_mult"):
            plan_policy(Heads(32, 2), presets.mup(base=Heads(8, 2)))

    def test_more_heads(self):
        """More heads of the same size are no obstacle."""
        model = Heads(32, 8)
        plan = plan_policy(model, presets.mup(base=Heads(8, 2)))

        assert {step.name for step in plan} == {name for name, _ in model.named_parameters()}

    def test_no_place_for_a_hook(self):
        """Inside torch's own attention a hook has no place: one way out is left."""
        model, base = (nn.TransformerEncoderLayer(width, 2, 64) for width in (32, 8))
        plans = [plan_policy(m, example_inputs=torch.zeros(5, 2, m.linear1.in_features))
                 for m in (base,)]  # fmt: skip

        with pytest.raises(PlanError) as caught:
            plan_policy(
                model,
                presets.mup(base=plans[0], forward_multipliers=True),
                example_inputs=torch.zeros(5, 2, 32),
            )
        assert "size of heads" in str(caught.value)
        assert "forward_multipliers" not in str(caught.value)

    def test_all_at_once(self):
        """Every case is listed."""
        with pytest.raises(PlanError) as caught:
            plan_policy(Tied(32, heads=2), presets.mup(base=Tied(8, heads=2)))

        assert "is tied" in str(caught.value)
        assert "dot products" in str(caught.value)


class Heads(nn.Module):
    """Attention."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.table = nn.Embedding(11, width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, 11, bias=False)
        self.example_input_array = torch.zeros(2, 5, dtype=torch.int64)

    def forward(self, tokens):
        """Attend."""
        x = self.table(tokens)
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(mixed.transpose(1, 2).flatten(2))


class Tied(Heads):
    """The same, under a tied head."""

    def __init__(self, width, heads=None):
        super().__init__(width, heads or width // 4)
        self.head.weight = self.table.weight


def chain(width):
    """An embedding, an MLP behind a norm, a head."""
    return nn.Sequential(
        nn.Embedding(11, width), nn.Linear(width, 3 * width), nn.GELU(),
        nn.Linear(3 * width, width), nn.LayerNorm(width), nn.Linear(width, 11),
    )  # fmt: skip


def language(kind, **options):
    """A language model of transformers, whose head is not tied."""
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.for_model(
        kind, vocab_size=11, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0, **options
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def gpt2(width):
    """GPT-2, whose matrices are stored by columns."""
    return language("gpt2", n_embd=width, n_layer=1, n_head=width // 8, n_positions=8)


def llama(width):
    """Llama, whose feed-forward layer is gated."""
    heads = {"num_attention_heads": width // 8, "num_key_value_heads": width // 16}
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": 1}
    return language("llama", **sizes, **heads)


def vit(width):
    """A vision transformer, with tokens and positions."""
    models = pytest.importorskip("timm.models.vision_transformer")
    sizes = {"img_size": 8, "patch_size": 4, "num_classes": 5, "embed_dim": width}
    return models.VisionTransformer(**sizes, depth=1, num_heads=width // 8)


def convnext(width):
    """A ConvNeXt, with depthwise kernels and four widths."""
    models = pytest.importorskip("timm.models.convnext")
    dims = (width // 2, width, 2 * width, 4 * width)
    return models.ConvNeXt(num_classes=5, depths=(1, 1, 1, 1), dims=dims, patch_size=1)


REWRITTEN = {chain: "5", gpt2: "lm_head", llama: "lm_head", vit: "head", convnext: "head.fc"}
"""Models, and the layer that `mup` wants to be its own."""


class TestAgainstMup:
    """The PyPI package `mup`, on models rewritten for it: the same multipliers, one by one."""

    @staticmethod
    def theirs(build, head):
        """Return a model of theirs, with its base shapes set."""
        mup = pytest.importorskip("mup")

        def rewritten(width):
            model = build(width)
            old = model.get_submodule(head)
            new = mup.MuReadout(old.in_features, old.out_features, bias=old.bias is not None)
            model.set_submodule(head, new)
            return model

        model = rewritten(64)
        mup.set_base_shapes(model, rewritten(16), delta=rewritten(32))
        return model

    @staticmethod
    def ours(build):
        """Plan for the same model, not rewritten."""
        tokens = torch.zeros(2, 5, dtype=torch.int64) if build is chain else None
        base = plan_policy(build(16), example_inputs=tokens)
        return plan_policy(build(64), presets.mup(base=base), example_inputs=tokens)

    @pytest.mark.parametrize("build", REWRITTEN, ids=lambda build: build.__name__)
    def test_learning_rates_and_decay(self, build):
        """Learning rates agree, the readout's by the abc-symmetry: it multiplies by 1/4."""
        mup = pytest.importorskip("mup")
        theirs, plan = self.theirs(build, REWRITTEN[build]), self.ours(build)
        for optimizer in ("adam", "adamw", "sgd"):
            kind = {"adam": mup.MuAdam, "adamw": mup.MuAdamW, "sgd": mup.MuSGD}[optimizer]
            groups = kind(theirs.parameters(), lr=1.0, weight_decay=1.0).param_groups
            held = {p: group for group in groups for p in group["params"]}
            folds = {f"{REWRITTEN[build]}.weight": 1 / 4}
            rates = {
                name: held[p]["lr"] * folds.get(name, 1.0) ** (1 + (optimizer == "sgd"))
                for name, p in theirs.named_parameters()
            }
            found = {step.name: step.multipliers for step in plan}

            assert {name: by.lr(optimizer) for name, by in found.items()} == pytest.approx(rates)
            if optimizer == "adamw":
                decays = {
                    name: held[p]["weight_decay"] / folds.get(name, 1.0)
                    for name, p in theirs.named_parameters()
                }
                assert {name: by.decay("adamw") for name, by in found.items()} == decays

    def test_standard_deviations(self):
        """What their drop-in for `normal_` draws, over that of the base."""
        mup = pytest.importorskip("mup")
        theirs, plan = self.theirs(chain, "5"), self.ours(chain)
        for name, parameter in theirs.named_parameters():
            if parameter.ndim == 2:
                mup.init.normal_(parameter, std=1.0)
                fold = 1 / 4 if name == "5.weight" else 1.0
                drawn = parameter.std().item() * fold
                assert plan[name].multipliers.std == pytest.approx(drawn, rel=0.08)
