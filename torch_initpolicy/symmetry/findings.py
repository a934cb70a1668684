"""What a search for symmetry reports: findings, one for each parameter or module."""

import dataclasses
import json
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from torch_initpolicy.notebook import framed

SymmetryVerdict = Literal["tied", "dead", "diverged", "suspect", "harmless"]
"""What becomes of a symmetric start.

`tied`: units hold the same values and get the same gradients, for ever. `dead`: no gradient ever
arrives, though from another start it would. `diverged`: replicas of one parameter differ between
processes. `suspect`: symmetric at the start, but the model could not be run to see what becomes of
it. `harmless`: symmetric at the start, and training breaks it by itself."""

VERDICTS: tuple[SymmetryVerdict, ...] = ("tied", "dead", "diverged", "suspect", "harmless")

GroupedUnits = tuple[tuple[int, ...], ...] | tuple[tuple[str, ...], ...]
"""Groups of units: numbers along an axis, or names of modules."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One parameter or module with a symmetric start, and what becomes of it.

    Attributes:
        name: Canonical name of the parameter, or of the first of the modules.
        units: The groups of units that are meant: tied with one another, dead together, or equal
            at the start. Units are counted from 0 along the axis; modules go by name.
        verdict: What becomes of them.
        reason: Why, in words.
        along: What the units are: `"outputs"`, `"inputs"`, `"copies"`, `"entries"`, `"axis 1"`
            or `"modules"`.
        step: The step of the probe after which nothing changed any more; None where none was run.
        remedy: What to write instead; empty where nothing is wrong.
    """

    name: str
    units: GroupedUnits
    verdict: SymmetryVerdict
    reason: str
    along: str = "entries"
    step: int | None = None
    remedy: str = ""

    @property
    def count(self) -> int:
        """Number of units in all groups."""
        return sum(map(len, self.units))


@dataclass(frozen=True, slots=True)
class Report:
    """All findings about a model, the gravest first.

    Attributes:
        findings: The findings.
        method: `"probed"` where the model was run on copies of its parameters, `"scanned"` where
            its weights were only looked at, `"watched"` where its own training was.
        note: How it went: what was run, or why nothing could be.

    Examples:
        >>> report = Report((Finding("fc1.weight", ((0, 1, 2),), "tied", "equal for ever"),))
        >>> report.ok
        False
        >>> print(report)
        1 tied (probed)
        tied  fc1.weight  entries 0-2
              equal for ever
    """

    findings: tuple[Finding, ...]
    method: Literal["probed", "scanned", "watched"] = "probed"
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing is tied, dead or diverged."""
        return not self.of("tied", "dead", "diverged")

    def of(self, *verdicts: SymmetryVerdict) -> tuple[Finding, ...]:
        """Return the findings with one of the given verdicts."""
        return tuple(finding for finding in self.findings if finding.verdict in verdicts)

    def without(self, *verdicts: SymmetryVerdict) -> "Report":
        """Return the report without the findings of some verdicts."""
        kept = tuple(finding for finding in self.findings if finding.verdict not in verdicts)
        return dataclasses.replace(self, findings=kept)

    def to_json(self, *, indent: int | None = 2) -> str:
        """Write everything as JSON."""
        return json.dumps(
            {
                "format": 1,
                "ok": self.ok,
                "method": self.method,
                "note": self.note,
                "findings": [dataclasses.asdict(finding) for finding in self.findings],
            },
            indent=indent,
        )

    def __repr__(self) -> str:
        return f"<Report: {self.headline}{': print it' if self.findings else ''}>"

    def __str__(self) -> str:
        return "\n".join((self.headline, *self._lines()))

    def _repr_html_(self) -> str:
        head = ("parameter", "verdict", "units", "reason", "what to write instead")
        found = (
            (f.name, f.verdict, describe(f.units, f.along), f.reason, f.remedy)
            for f in self.findings
        )
        return framed("", self.headline, head, found)

    @property
    def headline(self) -> str:
        """Count the findings by verdict, and say how they were come by."""
        counts = [f"{len(self.of(v))} {v}" for v in VERDICTS if self.of(v)]
        note = f": {self.note}" if self.note else ""
        return f"{', '.join(counts) or 'no symmetric start found'} ({self.method}{note})"

    def _lines(self) -> Iterator[str]:
        verdict_width = max((len(f.verdict) for f in self.findings), default=0)
        name_width = max((len(f.name) for f in self.findings), default=0)
        for finding in self.findings:
            verdict, name = finding.verdict.ljust(verdict_width), finding.name.ljust(name_width)
            yield f"{verdict}  {name}  {describe(finding.units, finding.along)}"
            indent = " " * (verdict_width + 2)
            for text in filter(None, (finding.reason, finding.remedy and f"-> {finding.remedy}")):
                yield textwrap.fill(text, 98, initial_indent=indent, subsequent_indent=indent)


def sort(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Put the gravest first; within a verdict the order stays."""
    return tuple(sorted(findings, key=lambda finding: VERDICTS.index(finding.verdict)))


def describe(units: GroupedUnits, along: str, *, most: int = 4) -> str:
    """Write groups of units for people."""
    shown = [_ranges(group) for group in units[:most]]
    if len(units) > most:
        shown.append(f"... {len(units) - most} more groups")
    return f"{along} {' | '.join(shown)}"


def _ranges(group: Sequence[int] | Sequence[str], most: int = 6) -> str:
    """Fold neighbours: `0-2, 5`."""
    runs: list[list[int | str]] = []
    for unit in group:
        last = runs[-1][-1] if runs else None
        if isinstance(unit, int) and isinstance(last, int) and unit == last + 1:
            runs[-1].append(unit)
        else:
            runs.append([unit])
    texts = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    rest = [f"... {len(texts) - most} more"] if len(texts) > most else []
    return ", ".join(texts[:most] + rest)
