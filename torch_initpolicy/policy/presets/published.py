"""Presets that start a model as its paper or library does."""

from torch_initpolicy.policy.match import ends_residual, kind, role
from torch_initpolicy.policy.presets.everywhere import normal
from torch_initpolicy.policy.presets.parts import WEIGHT, rule
from torch_initpolicy.policy.recipes import TorchDefault
from torch_initpolicy.policy.rules import InitPolicy, preset
from torch_initpolicy.tensors.initializers import BranchScaled, Normal


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
                rule(WEIGHT & ends_residual(), BranchScaled(Normal(0.02))),
                rule(role("position"), Normal(0.02)),
            ]
        )
    )


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
    return normal(0.02).override(
        InitPolicy(
            [
                rule(role("position"), Normal(0.02)),
                rule(role("token"), Normal(1e-6)),
                rule(kind("torch.nn.modules.conv._ConvNd"), TorchDefault()),
            ]
        )
    )
