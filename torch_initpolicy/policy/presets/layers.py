"""Presets by the layer: by what it meets, or the same for all of them."""

from torch_initpolicy.policy import match
from torch_initpolicy.policy.presets.parts import (
    EMBEDDINGS,
    KEPT,
    MATRIX,
    RECTIFIED,
    REST,
    WEIGHT,
    layers,
    rule,
)
from torch_initpolicy.policy.recipes import Frequencies, Phases
from torch_initpolicy.policy.rules import InitPolicy, preset
from torch_initpolicy.tensors import initializers as init


@preset
def auto() -> InitPolicy:
    """Give each layer the textbook's rule for the activation that its output meets.

    He where that is a rectifier (with the gain of this very one: ReLU, GELU, SiLU, ...), LeCun
    where it is SELU, Xavier where it saturates (tanh, sigmoid, the softmax of attention) or where
    there is none; the halves of a gated layer that are packed into one weight each have their own.
    What reads a residual stream is drawn by Xavier before rectifiers, too, but in batch-normalised
    nets: He's gain makes up for the rectifier before a weight, and there is none before this one.
    Recurrent layers: Xavier for inputs and orthogonal for states, gate by gate. Sines: uniform of
    variance 2 / fan_in, and where coordinates are multiplied by a frequency, SIREN's first layer;
    their biases spread the phases over one period.

    Rows of embeddings are as large as what reads them asks for: `N(0, 1 / width)` where the table
    is the head, too, `N(0, 1)` before a recurrent layer or on a residual stream that normalisations
    read, else `N(0, 0.02)`. Residual branches of batch-normalised nets start closed, by the norm at
    their end or, where there is none, their last weight. Where a residual stream ends without a
    norm, the last weight of each of its `N` branches is divided by `sqrt(N)`.

    Reference:
        He et al., *Delving Deep into Rectifiers*, 2015, arXiv:1502.01852, eq. 10; Glorot and
        Bengio, *Understanding the difficulty of training deep feedforward neural networks*, 2010,
        eq. 12; Klambauer et al., *Self-Normalizing Neural Networks*, 2017, arXiv:1706.02515; Goyal
        et al., *Accurate, Large Minibatch SGD*, 2017, arXiv:1706.02677, section 5.1 (closed
        branches); Radford et al., *Language Models are Unsupervised Multitask Learners*, 2019,
        section 2.3 (division by the root of the depth); Dosovitskiy et al., *An Image is Worth
        16x16 Words*, 2020, arXiv:2010.11929 (Xavier before GELU, in its code); Hanin and Rolnick,
        *How to Start Training*, 2018, arXiv:1803.01719, section 3 (small branches); Sitzmann et
        al., *Implicit Neural Representations with Periodic Activation Functions*, 2020,
        arXiv:2006.09661, section 3.2.

    Examples:
        >>> [rule.matcher for rule in auto().rules[-3:-1]]
        [role('weight') & meets('rectifier'), role('weight') & meets('selu')]
    """
    closing, note = match.closes_residual() & match.in_batch_norm(), "closes a branch"
    bare = match.closes_residual() & ~match.ends_in_norm()
    reads_stream = (
        match.in_residual()
        & match.fed_by("nothing", "input")
        & ~match.closes_residual()
        & ~match.in_batch_norm()
    )
    first = (
        rule(match.role("norm_weight") & match.op("batch_norm") & closing, init.Zeros(), note),
        rule(WEIGHT & closing & match.is_summand(), init.Zeros(), note),
        rule(match.role("bias") & match.meets("sin", biases=True), Phases()),
    )
    return layers(
        rule(WEIGHT & match.meets("sin") & match.reads_input(), Frequencies()),
        rule(WEIGHT & match.meets("sin"), init.VarianceScaling(2.0, "fan_in", "uniform")),
        rule(RECTIFIED & bare, init.BranchScaled(init.he_normal("meets"))),
        rule(WEIGHT & bare, init.BranchScaled(init.xavier_normal())),
        rule(RECTIFIED & reads_stream, init.xavier_normal(), "fed by no activation"),
        rule(RECTIFIED, init.he_normal("meets")),
        rule(WEIGHT & match.meets("selu"), init.lecun_normal()),
        rule(WEIGHT, init.xavier_normal()),
    ).override(InitPolicy(first))


@preset
def he(*, mode: init.Mode = "fan_in", distribution: init.Distribution = "normal") -> InitPolicy:
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
    return layers(
        rule(RECTIFIED, init.VarianceScaling(1.0, mode, distribution, "meets")),
        rule(WEIGHT, init.VarianceScaling(2.0, mode, distribution)),
    )


@preset
def xavier(*, distribution: init.Distribution = "normal") -> InitPolicy:
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
    return layers(rule(WEIGHT, init.VarianceScaling(1.0, "fan_avg", distribution)))


@preset
def lecun(*, distribution: init.Distribution = "normal") -> InitPolicy:
    """Give every layer the variance `1 / fan_in`.

    Args:
        distribution: What is drawn.

    Reference:
        LeCun et al., *Efficient BackProp*, 1998, eq. 16.

    Examples:
        >>> lecun().rules[-1].initializer.spread((8, 25), None).std
        0.2
    """
    return layers(rule(WEIGHT, init.VarianceScaling(1.0, "fan_in", distribution)))


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
    matrices = (rule(RECTIFIED, init.Orthogonal("meets")), rule(MATRIX, init.Orthogonal()))
    return InitPolicy((*REST, EMBEDDINGS, KEPT, *matrices))


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
    scaled = init.VarianceScaling(1.0, "fan_in", gain="signal")
    return layers(rule(WEIGHT, scaled), embeddings=scaled)
