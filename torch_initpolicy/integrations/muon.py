"""Muon for packed projections: each of q, k and v is orthogonalised by itself.

Torch-private: `torch.optim.Muon._init_group` lists the tensors of a step. Were it renamed, whole
tensors would be orthogonalised again, as torch's own optimizer does; a test would notice.
"""

from collections.abc import Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Muon as WholeMuon  # since torch 2.9

__all__ = ["Muon"]


class Muon(WholeMuon):
    """`torch.optim.Muon` that splits tensors where their group says how they are `"packed"`.

    Examples:
        >>> from torch import nn
        >>> from torch_initpolicy import plan_policy
        >>> layer = nn.TransformerEncoderLayer(16, 2, batch_first=True)
        >>> model = nn.Sequential(nn.Linear(8, 16), layer, nn.Linear(16, 4))
        >>> groups = plan_policy(model).param_groups("muon", lr=0.02)
        >>> optimizer = Muon([group for group in groups if group["algorithm"] == "muon"])
        >>> [group["packed"] for group in optimizer.param_groups if "packed" in group]
        [(0, (16, 16, 16))]
    """

    def _init_group(
        self,
        group: MutableMapping[str, Any],
        params_with_grad: list[Tensor],
        grads: list[Tensor],
        muon_momentum_bufs: list[Tensor],
    ) -> bool:
        """List views of the matrices; what is written to them is written to their tensors."""
        whole: tuple[list[Tensor], ...] = ([], [], [])
        has_complex = super()._init_group(group, *whole)
        for tensors, matrices in zip(
            whole, (params_with_grad, grads, muon_momentum_bufs), strict=True
        ):
            matrices.extend(_split(tensors, group.get("packed")))
        return has_complex


def _split(tensors: list[Tensor], packed: tuple[int, tuple[int, ...]] | None) -> Iterator[Tensor]:
    for tensor in tensors:
        yield from (tensor,) if packed is None else torch.split(tensor, [*packed[1]], dim=packed[0])
