"""Presets that fill every weight alike, embeddings and recurrent ones too."""

from torch_initpolicy.policy.match import anything
from torch_initpolicy.policy.presets.parts import everywhere, rule
from torch_initpolicy.policy.recipes import TorchDefault
from torch_initpolicy.policy.rules import InitPolicy, preset
from torch_initpolicy.tensors import initializers as init


@preset
def constructor() -> InitPolicy:
    """Draw what the model's own constructor draws, from the streams of this package.

    The distributions stay the author's; the values depend on the seed and the name alone, are the
    same in every sharding, and on meta nothing is drawn twice. A model that was not built under
    `skip_init` is built once more, without drawing, to learn what its constructor does: by its
    class where it keeps its arguments, from its config in transformers, by its name in timm.

    Examples:
        >>> constructor().rules[0].initializer
        AsConstructed()
    """
    return InitPolicy([rule(anything(), init.AsConstructed(), keeps_meant=False)])


@preset
def zeros() -> InitPolicy:
    """Fill every weight with zeros: hidden units are then alike, and stay so.

    Examples:
        >>> zeros().rules[-1].initializer
        Zeros()
    """
    return everywhere(init.Zeros(), keeps_meant=False)


@preset
def ones() -> InitPolicy:
    """Fill every weight with ones: hidden units are then alike, and stay so.

    Examples:
        >>> ones().rules[-1].initializer
        Ones()
    """
    return everywhere(init.Ones(), keeps_meant=False)


@preset
def constant(value: float) -> InitPolicy:
    """Fill every weight with one number: hidden units are then alike, and stay so.

    Args:
        value: The number.

    Examples:
        >>> constant(0.1).rules[-1].initializer
        Constant(value=0.1)
    """
    return everywhere(init.Constant(value), keeps_meant=False)


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
    return everywhere(init.Uniform(low, high))


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
    return everywhere(init.Normal(std))


@preset
def torch_default() -> InitPolicy:
    """Draw what the constructors of torch's own layers draw; keep what none of them holds.

    Examples:
        >>> torch_default().rules
        (Rule(anything(), TorchDefault(), optional=True),)
    """
    return InitPolicy([rule(anything(), TorchDefault(), keeps_meant=False)])
