"""Presets: named policies, each one expression, and the one place where a name becomes a policy.

Knows rules; has never heard of a model. All but `torch_default` share what they say of everything
that is no weight of a layer:

- biases start at zero, but for the forget gates of an LSTM, which start at one in total;
- normalisations start as the identity: scale 1 in total, shift 0;
- rows of embeddings start at `N(0, 0.02)`, the padding row at zero;
- positions, tokens, tables, gates, scales and other raw parameters keep the constructor's value.
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeAlias

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.policy.match import (
    Matcher,
    anything,
    closes_residual,
    ends_residual,
    fed_by,
    feeds_output,
    in_residual,
    kind,
    meets,
    name,
    reads_input,
    role,
)
from torch_initpolicy.policy.parametrisations import complete_p, mup, spectral
from torch_initpolicy.policy.recipes import Recipe, TorchDefault, UnitScale
from torch_initpolicy.policy.rules import Filler, InitPolicy, Rule, preset, preset_named
from torch_initpolicy.tensors import meanfield
from torch_initpolicy.tensors.initializers import (
    Blocks,
    BranchScaled,
    Constant,
    DeltaOrthogonal,
    Distribution,
    Gain,
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
    "complete_p",
    "constant",
    "critical",
    "delta_orthogonal",
    "depth_scaled",
    "fixup",
    "gpt2",
    "he",
    "lecun",
    "mup",
    "normal",
    "ones",
    "orthogonal",
    "rezero",
    "signal",
    "spectral",
    "t_fixup",
    "timm_vit",
    "torch_default",
    "uniform",
    "xavier",
    "zero_residual",
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
    role("gate", "scale", "spread", "position", "token", "table", "unknown"),
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
    there is none; the halves of a gated layer that are packed into one weight each have their own.
    Recurrent layers: Xavier for inputs and orthogonal for states, gate by gate.

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
    """Give every layer the variance that makes the second moment of its output 1.

    The mean square of what each weight reads is followed through the data flow, with the exact
    integrals of activations: through sums, products, pools, normalisations, attention and zero
    padding, as in training, for standard normal inputs. Where it cannot be followed the plan says
    so, and the gain is that of the activation that feeds the layer. Embeddings start at `N(0, 1)`,
    those that are a head too at `N(0, 1 / width)`.

    Reference:
        Bingham and Miikkulainen, *AutoInit: Analytic Signal-Preserving Weight Initialization for
        Neural Networks*, 2021, arXiv:2109.08958.

    Examples:
        >>> signal().rules[-1].initializer
        VarianceScaling(scale=1.0, mode='fan_in', distribution='normal', gain='signal')
    """
    scaled = VarianceScaling(1.0, "fan_in", gain="signal")
    return InitPolicy(
        (*_REST, *_RECURRENT, _KEPT, _rule(role("embedding"), scaled), _rule(_WEIGHT, scaled))
    )


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
def zero_residual() -> InitPolicy:
    """Do as `auto`, but close every residual branch: the network starts as its skips alone.

    Zero is what scales the branch last: its scalar (SkipInit, ReZero, LayerScale), its last
    normalisation, or its last weight, whichever the model has.

    Reference:
        Goyal et al., *Accurate, Large Minibatch SGD*, 2017, arXiv:1706.02677, section 5.1; De and
        Smith, *Batch Normalization Biases Residual Blocks Towards the Identity Function*, 2020,
        arXiv:2002.10444 (SkipInit); Bachlechner et al., *ReZero is All You Need*, 2020,
        arXiv:2003.04887.

    Examples:
        >>> zero_residual().rules[0].initializer
        Zeros()
    """
    last = closes_residual() & role("weight", "norm_weight", "scale")
    return auto().override(_rule(last, Zeros(), "closes a residual branch"))


@preset
def rezero() -> InitPolicy:
    """Do as `auto`, but start the scales of residual branches at zero where the model has some.

    Reference:
        Bachlechner et al., *ReZero is All You Need: Fast Convergence at Large Depth*, 2020,
        arXiv:2003.04887, eq. 4; De and Smith, arXiv:2002.10444, section 4 (SkipInit).

    Examples:
        >>> rezero().rules[0].matcher
        role('scale') & closes_residual()
    """
    return auto().override(_rule(role("scale") & closes_residual(), Zeros(), "opens in training"))


@preset
def t_fixup() -> InitPolicy:
    """Start a transformer without normalisation or warm-up, in the style of T-Fixup.

    Xavier everywhere; inside residual branches, all but queries and keys times
    `0.67 * blocks ^ (-1 / 4)`, where a block has two branches; embeddings `N(0, 1 / width)`.
    Queries, keys and values that are packed into one projection are told apart. (The paper scales a
    decoder's three branches by `(9 * blocks) ^ (-1 / 4)`.)

    Reference:
        Huang, Perez, Ba and Volkovs, *Improving Transformer Optimization Through Better
        Initialization*, 2020, section 3.2.

    Examples:
        >>> t_fixup().rules[-2].initializer.exponent
        -0.25
    """
    scaled = BranchScaled(xavier_normal(0.67 * 2**0.25), -0.25)
    return InitPolicy(
        (
            *_REST,
            *_RECURRENT,
            _KEPT,
            _rule(role("embedding"), VarianceScaling(1.0, "fan_out")),
            _rule(_WEIGHT & meets("softmax"), xavier_normal()),
            _rule(_WEIGHT & in_residual(), scaled),
            _rule(_WEIGHT, xavier_normal()),
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
# By mean field theory
#

_CRITICAL = ("tanh", "erf", "atan", "softsign", "hardtanh", "sin")
"""Odd activations that act linearly on small signals."""

Drawn = Literal["normal", "orthogonal", "delta_orthogonal"]


def _matrix(drawn: Drawn, gain: Gain) -> Initializer:
    makers: dict[str, Callable[[Gain], Initializer]] = {
        "normal": lambda gain: VarianceScaling(1.0, "fan_in", gain=gain),
        "orthogonal": Orthogonal,
        "delta_orthogonal": DeltaOrthogonal,
    }
    if drawn not in makers:
        raise PolicyError(f"weights is one of {', '.join(map(repr, makers))}, got {drawn!r}")
    return makers[drawn](gain)


@preset
def critical(*, q: float = 1 / 64, weights: Drawn = "orthogonal") -> InitPolicy:
    """Start plain networks of any depth on the edge of chaos.

    Behind tanh and its kin, weights and biases have the variances at which the signal settles at
    the mean square `q`, and neither small differences nor gradients grow or die out; the first
    weight brings standard normal inputs there. Behind rectifiers this is He's variance. The
    smaller `q`, the deeper a network can be: about `1 / q` layers.

    Args:
        q: The mean square of what goes into the activations, positive.
        weights: What is drawn: `"orthogonal"` weights keep all directions alike, which is what
            trains at great depth; `"delta_orthogonal"` is for convolutions (odd kernels, no fewer
            outputs than inputs); `"normal"` is the theory's own case.

    Raises:
        PolicyError: `q` is not positive, or `weights` is another word.

    Reference:
        Schoenholz et al., *Deep Information Propagation*, 2016, arXiv:1611.01232; Xiao et al.,
        *Dynamical Isometry and a Mean Field Theory of CNNs*, 2018, arXiv:1806.05393.

    Examples:
        >>> rule = critical().rules[-8]
        >>> rule.matcher, round(rule.initializer.gain ** 2, 6)
        (role('weight') & fed_by('tanh'), 1.030558)
    """
    if not q > 0:
        raise PolicyError(f"q is a positive mean square, got {q}")
    points = {name: meanfield.critical(name, q) for name in _CRITICAL}
    others = [
        _rule(_WEIGHT & fed_by(name), _matrix(weights, math.sqrt(point.weight)))
        for name, point in points.items()
    ]
    biases = [
        _rule(role("bias") & meets(name, biases=True), Normal(math.sqrt(point.bias)))
        for name, point in points.items()
    ]
    first = _rule(
        _WEIGHT & reads_input() & meets(*_CRITICAL), _matrix(weights, math.sqrt(q)), "to the edge"
    )
    return InitPolicy(
        (
            *biases,
            *_REST,
            _EMBEDDINGS,
            *_RECURRENT,
            _KEPT,
            _rule(_WEIGHT & feeds_output(), xavier_normal()),
            first,
            *others,
            _rule(_WEIGHT & fed_by("rectifier"), _matrix(weights, "fed_by")),
            _rule(_WEIGHT, _matrix(weights, 1.0)),
        )
    )


@preset
def delta_orthogonal(*, q: float = 1 / 64) -> InitPolicy:
    """Start convolutional networks of any depth on the edge of chaos, with orthogonal centres.

    Linear layers get orthogonal weights.

    Args:
        q: As for `critical`.

    Reference:
        Xiao et al., *Dynamical Isometry and a Mean Field Theory of CNNs: How to Train 10,000-Layer
        Vanilla Convolutional Neural Networks*, 2018, arXiv:1806.05393, section 3.

    Examples:
        >>> delta_orthogonal().rules[-1].initializer
        DeltaOrthogonal(gain=1.0)
    """
    return critical(q=q, weights="delta_orthogonal")


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
