"""Measures one activation tensor: its size, its zeros, and how far it tells inputs apart.

A complex number counts as one, by its absolute value: the second moment is `E |z| ** 2`, the sum of
those of its two parts. Knows tensors only; has never heard of a model.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from torch_initpolicy.tensors.norms import norm, wide

SAMPLED = 1 << 16
"""Elements that are looked at where a statistic does not need all of them."""

FEATURES = 4096
"""Features of each input that are compared."""

INPUTS = 64
"""Inputs of a batch that are compared."""


class Sketch(NamedTuple):
    """What was measured of one tensor, still as tensors: reading numbers would wait for a GPU.

    Attributes:
        mean: Mean of all elements; of complex ones its absolute value.
        second: Mean of their squared absolute values.
        zeros: Fraction of a sample that is exactly zero.
        likeness: Mean cosine between the outputs for different inputs, and their effective number;
            None where the inputs cannot be told apart in the tensor.
    """

    mean: Tensor
    second: Tensor
    zeros: Tensor
    likeness: Tensor | None


def second_moment(*tensors: Tensor) -> Tensor:
    """Return the mean of the squared absolute values of all elements of some tensors.

    Examples:
        >>> second_moment(torch.tensor([3.0, -4.0])).item()
        12.5
        >>> second_moment(torch.tensor([3.0 + 4.0j])).item()
        25.0
    """
    norms = torch.stack([norm(tensor) for tensor in tensors])
    return norms.square().sum() / max(sum(t.numel() for t in tensors), 1)


def as_real(tensor: Tensor) -> Tensor:
    """Return a view in which each complex number is two real ones, along a last axis of its own.

    Real tensors are returned as they are.

    Examples:
        >>> as_real(torch.tensor([3.0 + 4.0j])).tolist()
        [[3.0, 4.0]]
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def sketch(tensor: Tensor, inputs: int) -> Sketch:
    """Measure an activation.

    Args:
        tensor: A floating-point or complex tensor, not empty.
        inputs: How many inputs the batch holds.
    """
    rows = by_input(tensor, inputs)
    sample = _sample((tensor.reshape(1, -1) if rows is None else rows).detach())
    return Sketch(
        mean=_mean(tensor),
        second=second_moment(tensor),
        zeros=(sample == 0).double().mean(),
        likeness=None if rows is None or inputs < 2 else likeness(as_real(sample).flatten(1)),
    )


def _mean(tensor: Tensor) -> Tensor:
    return wide(tensor).mean().abs() if tensor.is_complex() else tensor.mean(dtype=torch.float32)


def by_input(tensor: Tensor, inputs: int) -> Tensor | None:
    """Return an activation as `(inputs, features)`, or None where no axis counts the inputs.

    The batch lies along axis 0 (possibly folded with windows or time behind it), or along axis 1
    behind time.

    Examples:
        >>> by_input(torch.zeros(8, 3, 5), 4).shape, by_input(torch.zeros(7, 4, 5), 4).shape
        (torch.Size([4, 30]), torch.Size([4, 35]))
    """
    shape = tensor.shape
    if tensor.ndim > 1 and shape[0] % inputs == 0 and shape[0]:
        return tensor.reshape(inputs, -1)
    if tensor.ndim > 2 and shape[1] == inputs:
        return tensor.transpose(0, 1).reshape(inputs, -1)
    return None


def _sample(rows: Tensor) -> Tensor:
    """Take evenly spaced columns; an odd step does not fall in with the usual powers of two."""
    rows = rows[:INPUTS]
    most = max(SAMPLED // len(rows), FEATURES)
    step = -(-rows.shape[1] // most)
    step += step % 2 == 0
    sample = rows[:, ::step]
    return wide(sample)


def likeness(rows: Tensor) -> Tensor:
    """Say how alike the rows are: their mean cosine, and the number of directions they span.

    The number is the participation ratio of the rows' Gram matrix, `(sum l)^2 / sum l^2` over its
    eigenvalues: 1 where all rows are parallel, their number where they are orthogonal.

    Examples:
        >>> likeness(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).tolist()
        [0.0, 2.0]
        >>> likeness(torch.tensor([[1e-30, 0.0], [0.0, 1e-30]])).tolist()
        [0.0, 2.0]
    """
    rows = rows[:, :FEATURES]
    # Of numbers below 1e-20 the squares would be zero: they are measured by the largest.
    rows = rows / torch.linalg.vector_norm(rows, math.inf, dim=1, keepdim=True).clamp_min(_TINY)
    unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(_TINY)
    gram = unit @ unit.mT
    count, trace = len(rows), gram.trace()
    cosine = (gram.sum() - trace) / (count * (count - 1))
    return torch.stack((cosine, trace.square() / gram.square().sum().clamp_min(1e-30)))


_TINY = torch.finfo(torch.float32).tiny


def dead_units(tensor: Tensor, axis: int) -> Tensor | None:
    """Return the fraction of units that are zero for every input and position.

    Args:
        tensor: The output of an activation function.
        axis: The axis along which its units lie.

    Returns:
        A fraction; None where so few values were seen of each unit that zeros say nothing.
    """
    seen = tensor.numel() // max(tensor.shape[axis], 1)
    if seen < ENOUGH:
        return None
    others = [dim for dim in range(tensor.ndim) if dim != axis % tensor.ndim]
    largest: Tensor = torch.linalg.vector_norm(tensor.detach(), math.inf, others)
    return (largest == 0).double().mean()


ENOUGH = 32
"""Values of a unit to be seen before its zeros count: a live ReLU is silent once in `2^32`."""


def number(value: Tensor | None) -> float | None:
    """Read a measured number; None stays None."""
    return None if value is None else float(value.item())


def deviation(mean: float, second: float) -> float:
    """Return the standard deviation that a mean and a second moment make; nan stays nan."""
    return math.sqrt(max(second - mean**2, 0.0)) if math.isfinite(second) else second
