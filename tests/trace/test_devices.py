"""On meta, small indices and masks hold numbers, and forward passes decide by them."""

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read


class Forward(nn.Module):
    """A layer whose output a function makes use of."""

    def __init__(self, function) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


def expanded(y: Tensor) -> Tensor:
    """Ask a mask how many it hides, after it took the shape of features."""
    hidden = torch.tensor([[True], [False]]).expand_as(y).to(y.device)
    assert y[hidden].numel() == 4
    return torch.tanh(y)


def written(y: Tensor) -> Tensor:
    """Write features into a real tensor, which holds no numbers from then on."""
    kept = torch.zeros(2, 4, device="cpu")
    kept[0] = y[0]
    return torch.tanh(kept * y)


def routed(y: Tensor) -> Tensor:
    """Send each row to the experts that its numbers choose: all of them are reached."""
    hit = (y > 0).nonzero()
    rows = torch.where(y.sum(1) > 0)[0]
    assert (len(hit), rows.tolist()) == (8, [0, 1])
    return torch.tanh(y[rows] * y[y[:, 0] > 0] + y.masked_select(y > 0).mean())


def filled(y: Tensor) -> Tensor:
    """Replace some rows by others of the same choice."""
    chosen = y[:, 0] > 0
    y[chosen] = y[chosen] * 2
    return torch.tanh(y)


def filtered(y: Tensor) -> Tensor:
    """Keep the numbers above a threshold, as detectors do, by a mask that chooses places, too."""
    kept = y > 0
    places = torch.where(kept)[0]
    return torch.tanh(y[kept] * y[kept].add(1).sum() + places.sum())


def measured(y: Tensor) -> Tensor:
    """Write lengths into a tensor, and cut features by them, as detectors do their levels."""
    lengths = torch.empty((2, 2), dtype=torch.int64, device=y.device)
    lengths[0], lengths[1] = torch.as_tensor([1, 4], device=y.device), torch.tensor([1, 4])
    assert lengths.prod(1).sum() == y.numel()
    first, second = y.split([each for each, _ in lengths])
    return torch.tanh(first.view(lengths[0, 1], 1) + second.expand(lengths[0, 1], 4))


def counted(y: Tensor) -> Tensor:
    """Make a mask of Python's own dtypes."""
    assert torch.zeros(3, dtype=int, device=y.device).sum() == 0
    return torch.tanh(y * torch.ones(4, dtype=float, device=y.device).float())


@pytest.mark.parametrize(
    "function",
    [expanded, written, routed, filled, filtered, measured, counted],
    ids=lambda function: function.__name__,
)
def test_numbers_are_there_to_be_asked(function):
    """The forward pass is traced, and what the layer meets is seen behind the question."""
    model = Forward(function)
    found = read(model, sites(model))

    assert found.evidence == "traced"
    assert found.facts["linear.weight"].meets.name == "tanh"
