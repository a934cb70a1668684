"""Sorts out the few units of a model that could be equal, by a few numbers of each.

Random units differ in their first numbers already, so nearly all weights are never read. Many
matrices go through at once: what is done to each alone would cost more than reading it.

Knows rows of numbers, and no parameters.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from torch_initpolicy.symmetry.units import NEAR
from torch_initpolicy.writing.crew import cores_restored

WIDTH = 4
"""Numbers of each row that are looked at as a rule."""

_ROUNDS = 8
"""Projections at most: one leaves few of some thousand random rows, four few of a million."""

_BATCH = 1 << 16
"""Rows that are looked at together, those of zeros included, unless one set has more."""


def sift(sets: Iterable[Tensor], width: int = WIDTH) -> list[Tensor]:
    """Find the rows of each set that may be zero, or equal to another up to the sign.

    Rows that are zero or equal by their first numbers are always among those that are left, so
    those that are not left differ for certain.

    Args:
        sets: Rows of each set, `(units, features)`, of one unit and one feature at least.
        width: How many numbers of each row are looked at.

    Returns:
        For each set the numbers of the rows that are left, in order.

    Examples:
        >>> rows = torch.tensor([[1.0, 2.0], [3.0, 1.0], [-1.0, -2.0], [0.0, 0.0], [2.0, 1.0]])
        >>> [left.tolist() for left in sift([rows, rows[:2]])]
        [[0, 2, 3], []]
    """
    with cores_restored():
        torch.set_num_threads(1)  # to wake the other cores costs more than they give
        return [
            left.to(rows.device)
            for batch in _batches(sets)
            for rows, left in zip(batch, _sift(batch, width), strict=True)
        ]


def _batches(sets: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    batch: list[Tensor] = []
    size = 0
    for rows in sets:
        if batch and size + len(rows) + 1 > _BATCH:
            yield batch
            batch, size = [], 0
        batch.append(rows)
        size += len(rows) + 1
    if batch:
        yield batch


def _sift(sets: Sequence[Tensor], width: int) -> Sequence[Tensor]:
    """Sift one batch: project rows on one random vector after the other, and keep neighbours."""
    counts = [len(rows) + 1 for rows in sets]
    numbers = _stacked(sets, counts, width)
    largest = torch.stack([part.abs().amax() for part in numbers.split_with_sizes(counts)])
    owner = torch.arange(len(sets)).repeat_interleave(torch.tensor(counts))
    fine = (2**31 - 1) / (2 * len(sets))  # torch sorts whole numbers by their digits
    near = min(NEAR, 0.1 / len(owner)) * fine + 2  # as near as `equal_rows` has it
    left = torch.arange(len(owner))
    for weights in _weights(width):
        # Where two rows differ by NEAR at most, so do their sums with weights that sum to 1.
        keys = (numbers @ weights).abs_().div_(largest[owner]).nan_to_num_(0.0)
        crowd = _crowd(keys.add_(owner, alpha=2).mul_(fine).int(), near)
        is_over = len(crowd) in (0, len(left))
        left, numbers, owner = left[crowd], numbers[crowd], owner[crowd]
        if is_over:
            break
    return _split(left, owner, counts)


def _stacked(sets: Sequence[Tensor], counts: list[int], width: int) -> Tensor:
    """Copy the first numbers of all rows, `(rows, width)`.

    A row of zeros is set above each set, so that rows of zeros are never without their like.
    """
    stack = torch.zeros(sum(counts), width, dtype=torch.float64)
    for part, rows in zip(stack.split_with_sizes(counts), sets, strict=True):
        first = rows[:, :width].cpu()
        part[1:, : first.shape[1]] = first
    return stack


def _split(left: Tensor, owner: Tensor, counts: Sequence[int]) -> Sequence[Tensor]:
    """Number what is left within its set, without the rows of zeros that were set above."""
    units = left - torch.tensor([*itertools.accumulate(counts, initial=1)])[owner]
    is_own = units >= 0
    sizes = owner[is_own].bincount(minlength=len(counts))
    return units[is_own].split_with_sizes(sizes.tolist())


def _weights(width: int) -> Tensor:
    """Return fixed random vectors, `(_ROUNDS, width)`, the sizes of which sum to 1."""
    generator = torch.Generator().manual_seed(1)
    vectors = torch.rand(_ROUNDS, width, generator=generator, dtype=torch.float64) * 2 - 1
    return vectors / vectors.abs().sum(1, keepdim=True)


def _crowd(positions: Tensor, near: float) -> Tensor:
    """Return which positions have a neighbour."""
    ordered, order = positions.sort()
    close = (ordered.diff() <= near).nonzero().flatten()
    crowd: Tensor = torch.unique(torch.cat((order[close], order[close + 1])))
    return crowd
