"""Judges the way forward: size, saturation, dead units, and how different inputs stay."""

import itertools
from collections.abc import Iterator, Sequence

from torch_initpolicy.signal.born_dead import born_dead
from torch_initpolicy.signal.points import FEWEST_WEIGHTS, Point, arriving
from torch_initpolicy.signal.verdicts import REPAIR, Pathology, Verdict, as_in, changed


def judge_forward(points: Sequence[Point], body: Sequence[Point], *, opens: bool) -> list[Verdict]:
    """Judge the way forward, in order of execution.

    `opens` says that scales nearly close branches: what is small behind them is not lost.
    """
    found = [*_saturation(points, whole=not body), *_dying(points)]
    if not cut_off(points):  # else all that follows is constant, and that is the cause
        found += _sizes(body)
        found += [] if opens else [*_likeness(body, points), *_token_likeness(body, points)]
    places = {point.name: place for place, point in reversed(list(enumerate(points)))}
    return sorted(found, key=lambda verdict: places[verdict.where])


# Size

VANISHED = 1e-3
"""Second moments that fall by more than this, with nothing larger after them, have vanished."""

EXPLODED = 1e3
"""Second moments that end larger than this times where they began have exploded."""

WANDERED = 4.0
"""A factor, up or down, by which second moments may change before it is worth a word."""


def _sizes(body: Sequence[Point]) -> Iterator[Verdict]:
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


def _sized(kind: Pathology, body: Sequence[Point], index: int) -> Verdict:
    start, end = body[0], body[-1]
    reason = (
        f"the second moment goes from {start.second:.3g} at {start.name!r} to {end.second:.3g} at "
        f"{end.name!r}{changed(start.second, end.second)}{_rate(body)}"
    )
    return Verdict(kind, body[index].name, reason, REPAIR)


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
    reason = (
        f"the second moment goes from {start.second:.3g} at {start.name!r} to {end:.3g} at "
        f"{last.name!r}; some of that is to be expected of narrow layers, and behind silu or gelu, "
        "where small deviations grow"
    )
    yield Verdict("wanders", outside[0].name, reason, _CALIBRATE, mild=True)


_CALIBRATE = "apply_policy(..., calibrate=batch) scales each weight to what it really reads"

# Activations

SATURATED = 0.5
"""Fraction of a bounded activation's outputs that may lie where it is flat."""

HASHED = 0.25
"""Fraction of a sine's phases that may be half a turn or more from those of the next input.

SIRENs of the plane, first layer times 1, 2, 4, 8 and 16: at 0.04, 0.19, 0.44, 0.67 and 0.86 they
explain 0.98, 0.86, 0.65, -0.06 and -0.41 of held-out points' variance after 200 steps of Adam.
"""


def _saturation(points: Sequence[Point], *, whole: bool) -> Iterator[Verdict]:
    """Judge bounded activations by where they are flat; a returned one is judged by its loss."""
    flat = [
        point for point in points
        if (point.saturated or 0.0) > (HASHED if point.op in _SINES else SATURATED)
        and point.source and (point.leads_on or whole)
    ]  # fmt: skip
    if flat:
        first = flat[0]
        reason = f"{first.saturated:.0%} of a sample of its {_flatness(first)}{as_in(flat[1:])}"
        yield Verdict(
            "saturates", first.name, reason, _SMALLER, sites=_sources(flat), line=first.line
        )


def _flatness(point: Point) -> str:
    if point.op in _SINES:
        return "phases are half a turn or more from those of the most similar input"
    gives = point.over or point.op in _ATTENTIONS
    return "rows give one entry 99 %" if gives else "outputs lie where it is flat"


_SINES = frozenset({"sin", "cos"})
_SMALLER = "start the weights before it smaller: apply_policy(model)"


def _sources(points: Sequence[Point]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(point.source for point in points if point.source))


DEAD = 0.7
"""Fraction of an activation's units that may be silent for every input.

Behind equal units and in deep nets that torch starts half of them are; these reach what others do.
"""

CERTAIN = 0.5
"""Probability of being born dead that no other draw helps against."""

LOST = 1e-70
"""A second moment whose numbers come near the smallest of float32, 1e-45: zeros are no news."""


def _silent(points: Sequence[Point]) -> list[Point]:
    """Return the activations whose units are silent whatever goes in, where something does."""
    before = [None, *points]
    return [
        point for last, point in zip(before, points, strict=False)
        if (point.dead or 0.0) > DEAD and (last is None or last.second > LOST)
    ]  # fmt: skip


def cut_off(points: Sequence[Point]) -> bool:
    """Say whether some activation lets nothing through on the only way there is."""
    return any(point.dead == 1 and point.leads_on for point in _silent(points))


def _dying(points: Sequence[Point]) -> Iterator[Verdict]:
    """Judge activations by the share of their units that are silent."""
    dead = _silent(points)
    if dead:
        worst = max(point.dead or 0.0 for point in dead)
        more = f"{as_in(dead[1:])}, {worst:.0%} at most" if len(dead) > 1 else ""
        yield Verdict(
            "dies",
            dead[0].name,
            f"{dead[0].dead:.0%} of its units are zero for every input{more}",
            "start the biases before it at zero, or use an activation with a slope on both sides",
            sites=_sources(dead),
            line=dead[0].line,
        )


def born_dead_verdict(points: Sequence[Point]) -> Iterator[Verdict]:
    """Judge a plain ReLU network by its widths alone, where they decide."""
    chance = _luck(points)
    if chance > CERTAIN:
        first = next(point for point in points if point.activates)
        reason = (
            f"so narrow and deep a ReLU network is born dead in {chance:.1%} of all draws, and "
            "what lives has few directions left"
        )
        yield Verdict("dies", first.name, reason, _WIDEN, line=first.line, structural=True)


_WIDEN = "wider layers, skips around them or an activation with a slope on both sides change that"


def _luck(points: Sequence[Point]) -> float:
    """Return how probable it was that a plain ReLU network dies; 0 for other networks."""
    hidden = [point for point in points if point.activates]
    plain = all(point.site or point.op == "relu" for point in points)
    if not plain or any(len(point.shape) != 2 for point in points):
        return 0.0
    return born_dead([point.shape[-1] for point in hidden])


# Different inputs

SAME, SAME_BEHIND_BIASES, MANY = 3e-4, 2e-3, 9
SAME_UNDER_FAINT, SAME_BEHIND_BIASES_UNDER_FAINT, MANY_UNDER_FAINT = 1e-3, 5e-2, 6
"""How close to 1 the mean cosine between inputs may come before they have become the same.

Where the signal shrinks by `WANDERED`, as in plain nets that torch starts, biases outweigh it. Adam
lets it grow back, unless there are many weights to go through, or a faint head holds the gradient
back. Of 217 nets, most of them plain and 67 of them ill (below 90 % of their twins after 200 steps
of Adam), these bounds find 56, with 15 false alarms; with 8 weights for 9 it is 60 with 20.
"""

SAME_DIRECTION, LENGTHS = 1e-2, 10.0
"""How close to 1 the cosine may come where inputs differ by lengths alone, and by how much more.

What rectifiers and averages over neighbours leave of many inputs are multiples of one vector: their
lengths, or the square roots of how many neighbours a node has (Oono and Suzuki, 2020,
arXiv:1905.10947, theorem 2). Of 36 plain ReLU nets of 8 to 48 units and 12 to 30 layers the seven
that these bounds find reach 13 to 84 % of their twins; graph nets of 12 layers half, of 10 all.
"""

FAINT = 0.1
"""Share of the gradient's squared length that a head lets through; torch's own start lets 1/3."""


def _likeness(body: Sequence[Point], points: Sequence[Point]) -> Iterator[Verdict]:
    """Judge how far different inputs stay different; a pool makes noise alike."""
    known = [
        (point, 1 - point.likeness, point.variation or 0.0)
        for point in body
        if point.likeness is not None and point.second > 0
        if point.site is not None or point.op == "add" or _is_a_stream(point)
    ]
    if not known:
        return
    last, angle, lengths = known[-1]
    same, course = _closest(body, faint=_is_faint(body, points)), [max(x, y) for _, x, y in known]
    if LENGTHS * angle < lengths and _is_plain_and_deep(points):
        same, course = SAME_DIRECTION, [angle for _, angle, _ in known]
    if course[-1] >= min(same, 0.05 * course[0]):
        return
    ahead = _largest_ahead(course)
    first = next(known[i][0] for i, difference in enumerate(ahead) if difference < same)
    reason = (
        f"outputs for different inputs have a mean cosine of {last.likeness:.6f} at "
        f"{last.name!r}, from {known[0][0].likeness:.3f} at {known[0][0].name!r}"
    )
    advice = 'apply_policy(model, "critical") starts on the edge of chaos'
    yield Verdict("collapses", first.name, reason, advice, line=first.line)


def _is_plain_and_deep(points: Sequence[Point]) -> bool:
    """Say whether there are many weights, without skips and normalisations."""
    weights = sum(point.site is not None for point in points)
    return weights > MANY and not any(point.skips or "norm" in point.op for point in points)


def _is_a_stream(point: Point) -> bool:
    """Say whether it is an activation that is no softmax: one of equal entries is the mildest."""
    return point.activates and "softm" not in point.op


def _closest(body: Sequence[Point], *, faint: bool) -> float:
    """Return how close to 1 the mean cosine between inputs may come."""
    if arriving(body) >= min(body[0].second, 1.0) / WANDERED:
        return SAME_UNDER_FAINT if faint else SAME
    weights = sum(point.site is not None for point in body)
    if weights < (MANY_UNDER_FAINT if faint else MANY):
        return _LOST_TO_ADAM
    return SAME_BEHIND_BIASES_UNDER_FAINT if faint else SAME_BEHIND_BIASES


_LOST_TO_ADAM = 1e-7
"""What float32 holds no difference for does not grow back."""


def _is_faint(body: Sequence[Point], points: Sequence[Point]) -> bool:
    """Say whether the head, as one of zeros does, keeps the gradient from what is before it."""
    heads = [point.length for point in points if not point.leads_on and point.length]
    return bool(heads) and (body[-1].length or 0.0) < FAINT * max(heads)


SAME_TOKENS, DEEP = 0.95, 6
"""Mean cosine between the tokens of an input that so many layers of attention may end with."""

_ATTENTIONS = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward", "softmax"})
_STREAMS = frozenset({"add", "layer_norm", "rms_norm", "linear"})


def _token_likeness(body: Sequence[Point], points: Sequence[Point]) -> Iterator[Verdict]:
    """Judge how different attention leaves the tokens of an input."""
    if sum(point.op in _ATTENTIONS for point in points) < DEEP:
        return
    known = [
        (point, point.tokens) for point in body if point.tokens is not None and point.op in _STREAMS
    ]
    if len(known) < FEWEST_WEIGHTS or known[-1][1] < SAME_TOKENS or known[0][1] > SAME_TOKENS:
        return
    first = next(point for point, cosine in known if cosine >= SAME_TOKENS)
    reason = (
        f"the mean cosine between tokens climbs from {known[0][1]:.2f} at {known[0][0].name!r} to "
        f"{known[-1][1]:.2f} at {known[-1][0].name!r}"
    )
    advice = 'apply_policy(model, "depth_scaled") lets branches add less to their stream'
    yield Verdict("tokens collapse", first.name, reason, advice, line=first.line)
