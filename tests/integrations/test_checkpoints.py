"""Checkpoints that lack parameters: what is new is drawn, what was loaded stays."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from torch_initpolicy.errors import UnknownNameError
from torch_initpolicy.integrations.checkpoints import initialize_missing


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.body = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.body(self.embedding(tokens)).relu())


def load(model, *prefixes):
    """Load a checkpoint of 7s that holds what begins with some prefixes; return what it lacked."""
    state = {
        name: torch.full_like(value, 7.0)
        for name, value in model.state_dict().items()
        if name.startswith(prefixes)
    }
    return model.load_state_dict(state, strict=False).missing_keys


def test_only_what_is_missing_is_written():
    """The parameters of the checkpoint keep its values, all others get the policy's."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    receipt = initialize_missing(model, load(model, "0."), seed=0)

    assert {step.name for step in receipt.plan if not step.keeps} == {"2.weight", "2.bias"}
    assert all(bool((p == 7).all()) for p in model[0].parameters())
    assert not model[2].weight.eq(7).any()


@pytest.mark.parametrize("held", ["embedding.", "head."])
def test_a_tie_is_loaded_with_its_other_name(held):
    """A tied tensor that the checkpoint holds under either name is not missing."""
    model = Tied()
    receipt = initialize_missing(model, load(model, held), seed=0)

    assert receipt.written == 2
    assert bool((model.head.weight == 7).all())


def test_a_tie_that_is_missing():
    """A tied tensor that the checkpoint holds under no name is drawn."""
    model = Tied()
    receipt = initialize_missing(model, load(model, "body."), seed=0)

    assert receipt.written == 1
    assert model.head.weight is model.embedding.weight


def test_parametrised_weights():
    """The keys of a parametrised weight are those of its originals."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), weight_norm(nn.Linear(8, 4)))
    receipt = initialize_missing(model, load(model, "0."), seed=0)

    assert {step.name for step in receipt.plan if not step.keeps} == {"2.weight", "2.bias"}


def test_names_that_are_no_tensors():
    """Keys of another model are an error that lists them, before anything is written."""
    model = nn.Linear(4, 4)
    before = model.weight.clone()

    with pytest.raises(UnknownNameError, match=r"head\.weight"):
        initialize_missing(model, ["weight", "head.weight"])

    assert torch.equal(model.weight, before)


def test_buffers_are_no_parameters():
    """A missing buffer is known and is left as it is."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))

    assert initialize_missing(model, ["1.running_mean"]).written == 0
