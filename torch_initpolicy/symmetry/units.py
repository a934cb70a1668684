"""Where the units of a parameter lie, and which of them are equal.

Knows tensors and axes; neither models nor gradients nor verdicts.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torch_initpolicy.tensors.axes import Axes

ByParameter = dict[nn.Parameter, Tensor]
"""Tensors by the parameter that they stand for: its value, or its gradient."""

# Views


@dataclass(frozen=True, slots=True)
class View:
    """A way to lay a parameter out as rows, one row for each unit.

    Attributes:
        along: What the units are: `"outputs"`, `"inputs"`, `"copies"`, `"entries"`, `"axis 1"`.
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

    def is_across(self, other: "View") -> bool:
        """Whether these may be the units of another view, in what they feed or are fed by."""
        side = "outputs" if other.along == "entries" else other.along
        return self.count == other.count and self.along not in ("entries", side)

    @property
    def _order(self) -> tuple[int, ...]:
        """The axes of `shape`, those that number units first."""
        return (*self.axes, *(a for a in range(len(self.shape)) if a not in self.axes))

    def rows(self, tensor: Tensor, units: Tensor | None = None) -> Tensor:
        """Lay a parameter (or its gradient) out as `(units, features)`: all units, or some."""
        split = tensor.reshape(self.shape)
        units = None if units is None else units.to(tensor.device)
        if units is not None and len(self.axes) == 1:
            split = split.index_select(self.axes[0], units)
            return _real(split.permute(self._order).reshape(len(units), self.features))
        rows = _real(split.permute(self._order).reshape(self.count, self.features))
        return rows if units is None else rows[units]

    def first(self, tensor: Tensor, most: int, units: Tensor | None = None) -> Tensor:
        """Return the first elements of each row: at most about as many as asked, at least one."""
        rest = [axis for axis in self._order[len(self.axes) :] if self.shape[axis] > 1]
        shape, part = list(self.shape), tensor.reshape(self.shape)
        for axis in rest:
            behind = math.prod(self.shape[a] for a in rest if a > axis)
            shape[axis] = min(shape[axis], max(1, most // behind))
            part = part.narrow(axis, 0, shape[axis])
        return View(self.along, tuple(shape), self.axes).rows(part, units)

    def put(self, tensor: Tensor, units: Tensor, rows: Tensor) -> Tensor:
        """Return the parameter with the rows of some units replaced."""
        new = torch.view_as_complex(rows.reshape(len(rows), -1, 2)) if tensor.is_complex() else rows
        split = tensor.reshape(self.shape).permute(self._order)
        whole = split.reshape(self.count, self.features).clone()
        whole[units.to(whole.device)] = new.to(whole.dtype)
        back = [self._order.index(axis) for axis in range(len(self.shape))]
        return whole.reshape(split.shape).permute(back).reshape(tensor.shape)


def _real(rows: Tensor) -> Tensor:
    return torch.view_as_real(rows).flatten(1) if rows.is_complex() else rows


def views(shape: Sequence[int], axes: Axes | None) -> tuple[View, ...]:
    """List the ways in which units lie in a parameter; without axes any of them may number units.

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


# Equal rows

NEAR = 1e-6
"""Rows are equal where they differ by less than this, relative to their size: noise of such a size
needs thousands of steps to grow."""

_COUNT = 4
"""Random vectors that rows are projected on. Two rows that differ agree on each by accident with
the probability of about the tolerance: 1e-12 together where that is 1e-3."""

_PIECE = 1 << 22
"""Elements that are converted to double precision at once."""


class Fingerprints(NamedTuple):
    """A few numbers of each row, which tell whether rows are equal; on the CPU.

    Attributes:
        keys: Projections on random vectors, `(4, rows)`.
        scale: The largest element of each row, times the root of their number.
    """

    keys: Tensor
    scale: Tensor

    def turned(self, signs: Tensor) -> "Fingerprints":
        """Return those of the rows times signs; a sign of 0 turns nothing."""
        return self._replace(keys=self.keys * torch.where(signs < 0, -1.0, 1.0))

    def labels(self, near: float) -> Tensor:
        """Return for each row the first that it equals, up to a relative difference."""
        near = min(near, 0.1 / max(len(self.scale), 1))  # or most of a million would be neighbours
        close, runs = near * self.scale + _TINY, torch.zeros(len(self.scale), dtype=torch.int64)
        for key in self.keys:
            order = key.argsort(stable=True)
            order = order[runs[order].argsort(stable=True)]
            reach = torch.maximum(close[order][1:], close[order][:-1])
            is_next = (key[order].diff() <= reach) & (runs[order].diff() == 0)  # not so for NaN
            runs[order] = nn.functional.pad((~is_next).cumsum(0), (1, 0))[: len(order)]
        return firsts(runs)

    def distances(self, leaders: Tensor) -> Tensor:
        """Return how far each row is from another, relative to the larger of the two."""
        apart = (self.keys - self.keys[:, leaders]).abs().amax(0)
        return apart / torch.maximum(self.scale, self.scale[leaders]).clamp_min(_TINY)


_TINY = torch.finfo(torch.float64).tiny


def row_fingerprints(rows: Tensor) -> Fingerprints:
    """Project rows, `(units, features)`, on fixed random vectors.

    Rows that differ have different projections, but for vectors of measure zero (the lemma of
    Schwartz and Zippel).
    """
    width, wide = rows.shape[1], torch.float64 if rows.device.type != "mps" else torch.float32
    vectors = _directions(width).to(rows.device, wide)
    step = len(rows) if rows.dtype == wide else _PIECE // max(width, 1)
    pieces = (piece.to(wide) for piece in torch.split(rows, max(step, 1)))
    found = [(vectors @ piece.mT, _largest(piece)) for piece in pieces]
    keys, largest = (torch.cat(p, -1).to("cpu", torch.float64) for p in zip(*found, strict=True))
    return Fingerprints(keys, largest * max(width, 1) ** 0.5)


def _largest(rows: Tensor) -> Tensor:
    if not rows.numel():
        return rows.new_zeros(len(rows))
    return torch.maximum(rows.amax(1), -rows.amin(1))  # five times faster than a norm


def equal_rows(
    rows: Tensor, *, signed: bool = False, near: float = NEAR, tiny: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return for each row the number of the first that it equals, and its sign.

    With `signed` a row also equals its negative. Rows without an element larger than `tiny` count
    as zeros, and have the sign 0.

    Examples:
        >>> rows = torch.tensor([[1.0, 2.0], [0.0, 0.0], [-1.0, -2.0], [1.0, 2.0]])
        >>> labels, signs = equal_rows(rows, signed=True)
        >>> labels.tolist(), signs.tolist()
        ([0, 1, 0, 0], [1, 0, -1, 1])
    """
    prints = row_fingerprints(rows)
    is_zero = prints.scale <= tiny * max(rows.shape[1], 1) ** 0.5
    signs = torch.where(is_zero, 0.0, prints.keys[0].sign() if signed else 1.0)
    turned = prints._replace(keys=prints.keys * signs)
    return turned.labels(near), signs.to(torch.int8)


def sift(sets: Sequence[Tensor], tiny: Sequence[float]) -> Sequence[Tensor]:
    """Return of each set the rows that may be zero, or equal another up to the sign.

    The others surely differ. It is given the first few numbers of each row, in which random rows
    differ already; and all sets at once, since most have few rows.

    Args:
        sets: Rows of each set, `(units, few)`; one set at least, of one row at least.
        tiny: How large a row of each set may be that counts as zero.

    Examples:
        >>> rows = torch.tensor([[1.0, 2.0], [3.0, 1.0], [-1.0, -2.0], [0.0, 0.0]])
        >>> [left.tolist() for left in sift([rows, rows[:2]], [0.0, 0.0])]
        [[0, 2, 3], []]
    """
    counts = torch.tensor([len(rows) for rows in sets])
    width = max(rows.shape[1] for rows in sets)
    numbers = _stacked(sets, width)
    largest = torch.stack([part.abs().max() for part in numbers.split_with_sizes(counts.tolist())])
    largest, zero = (largest * width).clamp_min_(_TINY), torch.tensor(tiny) * width
    fine = (2**31 - 1) / (2 * len(sets) + 1)  # torch sorts whole numbers by their digits
    owner = torch.arange(len(sets)).repeat_interleave(counts)
    left = torch.arange(len(owner))
    for direction in _directions(width):
        keys = (numbers @ direction).abs_()
        close = (keys <= zero[owner]).nonzero().flatten()
        keys = keys.div_(largest[owner]).add_(owner, alpha=2).mul_(fine)
        ordered, order = keys.int().sort()  # what is no number falls together
        at = (ordered.diff() <= NEAR * fine + 1).nonzero().flatten()
        kept = torch.unique(torch.cat((order[at], order[at + 1], close)))
        is_over = len(kept) in (0, len(left))
        left, numbers, owner = left[kept], numbers[kept], owner[kept]
        if is_over:
            break
    starts = counts.cumsum(0) - counts
    return (left - starts[owner]).split_with_sizes(owner.bincount(minlength=len(sets)).tolist())


def _stacked(sets: Sequence[Tensor], width: int) -> Tensor:
    stack = torch.zeros(sum(map(len, sets)), width, dtype=torch.float64)
    for part, rows in zip(stack.split_with_sizes(list(map(len, sets))), sets, strict=True):
        part[:, : rows.shape[1]] = rows
    return stack


def condensed(tensor: Tensor) -> Tensor:
    """Return a generic linear image of a tensor, a vector as long as its first axis.

    Where two tensors differ, so do their images, but for a set of directions of measure zero.
    """
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    if plain.ndim < 2:
        return plain.flatten()
    rows = plain.flatten(1)
    return rows @ _directions(rows.shape[1])[0].to(rows)


@functools.cache
def _directions(width: int) -> Tensor:
    """Return a few fixed random vectors."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(_COUNT, width, generator=generator, dtype=torch.float64) * 2 - 1


def firsts(labels: Tensor) -> Tensor:
    """Return, for each position, the first position with the same label.

    Examples:
        >>> firsts(torch.tensor([7, 3, 7])).tolist()
        [0, 1, 0]
    """
    dense = torch.unique(labels, return_inverse=True)[1]
    first = torch.full((len(labels),), len(labels), dtype=torch.int64)
    return first.scatter_reduce_(0, dense, torch.arange(len(labels)), "amin")[dense]


def in_company(labels: Tensor, signs: Tensor) -> Tensor:
    """Return the rows that are zero or share their label."""
    return ((labels.bincount(minlength=1)[labels] > 1) | (signs == 0)).nonzero().flatten()


def equal_groups(labels: Tensor) -> tuple[tuple[int, ...], ...]:
    """List the units that share a label, where there are several."""
    found = by_label(range(len(labels)), labels.tolist())
    return tuple(units for units in found if len(units) > 1)


def by_label(units: Iterable[int], labels: Iterable[int]) -> tuple[tuple[int, ...], ...]:
    """List units by the label that they share; one may stand alone."""
    members: dict[int, list[int]] = {}
    for unit, label in zip(units, labels, strict=True):
        members.setdefault(label, []).append(unit)
    return tuple(map(tuple, members.values()))
