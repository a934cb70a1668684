"""A site: one parameter tensor of a model with everything its owner's type says about it.

Knows modules, names and ties; has never heard of data flow or of initializers.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.layers import Role

Storage = Literal["plain", "parametrized", "weight_norm"]
"""How a site is held: `plain`, one `nn.Parameter`; `parametrized`, behind
`torch.nn.utils.parametrize`; `weight_norm`, the `_g` and `_v` pair of the legacy hook."""


@dataclass(frozen=True, slots=True)
class Site:
    """One parameter tensor of the model, with everything known about it but the data flow.

    Attributes:
        name: Canonical name: the first in `named_parameters(remove_duplicate=False)`, wrapper
            prefixes removed and parametrisations folded.
        names: All canonical names of the tensor; the first is `name`, the others are its ties.
        owner: The module that holds it under `name`.
        attribute: Its name there (`"weight"`).
        shape: Its logical shape (for a parametrised weight that of the weight, for a sharded
            tensor the global shape).
        dtype: Its dtype.
        device: Where it lives.
        requires_grad: Whether it is trained.
        storage: How it is held.
        parameters: The `nn.Parameter` objects behind it, one but for parametrised weights.
        role: What its owner's type says it does; `"unknown"` where only the data flow can tell.
        axes: What its owner's type says its axes mean; None where it is no linear map or unknown.
        padding: Row of an embedding that must stay zero, or None.
    """

    name: str
    names: tuple[str, ...]
    owner: nn.Module = field(repr=False, compare=False)
    attribute: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    requires_grad: bool
    storage: Storage = "plain"
    parameters: tuple[nn.Parameter, ...] = field(default=(), repr=False, compare=False)
    role: Role = "unknown"
    axes: Axes | None = None
    padding: int | None = None

    @property
    def kind(self) -> str:
        """Class name of the owner: `"Conv2d"`."""
        return type(self.owner).__name__
