"""The coordinate check: it is silent where a parametrisation is right, and finds mistakes."""

import pytest
import torch
from torch import nn

from torch_initpolicy import check_scaling, plan_policy, presets
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

    def test_head_without_its_rescale(self):
        """A head that is drawn as a hidden layer, and learns like one."""

        def rescaled(model):
            groups = plan_policy(model, presets.mup(base=mlp(16))).param_groups(lr=1e-2)
            for group in groups:
                group["lr"] = 1e-2 if "4.weight" in group["names"] else group["lr"]
            return torch.optim.AdamW(groups)

        check = check_scaling(mlp, WIDTHS, optimizer=rescaled, seeds=2)
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
        """A tied head, whose shapes alone do not tell; the model itself is refused at once."""

        def tied(width):
            return Attention(width, tied=True)

        def untied_base(width):
            return presets.mup(base=tied(width))

        with pytest.raises(PlanError, match="tied to a head"):
            check_scaling(tied, WIDTHS, example_inputs=TOKENS)
        assert not check_scaling(tied, WIDTHS, policy=untied_base, example_inputs=TOKENS).ok

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
