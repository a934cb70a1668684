"""Cuts a weight into the linear maps it holds, one per copy and per group of a packed block."""

import itertools
import math
from typing import NamedTuple

from torch import Tensor

from torch_initpolicy.tensors.axes import Axes


class Maps(NamedTuple):
    """Equal linear maps, as one view.

    The view of the weight is `(*batch, *outputs, *inputs, *kernel)`, of so many dimensions each;
    those of the batch index independent maps (copies and groups).
    """

    view: Tensor
    batch: int
    outputs: int
    inputs: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Number of maps, of output units and of input units of each."""
        bounds = (0, self.batch, self.batch + self.outputs, self.batch + self.outputs + self.inputs)
        count, outputs, inputs = (
            math.prod(self.view.shape[a:b]) for a, b in itertools.pairwise(bounds)
        )
        return count, outputs, inputs

    @property
    def kernel(self) -> tuple[int, ...]:
        """Extents of the kernel; empty for a plain matrix."""
        return tuple(self.view.shape[self.batch + self.outputs + self.inputs :])

    @property
    def centre(self) -> Tensor:
        """The view at the kernel's middle tap, `(*batch, *outputs, *inputs)`."""
        taps = self.view
        for extent in reversed(self.kernel):
            taps = taps.select(-1, extent // 2)
        return taps


def maps(tensor: Tensor, axes: Axes) -> Maps:
    """View a contiguous block as a batch of linear maps, which can be written to."""
    tensor = tensor.view(axes.view or tensor.shape)
    kinds = dict.fromkeys(range(tensor.ndim), 3)  # kernel
    kinds |= dict.fromkeys(axes.inputs, 2) | dict.fromkeys(axes.outputs, 1)
    kinds |= dict.fromkeys(axes.copies, 0)
    order = [kinds[axis] for axis in range(tensor.ndim)]
    if axes.groups > 1:
        sizes = (axes.groups, tensor.shape[0] // axes.groups, *tensor.shape[1:])
        tensor, order = tensor.view(sizes), [0, *order]
    view = tensor.permute(sorted(range(tensor.ndim), key=order.__getitem__))
    return Maps(view, order.count(0), order.count(1), order.count(2))
