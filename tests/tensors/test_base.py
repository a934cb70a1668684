"""What initializers share: distributions in words, dtypes, checks of fields, packed blocks."""

import math

import pytest
import torch

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.base import (
    Draw,
    Spread,
    alike,
    fitting,
    joined,
    parts,
    require_number,
    working_dtype,
)
from torch_initpolicy.tensors.samplers import StandardNormal, StandardUniform


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


@pytest.mark.parametrize("name", ["float8_e8m0fnu", "float4_e2m1fn_x2"])
def test_dtypes_that_only_store(name):
    """What has no zero and no sign, or packs two numbers, cannot hold what would be drawn."""
    dtype = getattr(torch, name, None)
    if dtype is None:
        pytest.skip(f"this torch has no {name}")
    with pytest.raises(PolicyError, match=name):
        working_dtype(dtype)


class TestRequireNumber:
    """Fields that must be numbers."""

    @pytest.mark.parametrize("value", [0.0, 0, 3, 1e300])
    def test_numbers(self, value):
        """Integers and floats from the least value on are taken, and none below it."""
        require_number(self, "std", value, 0.0)
        require_number(self, "std", value, value)
        with pytest.raises(PolicyError, match="std must be a finite number"):
            require_number(self, "std", value, math.nextafter(value, math.inf))

    @pytest.mark.parametrize("value", [-1e-9, math.nan, math.inf, "1", None, True, 1j], ids=repr)
    def test_others(self, value):
        """Anything else is refused, naming class, field and value."""
        with pytest.raises(PolicyError, match="TestRequireNumber: std must be a finite number"):
            require_number(self, "std", value, 0.0)


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
    assert torch.equal(joined(whole.shape, axes, blocks), whole)


def test_alike():
    """Equal spreads are told once, others each."""
    first, second = Spread(0.0, 1.0), Spread(0.0, 2.0)

    assert alike([first, first]) == first
    assert alike([first, second]) == (first, second)


def test_misfit_names_the_initializer():
    """An error about axes says whose they are."""
    with pytest.raises(PolicyError, match=r"Normal does not fit: .*has no inputs and outputs"):
        fitting("Normal", (5,), None)
