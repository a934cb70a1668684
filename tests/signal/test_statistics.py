"""How different inputs stay: numbers of known tensors."""

import pytest
import torch
from torch import nn

from torch_initpolicy.signal.run import audit_signal

pytestmark = pytest.mark.usefixtures("one_thread")


def test_likeness_of_tiny_numbers():
    """The cosine of vectors does not depend on their size, down to what a float can hold."""
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    nn.init.eye_(model[0].weight)
    for scale in (1.0, 1e-25, 1e-35):
        point = audit_signal(model, scale * torch.eye(8, 16)).points[0]
        assert (point.likeness, point.rank) == pytest.approx((0, 8), abs=1e-5)


def test_likeness_tells_inputs_apart():
    """Equal inputs have likeness 1 and rank 1, orthogonal ones 0 and their number."""
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    nn.init.eye_(model[0].weight)
    same = audit_signal(model, torch.ones(8, 16)).points[0]
    apart = audit_signal(model, torch.eye(8, 16)).points[0]
    assert (same.likeness, same.rank) == pytest.approx((1, 1), abs=1e-5)
    assert (apart.likeness, apart.rank) == pytest.approx((0, 8), abs=1e-5)
