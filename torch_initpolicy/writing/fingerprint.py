"""Fingerprints: hashes of tensors that add up over shards, so that no tensor is gathered.

The hash of a tensor is the sum of its elements' bits, each times an odd number that its place in
the logical tensor decides, modulo 2**64. Every change of one element changes it, and a change of
several does but once in 2**32 times at the worst. Sums do not depend on which process holds what.
"""

import functools
import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, distributed, nn

from torch_initpolicy.sites import Site
from torch_initpolicy.tensors.base import dtype_name
from torch_initpolicy.writing.ranks import process_groups, together
from torch_initpolicy.writing.shards import Piece, is_sharded, pieces

_BLOCK = 1 << 16
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def fingerprints(sites: Iterable[Site], model: nn.Module | None = None) -> dict[str, str]:
    """Hash each tensor of a model, by canonical name; equal in every layout.

    Tensors without memory are left out. All processes of a sharded model must ask; each reads what
    it holds, and eight bytes a tensor are summed over them.
    """
    known = [site for site in sites if not site.lazy and site.device.type != "meta"]
    parameters = [(site, parameter) for site in known for parameter in site.parameters]
    held = [parameter for _, parameter in parameters]
    with together(process_groups(model, held)):
        sums = list(map(_own_sum, held))
    totals = _summed(held, sums)
    parts: dict[str, list[str]] = {}
    for (site, parameter), total in zip(parameters, totals, strict=True):
        shape = tuple(parameter.shape)
        parts.setdefault(site.name, []).append(f"{shape} {dtype_name(parameter.dtype)} {total}")
    return {name: _digest(words) for name, words in parts.items()}


def fingerprint(tensors: Mapping[str, str]) -> str:
    """Hash the fingerprints of all tensors of a model, whatever their order."""
    return _digest(f"{name!a}: {tensors[name]}" for name in sorted(tensors))


def _digest(words: Iterable[str]) -> str:
    return hashlib.blake2b("\n".join(words).encode(), digest_size=8).hexdigest()


def _summed(parameters: Sequence[Tensor], sums: Sequence[int]) -> list[int]:
    """Add up over the processes of each mesh what they hold of its tensors."""
    totals = dict(enumerate(sums))
    sharded = {n: p.device_mesh for n, p in enumerate(parameters) if is_sharded(p)}
    for mesh in dict.fromkeys(sharded.values()):
        numbers = [n for n, other in sharded.items() if other == mesh]
        held = torch.tensor([totals[n] for n in numbers], device=mesh.device_type)
        for group in process_groups(None, [parameters[numbers[0]]]):
            distributed.all_reduce(held, group=group)
        totals.update(zip(numbers, held.tolist(), strict=True))
    return list(totals.values())


def _own_sum(parameter: Tensor) -> int:
    """Return the sum over what this process counts: of copies, the first process of each counts."""
    if is_sharded(parameter):
        coordinate = parameter.device_mesh.get_coordinate() or ()
        copies = zip(coordinate, parameter.placements, strict=False)
        if any(at and placement.is_replicate() for at, placement in copies):
            return 0
    return _signed(sum(map(_piece_sum, pieces(parameter))))


def _signed(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


@torch.no_grad()
def _piece_sum(piece: Piece) -> int:
    """Add up the elements of a piece, each times what its place decides."""
    tensor, shape, box = piece.tensor.resolve_conj().resolve_neg(), piece.shape, piece.box
    if tensor.is_complex():
        tensor, shape, box = torch.view_as_real(tensor), (*shape, 2), (*box, range(2))
    if not tensor.numel():
        return 0
    if piece.is_run and tensor.is_contiguous():
        return _run_sum(tensor.view(-1), piece.run.start * tensor.numel() // len(piece.run))
    if not shape:
        tensor, shape, box = tensor.reshape(1), (1,), (range(1),)
    rows = max(_BLOCK * len(box[0]) // tensor.numel(), 1)
    starts = itertools.count(box[0].start, rows)
    parts = zip(torch.split(tensor, rows), starts)  # noqa: B905 - the starts never end
    cut = ((part, range(first, first + len(part))) for part, first in parts)
    return sum(_rows_sum(part, shape, (held, *box[1:])) for part, held in cut)


def _run_sum(flat: Tensor, start: int) -> int:
    """Add up a run of the flattened tensor that begins at `start`, block by block."""
    table, total = _odd_numbers(flat.device), 0
    for block in range(start // _BLOCK, -(-(start + len(flat)) // _BLOCK)):
        first = max(block * _BLOCK, start)
        part = _as_numbers(flat[first - start : (block + 1) * _BLOCK - start])
        weights = table[first - block * _BLOCK :][: len(part)]
        total += int((part * weights).sum()) * (2 * block + 1)
    return total


def _as_numbers(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_BITS[tensor.element_size()]).to(torch.int64)


def _rows_sum(part: Tensor, shape: Sequence[int], box: Sequence[range]) -> int:
    device = part.device
    places = torch.zeros((), dtype=torch.int64, device=device)
    for axis, held in enumerate(box):
        step = math.prod(shape[axis + 1 :])
        along = torch.arange(held.start, held.stop, device=device) * step
        places = places[..., None] + along
    weights = _odd_numbers(device)[places % _BLOCK] * (2 * (places // _BLOCK) + 1)
    return int((_as_numbers(part) * weights).sum())


@functools.cache
def _odd_numbers(device: torch.device) -> Tensor:
    """Return an odd number of 64 bits for each place in a block, by the mixer of splitmix64."""
    numbers = [_splitmix(place + 1) for place in range(_BLOCK)]
    return torch.tensor([_signed(number | 1) for number in numbers], device=device)


def _splitmix(number: int) -> int:
    number = number * 0x9E3779B97F4A7C15 % (1 << 64)
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
    number = (number ^ number >> 27) * 0x94D049BB133111EB % (1 << 64)
    return number ^ number >> 31
