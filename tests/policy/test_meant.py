"""What the author meant stays, what was drawn or is broken does not."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_initpolicy import (
    InitPolicy,
    Rule,
    apply_policy,
    initializers,
    match,
    plan_policy,
    presets,
    skip_init,
)
from torch_initpolicy.errors import PolicyError

X = torch.linspace(-2, 2, 64).reshape(4, 16)


def kept(model: nn.Module, policy="auto", x=X, **options) -> set[str]:
    """Return the names of what a plan keeps as meant."""
    plan = plan_policy(model, policy, example_inputs=x, **options)
    return {step.name for step in plan if step.reason.startswith("kept: meant")}


class Lora(nn.Module):
    """A layer with a low-rank adapter, of which one factor starts at zero."""

    def __init__(self, *, first: bool = False, nonlinear: bool = False):
        super().__init__()
        self.base, self.a = nn.Linear(16, 8), nn.Linear(16, 4, bias=False)
        self.b = nn.Linear(4, 8, bias=False)
        self.act = nn.ReLU() if nonlinear else nn.Identity()
        nn.init.zeros_((self.a if first else self.b).weight)

    def forward(self, x):
        return self.act(self.base(x) + 0.5 * self.b(self.a(x)))


class Film(nn.Module):
    """Features that are scaled and shifted before a rectifier; the map starts at zero."""

    def __init__(self):
        super().__init__()
        self.features, self.map, self.head = nn.Linear(16, 8), nn.Linear(16, 16), nn.Linear(8, 2)
        nn.init.zeros_(self.map.weight)

    def forward(self, x):
        scale, shift = self.map(x).chunk(2, -1)
        return self.head(F.relu(self.features(x) * (1 + scale) + shift))


class Gated(nn.Module):
    """A branch behind a gate that starts half open: `sigmoid(0)`."""

    def __init__(self):
        super().__init__()
        self.value, self.gate, self.head = nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(8, 2)
        nn.init.zeros_(self.gate.weight)

    def forward(self, x):
        return self.head(self.value(x) * torch.sigmoid(self.gate(x)))


class Queries(nn.Module):
    """Attention whose queries, or queries and keys, start at zero."""

    def __init__(self, *names: str):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16, bias=False) for _ in range(4))
        for name in names:
            nn.init.zeros_(getattr(self, name).weight)

    def forward(self, x):
        heads = (layer(x).reshape(1, 4, 2, 8).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(4, 16))


class Block(nn.Module):
    """A residual block whose last layer starts at zero."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)
        nn.init.zeros_(self.last.weight)

    def forward(self, x):
        return x + self.last(F.relu(self.first(x)))


def zero_head() -> nn.Sequential:
    """Return a network whose head starts at zero."""
    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    nn.init.zeros_(net[2].weight)
    return net


ZEROS = {
    "last factor": (Lora, {"b.weight"}),
    "first factor": (lambda: Lora(first=True), {"a.weight"}),
    "factor before a rectifier": (lambda: Lora(nonlinear=True), {"b.weight"}),
    "modulation": (Film, {"map.weight"}),
    "gate": (Gated, {"gate.weight"}),
    "queries": (lambda: Queries("q"), {"q.weight"}),
    "branch": (lambda: nn.Sequential(Block(), Block()), {"0.last.weight", "1.last.weight"}),
    "head": (zero_head, {"2.weight"}),
}


@pytest.mark.parametrize(("build", "names"), ZEROS.values(), ids=ZEROS)
def test_zeros_that_close(build, names):
    """A zero that is a factor, closes a branch or is a head stays, and nothing else."""
    assert kept(build()) == names


@pytest.mark.parametrize(("build", "names"), ZEROS.values(), ids=ZEROS)
def test_zeros_open_in_training(build, names):
    """Whatever is kept gets a gradient at the first or second step: nothing is dead."""
    model = build()
    apply_policy(model, seed=0, example_inputs=X)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    before = {name: model.get_parameter(name).clone() for name in names}
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().sum().add(model(X).sum()).backward()
        optimizer.step()
    assert not any(torch.equal(before[name], model.get_parameter(name)) for name in names)


def zeroed(model: nn.Module, *names: str) -> nn.Module:
    """Set parameters of a model to zero."""
    for name in names:
        nn.init.zeros_(model.get_parameter(name))
    return model


def mlp() -> nn.Sequential:
    """Return three layers."""
    return nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


BROKEN = {
    "all zero": lambda: zeroed(mlp(), *dict(mlp().named_parameters())),
    "dead hidden layer": lambda: zeroed(mlp(), "2.weight"),
    "head behind a dead layer": lambda: zeroed(mlp(), "2.weight", "4.weight"),
    "residual net of zeros": lambda: zeroed(Block(), *dict(Block().named_parameters())),
    "queries and keys": lambda: Queries("q", "k"),
    "one layer": lambda: zeroed(nn.Linear(16, 2), "weight", "bias"),
    "ones": lambda: presets_applied("ones"),
    "constant": lambda: presets_applied(presets.constant(0.3)),
}


def presets_applied(policy) -> nn.Module:
    """Return three layers that a preset has filled."""
    model = mlp()
    for parameter in model.parameters():
        nn.init.constant_(parameter, 1.0 if policy == "ones" else 0.3)
    return model


@pytest.mark.parametrize("build", BROKEN.values(), ids=BROKEN)
def test_what_is_broken_is_repaired(build):
    """Units that would stay tied or dead are drawn, and no constant beside them is meant."""
    assert kept(build()) == set()


@pytest.mark.parametrize("std", [1e-3, 1.0, 30.0])
@pytest.mark.parametrize("draw", [nn.init.normal_, nn.init.uniform_, nn.init.trunc_normal_])
def test_draws_of_any_scale_are_replaced(draw, std):
    """A plan does not depend on the random weights a model happens to hold."""
    model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            draw(parameter).sub_(0.5 if draw is nn.init.uniform_ else 0).mul_(std)
    assert kept(model, x=X.reshape(4, 4, 4)) == set()


def test_memory_that_nobody_wrote_to():
    """What `torch.empty` left in a parameter was not put there by anybody."""
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3))
    for parameter in (model[0].weight, model[0].bias):
        memory = torch.full((parameter.numel() // 2,), 0x7F12_3456_7890).view(torch.float32)
        parameter.data = memory.view(parameter.shape)
    assert kept(model) == set()


class TestBiases:
    """Biases with a purpose."""

    def test_prior(self):
        """The prior of a head stays, the biases of other layers are zero."""
        model = mlp()
        nn.init.constant_(model[4].bias, -math.log(99))
        apply_policy(model, seed=0)
        assert model[4].bias.allclose(torch.tensor(-math.log(99)))
        assert model[2].bias.eq(0).all()

    def test_forget_gate_of_a_recurrent_layer(self):
        """A gate that the constructor has opened wider stays so."""
        model = nn.LSTM(16, 8)
        with torch.no_grad():
            model.bias_ih_l0[8:16] = 3.0
        assert kept(model) == {"bias_ih_l0"}

    def test_constants_of_a_layer_of_ones_own(self):
        """A raw bias is filled with a constant by its own layer's default: no purpose is known."""

        class Shifted(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer, self.bias = nn.Linear(16, 8), nn.Parameter(torch.ones(8))

            def forward(self, x):
                return F.relu(self.layer(x) + self.bias)

        assert kept(Shifted()) == set()

    def test_beside_a_constant_weight(self):
        """A constant bias of a layer that is repaired is no prior."""
        assert kept(presets_applied("ones")) == set()


def test_scale_of_a_norm():
    """A constant scale that is not one was set by somebody; drawn ones are replaced."""
    model = nn.Sequential(nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 2), nn.LayerNorm(2))
    nn.init.constant_(model[1].weight, 0.25)
    nn.init.normal_(model[3].weight, 1, 0.1)
    assert kept(model) == {"1.weight"}


def test_closing_norm():
    """Zero-gamma stays where it closes a branch, and is repaired where it kills a layer."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.last = nn.Linear(16, 16), nn.LayerNorm(16), nn.LayerNorm(16)
            nn.init.zeros_(self.norm.weight)
            nn.init.zeros_(self.last.weight)

        def forward(self, x):
            return F.relu(self.last(x + self.norm(self.a(x))))

    assert kept(Net()) == {"norm.weight"}


def test_loaded():
    """What transformers marks as loaded stays."""
    model = mlp()
    model[0].weight._is_hf_initialized = True
    assert kept(model) == {"0.weight"}


class TestWhoIsAsked:
    """`keep=`, presets and rules of one's own."""

    def test_nothing(self):
        """`keep="nothing"` overwrites."""
        assert kept(Lora(), keep="nothing") == set()
        with pytest.raises(PolicyError, match="keep is one of"):
            plan_policy(Lora(), keep="all")

    def test_own_rules_to_the_letter(self):
        """A rule of one's own writes; the preset behind it keeps."""
        model = zero_head()
        nn.init.constant_(model[0].bias, 2.0)
        rule = Rule(match.name("2.weight"), initializers.Normal(0.1))
        assert kept(model, InitPolicy([rule]).otherwise(presets.auto())) == {"0.bias"}
        assert kept(model, presets.auto().override(rule)) == {"0.bias"}

    @pytest.mark.parametrize("policy", ["zeros", "ones", "torch_default"])
    def test_presets_to_the_letter(self, policy):
        """What is about overwriting overwrites."""
        assert kept(Lora(), policy) == set()

    @pytest.mark.parametrize("policy", ["he", "xavier", "orthogonal", "normal", "gpt2", "critical"])
    def test_presets_that_keep(self, policy):
        """The others keep."""
        assert kept(Lora(), policy) == {"b.weight"}

    def test_reason(self):
        """The plan says what a value is."""
        plan = plan_policy(Lora(), example_inputs=X)
        assert plan["b.weight"].reason == "kept: meant, zero, which closes a summand"
        assert plan["b.weight"].rule == "keep"

    def test_on_meta(self):
        """Where there are no values nothing is known."""
        assert kept(Lora().to("meta"), x=X.to("meta")) == set()


def test_skipped_and_built_agree():
    """A constructor whose draws were skipped comes to the same plan as one whose were not."""

    def build():
        model = mlp()
        nn.init.sparse_(model[2].weight, 0.5)
        nn.init.uniform_(model[2].bias, 5, 6)
        nn.init.zeros_(model[4].weight)
        return model

    with skip_init():
        skipped = build()
    assert kept(build()) == {"2.weight", "2.bias", "4.weight"}
    plan = plan_policy(skipped)
    assert {step.name for step in plan if step.rule == "keep"} == {
        "2.weight", "2.bias", "4.weight",
    }  # fmt: skip


def test_zeros_of_a_model_that_cannot_be_followed_stay():
    """Without a forward pass no zero is overwritten, but one that a rectifier would keep dead."""

    class Opaque(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(16, 8), nn.BatchNorm1d(8)
            self.dead = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
            self.pose = nn.Linear(8, 6)
            for zero in (self.norm, self.dead[0], self.pose):
                nn.init.zeros_(zero.weight)
            self.pose.bias.data.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

        def forward(self, x):
            raise RuntimeError("this needs a camera")

    names = {step.name for step in plan_policy(Opaque()) if step.reason.startswith("kept: meant")}

    assert names == {"norm.weight", "pose.weight", "pose.bias"}


def test_ones_that_a_factor_starts_from_stay():
    """A raw bias of ones is a placeholder, but where its layer's output multiplies a signal."""

    class Equalised(nn.Module):
        def __init__(self, *, multiplies):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(16, 16)), nn.Parameter(torch.ones(16))
            self.last, self.multiplies = nn.Linear(16, 2), multiplies

        def forward(self, x):
            made = F.linear(x, self.weight, self.bias)
            return self.last(made * x if self.multiplies else made.relu())

    assert kept(Equalised(multiplies=True)) == {"bias"}
    assert kept(Equalised(multiplies=False)) == set()
