"""Lengths of tensors, against sums of squares in Python's exact fractions."""

from fractions import Fraction

import pytest
import torch

from torch_initpolicy.tensors.norms import norm, wide

DTYPES = [
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.complex32, torch.complex64, torch.complex128,
]  # fmt: skip


pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def square(tensor: torch.Tensor) -> Fraction:
    """Add the squares of all parts of all numbers, without rounding."""
    parts = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return sum((Fraction(part) ** 2 for part in parts.double().flatten().tolist()), Fraction(0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype):
    """The length is that of all real numbers that a tensor holds."""
    numbers = torch.randn(50, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    tensor = (numbers if dtype.is_complex else numbers.real).to(dtype)
    found = norm(tensor)
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(float(square(tensor)) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("size", [1e-37, 1e-30, 1e-22, 1e-18, 1e18, 1e22, 1e37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.bfloat16], ids=str)
def test_every_size_that_a_dtype_holds(dtype, size):
    """Squares may leave the range of the dtype; a length that is in it is found."""
    tensor = (size * torch.tensor([0.3, -1.7, 2.0, 0.0])).to(dtype)
    assert norm(tensor).item() == pytest.approx(float(square(tensor)) ** 0.5, rel=1e-5)


@pytest.mark.parametrize("value", [0.0, torch.inf, torch.nan])
def test_what_has_no_size_stays_so(value):
    """Zero, infinity and what is no number are not repaired."""
    assert norm(torch.full((3,), value)).item() == pytest.approx(value, nan_ok=True)


def test_an_empty_tensor_has_no_length():
    """Nothing adds up to zero."""
    assert norm(torch.zeros(0, 3)).item() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_rounds_nothing(dtype):
    """Whatever is widened keeps its values and its kind."""
    tensor = torch.tensor([0.1, 3.0]).to(dtype)
    assert wide(tensor).dtype.is_complex == dtype.is_complex
    assert wide(tensor).dtype.itemsize >= (8 if dtype.is_complex else 4)
    assert torch.equal(wide(tensor).to(torch.complex128), tensor.to(torch.complex128))
