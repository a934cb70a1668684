"""Axes are validated, and blocks, groups and fans agree with a dense matrix of connections."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torch_initpolicy.tensors.axes import (
    Axes,
    Fans,
    block_ranges,
    check_axes,
    conventional,
    fans,
    part,
)

MATRIX = Axes(inputs=(1,), outputs=(0,))


class TestAxes:
    """Axes that contradict themselves are refused where they are written."""

    @pytest.mark.parametrize(
        "fields",
        [
            {"inputs": (1,), "outputs": (1,)},
            {"inputs": (-1,), "outputs": (0,)},
            {"inputs": (1,), "outputs": (0,), "copies": (0,)},
            {"inputs": (1,), "outputs": (0,), "groups": 0},
            {"inputs": (1,), "outputs": (0,), "repeats": 0},
            {"inputs": (1,), "outputs": (0,), "stride": 0},
            {"inputs": (1,), "outputs": (), "blocks": (2, 2)},
            {"inputs": (1,), "outputs": (0,), "blocks": (4, -2)},
        ],
        ids=["twice", "negative", "copy", "groups", "repeats", "stride", "no output", "block"],
    )
    def test_contradictions(self, fields):
        """Each contradiction is a ValueError that shows the axes."""
        with pytest.raises(ValueError, match="Axes"):
            Axes(**fields)

    def test_packed_axis(self):
        """Blocks lie along the first output axis; without blocks nothing is packed."""
        assert Axes(inputs=(0,), outputs=(1,), blocks=(2, 2)).packed == 1
        assert MATRIX.packed is None

    @pytest.mark.parametrize(
        "axes",
        [MATRIX, Axes((0,), (1,), (2,), 2, (3, 4), 5, 6, transposed=True)],
        ids=["plain", "everything"],
    )
    def test_repr(self, axes):
        """The repr is the call that makes it, without what is left at its default."""
        assert eval(repr(axes)) == axes
        assert repr(MATRIX) == "Axes(inputs=(1,), outputs=(0,))"


class TestCheck:
    """Axes that do not fit a shape are refused, saying which part does not."""

    @pytest.mark.parametrize(
        ("shape", "axes", "said"),
        [
            ((4,), MATRIX, "does not have"),
            ((6, 2, 3), Axes((1,), (0,), groups=4), "do not divide"),
            ((), Axes((), (), groups=2), "do not divide"),
            ((7, 2), Axes((1,), (0,), blocks=(3, 3)), "do not fill"),
            ((6, 2), Axes((1,), (0,), blocks=(3,), repeats=3), "do not fill"),
        ],
        ids=["missing axis", "groups", "scalar", "blocks", "repeats"],
    )
    def test_misfits(self, shape, axes, said):
        """Each misfit is a ValueError."""
        with pytest.raises(ValueError, match=said):
            check_axes(shape, axes)


class TestConventional:
    """Torch's layout needs two dimensions."""

    def test_kernel(self):
        """Whatever follows output and input is the kernel's extent."""
        assert fans((64, 3, 7, 7), conventional((64, 3, 7, 7))) == (3 * 49, 64 * 49)

    @pytest.mark.parametrize("shape", [(), (5,)], ids=["scalar", "vector"])
    def test_nothing_connected(self, shape):
        """A vector connects nothing, and the error says what to write."""
        with pytest.raises(ValueError, match="pass its Axes"):
            conventional(shape)


SHAPES = {
    "linear": ((5, 7), MATRIX, (7, 5)),
    "x @ W": ((7, 5), Axes((0,), (1,)), (7, 5)),
    "experts of x @ W": ((8, 64, 128), Axes((1,), (2,), copies=(0,)), (64, 128)),
    "experts of W @ x": ((8, 128, 64), Axes((2,), (1,), copies=(0,)), (64, 128)),
    "bilinear": ((5, 4, 6), Axes((1, 2), (0,)), (24, 5)),
    "heads apart": ((32, 4, 8), Axes((0,), (1, 2)), (32, 32)),
    "depthwise": ((64, 1, 3, 3), Axes((1,), (0,), groups=64), (9, 9)),
    "grouped": ((128, 16, 3, 3), Axes((1,), (0,), groups=4), (144, 288)),
    "patches": ((64, 3, 16, 16), Axes((1,), (0,), stride=256), (768, 64)),
    "strided": ((64, 32, 3, 3), Axes((1,), (0,), stride=4), (288, 144)),
    "transposed": ((16, 64, 4, 4), Axes((0,), (1,), stride=4, transposed=True), (64, 1024)),
    "uneven stride": ((16, 64, 3), Axes((0,), (1,), stride=2, transposed=True), (24, 192)),
    "fractional": ((1, 64, 3), Axes((0,), (1,), stride=2, transposed=True), (1.5, 192)),
    "embedding": ((1000, 64), Axes((), (1,), copies=(0,)), (1, 64)),
    "no inputs": ((5, 0), MATRIX, (0, 5)),
    "nothing": ((0, 0), MATRIX, (0, 0)),
    "empty kernel": ((5, 7, 0), MATRIX, (0, 0)),
}


@pytest.mark.parametrize(("shape", "axes", "expected"), SHAPES.values(), ids=SHAPES)
def test_fans(shape, axes, expected):
    """Fans of each layout are those counted by hand (traps D1, D2, D7, D10)."""
    assert fans(shape, axes) == expected


@pytest.mark.parametrize(("shape", "axes", "expected"), SHAPES.values(), ids=SHAPES)
def test_fans_are_whole_numbers_where_they_can_be(shape, axes, expected):
    """Fans print as integers; only a stride that does not divide the kernel gives a fraction."""
    assert [type(n) for n in fans(shape, axes)] == [type(n) for n in expected]


def dense_connections(shape, axes):
    """Return the boolean matrix `(out, in)` of a grouped map, by running it."""
    weight = torch.ones(shape)
    values = torch.eye(shape[1] * axes.groups)[:, :, None]
    return torch.nn.functional.conv1d(values, weight[..., None], groups=axes.groups)[..., 0].T > 0


PACKED = {
    "q | k | v": ((24, 5), Axes((1,), (0,), blocks=(8, 8, 8))),
    "unequal": ((24, 5), Axes((1,), (0,), blocks=(16, 4, 4))),
    "heads": ((24, 5), Axes((1,), (0,), blocks=(2, 2, 2), repeats=4)),
    "heads in groups": ((24, 5), Axes((1,), (0,), blocks=(2, 2, 2), repeats=4, groups=2)),
    "groups in blocks": ((24, 5), Axes((1,), (0,), blocks=(8, 8, 8), groups=6)),
    "groups in unequal blocks": ((24, 5), Axes((1,), (0,), blocks=(16, 8), groups=6)),
    "groups in repeated blocks": ((24, 5), Axes((1,), (0,), blocks=(4, 8), repeats=2, groups=12)),
    "groups in heads": ((24, 5), Axes((1,), (0,), blocks=(4, 4), repeats=3, groups=6)),
}


def owners(axes):
    """Return the block that each position of the packed axis belongs to."""
    pattern = [block for block, size in enumerate(axes.blocks) for _ in range(size)]
    return pattern * axes.repeats


@pytest.mark.parametrize(("shape", "axes"), PACKED.values(), ids=PACKED)
class TestPacked:
    """Blocks are counted as if each stood alone."""

    def test_fans_of_each_block(self, shape, axes):
        """Fans are sums over a dense matrix of connections, restricted to the block's units."""
        connected = dense_connections(shape, axes)
        of_unit = torch.tensor(owners(axes))

        for block in range(len(axes.blocks)):
            rows = connected[of_unit == block]
            reached = rows.sum(0)
            expected = Fans(int(rows.sum(1).max()), int(reached.max()))

            assert fans(shape, axes, block) == expected

    def test_parts_make_up_the_whole(self, shape, axes):
        """Blocks, each taken as a weight of its own, hold all elements."""
        parts = [part(shape, axes, block) for block in range(len(axes.blocks))]

        for part_shape, part_axes in parts:
            check_axes(part_shape, part_axes)
        assert sum(torch.Size(s).numel() for s, _ in parts) == torch.Size(shape).numel()

    def test_ranges_and_index_agree(self, shape, axes):
        """The two ways to say where a block lies say the same."""
        index = owners(axes)
        positions = [
            sorted(position for positions in ranges for position in positions)
            for ranges in block_ranges(shape, axes)
        ]

        assert positions == [
            [position for position, owner in enumerate(index) if owner == block]
            for block in range(len(axes.blocks))
        ]


def test_unequal_blocks_must_be_named():
    """Where blocks differ there is no one answer, and the error says what to pass."""
    with pytest.raises(ValueError, match="block=0"):
        fans((24, 5), Axes((1,), (0,), blocks=(16, 4, 4)))


def test_equal_blocks_need_no_name():
    """Where all blocks are alike the first stands for all: 256 units each, not 768."""
    assert fans((768, 256), Axes((1,), (0,), blocks=(256, 256, 256))) == (256, 256)


def test_groups_across_blocks_are_refused():
    """Six groups of four units and blocks of six units are no layout."""
    with pytest.raises(ValueError, match="cut one another"):
        fans((24, 5), Axes((1,), (0,), blocks=(6, 18), groups=6), block=0)


def test_block_of_nothing_packed():
    """Asking for a part of what is not packed is an error."""
    with pytest.raises(ValueError, match="no blocks"):
        part((4, 4), MATRIX, 0)


@given(
    blocks=st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple),
    repeats=st.integers(1, 4),
    fan_in=st.integers(0, 6),
)
def test_fans_of_any_blocks(blocks, repeats, fan_in):
    """Fans out of all blocks add up to the axis; fans in are those of the whole."""
    axes = Axes((1,), (0,), blocks=blocks, repeats=repeats)
    shape = (sum(blocks) * repeats, fan_in)

    found = [fans(shape, axes, block) for block in range(len(blocks))]

    assert sum(each.fan_out for each in found) == shape[0]
    assert {each.fan_in for each in found} == {fan_in}
