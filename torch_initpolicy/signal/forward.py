"""Judges the way forward: size, saturation, dead units, and how different inputs stay."""

import itertools
from collections.abc import Iterator, Sequence

from torch_initpolicy.signal.born_dead import born_dead
from torch_initpolicy.signal.points import PLAIN, Point, arriving
from torch_initpolicy.signal.verdicts import CALIBRATE, REPAIR, Kind, Verdict, changed

VANISHED = 1e-3
"""Second moments that fall by more than this, with nothing larger after them, have vanished."""

EXPLODED = 1e3
"""Second moments that end larger than this times where they began have exploded."""

WANDERED = 4.0
"""A factor, up or down, by which second moments may change before it is worth a word."""

DEAD = 0.5
"""Fraction of an activation's units that may be silent for every input."""

SATURATED = 0.5
"""Fraction of a bounded activation's outputs that may lie where it is flat."""

SAME = 1e-3
"""Different inputs whose mean cosine comes this close to 1 have become one."""

SAME_AND_SMALL = 6e-3
"""Likewise where the signal shrinks by `WANDERED` as well, as in plain nets that torch starts.

Of 548 small nets 56 reached less than 90 % of what their twins did: 52 are found at 6e-3 and 47 at
1e-3, with 20 and 16 false alarms; at 12e-3 it is 55 with 28.
"""

SAME_TOKENS, DEEP = 0.95, 6
"""Mean cosine between the tokens of an input that so many layers of attention may end with."""

LIKELY = 0.05
"""Probability of being born dead that is worth a word."""

LOST = 1e-70
"""A second moment whose numbers come near the smallest of float32, 1e-45: zeros are no news."""


def judge_forward(points: Sequence[Point], body: Sequence[Point], *, opens: bool) -> list[Verdict]:
    """Judge the way forward.

    Args:
        points: What was measured, in order of execution.
        body: The part of it that `body_of` returns.
        opens: Whether scales nearly close branches: what is small behind them is not lost.

    Returns:
        The verdicts, in order of execution.
    """
    found = [*_size(body), *_saturation(points, whole=not body), *_dying(points)]
    if not opens:
        found += [*_likeness(body), *_tokens(body, points)]
    places = {point.name: place for place, point in reversed(list(enumerate(points)))}
    return sorted(found, key=lambda verdict: places[verdict.where])


def _size(body: Sequence[Point]) -> Iterator[Verdict]:
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


def _sized(kind: Kind, body: Sequence[Point], index: int) -> Verdict:
    start, end = body[0], body[-1]
    return Verdict(
        kind,
        body[index].name,
        f"the second moment goes from {start.second:.3g} at {start.name!r} to {end.second:.3g} at "
        f"{end.name!r}{changed(start.second, end.second)}{_rate(body)}",
        REPAIR,
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
        CALIBRATE,
        mild=True,
    )


def _saturation(points: Sequence[Point], *, whole: bool) -> Iterator[Verdict]:
    """Judge bounded activations by where they are flat; a returned one is judged by its loss."""
    flat = [
        point for point in points
        if (point.saturated or 0.0) > SATURATED and point.source and (point.leads_on or whole)
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


def _dying(points: Sequence[Point]) -> Iterator[Verdict]:
    """Judge activations by the units that are silent whatever goes in, if something does."""
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


def _likeness(body: Sequence[Point]) -> Iterator[Verdict]:
    """Judge how far different inputs stay different; a pool makes noise alike."""
    known = [
        (point, max(1 - point.likeness, point.variation or 0.0))
        for point in body
        if point.likeness is not None and point.second > 0
        if point.site is not None or point.activates or point.op == "add"
    ]
    if not known:
        return
    shrinks = arriving(body) < min(body[0].second, 1.0) / WANDERED
    same = SAME_AND_SMALL if shrinks else SAME
    if known[-1][1] >= min(same, 0.05 * known[0][1]):
        return
    ahead = _largest_ahead([difference for _, difference in known])
    index = next(i for i, difference in enumerate(ahead) if difference < same)
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
