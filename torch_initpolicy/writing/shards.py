"""Where the bytes of a parameter live: which part of its logical tensor this process holds.

Everything is said in boxes of the logical tensor: one `range` per axis. A plain parameter is one
box, a sharded one what its placements leave to this process, and a run of the flattened tensor is
a few boxes again.
"""

import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from torch_initpolicy.errors import ApplyError
from torch_initpolicy.tensors.base import widened

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.placement_types import Placement

Box = tuple[range, ...]
"""Part of a tensor: the indices along each axis."""

# Boxes


def boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Cut a run of the flattened tensor into boxes, in order; there are fewer than `2 * ndim`.

    Examples:
        >>> list(boxes((3, 4), 2, 11))
        [(range(0, 1), range(2, 4)), (range(1, 2), range(0, 4)), (range(2, 3), range(0, 3))]
    """
    if start >= stop:
        return
    if not shape:
        yield ()
        return
    inner = math.prod(shape[1:])
    first, head = divmod(start, inner)
    last, tail = divmod(stop, inner)
    if first == last:
        yield from _in_row(shape, first, head, tail)
        return
    if head:
        yield from _in_row(shape, first, head, inner)
        first += 1
    if first < last:
        yield (range(first, last), *map(range, shape[1:]))
    yield from _in_row(shape, last, 0, tail)


def _in_row(shape: Sequence[int], row: int, start: int, stop: int) -> Iterator[Box]:
    return ((range(row, row + 1), *box) for box in boxes(shape[1:], start, stop))


def volume(box: Box) -> int:
    """Count the elements of a box."""
    return math.prod(map(len, box))


def overlap(first: Box, second: Box) -> Box:
    """Return what two boxes share; its volume is 0 where that is nothing."""
    return tuple(
        range(max(a.start, b.start), min(a.stop, b.stop))
        for a, b in zip(first, second, strict=True)
    )


def _indices(part: Box, whole: Box) -> tuple[slice, ...]:
    return tuple(
        slice(p.start - w.start, p.stop - w.start) for p, w in zip(part, whole, strict=True)
    )


# Pieces


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A part of a logical tensor that lies in this process' memory.

    Attributes:
        tensor: A plain tensor that shares the parameter's memory; its shape is that of `box`.
        shape: Shape of the logical tensor.
        box: Which part of the logical tensor it is.
        run: The smallest run of the flattened logical tensor that covers the box.
    """

    tensor: Tensor
    shape: tuple[int, ...]
    box: Box
    run: range

    @property
    def is_run(self) -> bool:
        """Whether the box is all of its run, so that C order here is C order there."""
        return len(self.run) == self.tensor.numel()

    @property
    def elements(self) -> int:
        """How many elements the logical tensor has."""
        return math.prod(self.shape)

    def blocks(self, size: int) -> Iterator[int]:
        """Yield the numbers of the blocks of `size` elements that the piece has a part in."""
        first, last = self.run.start // size, -(-self.run.stop // size)
        numbers = range(first, last if self.run else first)
        if self.is_run:
            return iter(numbers)
        return (number for number in numbers if self._touches(number * size, size))

    def _touches(self, start: int, size: int) -> bool:
        stop = min(start + size, self.elements)
        return any(volume(overlap(box, self.box)) for box in boxes(self.shape, start, stop))

    @property
    def flat(self) -> Tensor | None:
        """A flat view that is the run itself, or None where memory is ordered otherwise."""
        return self.tensor.view(-1) if self.is_run and self.tensor.is_contiguous() else None

    def put(self, values: Tensor, start: int) -> None:
        """Write what the piece holds of a flat run of the logical tensor from `start` on."""
        flat = self.flat
        if flat is None:
            self._put_boxes(values, start)
            return
        first, stop = max(start, self.run.start), min(start + values.numel(), self.run.stop)
        if first < stop:
            here = flat[first - self.run.start : stop - self.run.start]
            here.copy_(values[first - start : stop - start])

    def _put_boxes(self, values: Tensor, start: int) -> None:
        """Write where memory is ordered otherwise than the run, box by box."""
        done = 0
        for box in boxes(self.shape, start, start + values.numel()):
            size = volume(box)
            part = overlap(box, self.box)
            if volume(part):
                source = values[done : done + size].view([len(axis) for axis in box])
                self.tensor[_indices(part, self.box)].copy_(source[_indices(part, box)])
            done += size

    def part_of(self, value: Tensor) -> Tensor:
        """Return the part of a whole logical tensor that belongs into the piece."""
        return value[tuple(slice(axis.start, axis.stop) for axis in self.box)]


def whole(tensor: Tensor) -> Piece:
    """Return a plain tensor as the only piece of itself."""
    shape = tuple(tensor.shape)
    return Piece(plain(tensor), shape, tuple(map(range, shape)), range(tensor.numel()))


def pieces(parameter: Tensor) -> tuple[Piece, ...]:
    """Return the parts of a parameter that this process holds, each as a plain tensor.

    There are several where placements interleave, and none for a process outside the mesh.

    Raises:
        ApplyError: The placements hold no values (`Partial`), or say another shape than the
            tensor here has.
    """
    if not is_sharded(parameter):
        return (whole(parameter),)
    coordinate = parameter.device_mesh.get_coordinate()
    if coordinate is None:
        return ()
    local = local_part(parameter)
    shape = tuple(parameter.shape)
    places = _kept_places(parameter, coordinate)
    if tuple(sum(map(len, axis)) for axis in places) != tuple(local.shape):
        raise ApplyError(
            f"a tensor of shape {shape} placed as {parameter.placements} leaves "
            f"{tuple(local.shape)} here, which is not what these placements say"
        )
    return tuple(_made_piece(tensor, shape, box) for tensor, box in _split(local, places))


def full(parameter: Tensor) -> Tensor:
    """Return a parameter's whole logical tensor; a sharded one is gathered by its whole mesh."""
    if not is_sharded(parameter):
        return plain(parameter)
    with torch.no_grad():
        return parameter.full_tensor()


def along(piece: Piece, axis: int, positions: range) -> Tensor:
    """Return what a piece holds of some positions along an axis of the logical tensor."""
    box = piece.box[axis]
    first, last = (min(max(at, box.start), box.stop) for at in (positions.start, positions.stop))
    return piece.tensor.narrow(axis, first - box.start, max(last - first, 0))


def multiply_(held: Iterable[Piece], factors: Sequence[float]) -> None:
    """Multiply pieces in place: as many equal parts along their first axis as there are factors.

    Examples:
        >>> tensor = torch.ones(4)
        >>> multiply_([whole(tensor)], (2.0, 3.0))
        >>> tensor.tolist()
        [2.0, 2.0, 3.0, 3.0]
    """
    for piece in held if len(factors) > 1 else ():
        rows = piece.shape[0] // len(factors)
        for number, factor in enumerate(factors):
            _multiply(along(piece, 0, range(number * rows, (number + 1) * rows)), factor)
    for piece in held if len(factors) == 1 else ():
        _multiply(piece.tensor, factors[0])


def _multiply(tensor: Tensor, factor: float) -> None:
    wide = widened(tensor).mul_(factor)
    if wide is not tensor:
        tensor.copy_(wide)


def plain(tensor: Tensor) -> Tensor:
    """Return the memory of a tensor as a plain tensor."""
    # A parameter that `skip_init` left undrawn refuses to be read; its memory may be written.
    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - torch's own way round a subclass
        return tensor.detach()


def is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Tell whether a tensor is a DTensor, without importing its module."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def reshard(model: nn.Module) -> None:
    """Let FSDP2 go back from the parameters that it has gathered for a forward pass to its shards.

    Without a backward pass its outermost module stays gathered; what is written then is lost.
    """
    module = sys.modules.get("torch.distributed.fsdp")
    if module is None:
        return
    for part in model.modules():
        if isinstance(part, module.FSDPModule):
            part.reshard()


def _made_piece(tensor: Tensor, shape: tuple[int, ...], box: Box) -> Piece:
    steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    first = sum(axis.start * step for axis, step in zip(box, steps, strict=True))
    reach = sum((len(axis) - 1) * step for axis, step in zip(box, steps, strict=True))
    return Piece(tensor, shape, box, range(first, first + (reach + 1 if volume(box) else 0)))


def _split(local: Tensor, places: Sequence[Sequence[range]]) -> Iterator[tuple[Tensor, Box]]:
    """Cut a local tensor where the parts of the logical tensor that it holds do not adjoin."""
    starts = [list(itertools.accumulate(map(len, axis), initial=0)) for axis in places]
    for numbers in itertools.product(*(range(len(axis)) for axis in places)):
        box = tuple(axis[number] for axis, number in zip(places, numbers, strict=True))
        corner = [starts[axis][number] for axis, number in enumerate(numbers)]
        index = tuple(slice(at, at + len(r)) for at, r in zip(corner, box, strict=True))
        yield local[index], box


# Placements


@dataclass(frozen=True, slots=True)
class Cut:
    """One placement's effect on one axis: part `index` of `count`, in each of `groups`."""

    index: int
    count: int
    groups: int = 1


def kept_by(size: int, cuts: Sequence[Cut]) -> tuple[range, ...]:
    """Return the indices of an axis that remain after some cuts, in order.

    Each cut is `torch.chunk`'s: parts of equal size, the last ones smaller or empty. A cut with
    groups first chunks into that many groups and then takes its part of each.

    Examples:
        >>> kept_by(10, [Cut(1, 4)])
        (range(3, 6),)
        >>> kept_by(8, [Cut(1, 2, groups=2)])
        (range(2, 4), range(6, 8))
    """
    kept = [range(size)]
    for cut in cuts:
        kept = list(_cut_again(kept, cut))
    return tuple(_adjoined(kept))


def _cut_again(kept: Sequence[range], cut: Cut) -> Iterator[range]:
    total = range(sum(map(len, kept)))
    for group in range(cut.groups):
        part = _chunk(_chunk(total, cut.groups, group), cut.count, cut.index)
        yield from _select(kept, part)


def _chunk(whole: range, count: int, index: int) -> range:
    size = -(-len(whole) // count)
    return whole[index * size : (index + 1) * size]


def _select(kept: Sequence[range], part: range) -> Iterator[range]:
    """Yield the indices at the positions `part` of the ranges `kept` laid end to end."""
    start = 0
    for piece in kept:
        yield piece[max(part.start - start, 0) : max(part.stop - start, 0)]
        start += len(piece)


def _adjoined(ranges: Sequence[range]) -> list[range]:
    """Join neighbours that adjoin; where nothing is left, one empty range."""
    joined = [range(0)]
    for piece in filter(len, ranges):
        if len(joined[-1]) and joined[-1].stop == piece.start:
            joined[-1] = range(joined[-1].start, piece.stop)
        else:
            joined.append(piece)
    return joined[1:] or joined


def _kept_places(parameter: "DTensor", coordinate: Sequence[int]) -> list[tuple[range, ...]]:
    """Return the indices along each axis that the placements leave to this process."""
    cuts: list[list[Cut]] = [[] for _ in parameter.shape]
    for number, placement in enumerate(parameter.placements):
        if not placement.is_replicate():
            axis, groups = _axis_and_groups(placement)
            count = parameter.device_mesh.size(number)
            cuts[axis].append(Cut(coordinate[number], count, groups))
    return [kept_by(size, cut) for size, cut in zip(parameter.shape, cuts, strict=True)]


def _axis_and_groups(placement: "Placement") -> tuple[int, int]:
    # Whoever holds a DTensor has imported this; others should not wait half a second for it.
    from torch.distributed.tensor.placement_types import Shard, _StridedShard  # noqa: PLC0415

    if isinstance(placement, _StridedShard):
        return placement.dim, int(placement.split_factor)
    if isinstance(placement, Shard):
        return placement.dim, 1
    raise ApplyError(f"a tensor placed as {placement} holds no values of its own to write")


def local_part(parameter: Tensor) -> Tensor:
    """Return what this process holds of a parameter."""
    if not is_sharded(parameter):
        return plain(parameter)
    with torch.no_grad():
        return parameter.to_local().detach()
