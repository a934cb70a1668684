"""Which connections a parameter makes at the operator that consumes it: its axes and its fans."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from torch_initpolicy.tensors.axes import Axes, Fans, fans
from torch_initpolicy.trace.consumers import Source, Use, Uses
from torch_initpolicy.trace.contractions import Facing, Label, facing
from torch_initpolicy.trace.coordinates import LARGEST, Mixed, Placed, picks_once, placed
from torch_initpolicy.trace.graph import Node, Value
from torch_initpolicy.trace.operators import OpRole
from torch_initpolicy.trace.strides import dense_strides, strides_in


class Run(NamedTuple):
    """Elements of a parameter `stride` apart, along one dimension of the weight in use."""

    stride: int
    extent: int
    label: Label


def axes_at_use(uses: Uses, use: Use, shape: tuple[int, ...]) -> Axes | None:
    """Count the connections that a parameter makes at its consumer; None where nobody can."""
    faced = facing(uses, use.node, use.slot, use.value)
    if faced is None or not faced.dims("in", "out"):
        return None
    strides = _strides(uses, use, faced.shape)
    if strides is not None:
        runs = [Run(*run) for run in zip(strides, faced.shape, faced.labels, strict=True)]
        return _put_together(shape, _pieces(shape, runs), faced, full_fans(faced))
    if max(math.prod(shape), math.prod(use.value.shape)) > LARGEST:
        return None
    with torch.inference_mode(mode=False), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _axes_by_numbers(uses, use, shape, faced)
        except Mixed:
            return None


def is_masked(uses: Uses, use: Use) -> bool:
    """Say whether a parameter is multiplied, on the way to its use, by a tensor with zeros."""
    return any(
        uses.role(node) is OpRole.MULTIPLIES and any(map(_has_zeros, _constants_at(uses, node)))
        for node in _way_to(uses, use)
    )


def _constants_at(uses: Uses, node: Node) -> Iterator[Tensor]:
    each = (uses.graph.values[value].held for value in node.inputs if value not in uses.sources)
    return (held for held in each if held is not None and not held.is_meta)


def _has_zeros(held: Tensor) -> bool:
    return held.numel() > 1 and bool((held == 0).any())


def repeats_rows(uses: Uses, use: Use) -> bool:
    """Say whether a table of indices picks rows of a parameter several times on the way to its use.

    So do the rows of a table that positions or categories share; where nobody knows, they do.
    """
    for node in _way_to(uses, use):
        picks = uses.role(node) is OpRole.PICKS and any(
            math.prod(uses.graph.values[v].shape) > 1 for v in node.inputs[1:]
        )
        if picks and not picks_once(uses, node, node.inputs[0]):
            return True
    return False


def _way_to(uses: Uses, use: Use) -> Iterator[Node]:
    """Yield the nodes between a parameter and its use, the last one first."""
    waiting = [use.value.index]
    while waiting:
        value = uses.graph.values[waiting.pop()]
        if value.producer is not None:
            node = uses.graph.nodes[value.producer]
            yield node
            waiting += (v for v in dict.fromkeys(node.inputs) if uses.holds(v, use.source.site))


def _strides(uses: Uses, use: Use, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the distances between elements of a parameter in the weight in use, if it has any."""
    found = strides_in(uses, uses.graph.values[use.source.at], use.value)
    if found is None or shape == use.value.shape:
        return found
    return (found[0] * shape[1], *found)  # the groups of a convolution


def full_fans(faced: Facing) -> Fans:
    """Count connections where an element stands at every position."""
    reach = math.prod(faced.shape[dim] for dim in faced.dims("out", "kernel"))
    return Fans(faced.fan_in, reach if faced.transposed else reach / faced.stride)


def _axes_by_numbers(uses: Uses, use: Use, shape: tuple[int, ...], faced: Facing) -> Axes | None:
    site = use.source.site
    found = placed(uses, use.source, use.value, faced.shape)
    if not found.counts.any():
        return None
    strides = None if found.ids is None else _affine(found.ids)
    if strides is not None:
        runs = [Run(*run) for run in zip(*strides, faced.labels, strict=True)]
        pieces = _pieces(shape, runs)
    else:
        pieces = _by_sets(shape, found, faced)
    if use.source.contracted:
        return _put_together(shape, _facing_factor(pieces), faced, None)
    total = found.counts.clone()
    for other in dict.fromkeys(_beside(uses, use.value, site)):
        total += placed(uses, other, use.value, faced.shape).counts
    return _put_together(shape, pieces, faced, _mean_fans(found.counts > 0, total, faced))


def _mean_fans(mine: Tensor, total: Tensor, faced: Facing) -> Fans:
    """Count the connections of the units that a parameter reaches, as means over these."""
    ways_in, ways_out = faced.dims("in", "kernel"), faced.dims("out", "kernel")
    outputs, inputs = _any(mine, ways_in), _any(mine, ways_out)
    fan_in = _total(total, ways_in)[outputs].mean().item()
    fan_out = _total(total * outputs, ways_out)[inputs].mean().item()
    if faced.transposed:
        return Fans(fan_in / faced.stride, fan_out)
    return Fans(fan_in, fan_out / faced.stride)


def _total(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    return tensor.sum(dims, keepdim=True) if dims else tensor


def _any(tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
    return tensor.sum(dims, keepdim=True) > 0 if dims else tensor


def _beside(uses: Uses, value: Value, site: str) -> Iterator[Source]:
    """Yield the other parameters that are joined with or added to one, and not multiplied with it.

    What is multiplied with another parameter on the way, as an adapter's factors are, is left out.
    """
    if value.producer is None:
        return
    node = uses.graph.nodes[value.producer]
    is_product = uses.role(node) in (OpRole.MULTIPLIES, OpRole.CONTRACTS, OpRole.NORMALISES)
    for index in dict.fromkeys(node.inputs):
        if uses.holds(index, site):
            yield from _beside(uses, uses.graph.values[index], site)
        elif not is_product:
            others = uses.sources.get(index, ())
            yield from (s for s in others if not (s.noisy or s.contracted or s.scales))


# What that says of the parameter's axes

Pieces = list[list[tuple[int, Label | None]]]
"""For each axis of a parameter the factors of it, outermost first: its extent and its meaning."""


def _affine(ids: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return strides and extents of numbers that lie evenly in a box; None where they do not."""
    for dim in range(ids.dim()):
        others = tuple(d for d in range(ids.dim()) if d != dim)
        held = (ids > 0).sum(others).nonzero().flatten() if others else ids.nonzero().flatten()
        ids = ids.index_select(dim, held)
    strides = tuple(_stride_along(ids, dim) for dim in range(ids.dim()))
    start = ids[(0,) * ids.dim()].item()
    expected = torch.full(ids.shape, start, dtype=ids.dtype)
    for dim, stride in enumerate(strides):
        along = torch.arange(ids.shape[dim], dtype=ids.dtype) * stride
        expected += along.view(-1, *(1,) * (ids.dim() - dim - 1))
    if not torch.equal(ids, expected):
        return None
    return tuple(abs(stride) for stride in strides), tuple(ids.shape)


def _stride_along(ids: Tensor, dim: int) -> int:
    line = ids[tuple(slice(None) if d == dim else 0 for d in range(ids.dim()))]
    return int(line[1] - line[0]) if len(line) > 1 else 0


def _pieces(shape: Sequence[int], runs: Sequence[Run]) -> Pieces:
    """Say which labels each axis runs along, and cut those that run along several."""
    pieces: Pieces = []
    for low, size in zip(dense_strides(shape), shape, strict=True):
        within = [_clipped(run, low, low * size) for run in runs if run.stride and run.extent > 1]
        inside = sorted((run for run in within if run is not None), reverse=True)
        pieces.append(_of_axis(size, low, inside))
    return pieces


def _clipped(run: Run, low: int, high: int) -> Run | None:
    start, stop = max(run.stride, low), min(run.stride * run.extent, high)
    return Run(start, -(-stop // start), run.label) if start < stop else None


def _of_axis(size: int, low: int, inside: Sequence[Run]) -> list[tuple[int, Label | None]]:
    labels = list(dict.fromkeys(run.label for run in inside))
    if len(labels) < 2:
        return [(size, labels[0] if labels else ("copy" if size > 1 else None))]
    ends = [low * size, *(run.stride for run in inside)]
    tiles = all(run.stride * run.extent == end for run, end in zip(inside, ends, strict=False))
    if not tiles or ends[-1] != low:
        return [(size, None)]
    return [(run.extent, run.label) for run in inside]


def _by_sets(shape: Sequence[int], found: Placed, faced: Facing) -> Pieces:
    """Compare the elements that lead into one output unit with those out of one input unit."""
    middle = found.counts.nonzero()
    at = middle[len(middle) // 2]
    into = _indices_of(shape, found.reached(_agreeing(at, faced, "copy", "out")))
    out_of = _indices_of(shape, found.reached(_agreeing(at, faced, "copy", "in")))
    return [
        [(size, None if size == 1 else _MEANINGS[len(a) > 1, len(b) > 1])]
        for size, a, b in zip(shape, into, out_of, strict=True)
    ]


_MEANINGS: dict[tuple[bool, bool], Label] = {
    (True, True): "kernel", (True, False): "in", (False, True): "out", (False, False): "copy",
}  # fmt: skip
"""What an axis means: are there several of its indices into one output, and out of one input?"""


def _agreeing(at: Tensor, faced: Facing, *labels: Label) -> Tensor:
    """Mark the positions that agree with one in the dimensions of some labels."""
    where = torch.zeros(faced.shape, dtype=torch.bool)
    fixed = faced.dims(*labels)
    where[tuple(int(at[d]) if d in fixed else slice(None) for d in range(len(faced.shape)))] = True
    return where


def _indices_of(shape: Sequence[int], numbers: Tensor) -> list[Tensor]:
    """Return the indices along each axis that elements with these numbers have."""
    return [torch.unique(index) for index in torch.unravel_index(numbers - 1, tuple(shape))]


def _facing_factor(pieces: Pieces) -> Pieces:
    """In a product of parameters, the axis that is summed over faces what the other does not."""
    labels = {label for axis in pieces for _, label in axis}
    summed: Label = "in" if "out" in labels else "out"
    return [[(n, summed if label == "kernel" else label) for n, label in axis] for axis in pieces]


def _put_together(
    shape: tuple[int, ...], pieces: Pieces, faced: Facing, counted: Fans | None
) -> Axes:
    """Put together what is known of a parameter's axes; what the shape does not say is counted."""
    pieces = _with_ones(pieces, faced)
    groups, view = 1, tuple[int, ...]()
    if any(len(axis) > 1 for axis in pieces):
        whole = all(len(axis) < 2 for axis in pieces[1:])
        if whole and len(pieces[0]) == 2 and pieces[0][0][1] == "copy":
            groups = pieces[0][0][0]
            pieces = [[(shape[0], pieces[0][1][1])], *pieces[1:]]
        else:
            view = tuple(extent for axis in pieces for extent, _ in axis)
    labels = [label for axis in pieces for _, label in axis]
    at = {
        label: tuple(i for i, found in enumerate(labels) if found == label)
        for label in ("in", "out", "copy")
    }
    axes = Axes(
        at["in"],
        at["out"],
        at["copy"],
        groups=groups,
        stride=faced.stride,
        transposed=faced.transposed,
        view=view,
    )
    joins = bool(axes.inputs or axes.copies)
    if counted is None or (joins and tuple(counted) == tuple(fans(shape, axes))):
        return axes
    return replace(axes, counted=(counted.fan_in, counted.fan_out))


def _with_ones(pieces: Pieces, faced: Facing) -> Pieces:
    """Find a place among the axes of one element for inputs or outputs that have only one."""
    for label in ("out", "in"):
        labels = [found for axis in pieces for _, found in axis]
        alone = next((i for i, axis in enumerate(pieces) if axis == [(1, None)]), None)
        if faced.dims(label) and label not in labels and alone is not None:
            pieces = [*pieces[:alone], [(1, label)], *pieces[alone + 1 :]]
    return [[(1, "copy")] if axis == [(1, None)] else axis for axis in pieces]
