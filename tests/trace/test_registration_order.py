"""Where no forward pass runs, the order of registration says what a layer may meet."""

import pytest
import torch
from torch import nn

from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.trace.read import read
from torch_initpolicy.trace.registration_order import ordered_facts


def test_a_layer_meets_the_activation_that_is_registered_next():
    """Up to the next layer with a weight; norms and dropout between are no such layers."""
    model = nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.LeakyReLU(0.2), nn.Linear(4, 4),
        nn.Linear(4, 4), nn.Tanh(),
    )  # fmt: skip
    met = {name: fact.meets for name, fact in ordered_facts(model, sites(model)).items()}

    assert met["0.weight"] == met["0.bias"] == Activation("leaky_relu", 0.2)
    assert met["4.weight"] is None
    assert met["5.weight"] == Activation("tanh")


@pytest.mark.parametrize(
    "activation",
    [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.Hardswish(), nn.Softplus(), nn.SELU()],
    ids=lambda module: type(module).__name__,
)
def test_plain_stacks_are_read_as_the_forward_pass_reads_them(activation):
    """In a sequence of modules the order of registration is that of execution."""
    model = nn.Sequential(nn.Linear(4, 4), activation, nn.Linear(4, 2))
    traced = read(model, sites(model), torch.zeros(1, 4)).facts
    ordered = ordered_facts(model, sites(model))

    for name, fact in ordered.items():
        assert (fact.role, fact.evidence) == (traced[name].role, "order")
        if fact.role == "weight":
            assert fact.meets == traced[name].meets
