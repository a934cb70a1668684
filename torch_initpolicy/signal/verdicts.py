"""Judges a measured signal: what goes wrong, where it starts, and what to write instead.

Knows profiles of numbers; runs nothing. The bounds were set on trainings of small networks, half of
them with a fault: `examples/experiments/doctor.py`, reported in `docs/doctor.md` on other seeds.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch_initpolicy.signal.born_dead import born_dead
from torch_initpolicy.signal.points import Output, Point, Update

Kind = Literal[
    "not finite", "overflows", "vanishes", "explodes", "wanders", "saturates", "dies",
    "collapses", "tokens collapse", "gradient vanishes", "gradient explodes", "gradient stops",
    "output too large", "step too large", "step too small",
]  # fmt: skip

SENTENCES: Mapping[Kind, str] = MappingProxyType(
    {
        "not finite": "a parameter is not finite",
        "overflows": "the signal overflows",
        "vanishes": "the signal vanishes",
        "explodes": "the signal explodes",
        "wanders": "the signal wanders",
        "saturates": "activations saturate",
        "dies": "units are dead",
        "collapses": "different inputs become the same",
        "tokens collapse": "the tokens of an input become the same",
        "gradient vanishes": "the gradient vanishes",
        "gradient explodes": "the gradient explodes",
        "gradient stops": "the gradient stops",
        "output too large": "the output starts too large",
        "step too large": "the first step is too large",
        "step too small": "the first step is too small",
    }
)
"""What to say of each kind, in front of the place."""

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

SATURATED = 0.5
"""Fraction of a bounded activation's outputs that may lie where it is flat."""

SAME = 1e-3
"""Different inputs whose mean cosine comes this close to 1 have become one."""

SAME_TOKENS, DEEP = 0.95, 6
"""Mean cosine between the tokens of an input that so many layers of attention may end with."""

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
        sites: Canonical names of the parameters that cause it, where these are known.
        line: Where the model's code calls the operator: `"net.py:42"`; empty where unknown.
        structural: Whether no start can change it.
    """

    kind: Kind
    where: str
    reason: str
    advice: str
    mild: bool = False
    sites: tuple[str, ...] = ()
    line: str = ""
    structural: bool = False

    def __str__(self) -> str:
        return f"{self.finding}; {self.advice}"

    @property
    def headline(self) -> str:
        """What goes wrong and where, in a clause."""
        return f"{SENTENCES[self.kind]} at {self.where!r}"

    @property
    def finding(self) -> str:
        """What goes wrong and where, with the numbers and without the advice."""
        place = f" ({self.line})" if self.line else ""
        return f"{self.headline}{place}: {self.reason}"


class Measured(NamedTuple):
    """What is judged.

    Attributes:
        points: What operators made, in order of execution.
        updates: The parameters.
        outputs: What the model returned.
        loss: Value of the loss that was given; None where none was.
        loss_of_zeros: The loss of outputs that are all zero.
    """

    points: Sequence[Point]
    updates: Sequence[Update] = ()
    outputs: Sequence[Output] = ()
    loss: float | None = None
    loss_of_zeros: float | None = None


def verdicts(measured: Measured) -> tuple[Verdict, ...]:
    """Judge a signal.

    Args:
        measured: Points, parameters, outputs and losses.

    Returns:
        At most one verdict of each kind; the mild ones last, else forward before backward, in order
        of execution.
    """
    if broken := [u.site for u in measured.updates if not math.isfinite(u.second)]:
        return (_not_finite(broken),)
    points = [point for point in measured.points if not _is_masked(point)]
    overflow = _first(points, lambda point: not math.isfinite(point.second))
    if overflow is not None:
        return (_overflow(points, overflow),)
    body = body_of(points)
    # What scales of 1e-5 nearly close is neither lost nor the same for all inputs: it opens.
    opens = any(update.ajar for update in measured.updates)
    judges = (_size, _saturation, _dying, *(() if opens else (_likeness, _tokens)))
    ahead = [verdict for judge in judges for verdict in judge(body, points)]
    places = {point.name: place for place, point in reversed(list(enumerate(points)))}
    ahead.sort(key=lambda verdict: places[verdict.where])
    grave = {verdict.kind for verdict in ahead if not verdict.mild}
    # A gradient stops, and an output grows, with the signal: that is said once.
    behind = [*(_stop(points) if not grave else ()), *(() if opens else _gradient(body))]
    behind += [] if "explodes" in grave else _output(measured)
    behind += _steps(measured.updates)
    return tuple(sorted([*ahead, *behind], key=lambda verdict: verdict.mild))


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


def body_of(points: Sequence[Point]) -> Sequence[Point]:
    """Return the points from the first weight on that come to another weight: no heads.

    Args:
        points: What was measured, in order of execution.

    Returns:
        Some of them; none where there are too few weights to tell a course by.
    """
    if sum(point.site is not None for point in points) < PLAIN:
        return ()
    return [point for point in points if point.source is not None and point.leads_on]


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


def _saturation(body: Sequence[Point], points: Sequence[Point]) -> Iterator[Verdict]:
    """Judge bounded activations by where they are flat; a returned one is judged by its loss."""
    flat = [
        point for point in points
        if (point.saturated or 0.0) > SATURATED and point.source and (point.leads_on or not body)
    ]  # fmt: skip
    if flat:
        first = flat[0]
        gives = first.over or first.op in _ATTENTIONS
        what = "rows give one entry 99 %" if gives else "outputs lie where it is flat"
        yield Verdict(
            "saturates",
            first.name,
            f"{first.saturated:.0%} of a sample of its {what}" + _as_in(flat),
            _SMALLER,
            sites=_sources(flat),
            line=first.line,
        )


_SMALLER = "start the weights before it smaller: apply_policy(model)"


def _sources(points: Sequence[Point]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(point.source for point in points if point.source))


def _as_in(points: Sequence[Point]) -> str:
    return f", as in {len(points) - 1} later activations" if len(points) > 1 else ""


def _dying(body: Sequence[Point], points: Sequence[Point]) -> Iterator[Verdict]:
    """Judge activations by the units that are silent whatever goes in, if something does."""
    del body
    dead = [
        point
        for before, point in zip([None, *points], points, strict=False)
        if (point.dead or 0.0) > DEAD and (before is None or before.second > LOST)
    ]
    if dead:
        worst = max(point.dead or 0.0 for point in dead)
        more = f"{_as_in(dead)}, {worst:.0%} at most" if len(dead) > 1 else ""
        yield Verdict(
            "dies",
            dead[0].name,
            f"{dead[0].dead:.0%} of its units are zero for every input{more}{_luck(points)}",
            "start the biases before it at zero, or use an activation with a slope on both sides",
            sites=_sources(dead),
            line=dead[0].line,
        )


def _luck(points: Sequence[Point]) -> str:
    """Say how probable it was that a plain narrow ReLU network dies, whatever is drawn."""
    hidden = [point for point in points if point.activates]
    if not all(point.op == "relu" and len(point.shape) == 2 for point in hidden):
        return ""
    chance = born_dead([point.shape[-1] for point in hidden])
    return f"; so narrow and deep a ReLU network is born dead in {chance:.1%} of all draws" * (
        chance > LIKELY
    )


LIKELY = 0.05
"""A probability that is worth a word."""


def _likeness(body: Sequence[Point], points: Sequence[Point]) -> Iterator[Verdict]:
    """Judge how far different inputs stay different; a pool makes noise alike."""
    known = [
        (point, max(1 - point.likeness, point.variation or 0.0))
        for point in body
        if point.likeness is not None and point.second > 0
        if point.site is not None or point.activates or point.op == "add"
    ]
    if not known or not known[-1][1] < min(SAME, 0.05 * known[0][1]):
        return
    ahead = _largest_ahead([difference for _, difference in known])
    index = next(i for i, difference in enumerate(ahead) if difference < SAME)
    yield Verdict(
        "collapses",
        known[index][0].name,
        f"outputs for different inputs have a mean cosine of {known[-1][0].likeness:.6f} at "
        f"{known[-1][0].name!r}, from {known[0][0].likeness:.3f} at {known[0][0].name!r}",
        'apply_policy(model, "critical") starts on the edge of chaos',
        line=known[index][0].line,
    )


def _tokens(body: Sequence[Point], points: Sequence[Point]) -> Iterator[Verdict]:
    """Judge how different attention leaves the tokens of an input."""
    if sum(point.op in _ATTENTIONS for point in points) < DEEP:
        return
    known = [
        (point, point.tokens) for point in body if point.tokens is not None and point.op in _STREAMS
    ]
    if len(known) < PLAIN or known[-1][1] < SAME_TOKENS or known[0][1] > SAME_TOKENS:
        return
    first = next(point for point, cosine in known if cosine >= SAME_TOKENS)
    yield Verdict(
        "tokens collapse",
        first.name,
        f"the mean cosine between tokens climbs from {known[0][1]:.2f} at {known[0][0].name!r} to "
        f"{known[-1][1]:.2f} at {known[-1][0].name!r}",
        'apply_policy(model, "depth_scaled") lets branches add less to their stream',
        line=first.line,
    )


_ATTENTIONS = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward", "softmax"})
_STREAMS = frozenset({"add", "layer_norm", "rms_norm", "linear"})


#
# Backward
#


def _gradient(body: Sequence[Point]) -> Iterator[Verdict]:
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


def _stop(points: Sequence[Point]) -> Iterator[Verdict]:
    """Find the operator before which no weight gets any gradient, though it gets one itself."""
    known = [point for point in points if point.gradient is not None]
    place = _first(known, lambda point: bool(point.gradient))
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
        _MORE if stops.over == 1 else _REPAIR,
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
        f"goes from {end[1]:.3g} to {start[1]:.3g}{_changed(end[1], start[1])}",
        _REPAIR if kind == "gradient vanishes" else _CRITICAL,
        line=where.line,
    )


_CRITICAL = 'apply_policy(model, "critical") keeps the gradient\'s size, apply_policy(model, '
_CRITICAL += '"zero_residual") starts residual branches at zero'


#
# The outputs, and the first step
#


def _output(measured: Measured) -> Iterator[Verdict]:
    """Judge what the model returns: by the loss where one was given, else as logits."""
    if not measured.outputs:
        return
    loss, zeros = measured.loss, measured.loss_of_zeros
    if loss is not None:
        worst = max(measured.outputs, key=lambda output: output.varies)
        if zeros is not None and loss > LOUD * zeros > 0:
            reason = f"the loss at step 0 is {loss:.3g}, and {zeros:.3g} for outputs of zero"
            yield _too_large(worst, reason, loss / zeros)
        return
    yield from _as_logits(measured.outputs)


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
        f"apply_policy(model, only=[{output.source!r}])" if output.source else _REPAIR,
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
