"""Inputs with which a model really runs: the user's own, or drawn ones that fit."""

import pytest
import torch
from torch import nn

from torch_initpolicy.errors import TraceError
from torch_initpolicy.sites import sites
from torch_initpolicy.trace.real_inputs import real_inputs, require_values
from torch_initpolicy.trace.trees import Call


def test_the_users_own_are_the_only_ones():
    """What is given is neither drawn again nor followed by others."""
    x = torch.zeros(2, 3)
    model = nn.Linear(3, 2)

    assert list(real_inputs(model, sites(model), x)) == [Call((x,))]


@pytest.mark.parametrize(
    ("model", "batch"),
    [
        (nn.Sequential(nn.Linear(6, 4), nn.ReLU()), 64),
        (nn.Conv2d(3, 2, 3), 16),
        (nn.Embedding(11, 3), 16),
    ],
    ids=["vectors", "images", "indices"],
)
def test_drawn_inputs_run(model, batch):
    """Many samples of vectors, fewer of what has positions, then as many as were found."""
    tries = [call.args[0] for call in real_inputs(model, sites(model))]

    assert len(tries[0]) == batch
    assert [model(x).isfinite().all().item() for x in tries] == [True, True]


def test_no_inputs():
    """A model that nothing runs with is named, and what to give instead."""

    class Opaque(nn.Linear):
        def forward(self, x):
            raise ValueError("no")

    model = Opaque(2, 2)
    with pytest.raises(TraceError, match=r"forward pass of Opaque runs; give some: a tensor"):
        next(real_inputs(model, sites(model)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 2, device="meta"), r"(?s)call materialize.*2 parameters.*weight"),
        (lambda: nn.LazyLinear(2), r"(?s)run the model on one batch first.*2 parameters"),
    ],
    ids=["meta", "lazy"],
)
def test_values_are_required(make, message):
    """Parameters without numbers are listed, with the remedy."""
    require_values(sites(nn.Linear(2, 2)))
    with pytest.raises(TraceError, match=message):
        require_values(sites(make()))
