"""Compares what is spread over processes: a few bytes per unit travel, never the weights.

Every function here is collective: all processes call it, in one order, and get one answer.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torch_initpolicy.sites import Site
from torch_initpolicy.symmetry.findings import Finding
from torch_initpolicy.symmetry.units import NEAR, View, equal_groups, equal_rows
from torch_initpolicy.writing.shards import Piece, is_sharded, pieces

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

WIDTH = 4
"""Numbers in a signature: projections on random vectors."""

_PIECE = 1 << 20
"""Elements that are projected at once."""


def signatures(parameter: "DTensor", view: View) -> Tensor:
    """Project each unit of a sharded parameter on the same few random vectors.

    The result has the shape `(units, WIDTH)`; equal units have equal rows up to rounding.
    """
    result = torch.zeros(view.count, WIDTH, dtype=torch.float64, device=parameter.to_local().device)
    if _is_first_replica(parameter):
        for piece in pieces(parameter):
            _add(result, piece, view)
    return _reduced(parameter, result, "SUM")


def _add(result: Tensor, piece: Piece, view: View) -> None:
    """Add what one process' piece contributes to the signatures."""
    rest = [axis for axis in range(len(piece.shape)) if axis not in view.axes]
    units = _flat([piece.box[axis] for axis in view.axes], [piece.shape[a] for a in view.axes])
    weights = _weights([(piece.shape[axis], piece.box[axis]) for axis in rest]).to(result)
    rows = piece.tensor.permute((*view.axes, *rest)).reshape(len(units), len(weights))
    rows = torch.view_as_real(rows).flatten(1) if rows.is_complex() else rows
    weights = weights.repeat_interleave(rows.shape[1] // max(len(weights), 1), 0)
    step = max(1, _PIECE // max(rows.shape[1], 1))
    for start in range(0, len(units), step):
        part = rows[start : start + step].to(result)
        result[units[start : start + step].to(result.device)] += part @ weights


def _flat(box: Sequence[range], sizes: Sequence[int]) -> Tensor:
    """Number the units of a box as they are numbered in the whole."""
    numbers = torch.zeros(1, dtype=torch.int64)
    for part, size in zip(box, sizes, strict=True):
        numbers = (numbers[:, None] * size + torch.tensor(list(part), dtype=torch.int64)).flatten()
    return numbers


def _weights(axes: Sequence[tuple[int, range]]) -> Tensor:
    """Return the random vectors on a box of features: products of one vector for each axis."""
    weights = torch.ones(1, WIDTH, dtype=torch.float64)
    for number, (size, part) in enumerate(axes):
        generator = torch.Generator().manual_seed(number)
        whole = torch.rand(size, WIDTH, generator=generator, dtype=torch.float64) + 0.5
        along = whole[part.start : part.stop]
        weights = (weights[:, None] * along).flatten(0, 1)
    return weights


def digest_of_shards(parameter: "DTensor") -> tuple[float, ...]:
    """Return a signature of a whole sharded parameter."""
    whole = View("entries", tuple(parameter.shape), ())
    return tuple(float(f"{number:.6g}") for number in signatures(parameter, whole)[0].tolist())


# Collectives


def _is_first_replica(parameter: "DTensor") -> bool:
    """Whether this process speaks for what its replicas hold as well."""
    coordinate: Sequence[int] = parameter.device_mesh.get_coordinate() or ()
    placed = zip(coordinate, parameter.placements, strict=False)
    return all(place == 0 or not placement.is_replicate() for place, placement in placed)


def _reduced(parameter: "DTensor", tensor: Tensor, how: str) -> Tensor:
    """Reduce a tensor over the whole mesh, one dimension after the other."""
    for dimension in range(parameter.device_mesh.ndim):
        tensor = _reduced_along(parameter, tensor, how, dimension)
    return tensor


def _reduced_along(parameter: "DTensor", tensor: Tensor, how: str, dimension: int) -> Tensor:
    from torch import distributed  # noqa: PLC0415 - whoever holds a DTensor has imported it

    result = tensor.clone()
    operation = getattr(distributed.ReduceOp, how)
    distributed.all_reduce(result, op=operation, group=parameter.device_mesh.get_group(dimension))
    return result


def _gathered_along(parameter: "DTensor", tensor: Tensor, dimension: int) -> Tensor:
    """Stack what the processes along one dimension of the mesh hold."""
    mesh = parameter.device_mesh
    stack = tensor.new_zeros((mesh.size(dimension), *tensor.shape))
    coordinate = mesh.get_coordinate() or [0] * mesh.ndim
    stack[coordinate[dimension]] = tensor
    return _reduced_along(parameter, stack, "SUM", dimension)


# What is equal and must not be, what differs and must not


def shard_findings(sites: Sequence[Site]) -> Iterator[Finding]:
    """Yield the parameters whose shards are copies of one another, or whose replicas differ.

    Both come of drawing on every process for itself: with one seed each draws the same shard, with
    seeds of their own each draws another copy.
    """
    for site in sites:
        for parameter in site.parameters:
            if not site.lazy and is_sharded(parameter):
                yield from itertools.islice(_of_parameter(site, parameter), 1)


def _of_parameter(site: Site, parameter: "DTensor") -> Iterator[Finding]:
    own = _own_digest(parameter)
    for dimension, placement in enumerate(parameter.placements):
        find = _diverged if placement.is_replicate() else _copied
        finding = find(site, parameter, own, dimension)
        if finding is not None:
            yield replace(finding, remedy=f"apply_policy(model, only=[{site.name!r}], seed=0)")


def _own_digest(parameter: "DTensor") -> Tensor:
    """Return a signature of what this process holds, and whether it is one number only."""
    local = parameter.to_local().detach()
    flat = torch.view_as_real(local).flatten() if local.is_complex() else local.flatten()
    weights = _weights([(flat.numel(), range(flat.numel()))]).to(flat.device)
    constant = float(flat.numel() == 0 or bool((flat == flat[:1]).all()))
    numbers = (flat.double()[:, None] * weights).sum(0)
    facts = torch.tensor([flat.numel(), constant], dtype=torch.float64, device=flat.device)
    return torch.cat((numbers, facts))


def _diverged(site: Site, parameter: "DTensor", own: Tensor, dimension: int) -> Finding | None:
    """Find replicas along one dimension of the mesh that differ."""
    low = _reduced_along(parameter, own, "MIN", dimension)
    high = _reduced_along(parameter, own, "MAX", dimension)
    apart = ((high - low).abs() > NEAR * own.abs().amax()).any() | own.isnan().any()
    if not bool(_reduced(parameter, apart.double()[None], "MAX")):
        return None
    units = (tuple(range(parameter.device_mesh.size(dimension))),)
    reason = (
        f"the replicas along dimension {dimension} of the mesh should hold the same values and "
        "do not: each process has drawn its own"
    )
    return Finding(site.name, units, "diverged", reason, along="replicas")


def _copied(site: Site, parameter: "DTensor", own: Tensor, dimension: int) -> Finding | None:
    """Find shards along one dimension of the mesh that are copies; constants are no copies."""
    stack = _gathered_along(parameter, own, dimension)
    labels, _ = equal_rows(stack.cpu())
    constant = stack[:, -1].cpu() > 0
    labels = torch.where(constant, torch.arange(len(labels)), labels)
    found = float(bool(equal_groups(labels)))
    if not bool(_reduced(parameter, own.new_tensor([found]), "MAX")):
        return None
    units = equal_groups(labels) or (tuple(range(len(labels))),)
    reason = (
        f"the processes along dimension {dimension} of the mesh hold identical shards: the "
        f"whole has {len(labels)} copies of the same units, as if each had drawn its own from "
        "one seed"
    )
    return Finding(site.name, units, "tied", reason, along="shards")
