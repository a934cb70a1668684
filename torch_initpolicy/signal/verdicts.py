"""Judges a measured signal: what goes wrong, where it starts, and what to write instead.

Knows profiles of numbers; runs nothing.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch_initpolicy.signal.points import Point

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

LOST = 1e-70
"""A second moment whose numbers come near the smallest of float32, 1e-45: zeros are no news."""

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
        return f"{self.finding}; {self.advice}"

    @property
    def finding(self) -> str:
        """What goes wrong and where, without the advice."""
        return f"{self.kind} at {self.where!r}: {self.reason}"


def verdicts(points: Sequence[Point], inputs: int) -> tuple[Verdict, ...]:
    """Judge a signal.

    Args:
        points: What was measured, in order of execution.
        inputs: How many inputs the batch held.

    Returns:
        At most one verdict of each kind; the mild ones last, else forward before backward, in order
        of execution.
    """
    points = [point for point in points if not _is_masked(point)]
    overflow = _first(points, lambda point: not math.isfinite(point.second))
    if overflow is not None:
        return (_overflow(points, overflow),)
    body = body_of(points)
    ahead = [verdict for judge in (_size, _dying, _likeness) for verdict in judge(body, points)]
    places = {point.name: place for place, point in reversed(list(enumerate(points)))}
    ahead.sort(key=lambda verdict: places[verdict.where])
    return tuple(sorted([*ahead, *_gradient(body, points)], key=lambda verdict: verdict.mild))


def _is_masked(point: Point) -> bool:
    """Say whether a mask put minus infinity there, or its stand-in, for a softmax to make zeros of.

    What overflows by itself does so to both sides, or to the positive one behind a rectifier.
    """
    return not math.isfinite(point.second) and point.mean < MASKED


def body_of(points: Sequence[Point]) -> Sequence[Point]:
    """Return the points from the first weight to before the last: a head may start small.

    Args:
        points: What was measured, in order of execution.

    Returns:
        Some of them; none where there are too few weights to tell a course by.
    """
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
    low, high = min(start or 1.0, 1.0), max(start, 1.0)
    if ahead[-1] < VANISHED * low:
        yield _sized("vanishes", body, next(i for i, q in enumerate(ahead) if q < 0.1 * low))
    elif seconds[-1] > EXPLODED * high:
        yield _sized("explodes", body, next(i for i, q in enumerate(seconds) if q > 10 * high))
    else:
        yield from _wandering(body, low, high)


def _largest_ahead(values: Sequence[float]) -> list[float]:
    """Return for each place the largest value from there on; a branch may start at zero."""
    return list(itertools.accumulate(reversed(values), max))[::-1]


def arriving(body: Sequence[Point]) -> float:
    """Return the second moment that comes out at the end of a body, whichever way it comes.

    The largest from the last weight on: behind a residual branch that starts small it is the sum
    that carries the signal.

    Args:
        body: Points from a weight on.
    """
    last = max(place for place, point in enumerate(body) if point.site is not None)
    return max(point.second for point in body[last:])


def _sized(kind: Kind, body: Sequence[Point], index: int) -> Verdict:
    start, end = body[0], body[-1]
    return Verdict(
        kind,
        body[index].name,
        f"the second moment goes from {start.second:.3g} at {start.name!r} to {end.second:.3g} at "
        f"{end.name!r}{_changed(start.second, end.second)}{_rate(body)}",
        _REPAIR,
    )


def _rate(body: Sequence[Point]) -> str:
    """Say by how much the outputs of weights change from one to the next, where they do."""
    seconds = [point.second for point in body if point.site is not None]
    seconds = list(itertools.takewhile(bool, seconds))
    if not seconds or VANISHED < seconds[-1] / seconds[0] < EXPLODED:
        return ""
    rate = (seconds[-1] / seconds[0]) ** (1 / (len(seconds) - 1))
    return f": times {rate:.2g} from one weight to the next"


def _wandering(body: Sequence[Point], low: float, high: float) -> Iterator[Verdict]:
    """Judge upwards the outputs of weights alone: what residual branches add up to may grow."""
    weighted = [point for point in body if point.site is not None]
    start, last, arrives = weighted[0], weighted[-1], arriving(body)
    if last.second > high * WANDERED:
        end, outside = last.second, [p for p in weighted if p.second > high * WANDERED]
    elif arrives < low / WANDERED:
        end, outside = arrives, [p for p in weighted if p.second < low / WANDERED]
    else:
        return
    yield Verdict(
        "wanders",
        outside[0].name,
        f"the second moment goes from {start.second:.3g} at {start.name!r} to {end:.3g} at "
        f"{last.name!r}; some of that is to be expected of narrow layers, and behind silu or gelu, "
        "where small deviations grow",
        _CALIBRATE,
        mild=True,
    )


def _changed(start: float, end: float) -> str:
    """Write what a number is multiplied by, as a power of ten; nothing where there is none.

    Examples:
        >>> _changed(1.0, 2e-6), _changed(1.0, 0.0)
        (', by 10^-5.7', '')
    """
    finite = 0 < start < math.inf and 0 < end < math.inf
    return f", by 10^{math.log10(end / start):.1f}" if finite else ""


def _dying(body: Sequence[Point], points: Sequence[Point]) -> Iterator[Verdict]:
    """Judge activations by the units that are silent whatever goes in, if something does."""
    dead = [
        point
        for before, point in zip([None, *points], points, strict=False)
        if (point.dead or 0.0) > DEAD and (before is None or before.second > LOST)
    ]
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
    """Judge how far different inputs stay different; a pool makes noise alike."""
    known = [
        (point, 1 - point.likeness)
        for point in body
        if point.likeness is not None and point.second > 0
        if point.site is not None or point.activates or point.op == "add"
    ]
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
    """Judge the squared length of the gradient; its mean square would count positions.

    What is closed on purpose is left out.
    """
    lengths = [
        (point, point.gradient * math.prod(point.shape))
        for point in body
        if point.gradient is not None and not point.closed_by
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
        f"goes from {end[1]:.3g} to {start[1]:.3g}{_changed(end[1], start[1])}",
        _REPAIR if kind == "gradient vanishes" else _CRITICAL,
    )


_CRITICAL = 'apply_policy(model, "critical") keeps the gradient\'s size, apply_policy(model, '
_CRITICAL += '"zero_residual") starts residual branches at zero'
