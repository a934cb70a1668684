"""Where units lie in memory, against tensors that hold the number of their unit."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torch_initpolicy.trace.graph import Value
from torch_initpolicy.trace.layouts import Layout, Run, bits, of_axis

UNITS = 12


def value(tensor: Tensor) -> Value:
    """Record a tensor as the recorder does."""
    return Value(
        0, tuple(tensor.shape), tensor.stride(), tensor.storage_offset(),
        tensor.untyped_storage().data_ptr(), tensor.dtype,
    )  # fmt: skip


def numbered(axis: int) -> Tensor:
    """Make a tensor of three axes, each element of which holds the number of its unit."""
    shape = [2, 3, 4]
    shape[axis] = UNITS
    along = [1, 1, 1]
    along[axis] = UNITS
    return torch.arange(UNITS).view(along).expand(shape).contiguous()


def held(tensor: Tensor) -> int:
    """Return the units whose numbers a tensor holds, as bits."""
    return sum(1 << number for number in tensor.unique().tolist())


@st.composite
def ways(draw):
    """Draw a way of a tensor through reshapes, permutations, copies and slices."""
    axis = draw(st.integers(0, 2))
    tensor = numbered(axis)
    tensors = [(tensor, False)]
    for _ in range(draw(st.integers(1, 6))):
        tensor, is_reshaped = draw(st.sampled_from(STEPS))(draw, tensor)
        tensors.append((tensor, is_reshaped))
    return axis, tensors


def reshaped(draw, tensor):
    """Split a dimension, or join two: a view where that can be, else a copy."""
    shape = list(tensor.shape)
    at = draw(st.integers(0, len(shape) - 1))
    if draw(st.booleans()) and at + 1 < len(shape):
        shape[at : at + 2] = [shape[at] * shape[at + 1]]
    else:
        inner = draw(st.sampled_from([d for d in range(1, shape[at] + 1) if shape[at] % d == 0]))
        shape[at : at + 1] = [shape[at] // inner, inner]
    return tensor.reshape(shape), True


def permuted(draw, tensor):
    """Put the dimensions into another order."""
    return tensor.permute(draw(st.permutations(range(tensor.dim())))), False


def copied(draw, tensor):
    """Copy into memory of its own."""
    return tensor.clone(memory_format=torch.contiguous_format), False


def sliced(draw, tensor):
    """Take some positions of one dimension, evenly apart."""
    dim = draw(st.integers(0, tensor.dim() - 1))
    start = draw(st.integers(0, tensor.shape[dim] - 1))
    step = draw(st.integers(1, 3))
    index = [slice(None)] * tensor.dim()
    index[dim] = slice(start, None, step)
    return tensor[tuple(index)], False


STEPS = (reshaped, permuted, copied, sliced)


@given(ways())
def test_units_are_those_held(way):
    """Along any way, the units said to lie in a value are those whose numbers it holds."""
    axis, tensors = way
    before = value(tensors[0][0])
    layout: Layout | None = of_axis(7, before, axis)
    for tensor, is_reshaped in tensors[1:]:
        layout = layout and layout.after(before, value(tensor), reshaped=is_reshaped)
        before = value(tensor)
        if layout is None:
            return
        assert layout.units(before) in (None, held(tensor))


@pytest.mark.parametrize(
    ("moved", "shape", "index"),
    [
        (lambda x: x.view(5, 3, 2, 2).permute(1, 0, 2, 3), (3, 5, 4), 1),
        (lambda x: x.view(5, 2, 6).permute(1, 0, 2), (2, 5, 3, 2), (..., 1, slice(None))),
        (torch.t, (4, 3, 5), (slice(None), 2)),
    ],
    ids=["parts in front", "within heads", "units in front"],
)
def test_cuts_behind_copies_are_exact(moved, shape, index):
    """Where pieces are cut from a copy in another order, they are known and not lost."""
    x = torch.arange(UNITS).expand(5, UNITS).contiguous()
    views = moved(x)
    copy = views.contiguous().reshape(shape)
    layout = of_axis(7, value(x), 1)
    assert layout is not None
    layout = layout.after(value(views), value(copy), reshaped=True)
    assert layout is not None

    assert layout.units(value(copy[index])) == held(copy[index])
    assert held(copy[index]).bit_count() < UNITS


def test_other_dimensions_may_change():
    """A copy that pads or pools other dimensions keeps the units; one that cuts theirs does not."""
    x = numbered(1)
    layout = of_axis(7, value(x), 1)
    assert layout is not None
    padded, joined = x.new_zeros(2, UNITS, 6), x.new_zeros(2, 2 * UNITS, 4)
    after = layout.after(value(x), value(padded), reshaped=False)

    assert after is not None
    assert after.units(value(padded[:, 3:5])) == 0b11000
    assert layout.after(value(x), value(joined), reshaped=False) is None


def test_halves():
    """The halves of an axis show its lower and its upper units."""
    x = numbered(2)
    layout = of_axis(7, value(x), 2)
    assert layout is not None

    assert layout.halves(value(x), 2) == (0b111111, 0b111111 << 6)


def test_no_units():
    """An axis of one unit, or of copies of one, has no layout."""
    assert of_axis(7, value(torch.zeros(3, 1)), 1) is None
    assert of_axis(7, value(torch.zeros(1).expand(3)), 0) is None


def test_bits_are_all_sums():
    """Runs are added up in every combination."""
    runs = [Run(3, 4), Run(2, 1)]

    assert bits(5, runs) == sum(1 << (5 + 4 * i + j) for i in range(3) for j in range(2))
    assert bits(5, runs).bit_count() == math.prod(run.extent for run in runs)
