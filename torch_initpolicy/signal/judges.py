"""Judges a measured signal: what goes wrong, where it starts, and what to write instead.

Each judge yields the verdicts of one kind, and stands beside the bounds that define it. The bounds
were set on trainings of small nets by `examples/experiments/doctor.py`; `docs/doctor.md` says on
which, and what they find among nets of other seeds. Runs nothing.
"""

import math
from collections.abc import Iterator, Sequence

from torch_initpolicy.signal.backward import gradient_course, gradient_stop, over_time
from torch_initpolicy.signal.forward import born_dead_verdict, cut_off, judge_forward
from torch_initpolicy.signal.points import Output, Point, Update, body_of
from torch_initpolicy.signal.signal import Signal
from torch_initpolicy.signal.verdicts import REPAIR, Verdict


def judge(signal: Signal, *, signed: bool = False) -> tuple[Verdict, ...]:
    """Judge a signal, whatever verdicts it holds already.

    `signed` says whether the optimizer is known to step by the gradient's sign alone, as Adam does.
    There is at most one verdict of each kind; the mild ones come last, else forward before
    backward, in order of execution.
    """
    points = [point for point in signal.points if not _is_masked(point)]
    stops = list(gradient_stop(points))
    # What makes all that follows meaningless is said alone.
    for alone in (
        _broken(signal.updates),
        _overflow(points),
        born_dead_verdict(points),
        (v for v in stops if v.structural),
    ):
        if found := tuple(alone):
            return found
    body = body_of(points)
    # What scales of 1e-5 nearly close is neither lost nor the same for all inputs: it opens.
    opens = any(update.ajar for update in signal.updates)
    ahead = judge_forward(points, body, opens=opens)
    grave = {verdict.kind for verdict in ahead if not verdict.mild}
    # A gradient stops, and an output grows, with the signal: that is said once.
    behind = () if opens or cut_off(points) else tuple(gradient_course(body, signed=signed))
    found = (
        *ahead,
        *(() if grave else stops),
        *(behind or over_time(points)),
        *(() if "explodes" in grave else _large_outputs(signal)),
        *_first_steps(signal),
    )
    return tuple(sorted(found, key=lambda verdict: verdict.mild))


MASKED = -1e30
"""Means below are those of scores that a mask has set to a stand-in for minus infinity."""


def _is_masked(point: Point) -> bool:
    """Say whether a mask put minus infinity there, or its stand-in, for a softmax to make zeros of.

    What overflows by itself does so to both sides, or to the positive one behind a rectifier.
    """
    return not math.isfinite(point.second) and point.mean < MASKED


def _broken(updates: Sequence[Update]) -> Iterator[Verdict]:
    sites = [update.site for update in updates if not math.isfinite(update.second)]
    if sites:
        more = f", as do {len(sites) - 1} other parameters" if len(sites) > 1 else ""
        reason = f"it holds nan or inf{more}, before any input has been read"
        yield Verdict("not finite", sites[0], reason, "fill it anew", sites=tuple(sites))


def _overflow(points: Sequence[Point]) -> Iterator[Verdict]:
    place = next((i for i, point in enumerate(points) if not math.isfinite(point.second)), None)
    if place is not None:
        before = points[place - 1].second if place else math.nan
        reason = f"its output is not finite; the second moment before it was {before:.3g}"
        yield Verdict("overflows", points[place].name, reason, REPAIR)


# Outputs

LOUD, TOO_LOUD = 4.0, 8.0
"""Losses at step 0, in multiples of that of outputs of zero (`ln(classes)`): to warn of, to mend.

Adam brings a head down in some hundred steps; eight times the loss costs a tenth of what is learnt.
"""

LARGE_OUTPUT = 100.0
"""Standard deviation of an output that is not known to be logits."""


def _large_outputs(signal: Signal) -> Iterator[Verdict]:
    """Judge what the model returns: by the loss where one was given, else as logits."""
    if not signal.outputs:
        return
    loss, zeros = signal.loss, signal.loss_of_zeros
    widest = max(signal.outputs, key=lambda output: output.varies)
    if loss is not None and zeros is not None:
        if loss > LOUD * zeros > 0:
            reason = f"the loss at step 0 is {loss:.3g}, and {zeros:.3g} where the head is zero"
            yield _too_large(widest, reason, loss / zeros, signal.loud)
        return
    costs = [(1 + (o.excess or 0) / math.log(max(o.classes, 2)), o) for o in signal.outputs]
    cost, surest = max(costs, key=lambda pair: pair[0])
    if cost > LOUD:
        chance = math.log(surest.classes)
        reason = (
            f"its std is {surest.varies:.3g}: as logits of {surest.classes} classes it costs "
            f"{cost * chance:.3g} nats at step 0, and ln({surest.classes}) is {chance:.3g}"
        )
        yield _too_large(surest, reason, cost)
    elif widest.varies > LARGE_OUTPUT:
        yield _too_large(widest, f"its std over inputs is {widest.varies:.3g}", TOO_LOUD)


def _too_large(output: Output, reason: str, cost: float, loud: tuple[str, ...] = ()) -> Verdict:
    """Name the learned scale that makes an output large, else the last weight before it."""
    sites = loud or (() if output.source is None else (output.source,))
    where = output.scale or next(iter(sites), output.name)
    advice = f"apply_policy(model, only={list(sites)!r})" if sites else REPAIR
    if output.scale:
        reason += f"; {output.scale!r} multiplies what comes before it"
        advice = f"start {output.scale!r} at a factor of about {_TEMPERED:g}, as CLIP does"
    return Verdict(
        "output too large",
        where,
        reason,
        advice,
        mild=cost < TOO_LOUD,
        sites=() if output.scale else sites,
        structural=output.scale is not None,
    )


_TEMPERED = 14
"""CLIP's first factor on cosines, `1 / 0.07` (Radford et al., 2021, arXiv:2103.00020, sec. 2.5)."""

# The first step

LARGE_STEP, SMALL_STEP = 0.5, 1e-6
"""Bounds of the first step's length, relative to the values that it changes."""

JUMP = 4.0
"""By what factor the first step may raise the loss of its own batch.

Of 60 small nets and one fault of each kind under Adam the step raises it by 1.1 at most where the
net then learns.
"""


def _first_steps(signal: Signal) -> Iterator[Verdict]:
    """Judge the first step of the optimizer, where that is known."""
    steps = [(u.step, u.site) for u in signal.updates if u.step is not None]
    known = sorted((step, site) for step, site in steps if "bias" not in site)
    if not known:
        return
    (least, slow), (most, fast) = known[0], known[-1]
    before, after = max(signal.loss or 0.0, signal.loss_of_zeros or 0.0), signal.loss_after_step
    jumps = after is not None and after > JUMP * before > 0
    if most > LARGE_STEP or jumps:
        reason = f"it changes the values by {most:.2g} of their size"
        if jumps:
            reason += f", and the loss of the same inputs from {signal.loss:.3g} to {after:.3g}"
        advice = "lower the learning rate, or start larger"
        yield Verdict("step too large", fast, reason, advice, sites=(fast,))
    if least < SMALL_STEP:
        reason = f"it changes the values by {least:.2g} of their size"
        advice = "raise the learning rate, or start smaller"
        yield Verdict("step too small", slow, reason, advice, sites=(slow,), mild=True)
