"""Counts connections by autograd: which weights reach an output, which outputs an input reaches."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def make_positive(module: nn.Module) -> None:
    """Fill all parameters with positive numbers, so that no two contributions cancel.

    They are small, so that no gate saturates.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.uniform_(0.01, 0.1)


def incoming(function: Callable[[], Tensor], weight: Tensor, units: Tensor) -> float:
    """Count the weights that reach an output unit, on average over the `units` (flat indices)."""
    output = function().flatten()
    counts = [
        torch.autograd.grad(output[unit], weight, retain_graph=True)[0].count_nonzero().item()
        for unit in units
    ]
    return sum(counts) / len(counts)


def outgoing(function: Callable[[Tensor], Tensor], values: Tensor, unit: int) -> int:
    """Count the output units that depend on input unit `unit` (flat index)."""
    direction = torch.zeros_like(values)
    direction.view(-1)[unit] = 1
    _, change = torch.autograd.functional.jvp(function, values, direction)
    return int(torch.as_tensor(change).count_nonzero())


def centre(shape: torch.Size, side: int = 1) -> Tensor:
    """Return flat indices of the middle positions of the first channel, `side` per dimension.

    `shape` is `(1, channels, *positions)`.
    """
    spans = [slice(n // 2 - side // 2, n // 2 - side // 2 + side) for n in shape[2:]]
    return torch.arange(shape.numel()).view(shape)[(0, 0, *spans)].flatten()
