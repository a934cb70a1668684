"""Presets: what each says of each kind of parameter, written out by hand."""

import math
from typing import get_args

import pytest
from torch import nn

from tests.ids import readable
from tests.policy.hand import facts, site
from torch_initpolicy.errors import PolicyError, UnknownNameError
from torch_initpolicy.policy import match, presets
from torch_initpolicy.policy.presets import policy
from torch_initpolicy.policy.recipes import (
    AspectScale,
    EmbeddingScale,
    SirenScale,
    TorchDefault,
    UnitScale,
)
from torch_initpolicy.policy.rules import PRESETS, InitPolicy, Rule, preset_named
from torch_initpolicy.tensors.gains import KNOWN, Activation, Moments
from torch_initpolicy.tensors.initializers import (
    AsConstructed,
    BranchScaled,
    Constant,
    DeltaOrthogonal,
    Keep,
    Normal,
    Ones,
    Orthogonal,
    Uniform,
    VarianceScaling,
    Zeros,
)
from torch_initpolicy.tensors.layers import Role

LINEAR = site(nn.Linear(4, 8), prefix="fc")
ALL = {
    name: preset_named(name, {"value": 0.1} if name == "constant" else None)
    for name in PRESETS
    if name not in ("mup", "complete_p")
}

HE = VarianceScaling(1.0, "fan_in", gain="meets")
RELU_HE = VarianceScaling(2.0, "fan_in")
XAVIER = VarianceScaling(1.0, "fan_avg")
LECUN = VarianceScaling(1.0, "fan_in")
SINE = VarianceScaling(2.0, "fan_in", "uniform")


def chosen(preset, where=LINEAR, **changes):
    """Return what a preset has for a site of which something more is known."""
    return preset.first(where, facts(where, **changes)).initializer


def met(name):
    """Say that a site meets an activation."""
    return {"meets": None if name is None else Activation(name)}


class TestAuto:
    """The table of the README, row by row."""

    @pytest.mark.parametrize(
        "name",
        "relu leaky_relu prelu rrelu relu6 elu celu gelu gelu_tanh quick_gelu silu mish hardswish "
        "softplus relu2 swiglu geglu".split(),
    )
    def test_rectifiers(self, name):
        """He, with the gain of the activation itself."""
        assert chosen(presets.auto(), **met(name)) == HE

    @pytest.mark.parametrize(
        "name", ["tanh", "sigmoid", "softsign", "hardtanh", "hardsigmoid", "softmax"]
    )
    def test_saturating(self, name):
        """Xavier with gain 1, the softmax of attention included."""
        assert chosen(presets.auto(), **met(name)) == XAVIER

    def test_the_others(self):
        """SELU asks for LeCun, nothing for Xavier, a measured activation for He."""
        measured = Activation("product", moments=Moments(0.1, 0.4, 0.4))

        assert chosen(presets.auto(), **met("selu")) == LECUN
        assert chosen(presets.auto(), **met(None)) == XAVIER
        assert chosen(presets.auto(), meets=measured) == HE

    @pytest.mark.parametrize("name", KNOWN)
    def test_every_activation_has_a_rule(self, name):
        """Whatever is met, there is an answer that needs no further word."""
        assert chosen(presets.auto(), **met(name)) in (HE, XAVIER, LECUN, SINE)

    @pytest.mark.parametrize(
        ("role", "initializer"),
        [
            ("bias", Zeros()),
            ("norm_bias", Zeros()),
            ("norm_weight", UnitScale()),
            ("embedding", EmbeddingScale()),
            ("recurrent", Orthogonal()),
            ("gate", Keep()),
            ("scale", Keep()),
            ("position", Keep()),
            ("token", Keep()),
            ("table", Keep()),
            ("unknown", Keep()),
        ],
    )
    def test_other_roles(self, role, initializer):
        """What is no weight of a layer, whatever it meets."""
        assert chosen(presets.auto(), role=role, **met("relu")) == initializer

    @pytest.mark.parametrize("layer", [nn.LSTM(3, 4), nn.GRU(3, 4), nn.RNN(3, 4)], ids=repr)
    def test_recurrent_layers(self, layer):
        """Xavier for inputs, also where a tanh is met; orthogonal for states."""
        inputs, states = site(layer, "weight_ih_l0"), site(layer, "weight_hh_l0")

        assert chosen(presets.auto(), inputs, **met("relu")) == XAVIER
        assert chosen(presets.auto(), states) == Orthogonal()


EXPECTED = {
    "he": {"relu": HE, "gelu": HE, "tanh": RELU_HE, None: RELU_HE},
    "xavier": {"relu": XAVIER, None: XAVIER},
    "lecun": {"relu": LECUN, None: LECUN},
    "orthogonal": {"silu": Orthogonal("meets"), "tanh": Orthogonal(), None: Orthogonal()},
    "signal": {"relu": VarianceScaling(gain="signal"), None: VarianceScaling(gain="signal")},
    "zero_residual": {"relu": HE, None: XAVIER},
    "rezero": {"relu": HE, None: XAVIER},
    "t_fixup": {"softmax": XAVIER, None: XAVIER},
    "critical": {"relu": Orthogonal(), None: Orthogonal()},
    "delta_orthogonal": {"relu": DeltaOrthogonal(), None: DeltaOrthogonal()},
    "zeros": {"relu": Zeros()},
    "ones": {None: Ones()},
    "constant": {None: Constant(0.1)},
    "uniform": {None: Uniform(-0.05, 0.05)},
    "normal": {None: Normal(0.02)},
    "torch_default": {"relu": TorchDefault(), None: TorchDefault()},
    "constructor": {"relu": AsConstructed(), None: AsConstructed()},
    "gpt2": {"gelu": Normal(0.02), None: Normal(0.02)},
    "timm_vit": {"gelu": Normal(0.02), None: Normal(0.02)},
    "chrono": {"gelu": HE, None: XAVIER},
    "depth_scaled": {"gelu": HE, None: XAVIER},
    "deepnorm": {"softmax": XAVIER, None: XAVIER},
    "nanochat": {"relu": AspectScale(), None: AspectScale()},
    "ppo": {"tanh": Orthogonal(2**0.5), None: Orthogonal(2**0.5)},
    "siren": {"sin": SirenScale(30.0), None: SirenScale(30.0)},
    "spectral": {"relu": HE, None: HE},
    "fixup": {"relu": BranchScaled(HE, "fixup"), None: BranchScaled(RELU_HE, "fixup")},
}


class TestWeights:
    """What the other presets say of a layer's weight."""

    @pytest.mark.parametrize(
        ("name", "activation", "initializer"),
        [(name, *row) for name, rows in EXPECTED.items() for row in rows.items()],
    )
    def test_by_activation(self, name, activation, initializer):
        """By what the weight meets."""
        assert chosen(ALL[name], **met(activation)) == initializer

    def test_all_are_expected(self):
        """Every preset has a row in the table above."""
        assert (
            EXPECTED.keys() | {"auto"} == ALL.keys() == set(presets.__all__) - {"mup", "complete_p"}
        )

    @pytest.mark.parametrize("name", ["zeros", "ones", "constant", "uniform", "normal"])
    @pytest.mark.parametrize("role", ["embedding", "recurrent"])
    def test_everywhere(self, name, role):
        """The presets that know no layers fill every weight alike."""
        assert chosen(ALL[name], role=role) == chosen(ALL[name])

    @pytest.mark.parametrize("name", ["he", "xavier", "lecun", "depth_scaled", "fixup"])
    @pytest.mark.parametrize("role", sorted(set(get_args(Role)) - {"weight"}))
    def test_the_rest_is_autos(self, name, role):
        """The presets that know layers agree on all else."""
        assert chosen(ALL[name], role=role) == chosen(presets.auto(), role=role)

    def test_options(self):
        """The presets' arguments reach the initializers."""
        fan_out = presets.he(mode="fan_out", distribution="uniform")
        expected = VarianceScaling(1.0, "fan_out", "uniform", "meets")

        assert chosen(fan_out, **met("relu")) == expected
        assert chosen(presets.xavier(distribution="uniform")) == VarianceScaling(
            1.0, "fan_avg", "uniform"
        )
        assert chosen(presets.lecun(distribution="truncated_normal")) == VarianceScaling(
            1.0, "fan_in", "truncated_normal"
        )
        assert chosen(presets.uniform(0.0, 1.0)) == Uniform(0.0, 1.0)
        assert chosen(presets.normal(0.01)) == Normal(0.01)


class TestBranches:
    """The presets that know residual branches."""

    def test_depth_scaled(self):
        """The last weight of a branch is scaled, with or without an activation behind the sum."""
        end = {"ends_residual": True}

        assert chosen(presets.depth_scaled(), **end) == BranchScaled(XAVIER)
        assert chosen(presets.depth_scaled(), **end, **met("relu")) == BranchScaled(HE)

    def test_gpt2(self):
        """Residual ends by `1 / sqrt(N)`; positions are drawn as all else; tokens are kept."""
        gpt2 = presets.gpt2()

        assert chosen(gpt2, ends_residual=True) == BranchScaled(Normal(0.02))
        assert chosen(gpt2, role="position") == Normal(0.02)
        assert chosen(gpt2, role="embedding") == Normal(0.02)
        assert chosen(gpt2, role="token") == Keep()

    def test_gpt2_number(self):
        """With 12 blocks of two branches the numbers are those of GPT-2's code (D33)."""
        from torch_initpolicy.tensors.initializers import Context

        end = chosen(presets.gpt2(), ends_residual=True)
        resolved = end.resolve(Context(residual_branches=24))

        assert resolved.std == pytest.approx(0.02 / math.sqrt(2 * 12), rel=1e-12)

    def test_fixup(self):
        """Ends and heads are zero, whatever they meet."""
        fixup = presets.fixup()

        assert chosen(fixup, ends_residual=True, **met("relu")) == Zeros()
        assert chosen(fixup, feeds_output=True) == Zeros()
        assert chosen(fixup, role="bias", feeds_output=True) == Zeros()
        assert chosen(fixup, role="norm_weight", ends_residual=True) == UnitScale()

    def test_fixup_number(self):
        """A branch of two weights among 27: `L ^ (-1/2)`, the paper's ResNet-56."""
        from torch_initpolicy.tensors.initializers import Context

        inner = chosen(presets.fixup(), **met("relu"))
        context = Context(meets_gain=math.sqrt(2), residual_branches=27, branch_depth=2)
        resolved = inner.resolve(context)

        assert resolved.gain * math.sqrt(resolved.scale) == pytest.approx(
            math.sqrt(2) / math.sqrt(27)
        )


class TestTimmViT:
    """As timm's own function does."""

    def test_raw_parameters(self):
        """Positions and tokens are drawn; convolutions are torch's."""
        vit = presets.timm_vit()

        assert chosen(vit, role="position") == Normal(0.02)
        assert chosen(vit, role="token") == Normal(1e-6)
        conv = nn.Conv2d(3, 8, 4)
        assert chosen(vit, site(conv)) == chosen(vit, site(conv, "bias")) == TorchDefault()


class TestComplete:
    """A preset decides about everything, and need not decide about anything."""

    @pytest.mark.parametrize("role", get_args(Role))
    @pytest.mark.parametrize("preset", ALL.values(), ids=ALL)
    def test_every_role(self, preset, role):
        """Each site of any role has a rule."""
        assert chosen(preset, role=role) is not None

    @pytest.mark.parametrize("preset", ALL.values(), ids=ALL)
    def test_optional(self, preset):
        """That a model has no embedding is no mistake of the preset's user."""
        assert all(rule.optional for rule in preset)

    @pytest.mark.parametrize(("name", "preset"), ALL.items())
    def test_name(self, name, preset):
        """A preset's policy is called like the preset, and equal whenever it is made."""
        assert preset.name == name
        assert preset == preset_named(name, {"value": 0.1} if name == "constant" else None)


class TestPolicy:
    """What may stand for a policy."""

    def test_what_may(self, tmp_path):
        """A name, a policy, rules, an initializer, a function, a file."""
        rule = Rule(match.anything(), Zeros())
        path = tmp_path / "he.json"
        presets.he().save(path)

        assert policy("he") == presets.he()
        assert policy(presets.he()) == presets.he()
        assert policy(rule) == policy([rule]) == policy(iter([rule])) == InitPolicy([rule])
        assert policy(Zeros()) == InitPolicy().otherwise(Zeros())
        assert policy(nn.init.zeros_) == InitPolicy().otherwise(nn.init.zeros_)
        assert policy(path) == policy(str(path)) == presets.he()

    @pytest.mark.parametrize(
        ("given", "error", "words"),
        [
            ("kaiming", UnknownNameError, "no preset is called 'kaiming'; there are auto, chrono"),
            ("Auto", UnknownNameError, "did you mean 'auto'"),
            ("missing.toml", PolicyError, "cannot be read"),
            ("constant", PolicyError, "value"),
            (0.5, PolicyError, "Constant"),
            (None, PolicyError, "needs an initializer"),
            ([Zeros()], PolicyError, "made of rules"),
            (presets.he, PolicyError, r"call it: he\(\.\.\.\)"),
        ],
        ids=readable,
    )
    def test_what_may_not(self, given, error, words):
        """Anything else is refused, with what was probably meant."""
        with pytest.raises(error, match=words):
            policy(given)
