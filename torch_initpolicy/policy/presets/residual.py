"""Presets by residual branches: how deep networks start without exploding."""

from torch_initpolicy.policy import match
from torch_initpolicy.policy.presets.layers import auto
from torch_initpolicy.policy.presets.parts import RECTIFIED, WEIGHT, layers, rule
from torch_initpolicy.policy.rules import InitPolicy, preset
from torch_initpolicy.tensors import initializers as init


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
    last = (
        rule(RECTIFIED & match.ends_residual(), init.BranchScaled(init.he_normal("meets"))),
        rule(WEIGHT & match.ends_residual(), init.BranchScaled(init.xavier_normal())),
    )
    return auto().override(InitPolicy(last))


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
    last = match.closes_residual() & match.role("weight", "norm_weight", "scale")
    return auto().override(rule(last, init.Zeros(), "closes a residual branch", keeps_meant=False))


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
    scale = match.role("scale") & match.closes_residual()
    return auto().override(rule(scale, init.Zeros(), "opens in training", keeps_meant=False))


@preset
def deepnorm() -> InitPolicy:
    """Start a post-norm transformer whose skips are multiplied by DeepNorm's `alpha`.

    Xavier everywhere; values, output projections and feed-forward layers times
    `(8 * N) ^ (-1 / 4)` for `N` layers of two branches. The skips' factor `(2 * N) ^ (1 / 4)` is up
    to the architecture. (An encoder and a decoder together have other exponents in the paper.)

    Reference:
        Wang et al., *DeepNet: Scaling Transformers to 1,000 Layers*, 2022, arXiv:2203.00555,
        figure 2.

    Examples:
        >>> deepnorm().rules[-2].initializer.exponent
        -0.25
    """
    scaled = init.BranchScaled(init.xavier_normal(4**-0.25), -0.25)
    return layers(
        rule(WEIGHT & match.meets("softmax") & match.in_residual(), init.xavier_normal()),
        rule(WEIGHT & match.in_residual(), scaled),
        rule(WEIGHT, init.xavier_normal()),
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
    return layers(
        rule(
            WEIGHT & (match.ends_residual() | match.feeds_output()), init.Zeros(), keeps_meant=False
        ),
        rule(RECTIFIED, init.BranchScaled(init.he_normal("meets"), "fixup")),
        rule(WEIGHT, init.BranchScaled(init.he_normal(), "fixup")),
    )


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
    scaled = init.BranchScaled(init.xavier_normal(0.67 * 2**0.25), -0.25)
    return layers(
        rule(WEIGHT & match.meets("softmax"), init.xavier_normal()),
        rule(WEIGHT & match.in_residual(), scaled),
        rule(WEIGHT, init.xavier_normal()),
        embeddings=init.VarianceScaling(1.0, "fan_out"),
    )
