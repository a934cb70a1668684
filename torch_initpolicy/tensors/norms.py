"""Lengths of tensors of any dtype and of any size that their dtype can hold."""

import torch
from torch import Tensor

_WIDER = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.complex32: torch.complex64,
}
_WIDEST = {torch.float32: torch.float64, torch.complex64: torch.complex128}

LOW, HIGH = 1e-15, 1e18
"""Between these lengths no square that matters leaves the range of float32."""


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in single precision at least."""
    wider = _WIDER.get(tensor.dtype)
    return tensor if wider is None else tensor.to(wider)


def norm(tensor: Tensor) -> Tensor:
    """Return the root of the sum of the squared absolute values, in float64.

    On the CPU also where the squares themselves are too small or too large for float32. Elsewhere
    finding that out would wait for the device; beyond about `1e-19` and `1e19` the result is there
    zero and infinite.
    """
    # The norm is the one reduction that squares and adds in a single pass over the memory.
    found: Tensor = torch.linalg.vector_norm(wide(tensor))
    widest = _WIDEST.get(wide(tensor).dtype) if found.device.type == "cpu" else None
    if widest is not None and not LOW < found.item() < HIGH:
        found = torch.linalg.vector_norm(tensor.to(widest))
    return found.double()
