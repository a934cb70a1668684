"""The probability of being born dead against networks that are drawn."""

import pytest
import torch

from torch_initpolicy.signal.born_dead import born_dead


@pytest.mark.parametrize(("width", "depth"), [(2, 5), (2, 10), (2, 20), (4, 20)])
def test_against_drawn_networks(width, depth):
    """Of 20,000 networks on both half-lines as many die, within four parts of a hundred."""
    generator = torch.Generator().manual_seed(depth)
    x = torch.tensor([[1.0, -1.0]]).expand(20_000, 1, 2)
    for _ in range(depth):
        weight = torch.randn(len(x), width, x.shape[1], generator=generator)
        x = torch.nn.functional.normalize(torch.relu(weight @ x), dim=1)

    dead = (x.amax((1, 2)) == 0).double().mean().item()

    assert born_dead([width] * depth) == pytest.approx(dead, abs=0.04)


def test_no_layers_and_wide_ones():
    """Nothing dies without a layer, or where layers are wide."""
    assert born_dead([]) == 0
    assert born_dead([64] * 20) < 1e-9
