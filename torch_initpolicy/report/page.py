"""A report as one HTML file: it needs no network, no script to be read, and no mouse.

Scripts add sorting and filtering; colours follow the reader's choice of light or dark.
"""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch_initpolicy.errors import MissingExtraError
from torch_initpolicy.files import write_text
from torch_initpolicy.notebook import asset, sortable
from torch_initpolicy.planning.plan import Plan
from torch_initpolicy.report.repairs import Outcome, Repair
from torch_initpolicy.signal.plots import as_svg, plot_signals
from torch_initpolicy.signal.signal import Signal, listed
from torch_initpolicy.signal.verdicts import Verdict
from torch_initpolicy.symmetry.findings import Finding


@dataclass(frozen=True, slots=True)
class Page:
    """What a report shows.

    Attributes:
        signals: Signals of the model, by what they are called; the first is that of the model as
            it is, the others those of suggested policies.
        findings: Symmetric starts; None where they were not looked for.
        receipt: A receipt, as JSON.
        picture: The picture of the audit, an `<svg>` element, or nothing.
        made: With which versions, inputs and seed it was made.
    """

    title: str
    signals: Mapping[str, Signal] = field(default_factory=dict)
    plan: Plan | None = None
    findings: Sequence[Finding] | None = None
    receipt: str | None = None
    headline: str = ""
    repairs: Sequence[Repair] = ()
    cost: str = ""
    picture: str = ""
    made: str = ""

    def __str__(self) -> str:
        sections = "".join(_sections(self))
        return _SHELL.format(
            title=html.escape(self.title),
            style=asset("report/report.css") + asset("table.css"),
            script=asset("table.js") + asset("report/report.js"),
            sections=sections,
        )

    def write(self, path: str | Path) -> None:
        """Write the page to a file."""
        write_text(path, str(self))


_SHELL = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header><h1>{title}</h1></header>
<main id="main">
{sections}</main>
<script>
{script}</script>
</body>
</html>
"""


def _sections(page: Page) -> Iterator[str]:
    if page.headline:
        yield f'<p class="headline">{_with_code(page.headline)}</p>\n'
    if page.made:
        yield f'<p class="note">{html.escape(page.made)}</p>\n'
    if page.picture:
        yield _framed("Picture", page.picture)
    if page.signals:
        first = next(iter(page.signals.values()))
        yield _titled("What the signal does", _verdicts(first, advise=not page.repairs))
        if page.repairs:
            what = "What repairs it" if _repaired(page) else "What was tried to repair it"
            yield _titled(what, _repairs(page.repairs, page.cost))
        yield _titled("Signal over the depth", _profiles(page.signals))
        yield _titled("Signal, operator by operator", _points(first))
    if page.plan is not None:
        what = "Plan of the recommended start" if _repaired(page) else "Plan"
        yield _titled(f"{what}: {page.plan.policy}", _plan_section(page.plan))
    if page.findings is not None:
        yield _titled("Symmetric starts", _findings(page.findings))
    if page.receipt is not None:
        text = html.escape(page.receipt)
        yield _titled("Receipt", f"<details><summary>JSON</summary><pre>{text}</pre></details>")


def _repaired(page: Page) -> bool:
    return any(repair.works for repair in page.repairs)


def _titled(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>\n{body}</section>\n"


def _verdicts(signal: Signal, *, advise: bool) -> str:
    said = "".join(_verdict(verdict, advise=advise) for verdict in signal.verdicts)
    note = f'<p class="note">Note: {html.escape(signal.note)}.</p>\n' if signal.note else ""
    back = "" if signal.one_way or not signal.points else ", forward and back"
    kind = "good" if signal.points else "note"
    well = f'<p class="{kind}">T{html.escape(signal.all_well[1:])}{back}.</p>\n'
    return (said or well) + note


def _verdict(verdict: Verdict, *, advise: bool) -> str:
    kind = "mild" if verdict.mild else "bad"
    advice = f"<p>{_with_code(verdict.advice)}.</p>" if advise else ""
    return (
        f'<div class="{kind}"><p><strong>{html.escape(verdict.kind)}</strong> at '
        f"<code>{html.escape(verdict.where)}</code>: {_with_code(verdict.reason)}.</p>"
        f"{advice}</div>\n"
    )


_STYLES_OF_OUTCOMES: Mapping[Outcome, str] = {
    "repairs": "good", "nearly": "good", "fails": "bad", "refused": "bad",
}  # fmt: skip


def _repairs(repairs: Sequence[Repair], cost: str) -> str:
    """List what was tried, each with what it did to the signal."""
    items = "".join(map(_repair, repairs))
    return f'<ol class="repairs">\n{items}</ol>\n<p class="note">{html.escape(cost)}.</p>\n'


_COPY = '<button type="button" class="copy">copy the call</button>'


def _repair(repair: Repair) -> str:
    what, _, numbers = repair.reason.partition(": ")
    more = f": {_with_code(numbers)}" if numbers else ""
    return (
        f'<li class="{_STYLES_OF_OUTCOMES[repair.outcome]}"><code>{_escaped(repair.call)}</code> '
        f"<strong>{html.escape(what)}</strong>{more}. {_COPY}</li>\n"
    )


_SET_AS_CODE = re.compile(r"(\w+\([^()]*\)|(?<!\w)'[^' ]+')")
"""Calls, and names in quotes."""


def _with_code(text: str) -> str:
    """Escape a text, its calls and quoted names set as code.

    Examples:
        >>> _with_code("dies at '3:relu'; lsuv_(model, batch)")
        'dies at <code>3:relu</code>; <code>lsuv_(model, batch)</code>'
    """
    plain, codes = _SET_AS_CODE.split(text)[::2], _SET_AS_CODE.findall(text)
    shown = [f"<code>{_escaped(code.strip(chr(39)))}</code>" for code in codes]
    return "".join(map(str.__add__, map(_escaped, plain), [*shown, ""]))


def _escaped(text: str) -> str:
    return html.escape(text, quote=False)


def _profiles(signals: Mapping[str, Signal]) -> str:
    """Draw second moments and gradients over the depth; nothing where matplotlib is missing."""
    first = next(iter(signals.values()))
    marks = _mark(first, back=False), _mark(first, back=True)
    try:
        figure = plot_signals({name: signal.points for name, signal in signals.items()}, marks)
    except MissingExtraError as error:
        return f'<p class="note">{html.escape(str(error))}</p>\n'
    drawn = as_svg(figure, f"Second moments and gradients, for {', '.join(signals)}")
    return _framed("Profiles", drawn)


def _framed(label: str, picture: str) -> str:
    """Put a picture into a frame that scrolls where the page is narrow."""
    return f'<div class="plot" tabindex="0" role="region" aria-label="{label}">{picture}</div>\n'


def _mark(signal: Signal, *, back: bool) -> str:
    for verdict in signal.verdicts:
        if not verdict.mild and verdict.kind.startswith("gradient") is back:
            return _nearest_weight(signal, verdict.where) or ""
    return ""


def _nearest_weight(signal: Signal, name: str) -> str | None:
    """Return the weight at, or before, a place."""
    seen: str | None = None
    for point in signal.points:
        seen = point.site or seen
        if point.name == name:
            return seen
    return None


def _points(signal: Signal) -> str:
    head = ("operator", "weight", "mean", "std", "zeros", "dead", "likeness", "rank", "gradient",
            "closed by")  # fmt: skip
    rows = (
        (
            f"{point.module}:{point.op}".lstrip(":"), point.site or "", point.mean, point.std,
            point.zeros, point.dead, point.likeness, point.rank, point.gradient,
            listed(point.closed_by),
        )
        for point in signal.points
    )  # fmt: skip
    return sortable("signal", head, rows)


def _plan_section(plan: Plan) -> str:
    head = ("parameter", "shape", "role", "operator", "meets", "fed by", "initializer", "std",
            "reason", "evidence")  # fmt: skip
    rows = (
        (
            step.name, " x ".join(map(str, step.shape)), step.role, step.op or "",
            step.meets or "", step.fed_by or "", str(step.initializer), step.std, step.reason,
            step.evidence,
        )
        for step in plan
    )  # fmt: skip
    return sortable("plan", head, rows)


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return '<p class="good">No units start alike.</p>\n'
    head = ("parameter", "verdict", "groups of units", "reason", "what to write instead")
    rows = ((f.name, f.verdict, len(f.units), f.reason, f.remedy) for f in findings)
    return sortable("findings", head, rows)
