"""Every tensor of a module is found, wherever it hangs, and found again by its name."""

from types import SimpleNamespace

import torch
from torch import nn

from torch_initpolicy.materialize.held import held_by, nested_of, tensors_of


def test_places():
    """Parameters, buffers, attributes, containers and helper objects; two names are two places."""
    module = nn.Linear(2, 3)
    module.tied = module.bias
    module.register_buffer("ramp", torch.arange(3))
    module.plain = torch.ones(1)
    module.tables = {"shift": [torch.zeros(2)]}
    module.cache = SimpleNamespace(mask=torch.ones(2))
    found = dict(tensors_of(module))

    assert found.keys() == {
        *("weight", "bias", "tied", "ramp", "plain", "tables['shift'][0]", "cache.mask")
    }
    assert found["tied"] is module.bias
    assert all(held_by(module, name) is tensor for name, tensor in found.items())
    assert {name for name, _ in nested_of(module)} == {"tables['shift'][0]", "cache.mask"}
