"""Plans, receipts, optimizer groups and symmetric starts as tables that fit a terminal.

Computes nothing.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from torch_initpolicy.planning.describe import HEADINGS, figure, folded, header, rows
from torch_initpolicy.planning.plan import Plan, Receipt
from torch_initpolicy.steps import Step
from torch_initpolicy.symmetry.findings import Report, describe

__all__ = ["groups_json", "groups_table", "plan_table", "receipt_table", "symmetry_table"]

_STYLES = {"parameter": "bold", "std": "cyan", "from": "dim"}


def plan_table(plan: Plan, names: Collection[str] | None = None) -> RenderableType:
    """Lay out a plan: what it is about, then what happens to each parameter, and why.

    Parameters of numbered modules to which the same happens share a line. Where the terminal is
    narrow names and reasons wrap; nothing is cut off.

    Examples:
        >>> from rich.console import Console
        >>> from torch import nn
        >>> from torch_initpolicy.api import plan_policy
        >>> table = plan_table(plan_policy(nn.Linear(8, 8)))
        >>> Console(width=72).print(table)  # doctest: +NORMALIZE_WHITESPACE
        policy auto: 2 parameters, 72 elements; 0 kept
        known from: traced 2
        <BLANKLINE>
        parameter shape std    why
        weight    8x8   0.3536 meets nothing: Xavier normal, fans 8 + 8
        bias      8     0      bias: zeros
    """
    heading = header(plan.steps, plan.policy, dict(plan.unknown_operators), plan.untraced)
    shown = [step for step in plan if names is None or step.name in names]
    return Group(Text(heading), "", _step_table(shown))


def groups_table(groups: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Lay out optimizer groups: their numbers, their parameters and the reason.

    Examples:
        >>> from rich.console import Console
        >>> from torch import nn
        >>> from torch_initpolicy.api import plan_policy
        >>> groups = plan_policy(nn.Linear(8, 8)).param_groups(lr=0.1, weight_decay=0.01)
        >>> Console(width=60).print(groups_table(groups))  # doctest: +NORMALIZE_WHITESPACE
        lr   weight decay  parameters  why
        0.1  0.01          weight      weight: decayed
        0.1  0             bias        bias: not decayed
    """
    settings = [_settings(group) for group in groups]
    names = list(dict.fromkeys(name for held in settings for name in held))
    table = Table(box=None, pad_edge=False, header_style="underline")
    for name in (*names, "parameters", "why"):
        table.add_column(name, overflow="fold", no_wrap=name in names)
    for held, group in zip(settings, groups, strict=True):
        listed = (name for name, _ in folded((name, ()) for name in group["names"]))
        cells = (*(held.get(name, "") for name in names), "\n".join(listed), group["reason"])
        table.add_row(*map(Text, cells))
    return table


def _settings(group: Mapping[str, Any]) -> dict[str, str]:
    """Write the numbers of a group, in order."""
    shown = {key: value for key, value in group.items() if key not in _APART}
    return {
        key.replace("_", " "): value if isinstance(value, str) else figure(value, 4)
        for key, value in shown.items()
    }


_APART = ("params", "names", "packed", "reason")


def groups_json(groups: Sequence[Mapping[str, Any]]) -> str:
    """Write optimizer groups as JSON, without their tensors.

    Examples:
        >>> print(groups_json([]))
        {
          "format": 1,
          "groups": []
        }
    """
    kept = [{key: value for key, value in g.items() if key != "params"} for g in groups]
    return json.dumps({"format": 1, "groups": kept}, indent=2)


def _step_table(steps: Sequence[Step]) -> Table:
    cells = rows(steps)
    # Where all facts come from one source, the heading says which.
    sources = {row[HEADINGS.index("from")] for row in cells}
    shown = [at for at, name in enumerate(HEADINGS) if name != "from" or len(sources) > 1]
    table = Table(box=None, pad_edge=False, header_style="underline")
    for name in (HEADINGS[at] for at in shown):
        table.add_column(name, style=_STYLES.get(name, ""), overflow="fold", no_wrap=name == "std")
    for row in cells:
        table.add_row(*(Text(row[at]) for at in shown))
    return table


def receipt_table(receipt: Receipt, names: Collection[str] | None = None) -> RenderableType:
    """Lay out a receipt: the plan that was carried out, then with which seed and by what."""
    return Group(plan_table(receipt.plan, names), "", Text(str(receipt)))


_COLOURS = {"tied": "bold red", "dead": "bold red", "diverged": "bold red", "suspect": "yellow"}


def symmetry_table(report: Report) -> RenderableType:
    """Lay out what a search for symmetric starts has found, the gravest first.

    Examples:
        >>> from rich.console import Console
        >>> from torch import nn
        >>> from torch_initpolicy.symmetry.find import find_symmetry
        >>> model = nn.Linear(4, 2)
        >>> _ = nn.init.zeros_(model.weight)
        >>> table = symmetry_table(find_symmetry(model))
        >>> Console(width=100).print(table)  # doctest: +NORMALIZE_WHITESPACE
        1 harmless (probed: 1 step on random inputs in float64)
        <BLANKLINE>
        verdict  name   units       why
        harmless weight outputs 0-1 its units get different gradients, and are apart after step 1
    """
    table = Table(box=None, pad_edge=False, header_style="underline")
    for heading in ("verdict", "name", "units", "why"):
        table.add_column(heading, overflow="fold")
    for finding in report.findings:
        units = describe(finding.units, finding.along)
        verdict = Text(finding.verdict, style=_COLOURS.get(finding.verdict, ""))
        table.add_row(verdict, Text(finding.name, style="bold"), Text(units), Text(finding.reason))
    remedies = dict.fromkeys(f"-> {f.remedy}" for f in report.findings if f.remedy)
    shown = ("", table) if report.findings else ()
    return Group(Text(report.headline), *shown, *map(Text, ("", *remedies) if remedies else ()))
