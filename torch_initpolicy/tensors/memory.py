"""Copies that take memory once one of the two is written to, and tensors that own theirs again."""

import torch
from torch import Tensor


def lazy_copy(tensor: Tensor) -> Tensor:
    """Return a copy that takes memory once it or the original is written to, where torch can.

    From then on the original shares its memory, which two threads must not write to at once: torch
    does not lock what ends the sharing. `own_memory` ends it.
    """
    # `_lazy_clone` has no public name. It refuses memory that is not torch's own, and kinds of
    # tensors that have no plain storage.
    try:
        lazy: Tensor = torch._lazy_clone(tensor)  # noqa: SLF001
    except (AttributeError, RuntimeError, TypeError):
        return tensor.clone()
    return lazy


def own_memory(tensor: Tensor) -> None:
    """End what `lazy_copy` began: several threads may write to the tensor afterwards.

    Memory is taken only where a copy still lives.
    """
    if _is_shared(tensor):
        tensor.data_ptr()


def _is_shared(tensor: Tensor) -> bool:
    try:
        shared: bool = torch._C._is_cow_tensor(tensor)  # type: ignore[attr-defined]  # noqa: SLF001
    except (AttributeError, RuntimeError):  # of kinds that are never shared
        return False
    return shared
