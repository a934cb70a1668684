"""Measures of one activation tensor: size, zeros, saturation, and how different inputs stay.

A complex number counts as one, by its absolute value: the second moment is `E |z| ** 2`, the sum of
those of its two parts. Knows tensors only.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from torch_initpolicy.tensors.isolation import passing_by
from torch_initpolicy.tensors.norms import norm, wide

SAMPLED, INPUTS, FEATURES = 1 << 16, 64, 4096
"""How many elements are looked at, and how many inputs and features of each are compared."""

DECADES = (-8.0, 4.0)
"""Powers of ten between which a histogram has two bins for each."""


def sketch(tensor: Tensor, inputs: int) -> dict[str, Any]:
    """Measure an activation of so many inputs, not empty; return fields of a `Point`."""
    with passing_by(tensor):
        rows = by_input(tensor, inputs)
        sample = _sampled(tensor.reshape(1, -1) if rows is None else rows)
        cosine, rank, variation = None, None, None
        if rows is not None and inputs > 1:
            cosine, rank, variation = likeness(as_real(sample).flatten(1)).tolist()
        mean, second = _mean_of(tensor), second_moment(tensor).item()
        return {
            "mean": mean,
            "std": math.sqrt(max(second - mean**2, 0.0)) if math.isfinite(second) else second,
            "second": second,
            "zeros": (sample == 0).double().mean().item(),
            "likeness": cosine,
            "rank": rank,
            "variation": variation,
            "tokens": _likeness_of_tokens(tensor, inputs),
            "histogram": _histogram(sample.flatten()[::3]),  # a picture needs no more
        }


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

    Examples:
        >>> as_real(torch.tensor([3.0 + 4.0j])).tolist()
        [[3.0, 4.0]]
    """
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


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


def _sampled(rows: Tensor) -> Tensor:
    """Take evenly spaced columns; an odd step does not fall in with the usual powers of two."""
    rows = rows[:INPUTS]
    step = -(-rows.shape[1] // max(SAMPLED // len(rows), FEATURES))
    return wide(rows[:, :: step + (step % 2 == 0)])


def _mean_of(tensor: Tensor) -> float:
    mean = wide(tensor).mean().abs() if tensor.is_complex() else tensor.mean(dtype=torch.float32)
    return float(mean)


def _histogram(sample: Tensor) -> tuple[float, ...]:
    low, high = DECADES
    size = sample.abs().float()
    powers = size[size > 0].log10().nan_to_num(high, high, low).clamp(low, high - 1e-3)
    counts = torch.histc(powers, int(2 * (high - low)), low, high)
    return tuple((counts / max(size.numel(), 1)).tolist())


FEWEST_TOKENS = 4
"""Positions, and features, from which on the similarity of positions means something."""


def _likeness_of_tokens(tensor: Tensor, inputs: int) -> float | None:
    """Return how similar the positions of an input are, in `(inputs, positions, features)`."""
    if tensor.ndim != 3 or tensor.is_complex() or inputs not in tensor.shape[:2]:
        return None
    by_first = tensor if tensor.shape[0] == inputs else tensor.transpose(0, 1)
    some = wide(by_first[:4, :64, :FEATURES]).float()
    if min(some.shape[1:]) < FEWEST_TOKENS:
        return None
    return torch.stack([likeness(rows)[0] for rows in some]).mean().item()


def likeness(rows: Tensor) -> Tensor:
    """Compare rows: their mean cosine, the number of directions they span, and how they differ.

    The number is the participation ratio of the rows' Gram matrix, `(sum l)^2 / sum l^2` over its
    eigenvalues: 1 where all rows are parallel, their number where they are orthogonal. The last is
    the variance over rows relative to the second moment: parallel rows differ by their lengths.

    Examples:
        >>> likeness(torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist()
        [0.0, 2.0, 0.5]
        >>> likeness(torch.tensor([[1e-30, 0.0], [0.0, 1e-30]])).tolist()
        [0.0, 2.0, 0.5]
    """
    rows = rows[:, :FEATURES]
    scaled = rows / rows.abs().max().clamp_min(_TINY)
    differs = (scaled - scaled.mean(0)).square().sum() / scaled.square().sum().clamp_min(1e-30)
    # Of numbers below 1e-20 the squares would be zero: they are measured by the largest.
    rows = rows / torch.linalg.vector_norm(rows, math.inf, dim=1, keepdim=True).clamp_min(_TINY)
    unit = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(_TINY)
    gram = unit @ unit.mT
    count, trace = len(rows), gram.trace()
    cosine = (gram.sum() - trace) / (count * (count - 1))
    return torch.stack((cosine, trace.square() / gram.square().sum().clamp_min(1e-30), differs))


_TINY = torch.finfo(torch.float32).tiny


def dead_units(tensor: Tensor, axis: int) -> float | None:
    """Return the fraction of units along an axis that are zero for every input and position.

    None where so few values were seen of each unit that zeros say nothing.
    """
    if tensor.numel() // max(tensor.shape[axis], 1) < ENOUGH:
        return None
    others = [dim for dim in range(tensor.ndim) if dim != axis % tensor.ndim]
    largest = torch.linalg.vector_norm(tensor, math.inf, others)
    return float((largest == 0).double().mean())


ENOUGH = 32
"""Values of a unit to be seen before its zeros count: a live ReLU is silent once in `2^32`."""

FLAT = 0.1
"""A bounded activation saturates where its slope is below this times the largest."""

_SLOPES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType({
    "tanh": lambda y: 1 - y * y,
    "sigmoid": lambda y: 4 * y * (1 - y),
    "softsign": lambda y: (1 - y.abs()).square(),
    "hardtanh": lambda y: ((y > y.amin()) & (y < y.amax())).float(),
    "hardsigmoid": lambda y: ((y > 0) & (y < 1)).float(),
    "erf": lambda y: (-torch.erfinv(y.clamp(-1, 1)).square()).exp(),
})  # fmt: skip
"""Slopes of bounded activations, relative to the largest, by what comes out of them."""


def flat_share(activation: str, output: Tensor) -> float | None:
    """Return the fraction of a sample of an activation's outputs where it is flat.

    None for activations that are not bounded on both sides.

    Examples:
        >>> flat_share("tanh", torch.tensor([0.0, 0.99])), flat_share("relu", torch.ones(1))
        (0.5, None)
    """
    slope = _SLOPES.get(activation)
    if slope is None or output.is_complex():
        return None
    return (slope(_sampled(output.reshape(1, -1)).float()) < FLAT).double().mean().item()


def turned_share(phases: Tensor, axis: int) -> float | None:
    """Return the fraction of phases half a turn or more from those of the most similar row.

    Rows are all positions but those along the axis of units. A sine of such phases says of one
    input nothing about the next: its layer is a hash.

    Examples:
        >>> angles = torch.linspace(0, 1, 64)[:, None]
        >>> turned_share(angles, -1), turned_share(1e3 * angles, -1)
        (0.0, 1.0)
    """
    rows = phases.movedim(axis, -1).flatten(0, -2).float()[:PHASES]
    if len(rows) < ENOUGH:
        return None
    distances = torch.cdist(rows, rows).fill_diagonal_(math.inf)
    return ((rows - rows[distances.argmin(1)]).abs() >= math.pi).double().mean().item()


def one_sided(scores: Tensor, allowed: Tensor | None = None) -> float | None:
    """Return the fraction of rows of scores whose softmax gives one entry 99 %.

    Of rows along the last axis with three or more entries that are `allowed` and not masked, which
    is what lies far below zero (`-1e4`); None where there are none.
    """
    rows = scores.float().flatten(0, -2)[:ROWS]
    open_ = rows > -1e4
    if allowed is not None:
        open_ = open_ & allowed.expand_as(scores).flatten(0, -2)[:ROWS]
    counted = open_.sum(-1) > 2
    if not bool(counted.any()):
        return None
    shares = rows.masked_fill(~open_, -torch.inf)[counted].softmax(-1)
    return (shares.amax(-1) > SURE).double().mean().item()


ROWS, PHASES = 4096, 512
"""Rows of scores and of phases that are looked at."""

SURE = 0.99
"""A softmax that gives so much to one entry is an argmax."""


def spread(tensor: Tensor) -> float:
    """Return the standard deviation of the deviations from the mean over inputs, on axis 0."""
    some = wide(as_real(tensor))
    return (some - (some.mean(0) if len(some) > 1 else some.mean())).std(correction=0).item()


def excess(logits: Tensor, axis: int) -> float:
    """Return the cross entropy against labels drawn at random, less that of equal logits.

    The mean of the logits over inputs, axis 0, is left out: it is that of biases.

    Examples:
        >>> abs(excess(torch.zeros(4, 10), 1)) < 1e-6
        True
    """
    some = wide(logits).float()
    some = some - some.mean(0, keepdim=True) if len(some) > 1 else some
    surplus = some.logsumexp(axis) - some.mean(axis)
    return surplus.mean().item() - math.log(logits.shape[axis])
