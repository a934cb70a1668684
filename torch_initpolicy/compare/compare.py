"""Compares how two models start: the verb `compare_inits`, and what it returns.

Knows models and plans; what is drawn is compared in `compare.statistics`, which tensors stand for
each other is decided in `compare.align`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from torch_initpolicy.compare.align import Entry, Pair, pairs
from torch_initpolicy.compare.statistics import Contrast, contrasts, words
from torch_initpolicy.deferred.undrawn import pending_of
from torch_initpolicy.errors import ArgumentError, counted
from torch_initpolicy.planning.describe import folded
from torch_initpolicy.planning.plan import Plan
from torch_initpolicy.sites import Site, canonical_modules, require_module, sites
from torch_initpolicy.steps import Step
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.initializers import Initializer
from torch_initpolicy.writing.parametrized import reading
from torch_initpolicy.writing.shards import full
from torch_initpolicy.writing.streams import isolated

__all__ = ["Comparison", "Row", "compare_inits"]

FALSE_ALARM = 5e-4
"""Probability that two equal starts are said to differ, all tensors of a model together."""

Verdict = Literal["same", "differs", "not compared"]


@dataclass(frozen=True, slots=True)
class Row:
    """What came of comparing one tensor with its counterpart.

    Attributes:
        mine: Name in the first model; several with ` + ` between where the other packs them.
        reference: Name in the second model; empty where it has no counterpart.
        verdict: `"same"`, `"differs"`, or `"not compared"`.
        reason: What differs, or why nothing was compared.
        mine_is: The first tensor's distribution, in words.
        reference_is: The second's.
    """

    mine: str
    reference: str
    verdict: Verdict
    reason: str
    mine_is: str = ""
    reference_is: str = ""

    @property
    def names(self) -> str:
        """Both names, or the one that both models have in common."""
        return " ~ ".join(dict.fromkeys(filter(None, (self.mine, self.reference))))

    @property
    def said(self) -> str:
        """The reason with both distributions."""
        sides = f": {self.mine_is} against {self.reference_is}" if self.mine_is else ""
        return f"{self.reason}{sides}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the starts of two models compare, one row for each tensor.

    Attributes:
        rows: The rows, in the order of the first model; what only the second has comes last.
    """

    rows: tuple[Row, ...]

    @property
    def ok(self) -> bool:
        """Whether every tensor has a counterpart that was drawn from the same distribution."""
        return not self.different

    @property
    def different(self) -> tuple[Row, ...]:
        """The rows that differ."""
        return tuple(row for row in self.rows if row.verdict == "differs")

    def __str__(self) -> str:
        counts = {word: sum(row.verdict == word for row in self.rows) for word in _VERDICTS}
        head = (
            f"{counted(counts['same'], 'tensor')} start the same, {counts['differs']} differ, "
            f"{counts['not compared']} not compared"
        )
        shown = ((row.names, (row.said,)) for row in self.rows if row.verdict != "same")
        return "\n".join([head, *(f"  {names}: {said}" for names, (said,) in folded(shown))])

    def to_json(self) -> str:
        """Write the rows as JSON, with `ok`."""
        rows = [asdict(row) for row in self.rows]
        return json.dumps({"format": 1, "ok": self.ok, "rows": rows}, indent=2)


_VERDICTS: tuple[Verdict, ...] = ("same", "differs", "not compared")


@dataclass(frozen=True, slots=True)
class _Start:
    """One tensor at the start: its entry for pairing, and where its values come from."""

    entry: Entry
    values: Callable[[], Tensor] | None
    missing: str = ""


def compare_inits(mine: nn.Module | Plan, reference: nn.Module | Plan) -> Comparison:
    """Compare how two models start, as distributions: no seeds have to agree.

    Tensors are paired by name, else by their order, roles and shapes, packed and transposed ones
    included. Each pair is tested for scale, mean, shape of the distribution, its bounds, zeros,
    copied rows, orthogonality, and part by part for gates and packed projections; ties and buffers
    are compared too. All tests of a model together give a false alarm in at most one of 1,000
    pairs of equal starts; differences below 2 % of a standard deviation are not reported. Both
    models stay as they are.

    Args:
        mine: A model with its initial weights, built for real, under `skip_init`, sharded or not;
            or a plan.
        reference: What it is to start like.

    Returns:
        A comparison: `ok`, `different`, one row for each tensor; print it for a text.

    Raises:
        ArgumentError: One of the two is neither a module nor a plan, or is on the meta device.

    Examples:
        >>> mine, reference = nn.Linear(256, 256), nn.Linear(256, 256)
        >>> compare_inits(mine, reference).ok
        True
        >>> _ = nn.init.normal_(mine.weight, std=0.02)
        >>> print(compare_inits(mine, reference))  # doctest: +ELLIPSIS
        1 tensor start the same, 1 differ, 0 not compared
          weight: scale: normal, std 0.0... against uniform in [-0.06..., 0.06...]
    """
    own, other = list(_starts(mine, "mine")), list(_starts(reference, "reference"))
    entries = [start.entry for start in own], [start.entry for start in other]
    found = pairs(*entries)
    with torch.no_grad():
        measured = [_measured(pair, own, other) for pair in found]
    tested = sum(len(one.contrasts) for one in measured)
    limit = FALSE_ALARM / max(tested, 1)
    rows = [_row(one, *entries, limit) for one in measured]
    return Comparison((*rows, *_ties(found, *entries), *_alone(found, *entries)))


#
# Where values come from
#


def _starts(given: nn.Module | Plan, argument: str) -> Iterator[_Start]:
    if isinstance(given, Plan):
        yield from map(_of_step, given)
        return
    if not isinstance(given, nn.Module):
        raise ArgumentError(f"{argument} must be an nn.Module or a Plan, got {given!r}")
    known = sites(require_module(given))
    unfilled = [site.name for site in known if site.lazy or site.device.type == "meta"]
    if unfilled:
        raise ArgumentError(
            f"{argument} has no values yet in {counted(len(unfilled), 'parameter')}, "
            f"{unfilled[0]!r} first: materialize it, run its lazy layers, or give its plan"
        )
    yield from map(_of_site, known)
    yield from _buffers(given)


def _of_step(step: Step) -> _Start:
    entry = Entry(step.names, step.role, step.shape)
    if step.keeps:
        return _Start(entry, None, "the plan keeps it")
    return _Start(entry, lambda: _drawn(step))


def _of_site(site: Site) -> _Start:
    entry = Entry(site.names, site.role, site.shape)
    pending = pending_of(site.parameters[0])
    if pending is None:
        return _Start(entry, lambda: _stored(site))
    return _Start(entry, lambda: _filled(pending.initializer, site.shape, None, pending.padding))


def _stored(site: Site) -> Tensor:
    """Return what was drawn: the stored parameter where one of the logical shape stands for it.

    What a spectral norm makes of it has a scale of its own in each model.
    """
    only = site.parameters[-1]
    drawn = site.storage != "weight_norm" and tuple(only.shape) == site.shape
    return full(only) if drawn and len(site.parameters) == 1 else reading(site)


def _buffers(model: nn.Module) -> Iterator[_Start]:
    seen: set[int] = set()
    for prefix, module in canonical_modules(model):
        for name, buffer in module.named_buffers(recurse=False):
            if id(buffer) not in seen:
                seen.add(id(buffer))
                full = f"{prefix}.{name}" if prefix else name
                yield _buffer(full, buffer)


def _buffer(name: str, buffer: Tensor) -> _Start:
    entry = Entry((name,), "buffer", tuple(buffer.shape))
    return (
        _Start(entry, None, "on the meta device")
        if buffer.is_meta
        else _Start(entry, lambda: full(buffer))
    )


def _drawn(step: Step) -> Tensor:
    """Draw what a step says, calibration included."""
    axes = None if step.torch_axes else step.axes
    values = _filled(step.initializer, step.shape, axes, step.padding)
    for factor, part in zip(step.factors, values.chunk(len(step.factors) or 1), strict=False):
        part.mul_(factor)
    return values


def _filled(
    initializer: Initializer, shape: Sequence[int], axes: Axes | None, padding: int | None
) -> Tensor:
    """Draw a tensor from an initializer, with a seed that no model is filled with by accident."""
    with isolated(torch.device("cpu"), _SEED):
        values = torch.empty(tuple(shape))
        initializer(values, axes, generator=torch.Generator().manual_seed(_SEED))
    if padding is not None:
        values[padding] = 0
    return values


_SEED = 0x5EED_C0DE

#
# What comes of it
#


def _measured(pair: Pair, mine: Sequence[_Start], reference: Sequence[_Start]) -> "_Measured":
    """Test one pair; what has no values is not tested."""
    sides = [mine[at] for at in pair.mine], [reference[at] for at in pair.reference]
    missing = next((start.missing for side in sides for start in side if start.values is None), "")
    if missing:
        return _Measured(pair, missing)
    first, second = _joined(sides[0]), _joined(sides[1])
    second = second.mT if pair.transposed else second
    found = tuple(contrasts(first, second))
    doubtful = any(contrast.probability < FALSE_ALARM for contrast in found)
    said = (words(first), words(second)) if doubtful else ("", "")
    return _Measured(pair, "", found, said)


class _Measured(NamedTuple):
    """What came of testing one pair.

    Attributes:
        pair: The pair.
        missing: Why nothing was tested, or empty.
        contrasts: The tests; none where both tensors are equal.
        words: Both distributions in words; empty where no test is doubtful.
    """

    pair: Pair
    missing: str
    contrasts: tuple[Contrast, ...] = ()
    words: tuple[str, str] = ("", "")


def _joined(side: Sequence[_Start]) -> Tensor:
    values = [start.values() for start in side if start.values is not None]
    return values[0] if len(values) == 1 else torch.cat([v.cpu() for v in values])


def _row(
    measured: _Measured, mine: Sequence[Entry], reference: Sequence[Entry], limit: float
) -> Row:
    names = (
        " + ".join(mine[at].name for at in measured.pair.mine),
        " + ".join(reference[at].name for at in measured.pair.reference),
    )
    if measured.missing:
        return Row(*names, "not compared", measured.missing)
    failed = [contrast for contrast in measured.contrasts if contrast.probability < limit]
    if not failed:
        return Row(*names, "same", "")
    worst = min(failed, key=lambda contrast: contrast.probability)
    sides = measured.words
    if sides[0] == sides[1]:
        sides = worst.mine, worst.reference
    return Row(*names, "differs", worst.what, *sides)


def _ties(
    found: Sequence[Pair], mine: Sequence[Entry], reference: Sequence[Entry]
) -> Iterator[Row]:
    """Yield what is one tensor in one model and two in the other."""
    sides = (
        ([pair.mine for pair in found], [pair.reference for pair in found], mine, reference),
        ([pair.reference for pair in found], [pair.mine for pair in found], reference, mine),
    )
    for number, (here, there, own, others) in enumerate(sides):
        partners: dict[int, set[int]] = {}
        for one, many in zip(here, there, strict=True):
            if len(one) == len(many) == 1:
                partners.setdefault(one[0], set()).add(many[0])
        for at, several in partners.items():
            if len(several) > 1:
                tied = ", ".join(sorted(others[other].name for other in several))
                names = (own[at].name, tied) if number == 0 else (tied, own[at].name)
                yield Row(*names, "differs", "tied in one model only")


def _alone(
    found: Sequence[Pair], mine: Sequence[Entry], reference: Sequence[Entry]
) -> Iterator[Row]:
    """Yield what has no counterpart: a parameter is a difference, a buffer is not compared."""
    left = {at for pair in found for at in pair.mine}
    right = {at for pair in found for at in pair.reference}
    yield from (_single(mine[at], mine=True) for at in range(len(mine)) if at not in left)
    rest = (reference[at] for at in range(len(reference)) if at not in right)
    yield from (_single(entry, mine=False) for entry in rest)


def _single(entry: Entry, *, mine: bool) -> Row:
    names = (entry.name, "") if mine else ("", entry.name)
    verdict: Verdict = "not compared" if entry.role == "buffer" else "differs"
    where = "the first model" if mine else "the reference"
    return Row(*names, verdict, f"only in {where}, shape {entry.shape}")
