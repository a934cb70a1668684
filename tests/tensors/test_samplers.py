"""How numbers are drawn: element by element, or the whole tensor at once."""

import math

import pytest
import torch

from torch_initpolicy.tensors.base import Spread
from torch_initpolicy.tensors.samplers import Draw, Independent, Joint, built
from torch_initpolicy.tensors.standards import StandardNormal, StandardUniform, Zero


class TestDraw:
    """A distribution tells its moments and bounds."""

    def test_bounded(self):
        """Bounds lie as far from the mean as the scaled distribution reaches."""
        spread = Draw(StandardUniform(), loc=1.0, scale=3.0).spread

        assert (spread.mean, spread.low, spread.high) == (1.0, -2.0, 4.0)
        assert spread.std == pytest.approx(math.sqrt(3))

    def test_unbounded(self):
        """A normal has no bounds."""
        assert Draw(StandardNormal(), 0.5, 2.0).spread == Spread(0.5, 2.0)

    def test_scaled(self):
        """Mean and width are multiplied."""
        assert Draw(StandardUniform(), 1.0, 3.0).scaled(2.0) == Draw(StandardUniform(), 2.0, 6.0)


class TestScaled:
    """Samplers of larger numbers."""

    def test_independent(self):
        """Each block's distribution is scaled."""
        draws = (Draw(StandardNormal(), 0.0, 1.0), Draw(Zero(), 3.0))
        spreads = Independent(draws).scaled(2.0).spread

        assert spreads == (Spread(0.0, 2.0), Spread(6.0, 0.0, 6.0, 6.0, kurtosis=1.0))

    @pytest.mark.parametrize(
        ("spread", "expected"),
        [
            (None, None),
            (Spread(1.0, 2.0, -3.0, None), Spread(3.0, 6.0, -9.0, None)),
            ((Spread(0.0, 1.0), Spread(0.0, 2.0)), (Spread(0.0, 3.0), Spread(0.0, 6.0))),
        ],
        ids=["unknown", "one", "blocks"],
    )
    def test_joint(self, spread, expected):
        """What is built is multiplied, and so is what is said of it."""
        joint = Joint(torch.ones, spread).scaled(3.0)

        assert joint.spread == expected
        assert torch.equal(joint.build((2,)), torch.full((2,), 3.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_independent_elements_out_of_normals(dtype):
    """A distribution built from normals has its moments, complex ones in both parts together."""
    generator = torch.Generator().manual_seed(0)
    sampler = Independent((Draw(StandardUniform(), 0.0, math.sqrt(3)),))
    values = built(sampler, (300, 300), lambda s: torch.randn(s, dtype=dtype, generator=generator))

    assert values.shape == (300, 300)
    assert values.abs().square().mean().item() == pytest.approx(1.0, rel=0.02)
