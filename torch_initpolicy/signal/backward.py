"""Judges the way back: where the gradient vanishes, explodes or stops."""

import itertools
import math
from collections.abc import Iterator, Sequence

from torch_initpolicy.signal.points import PLAIN, Point
from torch_initpolicy.signal.verdicts import REPAIR, Kind, Verdict, changed

GRADIENT_RANGE = 1e5
"""A factor, up or down, between the squared lengths of the gradient at both ends of a model."""


def gradient_course(body: Sequence[Point]) -> Iterator[Verdict]:
    """Judge the squared length of the gradient; what is closed on purpose is left out.

    Args:
        body: What `body_of` returns.
    """
    lengths = [
        (point, point.length) for point in body if point.length is not None and not point.closed_by
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


def gradient_stop(points: Sequence[Point]) -> Iterator[Verdict]:
    """Find the operator before which no weight gets any gradient, though it gets one itself.

    Args:
        points: What was measured, in order of execution.
    """
    known = [point for point in points if point.gradient is not None]
    place = next((i for i, point in enumerate(known) if point.gradient), None)
    before = [point for point in known[:place] if not point.closed_by and point.source]
    lost = sum(point.site is not None for point in before)
    if place is None or not lost or known[place].closed_by:
        return
    stops = known[place]
    yield Verdict(
        "gradient stops",
        stops.name,
        f"the gradient before it is zero for every input, so that {lost} weights cannot be trained"
        + _degenerate(stops),
        _MORE if stops.over == 1 else REPAIR,
        line=stops.line,
        structural=stops.over == 1,
    )


def _degenerate(point: Point) -> str:
    if point.over != 1:
        return ""
    constant = "1" if "softmax" in point.op else "its own bias"
    return f": it takes 1 element at a time together, and {point.op} of one element is {constant}"


_MORE = "no start changes that: another axis, more than one class or feature, or a sigmoid does"


def _graded(
    kind: Kind, where: Point, start: tuple[Point, float], end: tuple[Point, float]
) -> Verdict:
    return Verdict(
        kind,
        where.name,
        f"on its way back from {end[0].name!r} to {start[0].name!r} the gradient's squared length "
        f"goes from {end[1]:.3g} to {start[1]:.3g}{changed(end[1], start[1])}",
        REPAIR if kind == "gradient vanishes" else _CRITICAL,
        line=where.line,
    )


_CRITICAL = 'apply_policy(model, "critical") keeps the gradient\'s size, apply_policy(model, '
_CRITICAL += '"zero_residual") starts residual branches at zero'
