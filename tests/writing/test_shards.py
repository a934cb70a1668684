"""Storage: boxes, pieces and placements, each against torch's own indexing and chunking.

What several processes hold is tested in `test_distributed.py`; here one process plays them all.
"""

import itertools
import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torch_initpolicy.writing.shards import (
    Cut,
    Piece,
    boxes,
    full,
    kept_by,
    overlap,
    pieces,
    volume,
    whole,
)

SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def runs(draw):
    """A shape and a run of its flattened tensor."""
    shape = draw(SHAPES)
    total = math.prod(shape)
    start = draw(st.integers(0, total))
    return shape, start, draw(st.integers(start, total))


@st.composite
def held_boxes(draw):
    """A shape and a box in it, as a shard on any axes would hold."""
    shape = draw(SHAPES)
    box = []
    for size in shape:
        start = draw(st.integers(0, size))
        box.append(range(start, draw(st.integers(start, size))))
    return shape, tuple(box)


def _index(box):
    return tuple(slice(axis.start, axis.stop) for axis in box)


def _held(shape, box):
    """A process' piece, cut out of a numbered tensor through torch's indexing."""
    tensor = torch.arange(math.prod(shape)).view(shape)[_index(box)].clone()
    steps = torch.empty(shape, device="meta").stride()
    first = sum(axis.start * step for axis, step in zip(box, steps, strict=True))
    last = sum((axis.stop - 1) * step for axis, step in zip(box, steps, strict=True))
    run = range(first, last + 1) if tensor.numel() else range(first, first)
    return Piece(tensor, shape, box, run)


class TestBoxes:
    """`boxes` cuts a run of the flattened tensor."""

    @given(runs())
    def test_exact(self, run):
        """Laid end to end, the boxes are the run: nothing twice, nothing missing, in order."""
        shape, start, stop = run
        numbers = torch.arange(math.prod(shape)).view(shape)
        found = [numbers[_index(box)].flatten() for box in boxes(shape, start, stop)]

        assert list(range(start, stop)) == torch.cat([*found, torch.empty(0)]).tolist()

    @given(runs())
    def test_few(self, run):
        """There are fewer boxes than twice the axes, however long the run."""
        shape, start, stop = run

        assert len(list(boxes(shape, start, stop))) <= max(2 * len(shape) - 1, 1)

    def test_scalar(self):
        """A tensor without axes is one box without axes."""
        assert list(boxes((), 0, 1)) == [()]
        assert volume(()) == 1

    def test_overlap(self):
        """Boxes share what both name on every axis."""
        assert (range(2, 3), range(4)) == overlap((range(3), range(9)), (range(2, 8), range(-2, 4)))
        assert volume(overlap((range(3),), (range(5, 8),))) == 0


class TestPieces:
    """A piece knows its part of the logical tensor."""

    @given(held_boxes(), st.integers(1, 20))
    def test_blocks(self, held, size):
        """The blocks of a piece are those that hold one of its elements, found by division."""
        piece = _held(*held)
        expected = {number // size for number in piece.tensor.flatten().tolist()}

        assert sorted(expected) == list(piece.blocks(size))

    @given(held_boxes(), st.data())
    def test_put(self, held, data):
        """Writing every run of a covering of the logical tensor writes exactly the piece."""
        shape, box = held
        piece = _held(shape, box)
        total = math.prod(shape)
        expected = piece.tensor.clone()
        piece.tensor.fill_(-1)
        cuts = sorted(data.draw(st.lists(st.integers(0, total), max_size=5)))
        for start, stop in itertools.pairwise([0, *cuts, total]):
            piece.put(torch.arange(start, stop), start)

        assert torch.equal(expected, piece.tensor)

    @given(held_boxes())
    def test_flat(self, held):
        """A flat view is the run itself, and there is one where the numbers adjoin."""
        piece = _held(*held)
        adjoin = piece.tensor.flatten().tolist() == list(piece.run)

        assert (piece.flat is not None) == adjoin
        assert piece.flat is None or piece.flat.tolist() == list(piece.run)

    def test_channels_last(self):
        """A tensor laid out otherwise than C order has no flat view and is written all the same."""
        tensor = torch.empty(3, 4, 5, 6).to(memory_format=torch.channels_last)
        piece = whole(tensor)
        piece.put(torch.arange(360.0), 0)

        assert piece.flat is None
        assert torch.equal(torch.arange(360.0).view(3, 4, 5, 6), tensor)
        assert tensor.is_contiguous(memory_format=torch.channels_last)

    def test_casts(self):
        """Values are cast to the piece's dtype as `copy_` casts."""
        tensor = torch.empty(3, dtype=torch.bfloat16)
        whole(tensor).put(torch.tensor([1.0, 1 / 3, 1e-3]), 0)

        assert torch.equal(torch.tensor([1.0, 1 / 3, 1e-3]).bfloat16(), tensor)

    def test_shares_memory(self):
        """A plain parameter is one piece that shares its memory and no graph."""
        parameter = nn.Parameter(torch.zeros(2, 3))
        (piece,) = pieces(parameter)

        assert piece.tensor.data_ptr() == parameter.data_ptr()
        assert not piece.tensor.requires_grad
        assert full(parameter).data_ptr() == parameter.data_ptr()

    def test_part_of(self):
        """A piece picks its part out of a whole value."""
        value = torch.arange(12).view(3, 4)
        piece = _held((3, 4), (range(1, 3), range(2, 3)))

        assert piece.part_of(value).tolist() == [[6], [10]]


class TestPlacements:
    """`kept_by` says which indices of an axis a process keeps."""

    @given(
        st.integers(0, 40),
        st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 4)), max_size=3),
    )
    def test_chunks(self, size, cuts):
        """Nested cuts agree with `torch.chunk`, groups with chunking twice and concatenating."""
        expected = torch.arange(size)
        for index, count, groups in cuts:
            expected = torch.cat(
                [_chunk(group, count, index % count) for group in expected.tensor_split(1)]
                if groups == 1
                else [
                    _chunk(_chunk(expected, groups, group), count, index % count)
                    for group in range(groups)
                ]
            )
        kept = kept_by(size, [Cut(index % count, count, groups) for index, count, groups in cuts])

        assert expected.tolist() == list(itertools.chain(*kept))

    def test_neighbours_join(self):
        """Tensor parallelism first and FSDP within it leave every process one run."""
        kept = [kept_by(16, [Cut(dp, 2, groups=2), Cut(tp, 2)]) for dp in (0, 1) for tp in (0, 1)]

        assert [(range(4),), (range(8, 12),), (range(4, 8),), (range(12, 16),)] == kept


def _chunk(tensor, count, index):
    parts = tensor.chunk(count)
    return parts[index] if index < len(parts) else tensor[:0]
