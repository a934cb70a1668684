"""Presets that start a model as its paper or library does."""

import math

from torch_initpolicy.policy.match import ends_residual, feeds_output, kind, name, role, shape
from torch_initpolicy.policy.presets.everywhere import normal
from torch_initpolicy.policy.presets.layers import auto
from torch_initpolicy.policy.presets.parts import (
    EMBEDDINGS,
    KEPT,
    MATRIX,
    REST,
    WEIGHT,
    layers,
    rule,
)
from torch_initpolicy.policy.recipes import AspectScale, SirenScale, TorchDefault
from torch_initpolicy.policy.rules import InitPolicy, preset
from torch_initpolicy.tensors.initializers import BranchScaled, Chrono, Normal, Orthogonal, Zeros


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
    last = rule(WEIGHT & ends_residual(), BranchScaled(Normal(0.02)))
    return normal(0.02).override(InitPolicy([last, rule(role("position"), Normal(0.02))]))


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
        Rule(role('position'), Normal(std=0.02, mean=0.0), optional=True, keeps_meant=True)
    """
    first = (
        rule(role("position"), Normal(0.02)),
        rule(role("token"), Normal(1e-6)),
        rule(kind("torch.nn.modules.conv._ConvNd"), TorchDefault()),
    )
    return normal(0.02).override(InitPolicy(first))


@preset
def siren(w0: float = 30.0) -> InitPolicy:
    """Start a sine network as SIREN: first layers within `1 / n`, others `sqrt(6 / n) / w0`.

    All draws are uniform, `n` is the fan-in; biases are torch's. The numbers are the paper's
    wherever the code multiplies by `w0`; for code that writes no such factor give `w0=1.0`.

    Args:
        w0: What the output of each layer is multiplied by before its sine, positive.

    Raises:
        PolicyError: `w0` is not positive.

    Reference:
        Sitzmann et al., *Implicit Neural Representations with Periodic Activation Functions*, 2020,
        arXiv:2006.09661, section 3.2 and appendix 1.5.

    Examples:
        >>> siren().rules[-1].initializer
        SirenScale(w0=30.0)
    """
    return layers(rule(WEIGHT, SirenScale(w0))).override(rule(role("bias"), TorchDefault()))


@preset
def chrono(t_max: float = 100.0) -> InitPolicy:
    """Do as `auto`, but let LSTMs and GRUs remember for up to `t_max` steps, each unit as long.

    Forget gates of LSTMs and update gates of GRUs get the bias `log U(1, t_max - 1)`, input gates
    of LSTMs the opposite.

    Args:
        t_max: The longest dependency that is to be learnt, in steps, at least 3.

    Raises:
        PolicyError: `t_max` is smaller.

    Reference:
        Tallec and Ollivier, *Can Recurrent Neural Networks Warp Time?*, 2018, arXiv:1804.11188,
        section 2 (eq. 16).

    Examples:
        >>> chrono(784).rules[0].initializer
        Chrono(t_max=784)
    """
    gated = kind("torch.nn.LSTM", "torch.nn.LSTMCell", "torch.nn.GRU", "torch.nn.GRUCell")
    bias = gated & name(regex=r"(.*\.)?bias_ih[^.]*")
    return auto().override(rule(bias, Chrono(t_max), "a time scale each", keeps_meant=False))


@preset
def ppo() -> InitPolicy:
    """Start actors and critics orthogonally: gain `sqrt(2)`, 0.01 for actions, 1 for values.

    A head is what the output comes from. It is a value where its name says so (`critic`, `value`,
    `vf`) or it has a single unit and its name does not speak of a policy (`actor`, `policy`, `pi`,
    `mean`, `mu`); the others choose actions. Biases are zero.

    Reference:
        Andrychowicz et al., *What Matters in On-Policy Reinforcement Learning?*, 2020,
        arXiv:2006.05990, section 3.2; Huang et al., *The 37 Implementation Details of Proximal
        Policy Optimization*, 2022, detail 2.

    Examples:
        >>> [rule.initializer.gain for rule in ppo().rules[-5:-1]]
        [1.0, 0.01, 1.0, 0.01]
    """
    head = WEIGHT & feeds_output()
    heads = (
        rule(head & name(regex=_VALUE), Orthogonal(1.0), "a value"),
        rule(head & name(regex=_ACTION), Orthogonal(0.01), "actions"),
        rule(head & shape(1, None), Orthogonal(1.0), "a value"),
        rule(head, Orthogonal(0.01), "actions"),
    )
    return InitPolicy((*REST, EMBEDDINGS, KEPT, *heads, rule(MATRIX, Orthogonal(math.sqrt(2)))))


_VALUE = r"(.*[._])?(critic|value|values|vf|v_head|value_head)([._].*)?"
_ACTION = r"(.*[._])?(actor|policy|pi|mean|mu|action|actions)([._].*)?"


@preset
def nanochat() -> InitPolicy:
    """Start a language model as nanochat: projections into the stream and the head at zero.

    Rows of embeddings are `N(0, 1)`, the other weights have the standard deviation
    `min(1, sqrt(fan_out / fan_in)) / sqrt(fan_in)`.

    Reference:
        Karpathy, *nanochat*, 2025, `GPT.init_weights`; Yang, Simon and Bernstein, *A Spectral
        Condition for Feature Learning*, 2023, arXiv:2310.17813.

    Examples:
        >>> [rule.initializer for rule in nanochat().rules[-2:]]
        [Zeros(), AspectScale()]
    """
    last = WEIGHT & (ends_residual() | feeds_output())
    return layers(
        rule(last, Zeros(), keeps_meant=False), rule(WEIGHT, AspectScale()), embeddings=Normal(1.0)
    )
