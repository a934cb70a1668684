"""Judges a measured signal: what goes wrong, where it starts, and what to write instead.

Knows measurements; runs nothing. The bounds were set on trainings of small networks, half of them
with a fault: `examples/experiments/doctor.py`, reported in `docs/doctor.md` on other seeds.
"""

import math
from collections.abc import Iterator, Sequence

from torch_initpolicy.signal.backward import gradient_course, gradient_stop
from torch_initpolicy.signal.forward import judge_forward
from torch_initpolicy.signal.points import Output, Point, Update, body_of
from torch_initpolicy.signal.signal import Signal
from torch_initpolicy.signal.verdicts import REPAIR, Verdict

LOUD, TOO_LOUD = 4.0, 8.0
"""Losses at step 0, in multiples of that of outputs of zero (`ln(classes)`), to report and to mend.

Adam brings a head down in some hundred steps; eight times the loss costs a tenth of what is learnt.
"""

LARGE_OUTPUT = 100.0
"""Standard deviation of an output that is not known to be logits."""

LARGE_STEP, SMALL_STEP = 0.5, 1e-6
"""Bounds of the first step's length, relative to the values that it changes."""

MASKED = -1e30
"""Means below are those of masked scores."""


def judge(signal: Signal) -> tuple[Verdict, ...]:
    """Judge a signal.

    Args:
        signal: What was measured; its own verdicts are not read.

    Returns:
        At most one verdict of each kind; the mild ones last, else forward before backward, in order
        of execution.
    """
    if broken := [u.site for u in signal.updates if not math.isfinite(u.second)]:
        return (_not_finite(broken),)
    points = [point for point in signal.points if not _is_masked(point)]
    if overflow := list(_overflow(points)):
        return tuple(overflow)
    body = body_of(points)
    # What scales of 1e-5 nearly close is neither lost nor the same for all inputs: it opens.
    opens = any(update.ajar for update in signal.updates)
    ahead = judge_forward(points, body, opens=opens)
    grave = {verdict.kind for verdict in ahead if not verdict.mild}
    # A gradient stops, and an output grows, with the signal: that is said once.
    found = [
        *ahead,
        *(() if grave else gradient_stop(points)),
        *(() if opens else gradient_course(body)),
        *(() if "explodes" in grave else _output(signal)),
        *_steps(signal.updates),
    ]
    return tuple(sorted(found, key=lambda verdict: verdict.mild))


def _not_finite(sites: Sequence[str]) -> Verdict:
    more = f", as do {len(sites) - 1} other parameters" if len(sites) > 1 else ""
    return Verdict(
        "not finite",
        sites[0],
        f"it holds nan or inf{more}, before any input has been read",
        "fill it anew",
        sites=tuple(sites),
    )


def _is_masked(point: Point) -> bool:
    """Say whether a mask put minus infinity there, or its stand-in, for a softmax to make zeros of.

    What overflows by itself does so to both sides, or to the positive one behind a rectifier.
    """
    return not math.isfinite(point.second) and point.mean < MASKED


def _overflow(points: Sequence[Point]) -> Iterator[Verdict]:
    """Find the first output that is not finite."""
    for before, point in zip([None, *points], points, strict=False):
        if not math.isfinite(point.second):
            second = math.nan if before is None else before.second
            yield Verdict(
                "overflows",
                point.name,
                f"its output is not finite; the second moment before it was {second:.3g}",
                REPAIR,
            )
            return


def _output(signal: Signal) -> Iterator[Verdict]:
    """Judge what the model returns: by the loss where one was given, else as logits."""
    loss, zeros = signal.loss, signal.loss_of_zeros
    if not signal.outputs:
        return
    if loss is None or zeros is None:
        yield from _as_logits(signal.outputs)
    elif loss > LOUD * zeros > 0:
        worst = max(signal.outputs, key=lambda output: output.varies)
        reason = f"the loss at step 0 is {loss:.3g}, and {zeros:.3g} for outputs of zero"
        yield _too_large(worst, reason, loss / zeros)


def _as_logits(outputs: Sequence[Output]) -> Iterator[Verdict]:
    """Judge what may be logits by what it costs against labels drawn at random."""
    costs = [(1 + (o.excess or 0) / math.log(max(o.classes, 2)), o) for o in outputs]
    cost, surest = max(costs, key=lambda pair: pair[0])
    widest = max(outputs, key=lambda output: output.varies)
    if cost > LOUD:
        chance = math.log(surest.classes)
        reason = (
            f"its std is {surest.varies:.3g}: as logits of {surest.classes} classes it costs "
            f"{cost * chance:.3g} nats at step 0, and ln({surest.classes}) is {chance:.3g}"
        )
        yield _too_large(surest, reason, cost)
    elif widest.varies > LARGE_OUTPUT:
        yield _too_large(widest, f"its std over inputs is {widest.varies:.3g}", TOO_LOUD)


def _too_large(output: Output, reason: str, cost: float) -> Verdict:
    return Verdict(
        "output too large",
        output.source or output.name,
        reason,
        f"apply_policy(model, only=[{output.source!r}])" if output.source else REPAIR,
        mild=cost < TOO_LOUD,
        sites=() if output.source is None else (output.source,),
    )


def _steps(updates: Sequence[Update]) -> Iterator[Verdict]:
    """Judge the first step of the optimizer, where that is known."""
    known = sorted((u.step, u.site) for u in updates if u.step is not None and "bias" not in u.site)
    if not known:
        return
    (least, slow), (most, fast) = known[0], known[-1]
    if most > LARGE_STEP:
        yield Verdict(
            "step too large", fast, f"it changes the values by {most:.2g} of their size",
            "lower the learning rate, or start larger", sites=(fast,),
        )  # fmt: skip
    if least < SMALL_STEP:
        yield Verdict(
            "step too small", slow, f"it changes the values by {least:.2g} of their size",
            "raise the learning rate, or start smaller", sites=(slow,), mild=True,
        )  # fmt: skip
