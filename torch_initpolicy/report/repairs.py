"""Judges what was tried: whether a model's signal is repaired by it, in words and in order.

Knows signals before and after; tries nothing itself.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch_initpolicy.signal.points import Point, arriving, body_of
from torch_initpolicy.signal.signal import Signal
from torch_initpolicy.signal.verdicts import MILD, Verdict

Outcome = Literal["repairs", "nearly", "fails", "refused"]
"""What became of an attempt.

`repairs`: nothing is left to be said of the signal, but for warnings beside something grave that
was to be repaired. `nearly`: another warning is left. `fails`: something grave is left, or new.
`refused`: the policy cannot be applied.
"""

OUTCOMES: tuple[Outcome, ...] = ("repairs", "nearly", "fails", "refused")


@dataclass(frozen=True, slots=True)
class Repair:
    """Something that was tried on a copy of a model, and what became of the signal.

    Attributes:
        name: What it is called: a policy's name, `"auto, calibrated"`, `"lsuv"`.
        call: What to write: `'apply_policy(model, "signal")'`.
        outcome: Whether it repairs what was wrong.
        reason: That in words, with the numbers that were measured.
        signal: The signal of the copy; None where the policy was refused.
        seconds: How long trying it took.
        sites: How many parameters it starts anew; None for the whole model.

    Examples:
        >>> print(Repair("he", 'apply_policy(model, "he")', "repairs", "repairs it"))
        apply_policy(model, "he") repairs it
    """

    name: str
    call: str
    outcome: Outcome
    reason: str
    signal: Signal | None = None
    seconds: float = 0.0
    sites: int | None = None

    @property
    def works(self) -> bool:
        """Whether nothing grave is left."""
        return self.outcome in ("repairs", "nearly")

    def as_data(self) -> dict[str, Any]:
        """Return it as JSON has it: all but what was measured."""
        signal = self.signal
        return {
            "name": self.name,
            "call": self.call,
            "outcome": self.outcome,
            "reason": self.reason,
            "seconds": self.seconds,
            "verdicts": [] if signal is None else [asdict(verdict) for verdict in signal.verdicts],
        }

    def __str__(self) -> str:
        return f"{self.call} {self.reason}"


def judged(
    name: str,
    call: str,
    before: Signal,
    after: Signal,
    *,
    same: Sequence[str] = (),
    sick: bool | None = None,
) -> Repair:
    """Judge an attempt by the signals before and after it.

    `same` are parameters whose units it leaves identical or dead; `sick` says whether there is
    something to repair, where the verdicts of the signal do not tell.

    Examples:
        >>> judged("he", 'apply_policy(model, "he")', Signal(()), Signal(())).reason
        'keeps the signal well'
    """
    outcome = _outcome(before, after, same)
    ill = bool(before.verdicts) if sick is None else sick
    left = ", ".join(_left(before.verdicts, after.verdicts, same))
    if outcome == "fails":
        told = f"{'does not repair it' if ill else 'would do harm'}: {left}"
    else:
        though = f", though {left}, {MILD}" if left else ""
        told = f"{'repairs it' if ill else 'keeps the signal well'}{though}"
        told += _span_words(after.points)
    return Repair(name, call, outcome, told, after)


def refused(name: str, call: str, why: str) -> Repair:
    """Note an attempt that an error ended."""
    return Repair(name, call, "refused", f"cannot be applied: {why}")


def ranked(repairs: Iterable[Repair]) -> tuple[Repair, ...]:
    """Put what repairs first, the fewest parameters and the simplest first among equals."""
    return tuple(sorted(repairs, key=_rank))


def _rank(repair: Repair) -> tuple[float, ...]:
    """Take for equals what does the same and stays within the same power of a hundred."""
    points = repair.signal.points if repair.signal is not None and repair.works else ()
    factors = [factor for factor in (span_ahead(points), span_back(points)) if factor is not None]
    size = math.inf if repair.sites is None else repair.sites
    span = int(math.log(min(max([1.0, *factors]), _LOST), 100))
    return OUTCOMES.index(repair.outcome), size, span


_LOST = 1e300


def _outcome(before: Signal, after: Signal, same: Sequence[str]) -> Outcome:
    if same or not after.ok:
        return "fails"
    warned = {verdict.kind for verdict in before.verdicts if verdict.mild}
    left = {verdict.kind for verdict in after.verdicts}
    if not left or (left <= warned and not before.ok):
        return "repairs"
    # Where what there is to repair is mild, something mild that is left counts.
    return "fails" if before.verdicts and before.ok else "nearly"


def _left(
    before: Sequence[Verdict], after: Sequence[Verdict], same: Sequence[str]
) -> Iterator[str]:
    """Say what is still wrong, and what is new."""
    known = {verdict.kind for verdict in before}
    for verdict in after:
        still = "still" if verdict.kind in known else "now"
        yield f"{still} {verdict.headline}"
    if same:
        more = f" and {len(same) - _LISTED} more" if len(same) > _LISTED else ""
        names = ", ".join(map(repr, same[:_LISTED]))
        yield f"leaves units identical or dead in {names}{more}"


_LISTED = 3


def _span_words(points: Sequence[Point]) -> str:
    """Say within which factors a signal stays that is not lost."""
    ahead, back = span_ahead(points), span_back(points)
    parts = [] if ahead is None else [f"second moments stay within a factor {_factor_words(ahead)}"]
    parts += [] if back is None else [f"squared gradients within {_factor_words(back)}"]
    return f": {', '.join(parts)}, up to the head" if parts else ""


def _factor_words(factor: float) -> str:
    return f"{factor:.{1 if factor < 100 else 0}f}" if factor < 1e4 else f"{factor:.1e}"


def span_ahead(points: Sequence[Point]) -> float | None:
    """Return within which factor second moments stay on the way to the head, at least 1.

    From the first weight's to the largest of any weight, and to what arrives at the end: a residual
    branch may be smaller. None where there are too few weights.
    """
    body = body_of(points)
    weighted = [point.second for point in body if point.site is not None]
    return _factor([weighted[0], max(weighted), arriving(body)]) if body else None


def span_back(points: Sequence[Point]) -> float | None:
    """Return within which factor the squared length of the gradient stays, at least 1.

    None where there are too few weights, or no gradient.
    """
    lengths = [point.length for point in body_of(points) if point.site is not None and point.length]
    return _factor([lengths[0], max(lengths), lengths[-1]]) if lengths else None


def _factor(values: Sequence[float]) -> float:
    low = min(values)
    return max(values) / low if low > 0 else math.inf
