"""Structured initializers have the properties that their papers name, for every layout."""

import math

import pytest
import torch
from torch import nn

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.base import Context
from torch_initpolicy.tensors.layers import axes_of
from torch_initpolicy.tensors.structured import (
    DeltaOrthogonal,
    Dirac,
    Identity,
    Orthogonal,
    Sparse,
)


def drawn(initializer, shape, axes=None, dtype=torch.float32):
    """Return a tensor filled from a generator of its own."""
    tensor = torch.empty(shape, dtype=dtype)
    initializer(tensor, axes, generator=torch.Generator().manual_seed(0))
    return tensor


def is_orthogonal(matrix, gain=1.0, accuracy=1e-6):
    """Say whether rows are orthonormal, or columns where there are fewer; times `gain`."""
    matrix = matrix.mH if matrix.shape[-2] > matrix.shape[-1] else matrix
    eye = gain**2 * torch.eye(matrix.shape[-2], dtype=matrix.dtype)
    return torch.allclose(matrix @ matrix.mH, eye.expand_as(matrix @ matrix.mH), atol=accuracy)


class TestOrthogonal:
    """Orthogonal matrices, one per block, group and copy."""

    @pytest.mark.parametrize(
        "shape", [(5, 5), (3, 7), (7, 3), (1, 6), (6, 1), (200, 130), (8, 2, 3, 3), (40, 2, 3, 3)]
    )
    @pytest.mark.parametrize("gain", [1.0, 1.7])
    def test_shapes(self, shape, gain):
        """Wide matrices have orthonormal rows and tall ones columns; kernels are flattened."""
        assert is_orthogonal(drawn(Orthogonal(gain), shape).flatten(1), gain)

    @pytest.mark.parametrize(
        ("dtype", "accuracy"),
        [
            (torch.float64, 1e-14),
            (torch.bfloat16, 2e-2),
            (torch.float16, 2e-3),
            (torch.complex64, 1e-6),
            (torch.complex128, 1e-14),
        ],
        ids=str,
    )
    def test_dtypes(self, dtype, accuracy):
        """Every dtype works; half precision is orthogonal to its own rounding (trap D20)."""
        matrix = drawn(Orthogonal(), (40, 60), dtype=dtype)
        matrix = matrix.float() if dtype.itemsize == 2 else matrix

        assert is_orthogonal(matrix, accuracy=accuracy)

    def test_complex_is_unitary(self):
        """A complex tensor is filled in both parts."""
        assert drawn(Orthogonal(), (5, 5), dtype=torch.complex64).imag.abs().max() > 0.1

    def test_gates(self):
        """Each gate of an LSTM is orthogonal, which a single tall matrix is not (trap D5)."""
        layer = nn.LSTM(16, 16)
        matrix = drawn(Orthogonal(), (64, 16), axes_of(layer, "weight_hh_l0"))

        assert all(is_orthogonal(gate) for gate in matrix.chunk(4))
        assert not any(is_orthogonal(gate) for gate in drawn(Orthogonal(), (64, 16)).chunk(4))

    def test_interleaved_blocks(self):
        """Blocks that recur with each head are matrices over all heads."""
        axes = Axes((1,), (0,), blocks=(2, 2, 2), repeats=4)
        matrix = drawn(Orthogonal(), (24, 30), axes).view(4, 3, 2, 30)

        assert all(is_orthogonal(matrix[:, block].reshape(8, 30)) for block in range(3))

    @pytest.mark.parametrize(
        "layer",
        [nn.Conv2d(6, 8, 3, groups=2), nn.ConvTranspose2d(8, 6, 3, groups=2)],
        ids=["conv", "transposed"],
    )
    def test_groups(self, layer):
        """Each group is a matrix of its own, `(out, in * kernel)` also when stored transposed."""
        weight = drawn(Orthogonal(), layer.weight.shape, axes_of(layer, "weight"))
        groups = weight.chunk(2)
        if layer.transposed:
            groups = [group.transpose(0, 1) for group in groups]

        assert all(is_orthogonal(group.flatten(1)) for group in groups)

    def test_experts(self):
        """Each expert has a matrix of its own, and no two are alike."""
        experts = drawn(Orthogonal(), (3, 5, 8), Axes((1,), (2,), copies=(0,)))

        assert all(is_orthogonal(expert) for expert in experts)
        assert not torch.allclose(experts[0], experts[1], atol=1e-2)

    def test_embedding(self):
        """Rows of a table are copies: each is a random unit vector."""
        rows = drawn(Orthogonal(), (1000, 8), Axes((), (1,), copies=(0,)))

        assert torch.allclose(rows.norm(dim=1), torch.ones(1000))
        assert rows.mean(0).abs().max() < 5 / math.sqrt(8 * 1000)

    def test_spread(self):
        """The standard deviation of a plan is that of the numbers, exactly."""
        weight = drawn(Orthogonal(1.5), (30, 20))

        assert Orthogonal(1.5).spread((30, 20), None).std == pytest.approx(1.5 / math.sqrt(30))
        assert weight.square().mean().sqrt().item() == pytest.approx(1.5 / math.sqrt(30))

    def test_spread_of_unequal_blocks(self):
        """Blocks of their own sizes have their own standard deviations."""
        axes = Axes((1,), (0,), blocks=(90, 30, 30))
        spreads = Orthogonal().spread((150, 60), axes)

        assert [s.std for s in spreads] == pytest.approx([90**-0.5, 60**-0.5, 60**-0.5])

    def test_gain_by_name(self):
        """Words become the numbers of a site."""
        assert Orthogonal("meets").resolve(Context(meets_gain=1.5)) == Orthogonal(1.5)
        with pytest.raises(PolicyError, match="write a number"):
            Orthogonal("meets")(torch.empty(3, 3))


class TestDeltaOrthogonal:
    """Convolutions that keep norms."""

    @pytest.mark.parametrize(
        ("layer", "shape"),
        [
            (nn.Conv1d(6, 8, 5, padding=2), (1, 6, 9)),
            (nn.Conv2d(6, 8, 3, padding=1, groups=2), (1, 6, 9, 9)),
            (nn.Conv3d(4, 4, 3, padding=1), (1, 4, 5, 5, 5)),
            (nn.ConvTranspose2d(6, 8, 3, padding=1), (1, 6, 9, 9)),
            (nn.Linear(6, 8), (1, 6)),
        ],
        ids=["1d", "grouped", "3d", "transposed", "linear"],
    )
    def test_keeps_norms(self, layer, shape):
        """The output is as long as the input, whatever the input."""
        DeltaOrthogonal()(layer.weight, axes_of(layer, "weight"))
        nn.init.zeros_(layer.bias)
        values = torch.randn(shape)

        assert layer(values).norm().item() == pytest.approx(values.norm().item(), rel=1e-5)

    def test_spread_counts_zeros(self):
        """The standard deviation is that of all numbers, zeros included."""
        weight = drawn(DeltaOrthogonal(2.0), (8, 6, 3, 3))

        found = DeltaOrthogonal(2.0).spread((8, 6, 3, 3), None)

        assert weight.square().mean().sqrt().item() == pytest.approx(found.std)
        assert found.std == pytest.approx(2 / math.sqrt(8 * 9))

    @pytest.mark.parametrize(
        ("shape", "said"),
        [((4, 6, 3, 3), "as many outputs as inputs"), ((6, 4, 2, 2), "odd extents")],
        ids=["narrowing", "even"],
    )
    def test_misfits(self, shape, said):
        """What cannot keep norms, or has no middle, is refused in planning."""
        with pytest.raises(PolicyError, match=said):
            DeltaOrthogonal().spread(shape, None)


class TestDirac:
    """Convolutions that copy their input."""

    @pytest.mark.parametrize("groups", [1, 2])
    @pytest.mark.parametrize(
        "shape", [(6, 3, 3), (6, 6, 5, 5), (2, 4, 3, 3, 3), (6, 3, 4)], ids=str
    )
    def test_like_torch(self, shape, groups):
        """Numbers are those of torch's `dirac_`."""
        weight = drawn(Dirac(), shape, Axes((1,), (0,), groups=groups))

        assert torch.equal(weight, nn.init.dirac_(torch.empty(shape), groups))

    @pytest.mark.parametrize("groups", [1, 3])
    def test_transposed_convolution_copies(self, groups):
        """A transposed convolution copies its input as well."""
        layer = nn.ConvTranspose2d(6, 6, 3, padding=1, groups=groups, bias=False)
        Dirac(2.0)(layer.weight, axes_of(layer, "weight"))
        values = torch.randn(1, 6, 5, 5)

        assert torch.allclose(layer(values), 2 * values)

    def test_needs_a_kernel(self):
        """A matrix is sent to Identity."""
        with pytest.raises(PolicyError, match=r"use Identity\(\)"):
            Dirac()(torch.empty(3, 3))


class TestIdentity:
    """Linear maps that copy their input."""

    @pytest.mark.parametrize("shape", [(3, 3), (2, 5), (5, 2)], ids=str)
    def test_like_torch(self, shape):
        """Numbers are those of torch's `eye_`."""
        assert torch.equal(drawn(Identity(), shape), nn.init.eye_(torch.empty(shape)))

    def test_blocks(self):
        """Each gate copies the state."""
        matrix = drawn(Identity(0.5), (12, 4), Axes((1,), (0,), blocks=(4, 4, 4)))

        assert torch.equal(matrix, 0.5 * torch.eye(4).repeat(3, 1))

    def test_pointwise_convolution(self):
        """A kernel of a single tap is a matrix."""
        assert torch.equal(drawn(Identity(), (3, 3, 1, 1))[..., 0, 0], torch.eye(3))

    def test_refuses_a_kernel(self):
        """A kernel is sent to Dirac."""
        with pytest.raises(PolicyError, match=r"use Dirac\(\)"):
            Identity()(torch.empty(3, 3, 3))


class TestSparse:
    """Units with a limited number of inputs."""

    @pytest.mark.parametrize(
        ("shape", "axes"),
        [
            ((50, 33), None),
            ((33, 50), Axes((0,), (1,))),
            ((50, 11, 3), None),
            ((50, 33), Axes((1,), (0,), blocks=(20, 30))),
            ((4, 25, 33), Axes((2,), (1,), copies=(0,))),
        ],
        ids=["matrix", "x @ W", "kernel", "blocks", "experts"],
    )
    def test_each_unit_has_the_same_number_of_inputs(self, shape, axes):
        """Of 33 incoming weights 30 are zero at a sparsity of 0.9, for each output unit."""
        weight = drawn(Sparse(0.9), shape, axes)
        incoming = weight.T if axes == Axes((0,), (1,)) else weight
        zeros = (incoming.reshape(-1, 33) == 0).sum(1)

        assert zeros.eq(30).all()

    @pytest.mark.parametrize("sparsity", [0.0, 0.3, 1.0])
    def test_any_share(self, sparsity):
        """From none to all can be zero."""
        weight = drawn(Sparse(sparsity), (20, 10))

        assert (weight == 0).double().mean().item() == pytest.approx(sparsity)

    def test_inputs_are_chosen_evenly(self):
        """Each input is kept by its share of 10,000 units, within five standard errors."""
        kept = (drawn(Sparse(0.8), (10_000, 10)) != 0).double().mean(0)

        assert (kept - 0.2).abs().max() < 5 * math.sqrt(0.2 * 0.8 / 10_000)

    def test_std_of_what_is_left(self):
        """Weights that are not zero have the standard deviation asked for, within 3 %.

        Five standard errors of 20,000 normals are 2.5 %.
        """
        weight = drawn(Sparse(0.9, std=0.5), (1000, 200))

        assert weight[weight != 0].std().item() == pytest.approx(0.5, rel=0.03)
        assert weight.std().item() == pytest.approx(
            Sparse(0.9, std=0.5).spread((1000, 200), None).std, rel=0.03
        )

    def test_generator_is_all_it_draws_from(self):
        """The zeros come from the generator too, unlike those of torch's `sparse_` (trap D22)."""
        torch.manual_seed(1)
        first = drawn(Sparse(0.5), (8, 8))
        torch.manual_seed(2)

        assert torch.equal(first, drawn(Sparse(0.5), (8, 8)))

    def test_share_beyond_one(self):
        """A share is not a percentage."""
        with pytest.raises(PolicyError, match="share from 0 to 1"):
            Sparse(90)


def test_product_of_a_hundred_stays_orthogonal():
    """A hundred orthogonal layers keep every signal (Saxe et al.): errors do not build up."""
    product = torch.eye(64)
    for seed in range(100):
        weight = torch.empty(64, 64)
        Orthogonal()(weight, generator=torch.Generator().manual_seed(seed))
        product = weight @ product

    assert is_orthogonal(product, accuracy=1e-4)
