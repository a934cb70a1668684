"""What is decayed, by the source of a model: the classes of its layers, and what these call it.

The labels that people would give who read the code, beside the two tests they use in its place.
"""

import re
from collections.abc import Collection

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from torch_initpolicy import Plan

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
NORM_BY_CLASS = re.compile(r"(Layer|RMS|RMSNorm|Batch|Group)Norm(2d|3d|Act)?")
MATRICES = ("Conv1D",)  # transformers' own


def label(owner: nn.Module, attribute: str) -> bool | None:
    """Say whether a parameter is decayed; None where the class of its owner does not tell."""
    named_norm = NORM_BY_CLASS.search(type(owner).__name__)
    if isinstance(owner, NORMS) or (named_norm and attribute in ("weight", "bias")):
        return False
    if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
        return False
    if isinstance(owner, (nn.Linear, _ConvNd)) or type(owner).__name__ in MATRICES:
        return {"weight": True, "bias": False}.get(attribute)
    return None


def by_name(name: str) -> bool:
    """Tell by the words in a name, as many training scripts do."""
    return not any(word in name for word in ("bias", "norm", "LayerNorm", "embed"))


def by_axes(shape: tuple[int, ...]) -> bool:
    """Tell by the number of axes, as others do."""
    return len(shape) >= 2


def labelled(plan: Plan) -> dict[str, bool]:
    """Return what the source says of a model's trained parameters, where it tells.

    Of tokens, positions and tables, which no layer holds, timm's models say themselves.
    """
    exempt = frozenset(getattr(plan.model, "no_weight_decay", tuple)())
    found = {
        site.name: False if told is None and exempt & {site.name, site.attribute} else told
        for site, _ in plan.pairs()
        if site.requires_grad
        for told in (label(site.owner, site.attribute),)
    }
    return {name: told for name, told in found.items() if told is not None}


def decayed(plan: Plan, among: Collection[str]) -> dict[str, bool]:
    """Return which of some parameters the groups of a plan decay."""
    groups = plan.param_groups(lr=1.0, weight_decay=0.1)
    found = {name: group["weight_decay"] > 0 for group in groups for name in group["names"]}
    return {name: found[name] for name in among}
