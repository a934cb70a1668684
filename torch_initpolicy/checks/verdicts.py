"""Judges a measured signal: what goes wrong, where it starts, and what to write instead.

Knows profiles of numbers; runs nothing.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch_initpolicy.checks.points import Point

Kind = Literal[
    "overflows", "vanishes", "explodes", "wanders", "dies", "collapses",
    "gradient vanishes", "gradient explodes",
]  # fmt: skip

VANISHED = 1e-3
"""Second moments that fall by more than this, with nothing larger after them, have vanished."""

EXPLODED = 1e3
"""Second moments that end larger than this times where they began have exploded."""

WANDERED = 4.0
"""A factor, up or down, by which second moments may change before it is worth a word."""

GRADIENT_RANGE = 1e5
"""A factor, up or down, between the squared lengths of the gradient at both ends of a model."""

DEAD = 0.5
"""Fraction of an activation's units that may be silent for every input."""

ALIKE = 1e-3
"""Different inputs whose mean cosine comes this close to 1 have become one."""

MASKED = -1e30
"""Means below are those of masked scores."""

PLAIN = 3
"""Weights on the way before a course over the depth can be told."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Something that goes wrong with the signal.

    Attributes:
        kind: What goes wrong.
        where: Name of the first place where it does: a weight, or `module:operator`.
        reason: One sentence with the numbers.
        advice: What to write instead.
        mild: Whether training copes with it.
    """

    kind: Kind
    where: str
    reason: str
    advice: str
    mild: bool = False

    def __str__(self) -> str:
        return f"{self.kind} at {self.where!r}: {self.reason}; {self.advice}"


def verdicts(points: Sequence[Point], inputs: int) -> tuple[Verdict, ...]:
    """Judge a signal.

    Args:
        points: What was measured, in order of execution.
        inputs: How many inputs the batch held.

    Returns:
        At most one verdict of each kind; the mild ones last, else forward before backward.
    """
    points = [point for point in points if not _is_masked(point)]
    overflow = _first(points, lambda point: not math.isfinite(point.second))
    if overflow is not None:
        return (_overflow(points, overflow),)
    body = _body(points)
    judges = (_size, _dying, _likeness, _gradient)
    found = itertools.chain.from_iterable(judge(body, points) for judge in judges)
    return tuple(sorted(found, key=lambda verdict: verdict.mild))


def _is_masked(point: Point) -> bool:
    """Say whether a mask put minus infinity there, or its stand-in, for a softmax to make zeros of.

    What overflows by itself does so to both sides, or to the positive one behind a rectifier.
    """
    return not math.isfinite(point.second) and point.mean < MASKED


def _body(points: Sequence[Point]) -> Sequence[Point]:
    """Return the points from the first weight to the last but one; a head may start small."""
    weighted = [i for i, point in enumerate(points) if point.site is not None]
    return points[weighted[0] : weighted[-1]] if len(weighted) >= PLAIN else ()


def _first(points: Sequence[Point], wrong: Callable[[Point], bool]) -> int | None:
    return next((i for i, point in enumerate(points) if wrong(point)), None)


def _overflow(points: Sequence[Point], index: int) -> Verdict:
    before = points[index - 1].second if index else math.nan
    return Verdict(
        "overflows",
        points[index].name,
        f"its output is not finite; the second moment before it was {before:.3g}",
        _REPAIR,
    )


_REPAIR = 'apply_policy(model, "signal") keeps second moments at 1, apply_policy(..., calibrate='
_REPAIR += "batch) measures them"
_CALIBRATE = "apply_policy(..., calibrate=batch) scales each weight to what it really reads"


#
# Forward
#


def _size(body: Sequence[Point], points: Sequence[Point]) -> Iterator[Verdict]:
    """Judge second moments against those at the first weight (or 1, where it has a head start)."""
    if not body:
        return
    start = body[0].second
    seconds = [point.second for point in body]
    ahead = _largest_ahead(seconds)
    low, high = min(start, 1.0), max(start, 1.0)
    if ahead[-1] < VANISHED * low:
        yield _sized("vanishes", body, next(i for i, q in enumerate(ahead) if q < 0.1 * low))
    elif seconds[-1] > EXPLODED * high:
        yield _sized("explodes", body, next(i for i, q in enumerate(seconds) if q > 10 * high))
    else:
        yield from _wandering([point for point in body if point.site is not None], low, high)


def _largest_ahead(values: Sequence[float]) -> list[float]:
    """Return for each place the largest value from there on; a branch may start at zero."""
    return list(itertools.accumulate(reversed(values), max))[::-1]


def _sized(kind: Kind, body: Sequence[Point], index: int) -> Verdict:
    start, end = body[0], body[-1]
    last = [point for point in body if point.site is not None]
    factor = (max(end.second, 1e-300) / start.second) ** (1 / max(len(last) - 1, 1))
    return Verdict(
        kind,
        body[index].name,
        f"the second moment goes from {start.second:.3g} at {start.name!r} to {end.second:.3g} at "
        f"{end.name!r}, by {_power(end.second / start.second)}, {factor:.2f} times at each of "
        f"{len(last)} weights",
        _REPAIR,
    )


def _wandering(weighted: Sequence[Point], low: float, high: float) -> Iterator[Verdict]:
    """Judge the outputs of weights alone: what residual branches add up to is meant to grow."""
    ahead = _largest_ahead([point.second for point in weighted])
    start, end = weighted[0], weighted[-1]
    if low / WANDERED <= ahead[-1] and end.second <= high * WANDERED:
        return
    outside = (p for p in weighted if not low / WANDERED <= p.second <= high * WANDERED)
    yield Verdict(
        "wanders",
        next(outside, end).name,
        f"the second moment goes from {start.second:.3g} at {start.name!r} to {end.second:.3g} at "
        f"{end.name!r}; some of that is to be expected of narrow layers, and behind silu or gelu, "
        "where small deviations grow",
        _CALIBRATE,
        mild=True,
    )


def _power(ratio: float) -> str:
    """Write a ratio as a power of ten.

    Examples:
        >>> _power(2e-6)
        '10^-5.7'
    """
    return f"10^{math.log10(ratio):.1f}" if ratio > 0 else "0"


def _dying(body: Sequence[Point], points: Sequence[Point]) -> Iterator[Verdict]:
    """Judge activations by the units that are silent whatever goes in."""
    dead = [point for point in points if point.dead is not None and point.dead > DEAD]
    if dead:
        worst = max(point.dead or 0.0 for point in dead)
        yield Verdict(
            "dies",
            dead[0].name,
            f"{dead[0].dead:.0%} of its units are zero for every input"
            + (f", as in {len(dead) - 1} later activations, {worst:.0%} at most" * (len(dead) > 1)),
            "start the biases before it at zero, or use an activation with a slope on both sides",
        )


def _likeness(body: Sequence[Point], points: Sequence[Point]) -> Iterator[Verdict]:
    """Judge how far different inputs stay different."""
    known = [(p, 1 - p.likeness) for p in body if p.likeness is not None and p.second > 0]
    if not known or not known[-1][1] < min(ALIKE, 0.05 * known[0][1]):
        return
    ahead = _largest_ahead([difference for _, difference in known])
    index = next(i for i, difference in enumerate(ahead) if difference < ALIKE)
    yield Verdict(
        "collapses",
        known[index][0].name,
        f"outputs for different inputs have a mean cosine of {known[-1][0].likeness:.6f} at "
        f"{known[-1][0].name!r}, from {known[0][0].likeness:.3f} at {known[0][0].name!r}",
        'apply_policy(model, "critical") starts on the edge of chaos; residual branches and '
        "normalisation keep inputs apart too",
    )


#
# Backward
#


def _gradient(body: Sequence[Point], points: Sequence[Point]) -> Iterator[Verdict]:
    """Judge the squared length of the gradient; its mean square would count positions."""
    lengths = [
        (point, point.gradient * math.prod(point.shape))
        for point in body
        if point.gradient is not None
    ]
    if len(lengths) < PLAIN or lengths[-1][1] == 0:
        return
    start, end = lengths[0], lengths[-1]
    behind = list(itertools.accumulate((length for _, length in lengths), max))
    if behind[0] < end[1] / GRADIENT_RANGE:
        index = max(i for i, length in enumerate(behind) if length < 0.1 * end[1])
        yield _graded("gradient vanishes", lengths[index][0], start, end)
    elif start[1] > end[1] * GRADIENT_RANGE or not math.isfinite(start[1]):
        index = max(i for i, (_, length) in enumerate(lengths) if not length < 10 * end[1])
        yield _graded("gradient explodes", lengths[index][0], start, end)


def _graded(
    kind: Kind, where: Point, start: tuple[Point, float], end: tuple[Point, float]
) -> Verdict:
    return Verdict(
        kind,
        where.name,
        f"on its way back from {end[0].name!r} to {start[0].name!r} the gradient's squared length "
        f"changes by {_power(start[1] / end[1])}",
        _REPAIR if kind == "gradient vanishes" else _CRITICAL,
    )


_CRITICAL = 'apply_policy(model, "critical") keeps the gradient\'s size, apply_policy(model, '
_CRITICAL += '"zero_residual") starts residual branches at zero'
