"""A weight's linear maps are found by running the layer that holds it."""

import pytest
import torch
from torch import nn

from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.layers import axes_of
from torch_initpolicy.tensors.maps import maps

LAYERS = {
    "linear": (nn.Linear(6, 4), (1, 4, 6), ()),
    "conv": (nn.Conv2d(6, 4, (3, 5)), (1, 4, 6), (3, 5)),
    "grouped": (nn.Conv1d(6, 4, 3, groups=2), (2, 2, 3), (3,)),
    "transposed": (nn.ConvTranspose1d(6, 4, 3), (1, 4, 6), (3,)),
    "grouped transposed": (nn.ConvTranspose1d(6, 4, 3, groups=2), (2, 2, 3), (3,)),
    "bilinear": (nn.Bilinear(2, 3, 4), (1, 4, 6), ()),
    "embedding": (nn.Embedding(9, 4), (9, 4, 1), ()),
}


@pytest.mark.parametrize(("layer", "sizes", "kernel"), LAYERS.values(), ids=LAYERS)
def test_sizes(layer, sizes, kernel):
    """Number of maps, outputs, inputs and extents are those of the layer."""
    found = maps(layer.weight.detach(), axes_of(layer, "weight"))

    assert found.sizes == sizes
    assert found.kernel == kernel


def test_view_writes_through():
    """What is written to the maps is in the weight."""
    weight = torch.zeros(4, 3, 3)

    maps(weight, Axes((1,), (0,), groups=2)).centre.fill_(1)

    assert weight.sum() == 4 * 3
    assert weight[:, :, 1].eq(1).all()


def test_groups_are_apart():
    """Each map of a grouped transposed convolution carries its own inputs to its own outputs."""
    layer = nn.ConvTranspose1d(6, 4, 1, groups=2, bias=False)
    matrices = maps(layer.weight.detach(), axes_of(layer, "weight")).view[..., 0]

    expected = layer(torch.eye(6)[..., None])[..., 0].T

    assert torch.allclose(torch.block_diag(*matrices), expected)


def test_experts_and_heads():
    """Copies come first, then all output axes, then inputs."""
    weight = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)

    found = maps(weight, Axes(inputs=(1,), outputs=(2, 3), copies=(0,)))

    assert found.sizes == (2, 20, 3)
    assert found.view.shape == (2, 4, 5, 3)
