"""Which elements of tensors are one place in memory."""

import bisect
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def storage_of(tensor: Tensor) -> int:
    """Return what tells the storage behind a tensor from all others that are alive."""
    # Storages have no public identity; `torch.multiprocessing` keeps its own books by the same.
    number: int = tensor.untyped_storage()._cdata  # noqa: SLF001
    return number


def repeats(tensor: Tensor) -> bool:
    """Tell whether several elements of a tensor are one place in memory, as `expand` makes them."""
    if tensor.numel() == 0 or _is_nested(tensor):
        return False
    span = _span(tensor)
    line = _painted(tensor, span[:: tensor.itemsize])
    return int(line.sum()) < tensor.numel()


def _is_nested(tensor: Tensor) -> bool:
    """Tell whether each stride goes beyond what all smaller ones reach: nothing is met twice."""
    reach = 0
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and step <= reach:
            return False
        reach += step * (size - 1)
    return True


def sharing(tensors: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    """Yield the numbers of each two tensors that have a place in memory in common.

    Views of one storage whose elements do not overlap share nothing, be they slices or interleaved.
    """
    storages: dict[int, list[int]] = {}
    for number, tensor in enumerate(tensors):
        storages.setdefault(storage_of(tensor), []).append(number)
    for numbers in storages.values():
        yield from sorted(_overlapping(tensors, numbers))


def _overlapping(tensors: Sequence[Tensor], numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield which of some views of one storage meet, looking only where their spans do."""
    spans = {number: _span(tensors[number]) for number in numbers}
    in_order = sorted((n for n in numbers if spans[n]), key=lambda n: spans[n].start)
    starts = [spans[number].start for number in in_order]
    for place, first in enumerate(in_order):
        behind = bisect.bisect_left(starts, spans[first].stop)
        for second in in_order[place + 1 : behind]:
            if _overlap(tensors[first], tensors[second]):
                yield min(first, second), max(first, second)


def _overlap(first: Tensor, second: Tensor) -> bool:
    """Tell whether two views of one storage meet: paint the places of one, look at the other's."""
    one, other = _span(first), _span(second)
    unit = math.gcd(first.itemsize, second.itemsize, one.start - other.start)
    grid = range(min(one.start, other.start), max(one.stop, other.stop), unit)
    return bool(_flags_of(_painted(first, grid), second, grid).any())


def _span(tensor: Tensor) -> range:
    """Return the bytes of the storage from a tensor's first element to its last; none for none."""
    start = int(tensor.storage_offset()) * tensor.itemsize
    steps = zip(tensor.stride(), tensor.shape, strict=True)
    reach = 1 + sum(step * (size - 1) for step, size in steps) if tensor.numel() else 0
    return range(start, start + reach * tensor.itemsize)


def _painted(tensor: Tensor, grid: range) -> Tensor:
    """Return a flag for each place of a grid of bytes, set where the tensor has an element."""
    line = torch.zeros(len(grid), dtype=torch.bool, device="cpu")
    _flags_of(line, tensor, grid).fill_(1)
    return line


def _flags_of(line: Tensor, tensor: Tensor, grid: range) -> Tensor:
    """Return a view of the flags of a tensor's elements."""
    each = tensor.itemsize // grid.step
    steps = (*(step * each for step in tensor.stride()), 1)
    first = (_span(tensor).start - grid.start) // grid.step
    return line.as_strided((*tensor.shape, each), steps, first)
