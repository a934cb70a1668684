"""Undoing what was changed for a while, also where Ctrl-C interrupts the undoing."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import torch

Undo = Callable[[], object]
"""Puts something back as it was; does nothing where it has not changed."""


@contextmanager
def undoing(steps: Iterable[Undo]) -> Iterator[None]:
    """Call functions when the block ends, the last one first, whatever is raised meanwhile.

    An interrupt may come between any two lines. The call after takes over where one comes, from the
    function that it came in.
    """
    left = list(steps)
    try:
        yield
    finally:
        try:
            _undo(left)
        finally:
            try:
                _undo(left)
            finally:
                _undo(left)


def _undo(left: list[Undo]) -> None:
    while left:
        left[-1]()
        left.pop()


def modes_kept() -> AbstractContextManager[None]:
    """Leave torch's modes as they were: what puts them on and off can be interrupted itself."""
    depth = torch._C._len_torch_function_stack()  # noqa: SLF001 - modes have no public list
    gradients = partial(torch.set_grad_enabled, torch.is_grad_enabled())
    return undoing([gradients, partial(_leave_modes, depth)])


def _leave_modes(depth: int) -> None:
    while torch._C._len_torch_function_stack() > depth:  # noqa: SLF001
        torch._C._pop_torch_function_stack()  # noqa: SLF001
