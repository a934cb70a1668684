"""What a forward pass takes, and what a call gives to it."""

import torch
from torch import nn

from torch_initpolicy.trace.arguments import free_arguments, given_arguments
from torch_initpolicy.trace.trees import Call


class Takes(nn.Module):
    """Takes one tensor by position, and may take another by name."""

    def forward(self, x, *, mask=None):
        return x


X = torch.zeros(2)


def test_what_a_call_gives_goes_by_name():
    """A tensor by position has the name of its argument; what is left out may still be given."""
    call = Call((X,), {})

    assert given_arguments(Takes(), call) == {"x": X}
    assert free_arguments(Takes(), call) == ["mask"]


def test_a_call_that_does_not_fit_gives_nothing():
    """More tensors than the forward pass takes are no error here: every argument is free."""
    call = Call((X, X), {})

    assert given_arguments(Takes(), call) == {}
    assert free_arguments(Takes(), call) == ["x", "mask"]
