"""Copies that take memory once one of the two is written to, and tensors that own theirs again."""

import torch
from torch import Tensor


def lazy_copy(tensor: Tensor) -> Tensor:
    """Return a copy that takes memory once it or the original is written to, where torch can.

    Two threads must not write at once to what is shared: torch does not lock what ends the sharing.
    And whichever is written to moves to other memory, while numpy may look at where it was. So
    call `own_memory` for the copy, and then for the original, which stays where it is.
    """
    # `_lazy_clone` has no public name. It refuses memory that is not torch's own, and kinds of
    # tensors that have no plain storage.
    try:
        lazy: Tensor = torch._lazy_clone(tensor)  # noqa: SLF001
    except (AttributeError, RuntimeError, TypeError):
        return tensor.clone()
    return lazy


def own_memory(tensor: Tensor) -> None:
    """End what `lazy_copy` began: the last of those that share keeps the memory."""
    if _is_shared(tensor):
        tensor.data_ptr()


def _is_shared(tensor: Tensor) -> bool:
    try:
        shared: bool = torch._C._is_cow_tensor(tensor)  # type: ignore[attr-defined]  # noqa: SLF001
    except (AttributeError, RuntimeError):  # of kinds that are never shared
        return False
    return shared
