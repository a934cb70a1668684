"""Element-wise initializers draw what they say, block by block and piece by piece.

Kolmogorov-Smirnov tests use 60,000 numbers and reject below p = 1e-6; a standard deviation that is
5 % off, a cut that is missing and fan_out for fan_in are shown to be rejected.
"""

import math

import pytest
import scipy.stats
import torch
from torch import nn

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.base import Context, Spread
from torch_initpolicy.tensors.distributions import (
    Constant,
    Normal,
    Ones,
    TruncatedNormal,
    Uniform,
    VarianceScaling,
    Zeros,
    he_normal,
    he_uniform,
    lecun_normal,
    lecun_uniform,
    xavier_normal,
    xavier_uniform,
)
from torch_initpolicy.tensors.layers import axes_of
from torch_initpolicy.tensors.samplers import fill_with

SHAPE = (300, 200)
CUT = 0.87962566103423978  # standard deviation of a normal cut at two (jax's constant)


def drawn(initializer, shape=SHAPE, axes=None, seed=0, dtype=torch.float32):
    """Return a tensor filled from a generator of its own."""
    tensor = torch.empty(shape, dtype=dtype)
    initializer(tensor, axes, generator=torch.Generator().manual_seed(seed))
    return tensor


def cut_normal(std, mean=0.0, cut=2.0, factor=CUT):
    """Return scipy's normal cut at `cut`, of standard deviation `std` after the cut."""
    return scipy.stats.truncnorm(-cut, cut, loc=mean, scale=std / factor)


DISTRIBUTIONS = {
    "uniform": (Uniform(-1.0, 3.0), scipy.stats.uniform(-1, 4)),
    "normal": (Normal(0.5, mean=2.0), scipy.stats.norm(2, 0.5)),
    "truncated": (TruncatedNormal(0.02), cut_normal(0.02)),
    "truncated off centre": (TruncatedNormal(0.02, mean=1.0), cut_normal(0.02, mean=1.0)),
    "truncated at three": (TruncatedNormal(2.0, cut=3.0), cut_normal(2.0, 0, 3, 0.9865783926)),
    "truncated nowhere": (TruncatedNormal(2.0, cut=100.0), scipy.stats.norm(0, 2)),
    "he normal": (he_normal(), scipy.stats.norm(0, math.sqrt(2 / 200))),
    "he uniform": (he_uniform(), scipy.stats.uniform(-math.sqrt(6 / 200), 2 * math.sqrt(6 / 200))),
    "he by another gain": (he_normal(gain=1.5), scipy.stats.norm(0, 1.5 / math.sqrt(200))),
    "he backwards": (he_normal(mode="fan_out"), scipy.stats.norm(0, math.sqrt(2 / 300))),
    "xavier normal": (xavier_normal(), scipy.stats.norm(0, math.sqrt(2 / 500))),
    "xavier uniform": (
        xavier_uniform(gain=2.0),
        scipy.stats.uniform(-2 * math.sqrt(6 / 500), 4 * math.sqrt(6 / 500)),
    ),
    "lecun normal": (lecun_normal(), scipy.stats.norm(0, 1 / math.sqrt(200))),
    "lecun uniform": (
        lecun_uniform(),
        scipy.stats.uniform(-math.sqrt(3 / 200), 2 * math.sqrt(3 / 200)),
    ),
    "geometric mean": (
        VarianceScaling(mode="fan_geo"),
        scipy.stats.norm(0, (200 * 300) ** -0.25),
    ),
    "variance scaling, truncated": (
        VarianceScaling(1.5, "fan_avg", "truncated_normal"),
        cut_normal(math.sqrt(1.5 / 250)),
    ),
}


@pytest.mark.parametrize(("initializer", "distribution"), DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
class TestDistributions:
    """Numbers have the distribution that the papers name."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_distribution(self, initializer, distribution, dtype):
        """Numbers have the distribution function."""
        values = drawn(initializer, dtype=dtype).double().flatten().numpy()

        assert scipy.stats.kstest(values, distribution.cdf).pvalue > 1e-6

    def test_power(self, initializer, distribution):
        """The test rejects numbers that are 5 % further out."""
        values = drawn(initializer).double().flatten().numpy()

        assert scipy.stats.kstest(1.05 * values, distribution.cdf).pvalue < 1e-6

    def test_spread(self, initializer, distribution):
        """The spread that a plan shows has the moments and bounds of the distribution."""
        spread = initializer.spread(SHAPE, None)
        low, high = distribution.support()
        bounded = math.isfinite(low) and high - low < 100

        assert (spread.mean, spread.std) == pytest.approx((distribution.mean(), distribution.std()))
        assert (spread.low, spread.high) == pytest.approx((low, high) if bounded else (None, None))
        assert spread.kurtosis >= float(distribution.stats("k")) + 3 - 1e-9


@pytest.mark.parametrize(
    ("value", "wrong"),
    [
        (drawn(he_normal()), scipy.stats.norm(0, math.sqrt(2 / 300))),
        (drawn(he_normal()), scipy.stats.norm(0, math.sqrt(1 / 200))),
        (drawn(TruncatedNormal(0.02)), scipy.stats.norm(0, 0.02)),
        (drawn(TruncatedNormal(0.02)), cut_normal(0.02 * CUT)),
    ],
    ids=["fan_out for fan_in", "missing gain", "missing cut", "std before the cut"],
)
def test_power_against_usual_mistakes(value, wrong):
    """The test rejects the mistakes that implementations make."""
    assert scipy.stats.kstest(value.double().flatten().numpy(), wrong.cdf).pvalue < 1e-6


@pytest.mark.parametrize(
    ("initializer", "value"),
    [(Constant(2.5), 2.5), (Zeros(), 0.0), (Ones(), 1.0)],
    ids=["constant", "zeros", "ones"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64], ids=str)
def test_constants(initializer, value, dtype):
    """Constants are one real value in every dtype."""
    assert drawn(initializer, dtype=dtype).eq(value).all()
    assert initializer.spread(SHAPE, None) == Spread(value, 0.0, value, value, kurtosis=1.0)


class TestLayouts:
    """Fans come from the axes, whatever the layout."""

    @pytest.mark.parametrize(
        "layer",
        [
            nn.Linear(64, 96, bias=False),
            nn.Conv1d(16, 64, 5, bias=False),
            nn.Conv2d(32, 64, 3, groups=4, bias=False),
            nn.Conv2d(64, 64, 3, groups=64, bias=False),
            nn.ConvTranspose2d(64, 64, 4, stride=2, bias=False),
            nn.ConvTranspose2d(16, 64, 4, stride=2, bias=False),
            nn.ConvTranspose2d(64, 16, 3, bias=False),
            nn.ConvTranspose1d(32, 32, 4, stride=2, groups=4, bias=False),
        ],
        ids=[
            "linear",
            "conv1d",
            "grouped",
            "depthwise",
            "up",
            "up wider",
            "narrower",
            "up grouped",
        ],
    )
    def test_variance_is_kept(self, layer):
        """Variance 1 / fan_in keeps the signal's variance inside the map (trap D1).

        Means over 20 draws; their scatter is below 4 %, torch's own fans are off by a factor of up
        to 16 for transposed convolutions.
        """
        generator = torch.Generator().manual_seed(0)
        dims = layer.weight.ndim - 2
        powers = []
        for _ in range(20):
            lecun_normal()(layer.weight, axes_of(layer, "weight"), generator=generator)
            shape = (
                (64, layer.weight.shape[1]) if not dims else (4, layer.in_channels, *[14] * dims)
            )
            output = layer(torch.randn(shape, generator=generator))
            middle = (..., *[slice(4, output.shape[-1] - 4)] * dims)
            powers.append(output[middle].square().mean().item())

        assert sum(powers) / len(powers) == pytest.approx(1, abs=0.15)

    def test_packed_blocks_have_fans_of_their_own(self):
        """Xavier on packed q, k, v is sqrt(2 / 2E), not sqrt(2 / 4E) (trap D3)."""
        axes = Axes((1,), (0,), blocks=(256, 256, 256))

        assert xavier_normal().spread((768, 256), axes).std == pytest.approx(0.0625)

    def test_gates_have_fans_of_their_own(self):
        """Xavier on LSTM gates of 128 units is 0.0884, not 0.0559 (trap D4)."""
        layer = nn.LSTM(128, 128)
        axes = axes_of(layer, "weight_ih_l0")

        assert xavier_normal().spread((512, 128), axes).std == pytest.approx(0.088388, abs=1e-6)

    @pytest.mark.parametrize("distribution", ["normal", "uniform", "truncated_normal"])
    @pytest.mark.parametrize("repeats", [1, 4])
    def test_unequal_blocks(self, distribution, repeats):
        """Grouped queries: each block has the standard deviation of its own fans, within 5 %."""
        axes = Axes((1,), (0,), blocks=(256, 64, 64), repeats=repeats)
        initializer = VarianceScaling(1.0, "fan_avg", distribution)
        shape = (384 * repeats, 256)
        parts = drawn(initializer, shape, axes).view(repeats, 384, 256).split((256, 64, 64), 1)

        expected = [math.sqrt(2 / (256 + n * repeats)) for n in (256, 64, 64)]

        assert [part.std().item() for part in parts] == pytest.approx(expected, rel=0.03)
        assert [s.std for s in initializer.spread(shape, axes)] == pytest.approx(expected)

    def test_unequal_blocks_of_inputs_last(self):
        """Blocks along the second axis, as in `x @ W`, are found as well."""
        axes = Axes((0,), (1,), blocks=(300, 100))
        left, right = drawn(xavier_normal(), (200, 400), axes).split((300, 100), 1)

        assert left.std().item() == pytest.approx(math.sqrt(2 / 500), rel=0.03)
        assert right.std().item() == pytest.approx(math.sqrt(2 / 300), rel=0.03)

    def test_nothing_connected(self):
        """A weight without inputs gets zeros; nothing is divided by zero."""
        assert he_normal().spread((5, 0), None).std == 0.0
        assert xavier_uniform().spread((0, 0), None).std == 0.0

    def test_no_fans(self):
        """A vector has no fans, and the error says what to write."""
        with pytest.raises(PolicyError, match=r"does not fit.*pass its Axes"):
            he_normal()(torch.empty(5))

    def test_axes_of_another_shape(self):
        """Axes that do not fit the shape are refused before anything is drawn."""
        tensor = torch.zeros(5, 4)
        with pytest.raises(PolicyError, match="do not fill"):
            he_normal()(tensor, Axes((1,), (0,), blocks=(3, 3)))
        assert not tensor.any()


class TestPieces:
    """Any piece of the flattened tensor can be drawn alone."""

    AXES = Axes((1,), (0,), blocks=(4, 2, 2), repeats=3)

    @pytest.mark.parametrize("start", [0, 1, 7, 60, 143])
    @pytest.mark.parametrize("size", [0, 1, 13, 97])
    def test_each_position_has_its_own_scale(self, start, size):
        """Standard normals are scaled by the block of their own position.

        Pieces are drawn from the same seed once for unequal blocks and once for a standard normal.
        """
        size = min(size, 240 - start)
        initializer = VarianceScaling(mode="fan_out")
        flat, plain = torch.empty(2, size)
        shape = (24, 10)

        draws = initializer.sampler(shape, self.AXES).draws
        generator = torch.Generator().manual_seed(5)
        fill_with(draws, flat, shape, self.AXES, start=start, generator=generator)
        plain.normal_(generator=torch.Generator().manual_seed(5))
        stds = torch.tensor([12**-0.5] * 4 + [6**-0.5] * 4).repeat(3).repeat_interleave(10)

        assert torch.allclose(flat, plain * stds[start : start + size])


class TestGainsByName:
    """A gain may be the word for one that only a plan knows."""

    @pytest.mark.parametrize(("word", "gain"), [("meets", 1.5), ("fed_by", 0.5)])
    def test_resolved(self, word, gain):
        """Words become the numbers of a site."""
        context = Context(meets_gain=1.5, fed_gain=0.5)

        assert he_normal(gain=word).resolve(context) == he_normal(gain=gain)

    def test_unresolved(self):
        """Outside a plan the word has no number, and the error says what to write."""
        with pytest.raises(PolicyError, match="write a number"):
            he_normal(gain="meets")(torch.empty(3, 4))

    def test_plain_he_is_that_of_relu(self):
        """Without a gain He's scale is 2."""
        assert he_normal() == VarianceScaling(2.0, "fan_in")
        assert he_normal(gain="meets") == VarianceScaling(1.0, "fan_in", gain="meets")
