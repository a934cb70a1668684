"""Where the units of a parameter lie, and which of them are equal.

Knows tensors and axes; neither models nor gradients nor verdicts.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torch_initpolicy.tensors.axes import Axes

#
# Views
#


@dataclass(frozen=True, slots=True)
class View:
    """A way to lay a parameter out as rows, one row for each unit.

    Attributes:
        along: What the units are: `"outputs"`, `"inputs"`, `"copies"`, `"entries"` of a vector,
            or `"axis 1"` where the meaning of an axis is unknown.
        shape: The parameter's shape, with a grouped axis split into groups and members.
        axes: The axes of `shape` that number the units, outermost first.
    """

    along: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of units."""
        return math.prod(self.shape[axis] for axis in self.axes)

    @property
    def features(self) -> int:
        """Number of elements of one unit."""
        return math.prod(self.shape) // max(self.count, 1)

    @property
    def _rest(self) -> tuple[int, ...]:
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.axes)

    def _units_first(self, tensor: Tensor) -> Tensor:
        """Permute the unit axes to the front; a view of the same memory where there is one."""
        return tensor.reshape(self.shape).permute((*self.axes, *self._rest))

    def rows(self, tensor: Tensor) -> Tensor:
        """Lay a parameter (or its gradient) out as `(units, features)`."""
        return _real(self._units_first(tensor).reshape(self.count, self.features))

    def select(self, tensor: Tensor, units: Tensor) -> Tensor:
        """Return the rows of some units only."""
        if len(self.axes) == 1:
            chosen = tensor.reshape(self.shape).index_select(self.axes[0], units)
            return _real(chosen.movedim(self.axes[0], 0).reshape(len(units), self.features))
        return self.rows(tensor)[units]

    def put(self, tensor: Tensor, units: Tensor, rows: Tensor) -> Tensor:
        """Return the parameter with the rows of some units replaced."""
        whole = self._units_first(tensor).reshape(self.count, self.features).clone()
        new = torch.view_as_complex(rows.reshape(len(rows), -1, 2)) if tensor.is_complex() else rows
        whole[units] = new.to(whole.dtype)
        order = (*self.axes, *self._rest)
        back = [order.index(axis) for axis in range(len(order))]
        split = whole.reshape([self.shape[axis] for axis in order])
        return split.permute(back).reshape(tensor.shape)

    def blocks(self, tensor: Tensor, units: Tensor | None, size: int) -> Iterator[Tensor]:
        """Yield the rows of some units (None: all) in pieces of about `size` features."""
        first = next((axis for axis in self._rest if self.shape[axis] > 1), None)
        split = tensor.reshape(self.shape)
        if first is None:
            yield from self._piece(split, units)
            return
        step = max(1, size * self.shape[first] // self.features)
        for start in range(0, self.shape[first], step):
            length = min(step, self.shape[first] - start)
            yield from self._piece(split.narrow(first, start, length), units)

    def _piece(self, split: Tensor, units: Tensor | None) -> Iterator[Tensor]:
        part = View(self.along, tuple(split.shape), self.axes)
        yield part.rows(split) if units is None else part.select(split, units)


def _real(rows: Tensor) -> Tensor:
    return torch.view_as_real(rows).flatten(1) if rows.is_complex() else rows


def views(shape: Sequence[int], axes: Axes | None) -> tuple[View, ...]:
    """List the ways in which units lie in a parameter.

    Args:
        shape: Its shape.
        axes: What its axes mean; None where unknown, and any axis may number units.

    Examples:
        >>> [(view.along, view.count) for view in views((8, 5), Axes(inputs=(1,), outputs=(0,)))]
        [('outputs', 8), ('inputs', 5)]

        The input channels of a grouped convolution are counted through all groups:

        >>> grouped = Axes(inputs=(1,), outputs=(0,), groups=2)
        >>> [(view.along, view.count) for view in views((8, 3, 5, 5), grouped)]
        [('outputs', 8), ('inputs', 6)]
    """
    shape = axes.view or shape if axes else shape
    wide = [axis for axis, size in enumerate(shape) if size > 1]
    if len(wide) < 2:
        return (View(_only_side(wide, axes), tuple(shape), tuple(range(len(shape)))),)
    if axes is None:
        single = [View(f"axis {axis}", tuple(shape), (axis,)) for axis in wide]
        first, *others = wide
        # A stack of matrices has units of its own in each.
        stacked = [View(f"axes {first}, {axis}", tuple(shape), (first, axis)) for axis in others]
        return tuple(single + (stacked if len(others) > 1 else []))
    return tuple(_known_views(shape, axes))


def _only_side(wide: Sequence[int], axes: Axes | None) -> str:
    """Say what the entries of a vector are: a matrix with one row holds inputs only."""
    sides = {} if axes is None else {"outputs": axes.outputs, "inputs": axes.inputs}
    known = axes is not None and bool(axes.inputs)
    return next((side for side, its in sides.items() if known and {*wide} & {*its}), "entries")


def _known_views(shape: Sequence[int], axes: Axes) -> Iterator[View]:
    split = (axes.groups, shape[0] // axes.groups, *shape[1:]) if axes.groups > 1 else tuple(shape)
    shift = len(split) - len(shape)
    copies = tuple(axis + shift for axis in axes.copies)

    def numbered(role: Sequence[int]) -> tuple[int, ...]:
        moved = tuple(axis + shift for axis in role)
        return (0, *moved) if shift else moved

    outputs = View("outputs", split, (*copies, *numbered(axes.outputs)))
    if copies:
        yield View("copies", split, copies)
    if axes.outputs:
        # A lookup table has nothing but copies and outputs: its columns are what is equal or not.
        whole = outputs.features == 1 and copies
        yield View("outputs", split, numbered(axes.outputs)) if whole else outputs
    for axis in axes.inputs:
        yield View("inputs", split, (*copies, *numbered((axis,))))


#
# Equal rows
#

Pieces = Callable[[], Iterable[Tensor]]
"""Yields rows in pieces, `(units, features of the piece)`, as often as it is called."""

NEAR = 1e-6
"""Rows are equal where they differ by less than this, relative to their largest element: noise of
such a size needs thousands of steps to grow."""

_PIECE = 1 << 20
"""Elements that are compared at once."""


def equal_rows(
    blocks: Pieces, *, signed: bool = False, near: float = NEAR
) -> tuple[Tensor, Tensor]:
    """Find equal rows.

    Rows are projected on two fixed random vectors and sorted by the results; neighbours that are
    close by both are then compared element by element.

    Args:
        blocks: The rows.
        signed: Whether a row also equals its negative.
        near: Difference, relative to the larger row's largest element, up to which rows are equal.

    Returns:
        For each row the number of the first row that it equals (its own, where that is none), and
        its sign: 1, -1 or, for a row of zeros, 0.

    Examples:
        >>> rows = torch.tensor([[1.0, 2.0], [0.0, 0.0], [-1.0, -2.0], [1.0, 2.0]])
        >>> labels, signs = equal_rows(lambda: [rows], signed=True)
        >>> labels.tolist(), signs.tolist()
        ([0, 1, 0, 0], [1, 0, -1, 1])
    """
    keys, scale, features = _projections(blocks)
    signs = keys[0].sign() if signed else (scale > 0).to(keys.dtype)
    near = min(near, 0.1 / max(len(scale), 1))  # or most of a million rows would have neighbours
    close = near * scale * math.sqrt(features) + 1e-12 * scale
    members, runs = _runs(keys * signs if signed else keys, close)
    labels = torch.arange(len(scale), device=scale.device)
    while members.numel():
        leaders = members[_firsts(runs)]
        apart = _distances(blocks, members, leaders, signs)
        same = apart <= near * torch.maximum(scale[members], scale[leaders])
        same |= members == leaders
        labels[members[same]] = leaders[same]
        members, runs = members[~same], runs[~same]
    return labels, signs.to(torch.int8)


def _projections(blocks: Pieces) -> tuple[Tensor, Tensor, int]:
    """Project rows on two random vectors; also their largest elements and number of features."""
    generator = torch.Generator().manual_seed(0)
    keys, scales, features = [], [], 0
    for block in blocks():
        width = block.shape[1]
        vectors = torch.rand(width, 2, generator=generator, dtype=torch.float64) * 2 - 1
        wide = block.double() if block.device.type != "mps" else block.float()
        keys.append(wide @ vectors.to(wide))
        scales.append(wide.abs().amax(1) if width else wide.new_zeros(len(wide)))
        features += width
    return sum(keys[1:], keys[0]).T, torch.stack(scales).amax(0), features


def _runs(keys: Tensor, close: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows with close neighbours, in order, and the number of the run of each."""
    members = torch.arange(keys.shape[1], device=keys.device)
    runs = torch.zeros_like(members)
    for key in keys:
        members, runs = _split(members, runs, key, close)
    order = (runs * keys.shape[1] + members).argsort()
    return members[order], runs[order]


def _split(members: Tensor, runs: Tensor, key: Tensor, close: Tensor) -> tuple[Tensor, Tensor]:
    """Split runs where the key jumps, and drop what is left alone."""
    order = key[members].argsort(stable=True)
    order = order[runs[order].argsort(stable=True)]
    members, runs = members[order], runs[order]
    gap, reach = key[members].diff(), torch.maximum(close[members][1:], close[members][:-1])
    # Not "closer than": what is no number is put with its neighbours and compared.
    apart = (gap > reach) | (runs.diff() > 0)
    runs = torch.cat([runs.new_zeros(min(len(runs), 1)), apart.cumsum(0)])
    in_company = runs.bincount()[runs] > 1 if len(runs) else runs.bool()
    return members[in_company], runs[in_company]


def _firsts(runs: Tensor) -> Tensor:
    """Return, for each member, the position of the first member of its run."""
    is_first = torch.ones_like(runs, dtype=torch.bool)
    is_first[1:] = runs[1:] != runs[:-1]
    return is_first.nonzero().flatten()[is_first.cumsum(0) - 1]


def _distances(blocks: Pieces, members: Tensor, leaders: Tensor, signs: Tensor) -> Tensor:
    """Return the largest difference of each member from its leader, both turned to sign 1."""
    turn = signs[members] * signs[leaders]
    turn = torch.where(turn == 0, torch.ones_like(turn), turn)
    largest = [
        torch.cat(
            [
                (block[part] - turn[at].to(block)[:, None] * block[leaders[at]]).abs().amax(1)
                for part, at in _pieces(members, block.shape[1])
            ]
        )
        for block in blocks()
        if block.shape[1]
    ]
    return (
        torch.stack(largest).amax(0).to(signs.dtype) if largest else signs.new_zeros(len(members))
    )


def _pieces(members: Tensor, width: int) -> Iterator[tuple[Tensor, slice]]:
    step = max(1, _PIECE // width)
    for start in range(0, len(members), step):
        at = slice(start, start + step)
        yield members[at], at


def groups(labels: Tensor) -> tuple[tuple[int, ...], ...]:
    """List the units that share a label, where there are several.

    Examples:
        >>> groups(torch.tensor([0, 1, 0, 3, 1]))
        ((0, 2), (1, 4))
    """
    members: dict[int, list[int]] = {}
    for unit, label in enumerate(labels.tolist()):
        members.setdefault(label, []).append(unit)
    return tuple(tuple(units) for units in members.values() if len(units) > 1)
