"""Where LSUV starts: orthogonal weights, for the weights that may be written."""

import torch
from torch import nn
from torch.nn.utils import parametrizations

from torch_initpolicy.calibrate.directions import orthogonalise
from torch_initpolicy.planning.selection import Selection
from torch_initpolicy.sites import sites


def is_orthogonal(weight):
    """Say whether the rows of a matrix are orthonormal, up to a common scale."""
    gram = weight @ weight.mT
    return torch.allclose(gram, gram[0, 0] * torch.eye(len(gram)), atol=1e-5)


def test_plain_weights_are_orthogonal():
    """Biases, skipped and parametrised weights keep every bit."""
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    parametrizations.weight_norm(model[1])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    orthogonalise(model, sites(model), torch.randn(2, 6), Selection.of(skip="2.*"), 0)

    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"0.weight"}
    assert is_orthogonal(model[0].weight)
    assert not is_orthogonal(before["0.weight"])
