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
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple, cast

import torch
from torch import Tensor

from torch_initpolicy.errors import VerifyError, counted, listing
from torch_initpolicy.sites import Site
from torch_initpolicy.steps import Step, calibrated
from torch_initpolicy.tensors.axes import block_ranges
from torch_initpolicy.tensors.base import Spread
from torch_initpolicy.writing.parametrized import LAST_PLACES, direction, reading
from torch_initpolicy.writing.shards import Piece, along, full, pieces, whole
from torch_initpolicy.writing.structure import has_structure, structure

FALSE_ALARM = 1e-6
"""Probability that some test of a model fails although all is well."""

_CHUNK = 1 << 20  # elements that are widened to float64 at once


@dataclass(frozen=True, slots=True)
class Deviation:
    """A site that is not what its step says: what was found and what was expected."""

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
    findings: tuple[Deviation, ...]

    @property
    def ok(self) -> bool:
        """Whether every tensor that can be measured is what its step says."""
        return not self.findings

    def __repr__(self) -> str:
        head, _, more = str(self).partition("\n")
        return f"<Verification: {head}{' print it' if more else ''}>"

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
    """
    known = [(site, calibrated(step)) for site, step in pairs]
    checked = [(site, step) for site, step in known if not _is_unmeasured(site, step)]
    tests = 3 * sum(max(len(step.axes.blocks) if step.axes else 1, 1) for _, step in checked)
    z = -NormalDist().inv_cdf(FALSE_ALARM / (2 * max(tests, 1)))
    measured = tuple(step.name for _, step in checked)
    with torch.no_grad():
        reasons = [(site.name, why) for site, step in checked for why in _reasons(site, step, z)]
    return Verification(
        measured=measured,
        unmeasured=tuple(step.name for _, step in known if step.name not in set(measured)),
        findings=tuple(Deviation(*reason) for reason in reasons),
    )


def verify_steps(pairs: Iterable[tuple[Site, Step]]) -> Verification:
    """Measure as `measure_steps` does, and raise one error for all that is found."""
    verification = measure_steps(pairs)
    if not verification.ok:
        raise VerifyError(str(verification))
    return verification


def _is_unmeasured(site: Site, step: Step) -> bool:
    """Tell whether nothing is known of the values that a step leaves behind."""
    is_opaque = step.initializer.is_opaque
    return is_opaque or (bool(step.frozen) and direction(site, step.frozen) is None)


def _reasons(site: Site, step: Step, z: float) -> Iterator[str]:
    """Yield in what a site differs from its step."""
    if site.shape != tuple(step.shape) or site.device.type == "meta":
        yield f"has shape {site.shape} on {site.device}, expected values of shape {step.shape}"
        return
    is_plain = site.storage == "plain"
    held = pieces(site.parameters[0]) if is_plain else (whole(_measured_tensor(site, step)),)
    once = is_plain and not step.factors
    rounding = torch.finfo(site.dtype).eps * (1 if once else LAST_PLACES)
    row = step.padding
    if row is not None and any(along(piece, 0, range(row, row + 1)).any() for piece in held):
        yield f"row {row} is for padding and not zero"
    for title, spread, parts in _measured(step, held):
        yield from (title + reason for reason in _off(parts, spread, z, rounding))
    if row is None and has_structure(step.initializer):
        tensor = full(site.parameters[0]) if is_plain else held[0].tensor
        yield from structure(step.initializer, tensor, step.axes)


def _measured_tensor(site: Site, step: Step) -> Tensor:
    """Return what holds the values of a parametrised site: what it reads as, or its direction."""
    trained = direction(site, step.frozen) if step.frozen else None
    return reading(site) if trained is None else trained


# Moments


def _measured(step: Step, held: Sequence[Piece]) -> Iterator[tuple[str, Spread, Sequence[Tensor]]]:
    """Yield what is to be measured together: everything, or each packed block."""
    spreads = step.initializer.spread(step.shape, step.axes)
    if isinstance(spreads, Spread):
        yield "", spreads, _without_row(held, step.padding)
    elif spreads is not None and step.axes is not None:
        blocks = zip(spreads, block_ranges(step.shape, step.axes), strict=True)
        for number, (spread, ranges) in enumerate(blocks):
            axis = cast("int", step.axes.packed)
            parts = [along(piece, axis, positions) for piece in held for positions in ranges]
            yield f"block {number}: ", spread, parts


def _without_row(held: Iterable[Piece], row: int | None) -> list[Tensor]:
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


def _summed_up(parts: Iterable[Tensor], mean: float) -> Sample:
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


def _off(
    parts: Sequence[Tensor], spread: Spread, quantile: float, rounding: float
) -> Iterator[str]:
    """Yield which moments and bounds of numbers are not those of their distribution.

    Each moment may be off by `quantile` standard deviations of the normal, and each number by
    `rounding` relative to the values.
    """
    if any(map(torch.is_complex, parts)):
        spread = Spread(spread.mean, spread.std * math.sqrt(0.5), kurtosis=spread.kurtosis)
    sample, slack = _summed_up(parts, spread.mean), rounding * max(abs(spread.mean), spread.std)
    if not math.isfinite(sample.squares):
        yield "values that are not finite"
    elif sample.size and spread.std:
        yield from _off_moments(sample, spread, quantile, slack)
        yield from _off_bounds(sample, spread, 4 * slack)
    elif sample.size:
        yield from _off_bounds(sample, spread, slack)


def _off_moments(sample: Sample, spread: Spread, quantile: float, slack: float) -> Iterator[str]:
    elements = counted(sample.size, "element")
    mean, error = sample.shift / sample.size, quantile * spread.std / math.sqrt(sample.size) + slack
    if not abs(mean) <= error:
        expected = f"{spread.mean:.6g} +- {error:.2g}"
        yield f"mean {spread.mean + mean:.6g} of {elements}, expected {expected}"
    std = math.sqrt(sample.squares / sample.size)
    bounds = std_bounds(sample.size, max(spread.kurtosis, 3.0), quantile)
    low, high = (spread.std * bound for bound in bounds)
    if not low - slack <= std <= high + slack:
        expected = f"{spread.std:.6g}, between {low:.6g} and {high:.6g}"
        yield f"std {std:.6g} of {elements}, expected {expected}"


def _off_bounds(sample: Sample, spread: Spread, slack: float) -> Iterator[str]:
    low = -math.inf if spread.low is None else spread.low
    high = math.inf if spread.high is None else spread.high
    least, greatest = sample.least + spread.mean, sample.greatest + spread.mean
    if not (low - slack <= least and greatest <= high + slack):
        expected = f"{low:.6g} to {high:.6g}" if low < high else f"{low:.6g}"
        yield f"values between {least:.6g} and {greatest:.6g}, expected {expected}"


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
