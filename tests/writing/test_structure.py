"""What structured initializers promise is found in what they draw, and missed where it is not."""

import pytest
import torch

from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.initializers import (
    ICNR,
    Blocks,
    DeltaOrthogonal,
    Dirac,
    Identity,
    Normal,
    Orthogonal,
    Sparse,
    he_normal,
)
from torch_initpolicy.writing.structure import has_structure, structure

PACK = Axes((1,), (0,), blocks=(20, 10, 10))

WHOLE = {
    "orthogonal": (Orthogonal(2.0), (40, 60), None),
    "tall": (Orthogonal(), (60, 40), None),
    "packed": (Orthogonal(), (40, 30), PACK),
    "delta": (DeltaOrthogonal(), (16, 8, 3, 3), None),
    "dirac": (Dirac(0.5), (8, 8, 3, 3), None),
    "identity": (Identity(), (6, 9), None),
    "sparse": (Sparse(0.9), (12, 40), None),
    "icnr": (ICNR(he_normal(), 2), (16, 4, 3, 3), None),
    "blocks": (Blocks((Identity(), Normal(0.1), Sparse(0.5))), (40, 30), PACK),
}

BROKEN = {
    "orthogonal": (lambda w: w[0].copy_(torch.ones(60) / 30**0.5), "products of units"),
    "packed": (lambda w: w[25].copy_(w[26]), "block 1: products of units"),
    "delta": (lambda w: w[0, 0, 0, 0].fill_(1e-3), "beside the middle tap"),
    "dirac": (lambda w: w[0, 0, 0, 0].fill_(1e-3), "1 element other than"),
    "identity": (lambda w: w[0, 0].fill_(0.99), "1 element other than"),
    "icnr": (lambda w: w[1, 0, 0, 0].add_(0.1), "patches of 4 channels"),
    "sparse": (lambda w: w[0].fill_(0.01), "a unit with 0 zeros, expected 36"),
    "blocks": (lambda w: w[35].fill_(0.01), "block 2: a unit with 0 zeros, expected 15"),
}


def filled(name):
    """Return a tensor that an initializer has written, and what `structure` takes."""
    initializer, shape, axes = WHOLE[name]
    tensor = torch.empty(shape)
    initializer(tensor, axes, generator=torch.Generator().manual_seed(0))
    return initializer, tensor, axes


@pytest.mark.parametrize("name", WHOLE)
def test_nothing_is_found(name):
    """What has been drawn has the structure that was promised."""
    assert has_structure(WHOLE[name][0])
    assert list(structure(*filled(name))) == []


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found(name):
    """One unit or one number that is off is named."""
    initializer, tensor, axes = filled(name)
    change, words = BROKEN[name]
    change(tensor)

    assert [words in reason for reason in structure(initializer, tensor, axes)] == [True]


def test_independent_numbers_have_none():
    """Of numbers that are drawn one by one moments tell all."""
    assert not has_structure(Normal(0.1))
    assert not has_structure(Blocks((Normal(0.1), Normal(0.2))))
    assert list(structure(Normal(0.1), torch.ones(2, 2), None)) == []
