"""The structure of tensors that are drawn at once: what moments do not tell."""

import functools
import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor

from torch_initpolicy.errors import counted
from torch_initpolicy.tensors import initializers as init
from torch_initpolicy.tensors.axes import Axes, block_ranges, conventional, part
from torch_initpolicy.tensors.maps import Maps, maps
from torch_initpolicy.tensors.samplers import built


@functools.singledispatch
def structure(initializer: init.Initializer, tensor: Tensor, axes: Axes | None) -> Iterator[str]:
    """Yield in what a whole logical tensor lacks the structure that its initializer gives."""
    return iter(())


def has_structure(initializer: init.Initializer) -> bool:
    """Tell whether `structure` knows what to look for."""
    each = initializer.initializers if isinstance(initializer, init.Blocks) else (initializer,)
    nothing = structure.dispatch(object)
    return any(structure.dispatch(type(inner)) is not nothing for inner in each)


@structure.register(init.Orthogonal)
def _(initializer: init.Orthogonal, tensor: Tensor, axes: Axes | None) -> Iterator[str]:
    for title, each in _linear_maps(tensor, axes):
        yield from _not_orthogonal(title, _as_matrices(each), initializer, tensor.dtype)


def _not_orthogonal(
    title: str,
    matrices: Tensor,
    initializer: init.Orthogonal | init.DeltaOrthogonal,
    dtype: torch.dtype,
) -> Iterator[str]:
    """Yield how far rows (columns, where there are fewer) are from orthonormal times the gain."""
    rows, columns = matrices.shape[-2:]
    short = matrices if rows <= columns else matrices.mH
    square = cast("float", initializer.gain) ** 2
    unit = torch.eye(min(rows, columns), dtype=short.dtype, device=short.device)
    errors = (short @ short.mH - square * unit).abs()
    error = errors.max().item() if errors.numel() else 0.0
    if not error <= square * (8 * torch.finfo(dtype).eps + _BUILT_WITHIN):
        yield f"{title}products of units are off by {error:.2g} from those of {initializer}"


_BUILT_WITHIN = 1e-5
"""How far from orthogonal a matrix of any size is built in float32."""


@structure.register(init.DeltaOrthogonal)
def _(initializer: init.DeltaOrthogonal, tensor: Tensor, axes: Axes | None) -> Iterator[str]:
    for title, each in _linear_maps(tensor, axes):
        centre = each.centre.reshape(each.sizes)
        yield from _not_orthogonal(title, centre, initializer, tensor.dtype)
        if each.view.count_nonzero() > each.centre.count_nonzero():
            yield f"{title}values beside the middle tap, expected zeros"


@structure.register(init.Dirac)
@structure.register(init.Identity)
def _(initializer: init.Dirac | init.Identity, tensor: Tensor, axes: Axes | None) -> Iterator[str]:
    expected = built(initializer.sampler(tensor.shape, axes), tensor.shape, tensor.new_zeros)
    rounding = 4 * torch.finfo(tensor.dtype).eps  # of a gain, and of what is multiplied to it
    wrong = int(((expected - tensor).abs() > rounding * expected.abs()).sum())
    if wrong:
        yield f"{counted(wrong, 'element')} other than those of {initializer}"


@structure.register(init.Sparse)
def _(initializer: init.Sparse, tensor: Tensor, axes: Axes | None) -> Iterator[str]:
    for title, each in _linear_maps(tensor, axes):
        matrices = _as_matrices(each)
        expected = math.ceil(initializer.sparsity * matrices.shape[-1])
        least = int((matrices == 0).sum(-1).min()) if matrices.numel() else expected
        if initializer.std and least < expected:
            yield f"{title}a unit with {counted(least, 'zero')}, expected {expected}"


@structure.register(init.ICNR)
def _(initializer: init.ICNR, tensor: Tensor, axes: Axes | None) -> Iterator[str]:
    axis, times = (axes or conventional(tensor.shape)).outputs[0], initializer.upscale_factor**2
    copies = tensor.reshape(*tensor.shape[:axis], -1, times, *tensor.shape[axis + 1 :])
    if not torch.equal(copies, copies.narrow(axis + 1, 0, 1).expand_as(copies)):
        yield f"kernels differ within patches of {times} channels"


@structure.register(init.Blocks)
def _(initializer: init.Blocks, tensor: Tensor, axes: Axes | None) -> Iterator[str]:
    blocks = zip(initializer.initializers, _packed_blocks(tensor, axes), strict=True)
    for number, (inner, (block, block_axes)) in enumerate(blocks):
        for reason in structure(inner, block, block_axes):
            yield f"block {number}: {reason}"


def _packed_blocks(tensor: Tensor, axes: Axes | None) -> Iterator[tuple[Tensor, Axes]]:
    layout = axes or conventional(tensor.shape)
    if layout.packed is None:
        yield tensor, layout
        return
    for number, ranges in enumerate(block_ranges(tensor.shape, layout)):
        parts = [tensor.narrow(layout.packed, at.start, len(at)) for at in ranges]
        yield torch.cat(parts, layout.packed), part(tensor.shape, layout, number)[1]


def _linear_maps(tensor: Tensor, axes: Axes | None) -> Iterator[tuple[str, Maps]]:
    """Yield the linear maps of each packed block, widened to float64."""
    wide = torch.promote_types(tensor.dtype, torch.float64)
    blocks = list(_packed_blocks(tensor.contiguous(), axes))
    for number, (block, layout) in enumerate(blocks):
        title = f"block {number}: " if len(blocks) > 1 else ""
        yield title, maps(block.to(wide), layout)


def _as_matrices(each: Maps) -> Tensor:
    """View maps as matrices `(count, out, in * kernel)`."""
    empty = each.view.new_empty(0, 0, 0)
    return each.view.reshape(*each.sizes[:2], -1) if each.view.numel() else empty
