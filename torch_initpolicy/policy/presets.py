"""Presets: named policies, each one expression, and the one place where a name becomes a policy.

Knows rules; has never heard of a model. All but `torch_default` share what they say of everything
that is no weight of a layer:

- biases start at zero, but for the forget gates of an LSTM, which start at one in total;
- normalisations start as the identity: scale 1 in total, shift 0;
- rows of embeddings start at `N(0, 0.02)`, the padding row at zero;
- positions, tokens, tables, gates, scales and other raw parameters keep the constructor's value.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from torch_initpolicy.policy.match import (
    Matcher,
    anything,
    ends_residual,
    feeds_output,
    kind,
    meets,
    name,
    role,
)
from torch_initpolicy.policy.recipes import Recipe, TorchDefault, UnitScale
from torch_initpolicy.policy.rules import Filler, InitPolicy, Rule, preset, preset_named
from torch_initpolicy.tensors.initializers import (
    Blocks,
    BranchScaled,
    Constant,
    Distribution,
    Initializer,
    Keep,
    Mode,
    Normal,
    Ones,
    Orthogonal,
    Uniform,
    VarianceScaling,
    Zeros,
    he_normal,
    lecun_normal,
    xavier_normal,
)

__all__ = [
    "auto",
    "constant",
    "depth_scaled",
    "fixup",
    "gpt2",
    "he",
    "lecun",
    "normal",
    "ones",
    "orthogonal",
    "signal",
    "timm_vit",
    "torch_default",
    "uniform",
    "xavier",
    "zeros",
]


Policyish: TypeAlias = InitPolicy | Rule | Iterable[Rule] | Filler | str | Path
"""What may stand for a policy: one, rules, an initializer, a preset's name, or a file's path."""


def policy(given: Policyish) -> InitPolicy:
    """Return the policy that somebody means.

    Args:
        given: A policy, rules, one initializer for everything, the name of a preset, or the path
            of a `.json` or `.toml` file.

    Raises:
        UnknownNameError: There is no preset of that name.
        PolicyError: This is no policy.

    Examples:
        >>> policy("he") == he()
        True
    """
    if isinstance(given, InitPolicy):
        return given
    if isinstance(given, Rule):
        return InitPolicy([given])
    if isinstance(given, (str, Path)):
        is_file = Path(given).suffix in (".json", ".toml")
        return InitPolicy.load(given) if is_file else preset_named(str(given))
    if isinstance(given, Iterable):
        return InitPolicy(given)
    return InitPolicy().otherwise(given)


#
# What the presets share
#


def _rule(matcher: Matcher, initializer: Initializer | Recipe, note: str = "") -> Rule:
    """Make a rule of a preset, which need not match anything in every model."""
    return Rule(matcher, initializer, note, optional=True)


_LSTM = kind("torch.nn.LSTM", "torch.nn.LSTMCell")
_OPEN = Blocks((Zeros(), Ones(), Zeros(), Zeros()))

_REST = (
    # Gers, Schmidhuber and Cummins 2000; Jozefowicz, Zaremba and Sutskever 2015, section 3.1. Torch
    # adds two biases: one of them opens the gate.
    _rule(_LSTM & name(regex=r"(.*\.)?bias_ih[^.]*"), _OPEN, "forget gate open"),
    _rule(role("bias", "norm_bias"), Zeros()),
    _rule(role("norm_weight"), UnitScale()),
)
"""Biases and normalisations."""

_EMBEDDINGS = _rule(role("embedding"), Normal(0.02))

_RECURRENT = (
    _rule(kind("torch.nn.RNNBase", "torch.nn.RNNCellBase") & role("weight"), xavier_normal()),
    _rule(role("recurrent"), Orthogonal()),
)

_KEPT = _rule(
    role("gate", "scale", "position", "token", "table", "unknown"),
    Keep(),
    "the constructor's value stays",
)

_WEIGHT = role("weight")
_MATRIX = role("weight", "recurrent")
_ANY_WEIGHT = role("weight", "recurrent", "embedding")
_RECTIFIED = _WEIGHT & meets("rectifier")


def _layers(*rules: Rule) -> InitPolicy:
    """Make a preset that says something of the layers' weights alone."""
    return InitPolicy((*_REST, _EMBEDDINGS, *_RECURRENT, _KEPT, *rules))


def _everywhere(initializer: Initializer) -> InitPolicy:
    """Make a preset that fills every weight alike, embeddings and recurrent ones too."""
    return InitPolicy((*_REST, _KEPT, _rule(_ANY_WEIGHT, initializer)))


#
# By what the layer meets
#


@preset
def auto() -> InitPolicy:
    """Give each layer the textbook's rule for the activation that its output meets.

    He where that is a rectifier (with the gain of this very one: ReLU, GELU, SiLU, ...), LeCun
    where it is SELU, Xavier where it saturates (tanh, sigmoid, the softmax of attention) or where
    there is none. Recurrent layers: Xavier for inputs and orthogonal for states, gate by gate.

    Reference:
        He et al., *Delving Deep into Rectifiers*, 2015, arXiv:1502.01852, eq. 10; Glorot and
        Bengio, *Understanding the difficulty of training deep feedforward neural networks*, 2010,
        eq. 12; Klambauer et al., *Self-Normalizing Neural Networks*, 2017, arXiv:1706.02515.

    Examples:
        >>> [rule.matcher for rule in auto().rules[-3:]]
        [role('weight') & meets('rectifier'), role('weight') & meets('selu'), role('weight')]
    """
    return _layers(
        _rule(_RECTIFIED, he_normal("meets")),
        _rule(_WEIGHT & meets("selu"), lecun_normal()),
        _rule(_WEIGHT, xavier_normal()),
    )


@preset
def he(*, mode: Mode = "fan_in", distribution: Distribution = "normal") -> InitPolicy:
    """Give every layer He's variance: the gain of the rectifier it meets, ReLU's elsewhere.

    Args:
        mode: `"fan_out"` keeps the gradients' variance in place of the signal's.
        distribution: What is drawn.

    Reference:
        He et al., *Delving Deep into Rectifiers*, 2015, arXiv:1502.01852, eq. 10 and 14.

    Examples:
        >>> [rule.initializer.gain for rule in he().rules[-2:]]
        ['meets', 1.0]
    """
    return _layers(
        _rule(_RECTIFIED, VarianceScaling(1.0, mode, distribution, "meets")),
        _rule(_WEIGHT, VarianceScaling(2.0, mode, distribution)),
    )


@preset
def orthogonal() -> InitPolicy:
    """Give every layer an orthogonal matrix, times the gain of the rectifier it meets if any.

    Reference:
        Saxe, McClelland and Ganguli, *Exact solutions to the nonlinear dynamics of learning in
        deep linear neural networks*, 2013, arXiv:1312.6120.

    Examples:
        >>> [rule.initializer for rule in orthogonal().rules[-2:]]
        [Orthogonal(gain='meets'), Orthogonal(gain=1.0)]
    """
    return InitPolicy(
        (
            *_REST,
            _EMBEDDINGS,
            _KEPT,
            _rule(_RECTIFIED, Orthogonal("meets")),
            _rule(_MATRIX, Orthogonal()),
        )
    )


#
# The same for every layer
#


@preset
def xavier(*, distribution: Distribution = "normal") -> InitPolicy:
    """Give every layer the variance `2 / (fan_in + fan_out)`.

    Args:
        distribution: What is drawn; the paper draws uniformly.

    Reference:
        Glorot and Bengio, *Understanding the difficulty of training deep feedforward neural
        networks*, 2010, eq. 12 and 16.

    Examples:
        >>> xavier().rules[-1].initializer.spread((30, 20), None).std
        0.2
    """
    return _layers(_rule(_WEIGHT, VarianceScaling(1.0, "fan_avg", distribution)))


@preset
def lecun(*, distribution: Distribution = "normal") -> InitPolicy:
    """Give every layer the variance `1 / fan_in`.

    Args:
        distribution: What is drawn.

    Reference:
        LeCun et al., *Efficient BackProp*, 1998, eq. 16.

    Examples:
        >>> lecun().rules[-1].initializer.spread((8, 25), None).std
        0.2
    """
    return _layers(_rule(_WEIGHT, VarianceScaling(1.0, "fan_in", distribution)))


@preset
def signal() -> InitPolicy:
    """Give every layer the gain of the activation that *feeds* it: second moments stay 1.

    Examples:
        >>> signal().rules[-1].initializer
        VarianceScaling(scale=1.0, mode='fan_in', distribution='normal', gain='fed_by')
    """
    return _layers(_rule(_WEIGHT, VarianceScaling(1.0, "fan_in", gain="fed_by")))


@preset
def zeros() -> InitPolicy:
    """Fill every weight with zeros: hidden units are then alike, and stay so.

    Examples:
        >>> zeros().rules[-1].initializer
        Zeros()
    """
    return _everywhere(Zeros())


@preset
def ones() -> InitPolicy:
    """Fill every weight with ones: hidden units are then alike, and stay so.

    Examples:
        >>> ones().rules[-1].initializer
        Ones()
    """
    return _everywhere(Ones())


@preset
def constant(value: float) -> InitPolicy:
    """Fill every weight with one number: hidden units are then alike, and stay so.

    Args:
        value: The number.

    Examples:
        >>> constant(0.1).rules[-1].initializer
        Constant(value=0.1)
    """
    return _everywhere(Constant(value))


@preset
def uniform(low: float = -0.05, high: float = 0.05) -> InitPolicy:
    """Draw every weight uniformly, whatever its fans.

    Args:
        low: The least value.
        high: The greatest value.

    Examples:
        >>> uniform(-0.1, 0.1).rules[-1].initializer
        Uniform(low=-0.1, high=0.1)
    """
    return _everywhere(Uniform(low, high))


@preset
def normal(std: float = 0.02) -> InitPolicy:
    """Draw every weight from one normal distribution, whatever its fans.

    Args:
        std: Its standard deviation.

    Reference:
        Krizhevsky, Sutskever and Hinton, *ImageNet Classification with Deep Convolutional Neural
        Networks*, 2012, section 5 (0.01); Devlin et al., *BERT*, 2018, arXiv:1810.04805 (0.02).

    Examples:
        >>> normal(0.01).rules[-1].initializer
        Normal(std=0.01, mean=0.0)
    """
    return _everywhere(Normal(std))


@preset
def torch_default() -> InitPolicy:
    """Draw what the constructors of torch's own layers draw; keep what none of them holds.

    Examples:
        >>> torch_default().rules
        (Rule(anything(), TorchDefault(), optional=True),)
    """
    return InitPolicy([_rule(anything(), TorchDefault())])


#
# By residual branches
#


@preset
def depth_scaled() -> InitPolicy:
    """Do as `auto`, but start the last weight of each residual branch smaller: `1 / sqrt(N)`.

    `N` is the number of residual branches, twice the number of blocks of a transformer, so that
    their sum keeps the variance of one.

    Reference:
        Radford et al., *Language Models are Unsupervised Multitask Learners* (GPT-2), 2019,
        section 2.3.

    Examples:
        >>> depth_scaled().rules[0].initializer.exponent
        -0.5
    """
    return auto().override(
        InitPolicy(
            [
                _rule(_RECTIFIED & ends_residual(), BranchScaled(he_normal("meets"))),
                _rule(_WEIGHT & ends_residual(), BranchScaled(xavier_normal())),
            ]
        )
    )


@preset
def gpt2() -> InitPolicy:
    """Start as GPT-2: `N(0, 0.02)`, the last weight of each residual branch divided by `sqrt(N)`.

    `N` is the number of residual branches, two per block. Position embeddings are drawn likewise.

    Reference:
        Radford et al., *Language Models are Unsupervised Multitask Learners* (GPT-2), 2019,
        section 2.3.

    Examples:
        >>> gpt2().rules[0].initializer
        BranchScaled(inner=Normal(std=0.02, mean=0.0), exponent=-0.5)
    """
    return normal(0.02).override(
        InitPolicy(
            [
                _rule(_WEIGHT & ends_residual(), BranchScaled(Normal(0.02))),
                _rule(role("position"), Normal(0.02)),
            ]
        )
    )


@preset
def fixup() -> InitPolicy:
    """Start residual networks without normalisation so that their depth does not matter.

    The head and the last weight of each branch are zero; the others are He's, inside a branch of
    `m` weights times `L ^ (-1 / (2m - 2))` for `L` branches. The paper's third rule, scalar biases
    and multipliers, is up to the architecture.

    Reference:
        Zhang, Dauphin and Ma, *Fixup Initialization*, 2019, arXiv:1901.09321, section 3.

    Examples:
        >>> fixup().rules[-3]
        Rule(role('weight') & (ends_residual() | feeds_output()), Zeros(), optional=True)
    """
    return _layers(
        _rule(_WEIGHT & (ends_residual() | feeds_output()), Zeros()),
        _rule(_RECTIFIED, BranchScaled(he_normal("meets"), "fixup")),
        _rule(_WEIGHT, BranchScaled(he_normal(), "fixup")),
    )


#
# As a library does it
#


@preset
def timm_vit() -> InitPolicy:
    """Start a vision transformer as timm does.

    Linear layers and position embeddings `N(0, 0.02)`, class and register tokens `N(0, 1e-6)`,
    convolutions as torch. timm draws truncated normals, but its bounds of 2 lie a hundred standard
    deviations out and cut nothing.

    Reference:
        Dosovitskiy et al., *An Image is Worth 16x16 Words*, 2020, arXiv:2010.11929;
        `init_weights_vit_timm` in `timm.models.vision_transformer`.

    Examples:
        >>> timm_vit().rules[0]
        Rule(role('position'), Normal(std=0.02, mean=0.0), optional=True)
    """
    return normal(0.02).override(
        InitPolicy(
            [
                _rule(role("position"), Normal(0.02)),
                _rule(role("token"), Normal(1e-6)),
                _rule(kind("torch.nn.modules.conv._ConvNd"), TorchDefault()),
            ]
        )
    )
