"""Wrappers of functional transforms are told from tensors, and opened."""

import torch

from torch_initpolicy.trace.functorch import bare, inside, is_transforming, is_wrapped


def test_wrappers_are_opened():
    """Inside `vmap` of `grad` there are wrappers around the tensor that was given."""
    x, seen = torch.randn(3, 2), []

    def look(row):
        seen.append((is_transforming(), is_wrapped(row), bare(row) is x, len(list(inside(row)))))
        return row.sum()

    torch.vmap(torch.func.grad(look))(x)

    assert seen == [(True, True, True, 2)]


def test_outside_there_are_none():
    """A plain tensor is no wrapper, and nothing transforms it."""
    x = torch.zeros(2)

    assert (is_transforming(), is_wrapped(x), bare(x) is x, list(inside(x))) == (
        False,
        False,
        True,
        [],
    )
