"""timm: what its models declare that they take."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_initpolicy.trace.documented import BATCH
from torch_initpolicy.trace.trees import Call

__all__ = ["declared_inputs", "known_arguments"]


def declared_inputs(model: nn.Module) -> Iterator[Call]:
    """Yield images of the size that a configuration names."""
    for attribute in ("pretrained_cfg", "default_cfg"):
        size = _item(getattr(model, attribute, None), "input_size")
        if size is not None:
            yield Call((torch.empty(BATCH, *size, device="meta"),))


def _item(mapping: Any, key: str) -> Any:
    return mapping.get(key) if isinstance(mapping, Mapping) else getattr(mapping, key, None)


def known_arguments(model: nn.Module, call: Call, said: str = "") -> Mapping[str, Sequence[Tensor]]:
    """Return nothing: these models take images alone."""
    del model, call, said
    return {}
