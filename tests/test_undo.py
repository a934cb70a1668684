"""Undoing: to its end, the last step first, whatever interrupts it."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from torch_initpolicy.undo import modes_kept, undoing


@pytest.mark.parametrize("interrupts", [0, 1, 2])
def test_to_the_end(interrupts):
    """Steps run in reverse; one that is interrupted runs again, and the interrupt is raised."""
    left, done = [KeyboardInterrupt] * interrupts, []

    def interrupted():
        if left:
            raise left.pop()
        done.append("second")

    def fails():
        with undoing([lambda: done.append("first"), interrupted]):
            raise ValueError

    with pytest.raises(KeyboardInterrupt if interrupts else ValueError):
        fails()

    assert done == ["second", "first"]


def test_modes():
    """Modes that the block has put on and not off are off, and gradients as before."""
    depth = torch._C._len_torch_function_stack()
    with modes_kept():
        torch.set_grad_enabled(False)
        TorchFunctionMode().__enter__()

    assert torch.is_grad_enabled()
    assert torch._C._len_torch_function_stack() == depth
