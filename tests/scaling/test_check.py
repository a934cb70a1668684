"""The coordinate check: it is silent where a parametrisation is right, and finds mistakes."""

import pytest
import torch
from torch import nn

from torch_initpolicy import (
    InitPolicy,
    Rule,
    check_scaling,
    initializers,
    match,
    plan_policy,
    presets,
)
from torch_initpolicy.errors import ArgumentError, PlanError, TraceError

WIDTHS = (16, 32, 64, 128)
TOKENS = torch.arange(32).view(4, 8) % 11


class Attention(nn.Module):
    """Two heads that grow with width, over tokens; mistakes are made where asked."""

    def __init__(self, width, *, tied=False, scaled="q", base=16):
        super().__init__()
        self.scaled, self.factor = scaled, (base / width) ** 0.5
        self.table = nn.Embedding(11, width)
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.head = nn.Linear(width, 11, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens):
        """Attend; what must be on the queries may stand at the values."""
        x = nn.functional.layer_norm(self.table(tokens), self.table.weight.shape[1:])
        parts = {name: getattr(self, name)(x) for name in "qkv"}
        parts[self.scaled] = parts[self.scaled] * self.factor
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in parts.values())
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(torch.relu(self.out(mixed.transpose(1, 2).flatten(2))))


def mlp(width):
    """An input, a hidden layer and a head."""
    return nn.Sequential(
        nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
    )


def changes(check):
    """Return the slopes of the changes, by layer."""
    return {layer.name: layer.change_slope for layer in check.layers}


class TestRight:
    """Parametrisations that transfer."""

    @pytest.mark.parametrize(
        ("optimizer", "lr"), [("adamw", 1e-2), ("sgd", 1e-2), ("rmsprop", 1e-3)]
    )
    def test_mup(self, optimizer, lr):
        """Under muP every slope is about zero, by whatever optimizer."""
        check = check_scaling(mlp, WIDTHS, optimizer=optimizer, lr=lr, seeds=2)

        assert check.ok, check
        assert max(map(abs, changes(check).values())) < 0.15

    def test_spectral(self):
        """The spectral condition holds without a base."""
        assert check_scaling(mlp, WIDTHS, policy=presets.spectral(), lr=0.3).ok

    def test_attention(self):
        """Heads that grow, whose queries the model divides as it must.

        Narrow heads attend to few tokens at the start: the output settles with width only slowly.
        """
        assert check_scaling(Attention, WIDTHS, example_inputs=TOKENS, tolerance=0.35).ok

    def test_forward_multipliers(self):
        """Heads that grow under a tied head, left to hooks."""

        def build(width):
            return Attention(width, tied=True, base=width)

        policy = presets.mup(base=build(32), forward_multipliers=True)
        check = check_scaling(build, (32, 64, 128, 256), policy=policy, example_inputs=TOKENS)

        assert check.ok, check

    @pytest.mark.parametrize("depths", [(2, 4, 8, 16)])
    def test_complete_p(self, depths):
        """CompleteP: what a step changes does not go with depth, either."""

        def build(depth):
            return Tower(16, depth)

        def stream(policy):
            check = check_scaling(build, depths, policy=policy, lr=3e-3, seeds=2)
            return abs(check["head"].change_slope)

        assert stream("complete_p") < 0.15
        assert stream("mup") > 0.3


class Tower(nn.Module):
    """Residual branches."""

    def __init__(self, width, depth):
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(),
                          nn.Linear(width, width))
            for _ in range(depth)
        )  # fmt: skip
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        """Add the branches."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class TestMistakes:
    """Seeded mistakes are found."""

    def test_standard_start(self):
        """He's start under one learning rate."""
        check = check_scaling(mlp, WIDTHS, policy="he", seeds=2)

        assert {layer.name for layer in check.findings} == {"2", "4"}

    def test_constructor(self):
        """What the constructor draws, under one learning rate."""
        assert not check_scaling(mlp, WIDTHS, policy=None, seeds=2).ok

    def test_head_that_learns_too_fast(self):
        """A head that learns like a vector."""

        def rescaled(model):
            groups = plan_policy(model, presets.mup(base=mlp(16))).param_groups(lr=1e-2)
            for group in groups:
                group["lr"] = 1e-2 if "4.weight" in group["names"] else group["lr"]
            return torch.optim.AdamW(groups)

        check = check_scaling(mlp, WIDTHS, optimizer=rescaled, seeds=2)
        assert "4" in {layer.name for layer in check.findings}

    def test_head_without_its_rescale(self):
        """A head that is drawn like a hidden layer."""

        def hidden_head(width):
            drawn = Rule(match.name("4.weight"), initializers.Normal(width**0.5 / 16))
            return presets.mup(base=mlp(16), policy=presets.auto().override(drawn))

        check = check_scaling(mlp, WIDTHS, policy=hidden_head, seeds=2)
        assert "4" in {layer.name for layer in check.findings}

    def test_learning_rate_not_scaled(self):
        """MuP's draws under one learning rate for all."""
        check = check_scaling(
            mlp, WIDTHS, optimizer=lambda model: torch.optim.AdamW(model.parameters(), 1e-2)
        )

        assert {"2", "4"} <= {layer.name for layer in check.findings}

    def test_values_scaled_for_queries(self):
        """The factor of the queries stands at the values."""

        def swapped(width):
            return Attention(width, scaled="v")

        def policy(width):
            shapes = {n: p.shape for n, p in swapped(16).named_parameters()}
            return presets.mup(base=shapes, policy="gpt2")

        check = check_scaling(swapped, WIDTHS, policy=policy, example_inputs=TOKENS, lr=3e-2)
        assert not check.ok, check

    def test_tied_head(self):
        """A tied head is refused at once; scaled by hand as if it were none, it is found."""

        def tied(width):
            return Attention(width, tied=True)

        def by_hand(model):
            width = model.out.in_features
            hidden = [layer.weight for layer in (model.q, model.k, model.v, model.out)]
            vectors = [model.out.bias, model.table.weight]
            rates = ((hidden, 1e-2 * 16 / width), (vectors, 1e-2))
            return torch.optim.AdamW([{"params": held, "lr": lr} for held, lr in rates])

        def drawn(width):
            hidden = match.name("q.*", "k.*", "v.*", "out.weight")
            table = Rule(match.name("table.weight"), initializers.Normal(1.0))
            rules = (Rule(hidden, initializers.Normal(width**-0.5)), table)
            return InitPolicy(rules).otherwise(presets.gpt2())

        with pytest.raises(PlanError, match="tied to a head"):
            check_scaling(tied, WIDTHS, example_inputs=TOKENS)
        check = check_scaling(tied, WIDTHS, policy=drawn, optimizer=by_hand, example_inputs=TOKENS)
        assert "head" in {layer.name for layer in check.findings}, check

    def test_the_wrong_base(self):
        """Each width its own base: nothing scales."""
        check = check_scaling(mlp, WIDTHS, policy=lambda width: presets.mup(base=mlp(width)))

        assert not check.ok


class TestWorld:
    """What a check leaves alone, and what it refuses."""

    def test_random_state(self):
        """The global random state is as it was."""
        before = torch.random.get_rng_state()
        check_scaling(mlp, WIDTHS[:2], seeds=1, steps=1)

        assert torch.equal(before, torch.random.get_rng_state())

    def test_repeats(self):
        """The same check finds the same numbers."""
        one, other = (check_scaling(mlp, WIDTHS[:2], seeds=1, steps=1) for _ in range(2))

        assert one == other

    def test_dropout(self):
        """Dropout drops the same before and after: a mistake shows as it does without."""

        def dropping(width):
            return nn.Sequential(nn.Linear(8, width), nn.Dropout(0.3), *mlp(width)[1:])

        check = check_scaling(dropping, WIDTHS, policy="he", lr=1e-3, seeds=2)
        assert {layer.name for layer in check.findings} == {"3", "5"}
        assert check_scaling(dropping, WIDTHS, lr=1e-3, seeds=2).ok

    def test_layers_of_some_widths_alone(self):
        """A module that not every width has (a projection where sizes differ) has no slope."""

        def projected(width):
            head = [] if width == 16 else [nn.Linear(width, 16)]
            return nn.Sequential(
                nn.Linear(8, width), nn.ReLU(), *head, nn.Linear(16, 2, bias=False)
            )

        check = check_scaling(projected, WIDTHS[:2], policy="he", seeds=1, steps=1)
        assert [layer.name for layer in check.layers] == ["0", "2"]

    def test_a_loss_of_ones_own(self):
        """A loss function is asked for the scalar."""
        asked = []

        def loss(output):
            asked.append(output.shape)
            return output.square().mean()

        check_scaling(mlp, WIDTHS[:2], seeds=1, steps=2, loss_fn=loss)
        assert len(asked) == 4

    def test_one_width(self):
        """A slope takes two."""
        with pytest.raises(ArgumentError, match="two"):
            check_scaling(mlp, (64,))

    def test_unknown_optimizer(self):
        """The message lists those that are known."""
        with pytest.raises(ArgumentError, match="adamw"):
            check_scaling(mlp, WIDTHS, optimizer="lamb")

    def test_nothing_to_train(self):
        """An output without numbers needs a loss."""

        class Picks(nn.Module):
            def __init__(self, width):
                super().__init__()
                self.layer = nn.Linear(8, width)

            def forward(self, x):
                return self.layer(x).argmax(-1)

        with pytest.raises(TraceError, match="loss_fn"):
            check_scaling(Picks, WIDTHS[:2])
