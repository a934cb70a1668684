"""Verification: measures every tensor against what its step says it holds.

The tolerances follow from the number of elements: all tests together raise a false alarm once in
a million models, and 10^5 elements suffice to tell a standard deviation that is 2 % off. Knows
steps and tensors; writes nothing.
"""

import functools
import itertools
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import NamedTuple, cast

import torch
from torch import Tensor

from torch_initpolicy.errors import VerifyError, counted, listing
from torch_initpolicy.sites import Site
from torch_initpolicy.steps import Step
from torch_initpolicy.tensors.axes import Axes, block_ranges, conventional, part
from torch_initpolicy.tensors.base import Spread
from torch_initpolicy.tensors.initializers import (
    ICNR,
    Blocks,
    DeltaOrthogonal,
    Dirac,
    Identity,
    Initializer,
    Keep,
    Orthogonal,
    Sparse,
)
from torch_initpolicy.tensors.maps import Maps, maps
from torch_initpolicy.tensors.samplers import Joint, Sampler, build
from torch_initpolicy.writing.parametrized import ROUNDING, direction, reading
from torch_initpolicy.writing.shards import Piece, along, full, pieces, whole

FALSE_ALARM = 1e-6
"""Probability that some test of a model fails although all is well."""

_CHUNK = 1 << 20  # elements that are widened to float64 at once


@dataclass(frozen=True, slots=True)
class Finding:
    """A tensor that is not what its step says.

    Attributes:
        name: Canonical name of the site.
        reason: What was found and what was expected.
    """

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What came of measuring a model.

    Attributes:
        measured: Sites that were measured.
        unmeasured: Sites that are kept, or filled by functions that say nothing of the values.
        findings: What is not as it should be.
    """

    measured: tuple[str, ...]
    unmeasured: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether every tensor that can be measured is what its step says."""
        return not self.findings

    def __str__(self) -> str:
        head = f"{counted(len(self.measured), 'tensor')} measured, {len(self.unmeasured)} not"
        cases = [f"{finding.name!r}: {finding.reason}" for finding in self.findings]
        if not cases:
            return f"{head}: all well"
        return f"{head}, {counted(len(cases), 'finding')}:\n{listing(cases)}"


def measure_steps(pairs: Iterable[tuple[Site, Step]]) -> Verification:
    """Measure the tensors of sites against their steps.

    Mean, standard deviation and bounds of each packed block, exact values of what is not random,
    orthogonality, sparsity and repetition where these are promised, zero rows of padding. Of a
    sharded tensor each process measures its own part; structured ones are gathered, so that every
    process of the mesh must ask.

    Args:
        pairs: Each site with its step.

    Returns:
        What was measured and what was found.
    """
    known = [(site, calibrated(step)) for site, step in pairs]
    checked = [(site, step) for site, step in known if not _is_unmeasured(site, step)]
    tests = 3 * sum(max(len(step.axes.blocks) if step.axes else 1, 1) for _, step in checked)
    z = -NormalDist().inv_cdf(FALSE_ALARM / (2 * max(tests, 1)))
    with torch.no_grad():
        findings = tuple(
            Finding(site.name, reason)
            for site, step in checked
            for reason in _reasons(site, step, z)
        )
    return Verification(
        measured=tuple(step.name for _, step in checked),
        unmeasured=tuple(step.name for site, step in known if _is_unmeasured(site, step)),
        findings=findings,
    )


def verify_steps(pairs: Iterable[tuple[Site, Step]]) -> Verification:
    """Measure as `measure_steps` does, and raise where something is found.

    Raises:
        VerifyError: A tensor is not what its step says; lists every case.
    """
    verification = measure_steps(pairs)
    if not verification.ok:
        raise VerifyError(str(verification))
    return verification


def _is_silent(step: Step) -> bool:
    """Tell whether nothing is known of the values that a step leaves behind."""
    return step.initializer.is_opaque


def _is_unmeasured(site: Site, step: Step) -> bool:
    return _is_silent(step) or (bool(step.frozen) and direction(site, step.frozen) is None)


def calibrated(step: Step) -> Step:
    """Return a step that says of its initializer what its factors make of it.

    Where parts have factors of their own that are no blocks of the plan, nothing is known of the
    values any more, and the step keeps them.
    """
    if not step.factors or _is_silent(step):
        return step
    if len(set(step.factors)) == 1:
        scaled = step.initializer.scaled(step.factors[0])
        return replace(step, initializer=scaled)
    blocks = step.axes.blocks if step.axes else ()
    if len(blocks) != len(step.factors) or len(set(blocks)) > 1:
        return replace(step, initializer=Keep())
    each = enumerate(step.factors)
    parts = (step.initializer.of_block(number).scaled(factor) for number, factor in each)
    return replace(step, initializer=Blocks(tuple(parts)))


def _reasons(site: Site, step: Step, z: float) -> Iterator[str]:
    """Yield in what a site differs from its step."""
    if site.shape != tuple(step.shape) or site.device.type == "meta":
        yield f"has shape {site.shape} on {site.device}, expected values of shape {step.shape}"
        return
    is_plain = site.storage == "plain"
    held = pieces(site.parameters[0]) if is_plain else (whole(_drawn(site, step)),)
    once = is_plain and not step.factors
    rounding = torch.finfo(site.dtype).eps * (1 if once else ROUNDING)
    if step.padding is not None and any(map(Tensor.any, _rows(held, step.padding))):
        yield f"row {step.padding} is for padding and not zero"
    for title, spread, parts in _parts(step, held):
        yield from (title + reason for reason in _off(parts, spread, Allowance(z, rounding)))
    if step.padding is None and isinstance(_sampler(step), Joint):
        yield from structure(step.initializer, _gathered(site, held), step.axes)


def _drawn(site: Site, step: Step) -> Tensor:
    """Return what holds the values of a parametrised site: what it reads as, or its direction."""
    trained = direction(site, step.frozen) if step.frozen else None
    return reading(site) if trained is None else trained


def _sampler(step: Step) -> Sampler:
    return step.initializer.sampler(step.shape, step.axes)


def _gathered(site: Site, held: Sequence[Piece]) -> Tensor:
    return full(site.parameters[0]) if site.storage == "plain" else held[0].tensor


def _rows(held: Iterable[Piece], row: int) -> Iterator[Tensor]:
    return (along(piece, 0, range(row, row + 1)) for piece in held)


#
# Moments
#


def _parts(step: Step, held: Sequence[Piece]) -> Iterator[tuple[str, Spread, Sequence[Tensor]]]:
    """Yield what is to be measured together: everything, or each packed block."""
    spreads = _sampler(step).spread
    if isinstance(spreads, Spread):
        yield "", spreads, _without(held, step.padding)
    elif spreads is not None and step.axes is not None:
        blocks = zip(spreads, block_ranges(step.shape, step.axes), strict=True)
        for number, (spread, ranges) in enumerate(blocks):
            axis = cast("int", step.axes.packed)
            parts = [along(piece, axis, positions) for piece in held for positions in ranges]
            yield f"block {number}: ", spread, parts


def _without(held: Iterable[Piece], row: int | None) -> list[Tensor]:
    """Return all that pieces hold but for a row of padding."""
    if row is None:
        return [piece.tensor for piece in held]
    sides = range(row), range(row + 1, sys.maxsize)
    return [along(piece, 0, side) for piece in held for side in sides]


class Sample(NamedTuple):
    """What is measured of some elements: their number, and sums about the expected mean."""

    size: int = 0
    shift: float = 0.0
    squares: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf

    def plus(self, values: Tensor) -> "Sample":
        """Return the sample with more elements, given as differences from the expected mean."""
        return Sample(
            self.size + values.numel(),
            self.shift + values.sum().item(),
            self.squares + values.square().sum().item(),
            min(self.least, values.min().item()),
            max(self.greatest, values.max().item()),
        )


def _sample(parts: Iterable[Tensor], mean: float) -> Sample:
    """Measure tensors; both parts of a complex number count as elements."""
    chunks = itertools.chain.from_iterable(map(_chunks, parts))
    return functools.reduce(Sample.plus, (_differences(chunk, mean) for chunk in chunks), Sample())


def _chunks(tensor: Tensor) -> Sequence[Tensor]:
    """Cut a tensor along its first axis into parts that are not too large to be widened."""
    if not tensor.numel():
        return ()
    rows = tensor if tensor.ndim else tensor.reshape(1)
    return torch.split(rows, max(_CHUNK * len(rows) // rows.numel(), 1))


def _differences(chunk: Tensor, mean: float) -> Tensor:
    if chunk.is_complex():
        return torch.view_as_real(chunk.to(torch.complex128) - mean)
    return chunk.to(torch.float64) - mean


class Allowance(NamedTuple):
    """What a sample may be off by: quantiles of the normal, and rounding relative to the values."""

    quantile: float
    rounding: float


def _off(parts: Sequence[Tensor], spread: Spread, allowed: Allowance) -> Iterator[str]:
    """Yield which moments and bounds of a sample are not those of the distribution."""
    if any(map(torch.is_complex, parts)):
        spread = Spread(spread.mean, spread.std * math.sqrt(0.5), kurtosis=spread.kurtosis)
    sample = _sample(parts, spread.mean)
    if not math.isfinite(sample.squares):
        yield "values that are not finite"
        return
    checks = (_off_mean, _off_std, _off_bounds) if spread.std else (_off_value,)
    if sample.size:
        yield from (reason for check in checks for reason in check(sample, spread, allowed))


def _off_value(sample: Sample, spread: Spread, allowed: Allowance) -> Iterator[str]:
    worst = max(-sample.least, sample.greatest)
    if not worst <= allowed.rounding * abs(spread.mean):
        low, high = sample.least + spread.mean, sample.greatest + spread.mean
        yield f"values between {low:.6g} and {high:.6g}, expected {spread.mean:.6g}"


def _off_mean(sample: Sample, spread: Spread, allowed: Allowance) -> Iterator[str]:
    error = allowed.quantile * spread.std / math.sqrt(sample.size)
    error += allowed.rounding * max(abs(spread.mean), spread.std)
    mean = sample.shift / sample.size
    if not abs(mean) <= error:
        yield (
            f"mean {spread.mean + mean:.6g} of {counted(sample.size, 'element')}, "
            f"expected {spread.mean:.6g} +- {error:.2g}"
        )


def _off_std(sample: Sample, spread: Spread, allowed: Allowance) -> Iterator[str]:
    std = math.sqrt(sample.squares / sample.size)
    bounds = std_bounds(sample.size, max(spread.kurtosis, 3.0), allowed.quantile)
    low, high = (spread.std * bound for bound in bounds)
    slack = allowed.rounding * max(abs(spread.mean), spread.std)
    if not low - slack <= std <= high + slack:
        yield (
            f"std {std:.6g} of {counted(sample.size, 'element')}, "
            f"expected {spread.std:.6g}, between {low:.6g} and {high:.6g}"
        )


def std_bounds(count: int, kurtosis: float, quantile: float) -> tuple[float, float]:
    """Return between what the standard deviation of a sample lies, relative to the true one.

    The sum of squares is taken as chi-squared with as many degrees of freedom as give it the right
    variance, and its quantiles by the cube root of Wilson and Hilferty, which errs outwards.

    Args:
        count: Number of elements, about their true mean.
        kurtosis: Fourth moment over squared variance, from 3 on.
        quantile: Standard deviations of the normal that the bounds are to lie out.

    Reference:
        Wilson and Hilferty, *The Distribution of Chi-Square*, 1931.

    Examples:
        >>> low, high = std_bounds(100_000, 3.0, 6.0)
        >>> round(low, 3), round(high, 3)
        (0.987, 1.013)
    """
    spread = (kurtosis - 1) / (9 * count)
    roots = (1 - spread + sign * quantile * math.sqrt(spread) for sign in (-1, 1))
    low, high = (max(root, 0.0) ** 1.5 for root in roots)
    return low, high


def _off_bounds(sample: Sample, spread: Spread, allowed: Allowance) -> Iterator[str]:
    low = -math.inf if spread.low is None else spread.low
    high = math.inf if spread.high is None else spread.high
    slack = 4 * allowed.rounding * max(abs(spread.mean), spread.std)
    least, greatest = sample.least + spread.mean, sample.greatest + spread.mean
    if not (low - slack <= least and greatest <= high + slack):
        yield f"values between {least:.6g} and {greatest:.6g}, expected {low:.6g} to {high:.6g}"


#
# Structure
#


@functools.singledispatch
def structure(initializer: Initializer, tensor: Tensor, axes: Axes | None) -> Iterator[str]:
    """Yield in what a tensor lacks the structure that its initializer gives.

    Args:
        initializer: What has filled it.
        tensor: The whole logical tensor, without padding.
        axes: What its axes mean.
    """
    return iter(())


@structure.register(Orthogonal)
def _(initializer: Orthogonal, tensor: Tensor, axes: Axes | None) -> Iterator[str]:
    for title, each in _maps(tensor, axes):
        yield from _not_orthogonal(title, _matrices(each), initializer, tensor.dtype)


def _not_orthogonal(
    title: str, matrices: Tensor, initializer: Orthogonal | DeltaOrthogonal, dtype: torch.dtype
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


@structure.register(DeltaOrthogonal)
def _(initializer: DeltaOrthogonal, tensor: Tensor, axes: Axes | None) -> Iterator[str]:
    for title, each in _maps(tensor, axes):
        centre = each.centre.reshape(each.sizes)
        yield from _not_orthogonal(title, centre, initializer, tensor.dtype)
        if each.view.count_nonzero() > each.centre.count_nonzero():
            yield f"{title}values beside the middle tap, expected zeros"


@structure.register(Dirac)
@structure.register(Identity)
def _(initializer: Dirac | Identity, tensor: Tensor, axes: Axes | None) -> Iterator[str]:
    expected = build(initializer.sampler(tensor.shape, axes), tensor.shape, tensor.new_zeros)
    rounding = 4 * torch.finfo(tensor.dtype).eps  # of a gain, and of what is multiplied to it
    wrong = int(((expected - tensor).abs() > rounding * expected.abs()).sum())
    if wrong:
        yield f"{counted(wrong, 'element')} other than those of {initializer}"


@structure.register(Sparse)
def _(initializer: Sparse, tensor: Tensor, axes: Axes | None) -> Iterator[str]:
    for title, each in _maps(tensor, axes):
        matrices = _matrices(each)
        expected = math.ceil(initializer.sparsity * matrices.shape[-1])
        least = int((matrices == 0).sum(-1).min()) if matrices.numel() else expected
        if initializer.std and least < expected:
            yield f"{title}a unit with {counted(least, 'zero')}, expected {expected}"


@structure.register(ICNR)
def _(initializer: ICNR, tensor: Tensor, axes: Axes | None) -> Iterator[str]:
    axis, times = (axes or conventional(tensor.shape)).outputs[0], initializer.upscale_factor**2
    copies = tensor.reshape(*tensor.shape[:axis], -1, times, *tensor.shape[axis + 1 :])
    if not torch.equal(copies, copies.narrow(axis + 1, 0, 1).expand_as(copies)):
        yield f"kernels differ within patches of {times} channels"


@structure.register(Blocks)
def _(initializer: Blocks, tensor: Tensor, axes: Axes | None) -> Iterator[str]:
    blocks = zip(initializer.initializers, _blocks(tensor, axes), strict=True)
    for number, (inner, (block, block_axes)) in enumerate(blocks):
        for reason in structure(inner, block, block_axes):
            yield f"block {number}: {reason}"


def _blocks(tensor: Tensor, axes: Axes | None) -> Iterator[tuple[Tensor, Axes]]:
    """Yield each packed block of a tensor, or the tensor, with its axes."""
    layout = axes or conventional(tensor.shape)
    if layout.packed is None:
        yield tensor, layout
        return
    for number, ranges in enumerate(block_ranges(tensor.shape, layout)):
        parts = [tensor.narrow(layout.packed, at.start, len(at)) for at in ranges]
        yield torch.cat(parts, layout.packed), part(tensor.shape, layout, number)[1]


def _maps(tensor: Tensor, axes: Axes | None) -> Iterator[tuple[str, Maps]]:
    """Yield the linear maps of each packed block, widened to float64."""
    wide = torch.promote_types(tensor.dtype, torch.float64)
    blocks = list(_blocks(tensor.contiguous(), axes))
    for number, (block, layout) in enumerate(blocks):
        title = f"block {number}: " if len(blocks) > 1 else ""
        yield title, maps(block.to(wide), layout)


def _matrices(each: Maps) -> Tensor:
    """View maps as matrices `(count, out, in * kernel)`."""
    count, outputs, _ = each.sizes
    return (
        each.view.reshape(count, outputs, -1) if each.view.numel() else each.view.new_empty(0, 0, 0)
    )
