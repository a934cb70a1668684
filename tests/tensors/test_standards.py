"""Standard distributions have their distribution functions; random matrices are Haar.

Kolmogorov-Smirnov tests use 100,000 numbers and reject below p = 1e-6. What they catch is shown by
deliberately wrong hypotheses, which the same test must reject.
"""

import math

import pytest
import scipy.stats
import torch

from torch_initpolicy.tensors.standards import (
    StandardNormal,
    StandardUniform,
    Zero,
    haar,
    truncation,
)

SIZE = 100_000
CUTS = (0.3, 1.0, 2.0, 3.0, 3.5, 6.0, 8.0, math.inf)


def seeded(seed=0):
    """Return a generator of its own."""
    return torch.Generator().manual_seed(seed)


def truncated(cut):
    """Return scipy's normal, cut at `-cut` and `cut`."""
    return scipy.stats.truncnorm(-cut, cut)


def p_value(values, distribution):
    """Return the probability of a deviation as large as that of the sample."""
    return scipy.stats.kstest(values.double().flatten().numpy(), distribution.cdf).pvalue


class TestStandardNormal:
    """Normal numbers, cut or not."""

    @pytest.mark.parametrize("cut", CUTS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    def test_distribution(self, cut, dtype):
        """Numbers have the distribution function of the cut normal."""
        values = StandardNormal(cut).fill_(torch.empty(SIZE, dtype=dtype), seeded())

        assert p_value(values, truncated(cut)) > 1e-6

    @pytest.mark.parametrize("cut", CUTS)
    def test_distribution_out_of_normals(self, cut):
        """Normals that are turned into the cut normal have its distribution function too."""
        values = StandardNormal(cut).of_normal(torch.randn(SIZE, generator=seeded()))

        assert p_value(values, truncated(cut)) > 1e-6

    @pytest.mark.parametrize("wrong", [1.8, 2.3, math.inf])
    def test_power(self, wrong):
        """The test rejects a cut that is 10 to 15 % off, and no cut at all."""
        values = StandardNormal(2.0).fill_(torch.empty(SIZE), seeded())

        assert p_value(values, truncated(wrong)) < 1e-6

    @pytest.mark.parametrize("wrong", [0.96, 1.04])
    def test_power_against_scale(self, wrong):
        """The test rejects a standard deviation that is 4 % off."""
        values = StandardNormal().fill_(torch.empty(SIZE), seeded())

        assert p_value(wrong * values, scipy.stats.norm) < 1e-6

    @pytest.mark.parametrize("cut", [0.3, 1.0, 2.0, 3.0, 3.5])
    @pytest.mark.parametrize("std", [0.02, 1.0, 3.0, 1e-3])
    def test_strictly_inside(self, cut, std):
        """No number of a million touches the bound, even scaled in float32; some come near it."""
        values = StandardNormal(cut).fill_(torch.empty(1_000_000), seeded()).mul_(std)

        assert 0.99 * cut * std < values.abs().max().double() < cut * std

    @pytest.mark.parametrize("cut", [1.0, 3.5, 8.0])
    @pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 65536])
    def test_same_seed_same_numbers(self, cut, size):
        """The same generator fills any size with the same numbers."""
        first, second = (StandardNormal(cut).fill_(torch.empty(size), seeded(3)) for _ in range(2))

        assert torch.equal(first, second)

    def test_tails_are_even(self):
        """Beyond three standard deviations float32 numbers are as dense as they should be.

        Of 4,000,000 normals cut at 6, 5,400 lie beyond 3; their distinct values show that the tail
        has not been reached through the few numbers of float32 next to 1.
        """
        values = StandardNormal(6.0).fill_(torch.empty(4_000_000), seeded())
        tail = values[values.abs() > 4]

        assert len(tail.unique()) > 0.99 * len(tail)

    @pytest.mark.parametrize("cut", CUTS)
    def test_moments(self, cut):
        """Standard deviation and reach are those of the distribution; the kurtosis is a bound."""
        standard = StandardNormal(cut)
        std, kurtosis = truncated(cut).std(), float(truncated(cut).stats("k")) + 3

        assert standard.std == pytest.approx(std, rel=1e-9)
        assert standard.reach == (cut if cut < 8 else math.inf)
        assert standard.kurtosis >= kurtosis - 1e-9


@pytest.mark.parametrize(
    ("cut", "expected"),
    [
        (1.0, 0.5395600938),
        (2.0, 0.879625661),
        (3.0, 0.9865783926),
        (math.sqrt(3), 0.8146359955),
        (1e-2, 1e-2 / math.sqrt(3)),
        (1e-5, 1e-5 / math.sqrt(3)),
        (40.0, 1.0),
    ],
)
def test_truncation(cut, expected):
    """The factor of a truncation has the digits of trap D17; a narrow one is that of a uniform."""
    assert truncation(cut) == pytest.approx(expected, rel=1e-5 if cut < 0.1 else 1e-9)


class TestStandardUniform:
    """Uniform numbers."""

    def test_distribution(self):
        """Numbers are uniform on [-1, 1)."""
        values = StandardUniform().fill_(torch.empty(SIZE), seeded())

        assert p_value(values, scipy.stats.uniform(-1, 2)) > 1e-6

    def test_distribution_out_of_normals(self):
        """So are they when made of normals."""
        values = StandardUniform().of_normal(torch.randn(SIZE, generator=seeded()))

        assert p_value(values, scipy.stats.uniform(-1, 2)) > 1e-6

    def test_power(self):
        """The test rejects an interval that is 4 % off."""
        values = StandardUniform().fill_(torch.empty(SIZE), seeded())

        assert p_value(values, scipy.stats.uniform(-1.04, 2.08)) < 1e-6

    def test_moments(self):
        """Standard deviation, reach and kurtosis are those of the distribution."""
        standard, uniform = StandardUniform(), scipy.stats.uniform(-1, 2)

        assert standard.std == pytest.approx(uniform.std())
        assert standard.kurtosis == pytest.approx(float(uniform.stats("k")) + 3)


def test_zero():
    """Zero is zero, however it is made."""
    assert not Zero().fill_(torch.ones(3), None).any()
    assert not Zero().of_normal(torch.ones(3)).any()


def explicit_haar(normal):
    """Multiply Householder reflections one by one, in numpy's way."""
    rows, columns = normal.shape
    matrix = torch.eye(rows, columns, dtype=normal.dtype)
    for row in reversed(range(rows)):
        vector = normal[row].clone()
        vector[:row] = 0
        phase = vector[row] / vector[row].abs()
        vector[row] += phase * vector.norm()
        reflection = torch.eye(columns, dtype=normal.dtype)
        reflection -= 2 * torch.outer(vector.conj(), vector) / vector.norm() ** 2
        matrix = matrix @ reflection
        matrix[row] *= -phase
    return matrix


class TestHaar:
    """Matrices with orthonormal rows, uniform among all such."""

    @pytest.mark.parametrize("columns", [0, 1, 2, 3, 64, 65, 130])
    @pytest.mark.parametrize("rows", [0, 1, 2, 3, 63, 64, 65, 128, 130])
    def test_orthonormal(self, rows, columns):
        """Rows are orthonormal to float32's last digits, for every shape including empty ones."""
        rows = min(rows, columns)
        matrix = haar(torch.randn(rows, columns, generator=seeded())).double()

        assert torch.allclose(matrix @ matrix.mT, torch.eye(rows).double(), atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.complex64, torch.complex128], ids=str)
    def test_dtypes(self, dtype):
        """Double precision gives double precision; complex matrices are unitary."""
        matrix = haar(torch.randn(70, 90, dtype=dtype, generator=seeded()))
        accuracy = 1e-6 if dtype == torch.complex64 else 1e-14

        assert torch.allclose(matrix @ matrix.mH, torch.eye(70, dtype=dtype), atol=accuracy)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
    def test_product_of_reflections(self, dtype):
        """The compact form is the product of the reflections, one by one."""
        normal = torch.randn(70, 80, dtype=dtype, generator=seeded())

        assert torch.allclose(haar(normal), explicit_haar(normal), atol=1e-12)

    def test_batches(self):
        """Matrices of a batch are those of each alone."""
        normal = torch.randn(3, 2, 5, 7, dtype=torch.float64, generator=seeded())
        alone = torch.stack([torch.stack([haar(each) for each in row]) for row in normal])

        assert torch.allclose(haar(normal), alone, atol=1e-14)

    def test_exact_zeros(self):
        """Zeros among the normals, which float32 draws now and then, do no harm."""
        matrix = haar(torch.zeros(4, 6))

        assert torch.allclose(matrix @ matrix.mT, torch.eye(4), atol=1e-6)

    def test_argument_is_untouched(self):
        """The normals are read, not written."""
        normal = torch.randn(4, 6, generator=seeded())
        before = normal.clone()
        haar(normal)

        assert torch.equal(normal, before)

    def test_entries_of_a_uniform_matrix(self):
        """Squares of entries follow a beta distribution, each entry of 20,000 matrices of size 4.

        False alarm 1e-6; entries of a matrix of size 5 are rejected.
        """
        matrices = haar(torch.randn(20_000, 4, 4, dtype=torch.float64, generator=seeded()))
        beta = scipy.stats.beta(1 / 2, 3 / 2)

        assert min(p_value(matrices[:, i, j] ** 2, beta) for i in range(4) for j in range(4)) > 1e-6
        assert p_value(matrices[:, 0, 0] ** 2, scipy.stats.beta(1 / 2, 4 / 2)) < 1e-6

    @pytest.mark.parametrize("rows", [4, 3], ids=["square", "wide"])
    def test_signs_are_fair(self, rows):
        """Each entry is positive in half of 20,000 matrices, within five standard errors."""
        matrices = haar(torch.randn(20_000, rows, 4, dtype=torch.float64, generator=seeded()))
        shares = (matrices > 0).double().mean(0)

        assert (shares - 0.5).abs().max() < 5 * 0.5 / math.sqrt(20_000)

    def test_traces_of_a_uniform_matrix(self):
        """Traces have the moments of the orthogonal group: E tr = 0, E tr^2 = 1, E tr(Q^2) = 1.

        The same test rejects a QR decomposition whose signs are not made fair.
        """
        normal = torch.randn(20_000, 5, 5, dtype=torch.float64, generator=seeded())

        assert has_moments_of_the_group(haar(normal))
        assert not has_moments_of_the_group(torch.linalg.qr(normal).Q)


def has_moments_of_the_group(matrices):
    """Compare three moments of traces with those of the orthogonal group (Diaconis, 1994)."""
    trace = matrices.diagonal(dim1=-2, dim2=-1).sum(-1)
    square = (matrices @ matrices).diagonal(dim1=-2, dim2=-1).sum(-1)
    samples = (trace, trace**2 - 1, square - 1)
    return all(s.mean().abs() < 5 * s.std() / math.sqrt(len(s)) for s in samples)
