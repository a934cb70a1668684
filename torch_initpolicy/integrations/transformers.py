"""transformers: its `Conv1D` layout, and new heads on pretrained models."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from torch_initpolicy.api import apply_policy
from torch_initpolicy.errors import MissingExtraError
from torch_initpolicy.planning.plan import Receipt
from torch_initpolicy.policy.presets import Policyish
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.layers import axes_of

try:
    from transformers.pytorch_utils import Conv1D
except ImportError as error:
    raise MissingExtraError("torch_initpolicy.integrations.transformers", "transformers") from error

__all__ = ["initialize_missing"]


@axes_of.register(Conv1D)
def _(module: nn.Module, name: str) -> Axes | None:
    """Read a GPT-2 layer, `(in, out)`, where no trace says so."""
    return Axes(inputs=(0,), outputs=(1,)) if name == "weight" else None


def initialize_missing(
    model: nn.Module,
    loading_info: Mapping[str, Collection[str]],
    policy: Policyish = "auto",
    *,
    seed: int | None = None,
    example_inputs: Any = None,
) -> Receipt:
    """Initialise what a checkpoint did not hold, and leave what was loaded.

    Args:
        model: What `from_pretrained(..., output_loading_info=True)` returned first.
        loading_info: What it returned second.
        policy: As for `apply_policy`, like all that follow.
        seed: Seed of the random streams.
        example_inputs: What the forward pass takes.

    Returns:
        The receipt; its plan keeps everything that was loaded.

    Examples:
        >>> from transformers import BertConfig, BertForSequenceClassification
        >>> model = BertForSequenceClassification(BertConfig(hidden_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, intermediate_size=8, vocab_size=16))
        >>> info = {"missing_keys": ["classifier.weight", "classifier.bias"]}
        >>> initialize_missing(model, info, seed=0).written
        2
    """
    missing = {*loading_info.get("missing_keys", ()), *_names(loading_info.get("mismatched_keys"))}
    absent = [name for name, _ in model.named_parameters() if name in missing]
    return apply_policy(model, policy, seed=seed, example_inputs=example_inputs, only=absent)


def _names(mismatched: Collection[Any] | None) -> set[str]:
    """Collect the names of mismatched keys, which stand alone or before their two shapes."""
    return {key if isinstance(key, str) else key[0] for key in mismatched or ()}
