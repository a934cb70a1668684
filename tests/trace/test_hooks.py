"""Hooks that may change what a module returns are told from those that look on."""

import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from torch_initpolicy.trace.hooks import takes_part

SEEN = []


def clamps(module, args, output):
    """Write in place."""
    output.clamp_(-1, 1)


def notes(module, args, output):
    """Look on, and return nothing on any way."""
    if output.isnan().any():
        return
    SEEN.append(output.std())


def keeps(module, args, output):
    """Set an attribute, on which the next forward pass may depend."""
    module.last = output


def replaces(module, args):
    """Return other arguments, on one of two ways."""
    if len(args) == 1:
        return None
    return args[:1]


class Meter:
    """An object that counts."""

    def __init__(self):
        self.calls = 0

    def __call__(self, module, args, output):
        self.calls += 1

    def note(self, module, args, output):
        """Look on, as a method."""
        SEEN.append(output.shape)


HOOKS = {
    "writes in place": (clamps, True),
    "notes": (notes, False),
    "sets an attribute": (keeps, True),
    "returns arguments": (replaces, True),
    "a lambda that computes": (lambda module, args, output: output + 1, True),
    "a lambda that appends": (lambda module, args, output: [].append(output), False),
    "a method": (Meter().note, False),
    "an object that changes itself": (Meter(), True),
    "a module": (nn.ReLU(), True),
    "built in": (torch.relu, True),
    "a partial": (functools.partial(notes, None), True),
}


@pytest.mark.parametrize("name", HOOKS)
def test_who_takes_part(name):
    """A hook takes part where its code returns, sets or writes something, or cannot be read."""
    hook, expected = HOOKS[name]

    assert takes_part(hook) is expected


def test_hooks_of_torch_take_part():
    """What pruning and weight normalisation hang on a layer makes its weight."""
    layer = nn.Linear(4, 4)
    prune.l1_unstructured(layer, "weight", amount=2)

    assert all(map(takes_part, layer._forward_pre_hooks.values()))
    assert not weight_norm(nn.Linear(4, 4))._forward_pre_hooks  # a parametrisation has none
