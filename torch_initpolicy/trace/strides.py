"""How far apart the elements of a parameter are in its views, its copies, and the views of these.

So parameters of any size are followed without memory, where nothing but their layout changes.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.graph import Value
from torch_initpolicy.trace.operators import OpRole


def dense_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a contiguous tensor.

    Examples:
        >>> dense_strides((2, 3, 4))
        (12, 4, 1)
    """
    inner = itertools.accumulate(reversed(shape[1:]), int.__mul__, initial=1)
    return tuple(inner)[::-1] if shape else ()


def strides_in(uses: Uses, whole: Value, value: Value) -> tuple[int, ...] | None:
    """Return the distances between elements of a parameter along each dimension of a value.

    Args:
        uses: The data flow.
        whole: The value that is the parameter.
        value: What is made of it.

    Returns:
        One number for each dimension; None where there is more to the value than layout.
    """
    root = _before_views(uses, value)
    if root.index == whole.index:
        return value.stride if whole.stride == dense_strides(whole.shape) else None
    read = _copied_by(uses, root, str(whole.parameter))
    within = None if read is None else strides_in(uses, whole, read)
    if within is None:
        return None
    dims = _dims(root, within)
    found = [_stride_behind(dims, *dim) for dim in zip(value.stride, value.shape, strict=True)]
    return tuple(s for s in found if s is not None) if None not in found else None


def _before_views(uses: Uses, value: Value) -> Value:
    """Return the value that another is a view of, before anything is written to it."""
    while value.producer is not None:
        node = uses.graph.nodes[value.producer]
        if uses.role(node) not in (OpRole.MOVES, OpRole.PICKS, OpRole.CASTS):
            break
        read = uses.graph.values[node.inputs[0]]
        if (read.storage, read.dtype) != (value.storage, value.dtype):
            break
        value = read
    return value


def _copied_by(uses: Uses, copy: Value, site: str) -> Value | None:
    """Return the value that another copies element by element, if a parameter is in it."""
    if (
        copy.producer is None
        or uses.role(node := uses.graph.nodes[copy.producer]) is not OpRole.CASTS
    ):
        return None
    read = uses.graph.values[node.inputs[0]]
    as_is = (read.shape, read.dtype.is_complex) == (copy.shape, copy.dtype.is_complex)
    return read if as_is and uses.holds(read.index, site) else None


class _Dim(NamedTuple):
    """A dimension of a copy: its size, its stride there, and its stride in the parameter."""

    size: int
    stride: int
    behind: int


def _dims(copy: Value, within: Sequence[int]) -> list[_Dim]:
    """Return the dimensions of a copy, those as one that lie one within the other on both sides."""
    found: list[_Dim] = []
    for dim in map(_Dim, copy.shape, copy.stride, within):
        joins = found and found[-1][1:] == (dim.stride * dim.size, dim.behind * dim.size)
        outer = found.pop().size if joins else 1
        if dim.size > 1:
            found.append(dim._replace(size=dim.size * outer))
    return found


def _stride_behind(dims: Sequence[_Dim], stride: int, extent: int) -> int | None:
    """Return the stride in a parameter of one in a view of its copy; None where there is none."""
    if extent == 1 or stride == 0:
        return 0
    for dim in dims:
        steps, rest = divmod(stride, dim.stride) if dim.stride else (0, 1)
        if not rest and (extent - 1) * steps < dim.size:
            return dim.behind * steps
    return None
