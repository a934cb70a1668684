"""Compares how two models start: the verb `compare_inits`, and what it returns.

Knows models and plans; what is drawn is compared in `compare.statistics`, which tensors stand for
each other is decided in `compare.align`.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from torch_initpolicy.compare.align import Entry, Pair, pairs
from torch_initpolicy.compare.statistics import Contrast, contrasts, in_words
from torch_initpolicy.deferred.undrawn import pending_of
from torch_initpolicy.errors import ArgumentError, counted
from torch_initpolicy.notebook import framed
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

FALSE_DIFFERENCE = 5e-4
"""Probability that two equal starts are said to differ, all tensors of a model together."""

ComparisonVerdict = Literal["same", "differs", "not compared"]


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
    verdict: ComparisonVerdict
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
        shown = ((row.names, (row.said,)) for row in self.rows if row.verdict != "same")
        lines = (f"  {names}: {said}" for names, (said,) in folded(shown))
        return "\n".join((self._counts, *lines))

    def __repr__(self) -> str:
        return f"<Comparison: {self._counts}: print it>"

    def _repr_html_(self) -> str:
        rows = folded((row.names, (row.verdict, row.said)) for row in self.rows)
        head = ("tensor", "verdict", "reason")
        return framed("", self._counts, head, ((name, *said) for name, said in rows))

    @property
    def _counts(self) -> str:
        counts = {word: sum(row.verdict == word for row in self.rows) for word in _VERDICTS}
        return (
            f"{counted(counts['same'], 'tensor')} start the same, {counts['differs']} differ, "
            f"{counts['not compared']} not compared"
        )

    def to_json(self) -> str:
        """Write the rows as JSON, with `ok`."""
        rows = [asdict(row) for row in self.rows]
        return json.dumps({"format": 1, "ok": self.ok, "rows": rows}, indent=2)


_VERDICTS: tuple[ComparisonVerdict, ...] = ("same", "differs", "not compared")


class _Start(NamedTuple):
    """One tensor at the start: its entry for pairing, and its values, or why there are none."""

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
    limit = FALSE_DIFFERENCE / max(sum(len(one.contrasts) for one in measured), 1)
    rows = [one.row(limit) for one in measured]
    return Comparison((*rows, *_ties(found, *entries), *_alone(found, *entries)))


# Where values come from


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
    return _Start(entry, partial(_drawn, step))


def _of_site(site: Site) -> _Start:
    entry = Entry(site.names, site.role, site.shape)
    pending = pending_of(site.parameters[0])
    if pending is None:
        return _Start(entry, partial(_stored, site))
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
                entry = Entry((f"{prefix}.{name}".lstrip("."),), "buffer", tuple(buffer.shape))
                missing = "on the meta device" if buffer.is_meta else ""
                yield _Start(entry, None if missing else partial(full, buffer), missing)


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

# What comes of it


class _Measured(NamedTuple):
    """What came of testing one pair, with both distributions in words where a test is doubtful."""

    names: tuple[str, str]
    missing: str = ""
    contrasts: tuple[Contrast, ...] = ()
    words: tuple[str, str] = ("", "")

    def row(self, limit: float) -> Row:
        """Return the verdict, given the probability from which on a difference is no accident."""
        if self.missing:
            return Row(*self.names, "not compared", self.missing)
        failed = [contrast for contrast in self.contrasts if contrast.probability < limit]
        if not failed:
            return Row(*self.names, "same", "")
        worst = min(failed, key=lambda contrast: contrast.probability)
        differ = self.words[0] != self.words[1]
        sides = self.words if differ else (worst.mine, worst.reference)
        return Row(*self.names, "differs", worst.what, *sides)


def _measured(pair: Pair, mine: Sequence[_Start], reference: Sequence[_Start]) -> _Measured:
    """Test one pair; what has no values is not tested."""
    sides = [mine[at] for at in pair.mine], [reference[at] for at in pair.reference]
    own, other = (" + ".join(start.entry.name for start in side) for side in sides)
    missing = next((start.missing for side in sides for start in side if start.values is None), "")
    if missing:
        return _Measured((own, other), missing)
    first, second = _joined(sides[0]), _joined(sides[1])
    found = tuple(contrasts(first, second.mT if pair.transposed else second))
    doubtful = any(contrast.probability < FALSE_DIFFERENCE for contrast in found)
    return _Measured(
        (own, other), "", found, (in_words(first), in_words(second)) if doubtful else ("", "")
    )


def _joined(side: Sequence[_Start]) -> Tensor:
    values = [start.values() for start in side if start.values is not None]
    return values[0] if len(values) == 1 else torch.cat([v.cpu() for v in values])


def _ties(
    found: Sequence[Pair], mine: Sequence[Entry], reference: Sequence[Entry]
) -> Iterator[Row]:
    """Yield what is one tensor in one model and two in the other."""
    single = [(p.mine[0], p.reference[0]) for p in found if len(p.mine) == len(p.reference) == 1]
    for own, others in _several(single).items():
        names = ", ".join(sorted(reference[other].name for other in others))
        yield Row(mine[own].name, names, "differs", _TIED)
    for other, owns in _several([(other, own) for own, other in single]).items():
        names = ", ".join(sorted(mine[own].name for own in owns))
        yield Row(names, reference[other].name, "differs", _TIED)


_TIED = "tied in one model only"


def _several(pairs: Iterable[tuple[int, int]]) -> dict[int, set[int]]:
    """Return the partners of each first number that has several."""
    partners: dict[int, set[int]] = {}
    for one, other in pairs:
        partners.setdefault(one, set()).add(other)
    return {one: others for one, others in partners.items() if len(others) > 1}


def _alone(
    found: Sequence[Pair], mine: Sequence[Entry], reference: Sequence[Entry]
) -> Iterator[Row]:
    """Yield what has no counterpart: a parameter is a difference, a buffer is not compared."""
    left = {at for pair in found for at in pair.mine}
    right = {at for pair in found for at in pair.reference}
    for entry in (entry for at, entry in enumerate(mine) if at not in left):
        yield Row(entry.name, "", *_why_alone(entry, "the first model"))
    for entry in (entry for at, entry in enumerate(reference) if at not in right):
        yield Row("", entry.name, *_why_alone(entry, "the reference"))


def _why_alone(entry: Entry, where: str) -> tuple[ComparisonVerdict, str]:
    verdict: ComparisonVerdict = "not compared" if entry.role == "buffer" else "differs"
    return verdict, f"only in {where}, shape {entry.shape}"
