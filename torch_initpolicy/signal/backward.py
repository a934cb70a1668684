"""Judges the way back: where the gradient vanishes, explodes or stops."""

import itertools
import math
from collections.abc import Iterator, Sequence

from torch_initpolicy.signal.points import FEWEST_WEIGHTS, Point
from torch_initpolicy.signal.verdicts import REPAIR, Verdict, changed

GRADIENT_RANGE, SIGNED_RANGE = 1e5, 1e8
"""Factors, up or down, between the squared lengths of the gradient at both ends of a model.

The second is that of optimizers such as Adam, whose steps do not depend on the gradient's size:
they train nets of 7 layers whose gradients differ by 1e7.
"""


def gradient_course(body: Sequence[Point], *, signed: bool) -> Iterator[Verdict]:
    """Judge the squared length of the gradient; what is closed on purpose is left out.

    `signed` says whether the optimizer is known to step by the gradient's sign alone, as Adam does.
    """
    most = SIGNED_RANGE if signed else GRADIENT_RANGE
    known = [(p, p.length) for p in body if p.length is not None and not p.closed_by]
    if len(known) < FEWEST_WEIGHTS or known[-1][1] == 0:
        return
    (first, start), (last, end) = known[0], known[-1]
    behind = list(itertools.accumulate((length for _, length in known), max))
    reason = (
        f"on its way back from {last.name!r} to {first.name!r} the gradient's squared length goes "
        f"from {end:.3g} to {start:.3g}{changed(end, start)}"
    )
    if behind[0] < end / most:
        where = max(i for i, length in enumerate(behind) if length < 0.1 * end)
        # A cell that is run again and again learns from its later steps, which get their gradient.
        late = max(length for point, length in known if point.source == first.source)
        again = late > end / most
        if again:
            reason += f"; {first.name!r} learns from its later calls alone"
        point = known[where][0]
        yield Verdict("gradient vanishes", point.name, reason, REPAIR, mild=again, line=point.line)
    elif start > end * most or not math.isfinite(start):
        where = max(i for i, (_, length) in enumerate(known) if not length < 10 * end)
        point = known[where][0]
        yield Verdict("gradient explodes", point.name, reason, _KEEPS_GRADIENTS, line=point.line)


def over_time(points: Sequence[Point]) -> Iterator[Verdict]:
    """Judge what gradients do within recurrent layers, from their last step to their first."""
    for point in points:
        share = 1.0 if point.early is None else point.early
        reason = (
            "the squared gradient of its last output by the first step that it reads is "
            f"{share:.2g} times that by the last step"
        )
        if share < FORGOTTEN:
            reason += ": it remembers late steps alone"
            yield Verdict("gradient vanishes", point.name, reason, _REMEMBERS, mild=True)
        elif not share <= GRADIENT_RANGE:
            yield Verdict("gradient explodes", point.name, reason, _REMEMBERS, sites=(point.name,))


FORGOTTEN = 1e-6
"""Share of the squared gradient that goes back to the first step of a recurrent layer.

Recurrent layers of 32 units that are to recall what they read first, 400 steps of Adam: at 1e-5 all
learn it, at 1e-7 few do. They do at 7e3 as well, and not at 2e6.
"""

_REMEMBERS = "apply_policy(model) opens forget gates, and starts recurrent weights orthogonal"

_KEEPS_GRADIENTS = (
    'apply_policy(model, "critical") keeps the gradient\'s size, '
    'apply_policy(model, "zero_residual") starts residual branches at zero'
)


def gradient_stop(points: Sequence[Point]) -> Iterator[Verdict]:
    """Find the operator before which no weight gets any gradient, though it gets one itself."""
    known = [point for point in points if point.gradient is not None]
    place = next((i for i, point in enumerate(known) if point.gradient), None)
    before = [point for point in known[:place] if not point.closed_by and point.source]
    lost = sum(point.site is not None for point in before)
    if place is None or not lost or known[place].closed_by:
        return
    stops = known[place]
    reason = f"the gradient before it is zero for every input: {lost} weights cannot be trained"
    if structural := stops.over == 1:
        constant = "1" if "softmax" in stops.op else "its own bias"
        reason += f"; it takes 1 element at a time, and {stops.op} of one element is {constant}"
    yield Verdict(
        "gradient stops",
        stops.name,
        reason,
        _NO_START if structural else REPAIR,
        line=stops.line,
        structural=structural,
    )


_NO_START = "no start changes that: another axis, more than one class or feature, or a sigmoid does"
