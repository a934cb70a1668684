"""Tensors that stand for others while `torch.vmap` or `torch.func.grad` runs a function.

A wrapper of `vmap` lacks the dimension that is mapped over; the tensor inside has it.
"""

from collections.abc import Iterator

from torch import Tensor
from torch._C import _functorch  # torch has no public view on them


def is_transforming() -> bool:
    """Tell whether such a function is running."""
    return _functorch.peek_interpreter_stack() is not None


def is_wrapped(tensor: Tensor) -> bool:
    """Tell whether a tensor stands for another."""
    return _functorch.is_functorch_wrapped_tensor(tensor)


def inside(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the tensors inside a wrapper, the outermost first.

    Examples:
        >>> import torch
        >>> x = torch.zeros(3, 2)
        >>> _ = torch.vmap(lambda row: print(*row.shape, next(inside(row)) is x) or row)(x)
        2 True
    """
    while is_wrapped(tensor):
        tensor = _functorch.get_unwrapped(tensor)
        yield tensor


def bare(tensor: Tensor) -> Tensor:
    """Return the innermost tensor, or the tensor itself where it is no wrapper."""
    while is_wrapped(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor
