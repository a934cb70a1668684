"""Taps that meet the signal and not its padding, against ones that are convolved."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.moments.probing import reads_of
from torch_initpolicy.moments.padding import reached
from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read

EDGES = {1: 0.1111, 2: 0.4444, 4: 0.6944, 7: 0.8186, 14: 0.9070, 32: 0.9588}  # traps D9


@pytest.mark.parametrize("edge", EDGES)
def test_zero_padding(edge):
    """A 3 x 3 kernel with padding 1 reads the zeros of the table."""
    conv = nn.Conv2d(4, 4, 3, padding=1)
    found = reads_of(conv, torch.empty(2, 4, edge, edge, device="meta"))
    assert found["weight"].second == pytest.approx(EDGES[edge], abs=1e-4)


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(1, 1, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(1, 1, 5, padding="same", dilation=2, bias=False),
        nn.Conv2d(1, 1, (1, 7), padding=(0, 3), bias=False),
        nn.ConvTranspose2d(1, 1, 4, stride=2, bias=False),
        nn.ConvTranspose2d(1, 1, 3, padding=1, bias=False),
    ],
    ids=["strided", "dilated", "oblong", "transposed", "transposed, padded"],
)
def test_taps_are_counted(conv):
    """Ones convolved with ones count the taps; the fan is what an inner output meets."""
    with torch.no_grad():
        conv.weight.fill_(1.0)
        counted = conv(torch.ones(1, 1, 11, 11)).mean().item()
    stride = conv.stride[0] ** 2 if isinstance(conv, nn.ConvTranspose2d) else 1
    found = reads_of(conv, torch.empty(1, 1, 11, 11, device="meta"))
    assert found["weight"].second == pytest.approx(counted * stride / conv.weight.numel(), rel=1e-5)


PAIRS = {
    "padded": (nn.Conv2d(1, 1, 3, padding=1), 5),
    "wide": (nn.Conv2d(1, 1, 5, padding=2), 5),
    "strided": (nn.Conv2d(1, 1, 3, stride=2, padding=1), 9),
    "one output": (nn.Conv2d(1, 1, 3, padding=1), 1),
    "transposed": (nn.ConvTranspose2d(1, 1, 4, stride=2, padding=1), 5),
    "transposed, plain": (nn.ConvTranspose2d(1, 1, 3, padding=1), 5),
}


@pytest.mark.parametrize("name", PAIRS)
def test_taps_of_pairs(name):
    """A constant image under 40,000 random kernels: what two outputs share, neighbours and all.

    Each of the means has an error of 1 % or less.
    """
    conv, edge = PAIRS[name]
    (node,) = read(conv, sites(conv), torch.ones(1, 1, edge, edge)).flow.uses.graph.nodes
    taps = reached(node, (1, 1, edge, edge), conv.weight.shape)
    transposed = isinstance(conv, nn.ConvTranspose2d)
    kernels = torch.randn(40_000, 1, *conv.kernel_size, generator=torch.Generator().manual_seed(0))
    kernels *= (conv.stride[0] if transposed else 1) / conv.kernel_size[0]
    apply = F.conv_transpose2d if transposed else F.conv2d
    weight = kernels.transpose(0, 1) if transposed else kernels
    made = apply(torch.ones(1, 1, edge, edge), weight, stride=conv.stride, padding=conv.padding)[0]
    assert taps.once == pytest.approx(made.square().mean().item(), rel=0.03)
    assert taps.twice == pytest.approx(made.mean((1, 2)).square().mean().item(), rel=0.03)
    if edge > 1:
        beside = (made[:, 1:, 1:] * made[:, :-1, :-1]).mean().item()
        assert taps.beside == pytest.approx(beside, rel=0.03, abs=0.01)
