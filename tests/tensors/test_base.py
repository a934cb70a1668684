"""What initializers share: distributions in words, dtypes, checks of fields, packed blocks."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.base import (
    Spread,
    fitting,
    joined_blocks,
    merged_spreads,
    parts,
    take_number,
    widened,
    working_dtype,
)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
        (torch.float8_e4m3fn, torch.float32),
        (torch.complex64, torch.complex64),
        (torch.complex32, torch.complex64),
        (torch.complex128, torch.complex128),
    ],
    ids=str,
)
def test_working_dtype(dtype, expected):
    """Numbers are drawn in single precision, or double for double."""
    assert working_dtype(dtype) == expected


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool], ids=str)
def test_no_working_dtype(dtype):
    """Nothing is drawn for integers, and the error names the dtype."""
    with pytest.raises(PolicyError, match=str(dtype)):
        working_dtype(dtype)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_no_number_is_lost_in_widening(dtype):
    """Every number of one byte is one of two bytes."""
    bits = torch.arange(256, dtype=torch.uint8)
    wide = widened(bits.view(dtype))
    known = ~wide.isnan()
    assert wide.dtype == torch.float16
    assert known.sum() >= 248
    assert torch.equal(wide.to(dtype).view(torch.uint8)[known], bits[known])


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.complex64, torch.int8])
def test_what_torch_computes_with_is_not_widened(dtype):
    """All others are handed back themselves."""
    tensor = torch.ones(3, dtype=dtype)
    assert widened(tensor) is tensor


@pytest.mark.parametrize("name", ["float8_e8m0fnu", "float4_e2m1fn_x2"])
def test_dtypes_that_only_store(name):
    """What has no zero and no sign, or packs two numbers, cannot hold what would be drawn."""
    dtype = getattr(torch, name, None)
    if dtype is None:
        pytest.skip(f"this torch has no {name}")
    with pytest.raises(PolicyError, match=name):
        working_dtype(dtype)


class Owner:
    """What has a field that must be a number."""

    def __init__(self, std):
        self.std = std


class TestTakeNumber:
    """Fields that must be numbers."""

    @pytest.mark.parametrize("value", [0.0, 0, 3, 1e300])
    def test_numbers(self, value):
        """Integers and floats from the least value on are taken, and none below it."""
        take_number(Owner(value), "std", 0.0)
        take_number(Owner(value), "std", value)
        with pytest.raises(PolicyError, match="std must be a finite number"):
            take_number(Owner(value), "std", math.nextafter(value, math.inf))

    @pytest.mark.parametrize(
        "value",
        [
            *(-1e-9, math.nan, math.inf, "1", None, True, 1j, 10**400, -(10**400), [1.0]),
            *(np.array([0.5]), np.bool_(True), np.complex64(1), torch.zeros(2)),
            *(torch.tensor(True), torch.tensor(1j), torch.tensor(math.nan)),
            torch.empty((), device="meta"),
        ],
        ids=lambda value: repr(value)[:20],
    )
    def test_others(self, value):
        """Anything else is refused, naming class, field and value."""
        with pytest.raises(PolicyError, match="Owner: std must be a finite number"):
            take_number(Owner(value), "std", 0.0)

    @pytest.mark.parametrize(
        "value",
        [
            *(np.float16(0.25), np.float32(0.25), np.float64(0.25), np.array(0.25)),
            *(torch.tensor(0.25), torch.tensor(0.25).bfloat16(), torch.tensor(0.25).double()),
            Fraction(1, 4),
        ],
        ids=lambda value: f"{type(value).__name__} {getattr(value, 'dtype', '')}",
    )
    def test_numbers_of_others(self, value):
        """A number of NumPy, a tensor of no dimension and a fraction become Python's own."""
        owner = Owner(value)
        take_number(owner, "std")

        assert (type(owner.std), owner.std) == (float, 0.25)

    @pytest.mark.parametrize("value", [np.int64(3), torch.tensor(3)], ids=["numpy", "torch"])
    def test_integers_of_others(self, value):
        """Their integers stay integers."""
        owner = Owner(value)
        take_number(owner, "std")

        assert (type(owner.std), owner.std) == (int, 3)


@pytest.mark.parametrize(
    "axes",
    [
        Axes((1,), (0,)),
        Axes((1,), (0,), blocks=(12, 6, 6)),
        Axes((1,), (0,), blocks=(3, 5), repeats=3),
        Axes((0,), (1,), blocks=(4, 4)),
    ],
    ids=["plain", "blocks", "repeated", "second axis"],
)
def test_parts_join_to_the_whole(axes):
    """Blocks that are cut out by hand and joined are the tensor again."""
    whole = torch.arange(24 * 8).view(24, 8)
    axis = axes.packed or 0
    turns = whole.chunk(axes.repeats, axis)
    cut = zip(*(turn.split(axes.blocks or (24,), axis) for turn in turns), strict=True)
    blocks = [torch.cat(pieces, axis) for pieces in cut]

    assert [tuple(block.shape) for block in blocks] == [s for s, _ in parts(whole.shape, axes)]
    assert torch.equal(joined_blocks(whole.shape, axes, blocks), whole)


def test_merged_spreads():
    """Equal spreads become one, others stay each."""
    first, second = Spread(0.0, 1.0), Spread(0.0, 2.0)

    assert merged_spreads([first, first]) == first
    assert merged_spreads([first, second]) == (first, second)


def test_misfit_names_the_initializer():
    """An error about axes says whose they are."""
    with pytest.raises(PolicyError, match=r"Normal does not fit: .*has no inputs and outputs"):
        fitting("Normal", (5,), None)
