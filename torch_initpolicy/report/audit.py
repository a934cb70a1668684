"""The audit of a model: what its signal does, which units start equal, and what repairs it.

Composes the checks with starts that are tried on copies of the model: what is said to repair it has
been measured.
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from torch_initpolicy.api import plan_policy
from torch_initpolicy.errors import counted
from torch_initpolicy.notebook import framed
from torch_initpolicy.planning.plan import Plan, Receipt
from torch_initpolicy.planning.versions import Versions
from torch_initpolicy.report.page import Page
from torch_initpolicy.report.repairs import Repair, ranked
from torch_initpolicy.report.trial import Trials, for_ever
from torch_initpolicy.signal.plots import Figure, plot_picture
from torch_initpolicy.signal.points import Point
from torch_initpolicy.signal.run import follow_signal
from torch_initpolicy.signal.signal import HEAD, Signal, picture_of, wrapped
from torch_initpolicy.signal.training import Training
from torch_initpolicy.signal.verdicts import MILD
from torch_initpolicy.symmetry.find import find_symmetry
from torch_initpolicy.symmetry.findings import Report
from torch_initpolicy.symmetry.replica import Loss

NOW, REPAIRED = "as it is", "after the repair"

OVERLAID, MOST = 3, 2
"""How many repairs are drawn over the model's own course, and how many verdicts a headline has."""

BUDGET = 120.0
"""Seconds after which nothing further is tried."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found out about a model, and what repairs it.

    Printing it writes all of it, `write` a page, `plot` a picture. The signals of what was tried
    are in `repairs`.

    Attributes:
        title: What was audited.
        signal: The signal of the model as it is.
        repairs: What was tried on copies of the model with the same inputs: what repairs it first,
            the fewest parameters and the simplest first among equals. Empty where there is nothing
            to repair.
        untried: What would have been tried, had it not taken too long: what to write for each.
        symmetry: Units that start equal.
        plan: What the first of the repairs would write, or `auto` where there is none.
        receipt: What the model's weights came from, where that is known.

    Examples:
        >>> audit = audit_model(nn.Linear(64, 8))
        >>> audit.ok, audit.headline
        (True, 'The signal keeps its size.')
    """

    title: str
    signal: Signal
    repairs: tuple[Repair, ...] = ()
    untried: tuple[str, ...] = ()
    symmetry: Report = field(default_factory=lambda: Report(()))
    plan: Plan | None = None
    receipt: Receipt | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing goes wrong, but for warnings."""
        return self.signal.ok and self.symmetry.ok

    @property
    def recommended(self) -> Repair | None:
        """The first of what was tried, if it repairs the signal; else None."""
        return next((repair for repair in self.repairs[:1] if repair.works), None)

    @property
    def headline(self) -> str:
        """The outcome in one or two sentences."""
        return " ".join(_sentences(self))

    @property
    def cost(self) -> str:
        """What was tried, on what, for how long, and what was not; empty where nothing was."""
        if not self.repairs:
            return ""
        took = sum(repair.seconds for repair in self.repairs)
        left = f"; not tried within the budget: {', '.join(self.untried)}" if self.untried else ""
        return (
            f"{counted(len(self.repairs), 'start')} tried on a copy of the model, "
            f"{counted(self.signal.inputs, 'input')} forward and back, {took:.1f} s{left}"
        )

    def __repr__(self) -> str:
        return f"<Audit: {self.headline} Print it for more>"

    def __str__(self) -> str:
        return f"{self.signal.table}\n\n{self._words}"

    @property
    def _words(self) -> str:
        findings = [verdict.finding for verdict in self.signal.verdicts]
        tried = [wrapped(f"{self.cost}:"), *(wrapped(str(repair), "  ") for repair in self.repairs)]
        parts = (
            [*map(wrapped, filter(None, (*findings, self.signal.note)))],
            tried if self.repairs else [],
            [*map(wrapped, _sentences(self))],
        )
        return "\n\n".join("\n".join(part) for part in parts if part)

    def to_json(self) -> str:
        """Write the signal as `Signal.to_json` does, and beside it what repairs it."""
        best = self.recommended
        data = {
            **self.signal.as_data(),
            "format": 1,
            "ok": self.ok,
            "headline": self.headline,
            "recommended": None if best is None else best.call,
            "repairs": [repair.as_data() for repair in self.repairs],
            "untried": list(self.untried),
            "symmetry": [dataclasses.asdict(finding) for finding in self.symmetry.findings],
        }
        return json.dumps(data, indent=1, allow_nan=False)

    @property
    def page(self) -> Page:
        """The audit as a page; the courses of the best repairs are drawn over the model's own."""
        drawn = [(r.name, r.signal) for r in self.repairs if r.signal is not None]
        return Page(
            title=self.title,
            headline=self.headline,
            picture=picture_of(self.headline, self._courses, self._tied),
            signals={NOW: self.signal, **dict(drawn[:OVERLAID])},
            repairs=self.repairs,
            cost=self.cost,
            plan=self.plan,
            findings=self.symmetry.findings,
            receipt=None if self.receipt is None else self.receipt.to_json(),
            made=self._made,
        )

    @property
    def _made(self) -> str:
        """With which versions, inputs and seed."""
        here, given = Versions.here(), self.receipt
        seed = "" if given is None else f"; policy {given.plan.policy!r}, seed {given.seed}"
        inputs = f"{self.signal.called_with}{seed}"
        return f"torch-initpolicy {here.torch_initpolicy}, {here.kernels}; {inputs}"

    def plot(self) -> Figure:
        """Draw the picture of the audit: the model as it is, and beside it after the repair.

        `audit.plot().savefig("audit.png")` writes it. Columns are weights and activations in order
        of execution, each the histogram of its absolute values; above them gradients, below them
        the shares of dead and of tied units. The title says what goes wrong.

        Raises:
            MissingExtraError: Matplotlib is not installed.
        """
        return plot_picture(self.headline, self._courses, self._tied)

    def _repr_html_(self) -> str:
        picture = picture_of(self.headline, self._courses, self._tied)
        return framed(picture, self._words, HEAD, self.signal.rows)

    @property
    def _courses(self) -> dict[str, Sequence[Point]]:
        """The points of the model as it is, and after the repair where there is one."""
        best = self.recommended
        after = {} if best is None or best.signal is None else {REPAIRED: best.signal.points}
        return {NOW: self.signal.points, **after}

    @property
    def _tied(self) -> frozenset[str]:
        return frozenset(finding.name for finding in for_ever(self.symmetry))

    def write(self, path: str | Path) -> None:
        """Write the audit to a file, as one page of HTML that needs no network."""
        self.page.write(path)


def _sentences(audit: Audit) -> Iterator[str]:
    """Say what goes wrong, then what repairs it."""
    said = audit.signal.verdicts
    grave = [verdict for verdict in said if not verdict.mild]
    same = len(for_ever(audit.symmetry))
    if said or not same:
        first = [verdict.headline for verdict in grave or said]
        what = ", ".join(first[:MOST]) or audit.signal.all_well
        what += f" and {len(first) - MOST} more" if len(first) > MOST else ""
        yield f"{what[:1].upper()}{what[1:]}{f', {MILD}' if said and not grave else ''}."
    if same:
        what = "parameter holds" if same == 1 else "parameters hold"
        yield f"{same} {what} units that are tied or dead for ever: see find_symmetry(model)."
    structural = [verdict.advice for verdict in said if verdict.structural]
    yield from (f"{advice[:1].upper()}{advice[1:]}." for advice in structural)
    if audit.recommended is not None and (said or same):
        yield f"{audit.recommended.call} repairs it."
    elif audit.repairs and (said or same) and not structural:
        more = "; a larger budget, or smaller inputs, lets more be tried" if audit.untried else ""
        yield f"No start that was tried helps ({len(audit.repairs)} were){more}."


def audit_model(
    model: nn.Module,
    inputs: Any = None,
    *,
    suggest: Sequence[str] | None = None,
    loss_fn: Loss | None = None,
    optimizer: str | None = None,
    lr: float | None = None,
    title: str | None = None,
    budget: float = BUDGET,
    receipt: Receipt | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Audit:
    """Audit a model, and find out by trying what repairs it.

    What the verdicts ask for is tried on copies of the model, one at a time and each with one
    forward and one backward pass on the same inputs: first on the parameters alone that are at
    fault; where no policy repairs it, calibrations on these inputs are tried too. The model is left
    untouched.

    Args:
        model: The model, its weights initialised.
        inputs: What its forward takes: a tensor, a tuple of arguments, or a mapping of keyword
            arguments; a batch of some ten different inputs says most. None draws random ones.
        suggest: Names of policies to try, the preferred first; None for those that the verdicts ask
            for, which are none where nothing is wrong.
        loss_fn: Makes a real scalar of what the model returns, also of a copy in float64.
        optimizer: Name of the optimizer that will train the model; with `lr` its first step is
            compared with the values of each parameter.
        lr: Its learning rate.
        title: What to call it.
        budget: Seconds within which it ends, as far as what was tried before can tell how long the
            next one takes; the first one always is tried.
        receipt: What `apply_policy` returned for this model, to be shown on the page.
        tell: Called with what is about to be tried.

    Returns:
        The audit: `print(audit)`, `audit.recommended`, `audit.write("report.html")`.

    Raises:
        UnknownNameError: There is no rule for the first step of `optimizer`.
        TraceError: The forward pass raises with these inputs, or none could be found; the loss is
            no scalar; or parameters have no values.

    Examples:
        >>> import torch
        >>> from torch_initpolicy import apply_policy
        >>> layers = [layer for _ in range(8) for layer in (nn.Linear(128, 128), nn.ReLU())]
        >>> model = nn.Sequential(*layers, nn.Linear(128, 8))
        >>> _ = apply_policy(model, "normal", seed=0)  # 0.02, whatever the width
        >>> batch = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
        >>> audit = audit_model(model, batch)
        >>> audit.signal.verdicts[0].kind, audit.signal.verdicts[0].where
        ('vanishes', '2.weight')
        >>> audit.recommended.call, audit.recommended.outcome
        ("apply_policy(model, only=['*.weight'])", 'repairs')
    """
    ends = time.perf_counter() + budget
    training = Training.of(loss_fn, optimizer, lr)
    call, signal = follow_signal(model, inputs, training)
    broken = any(verdict.kind == "not finite" for verdict in signal.verdicts)
    symmetry = Report(()) if broken else find_symmetry(model, call, loss_fn)
    trials = Trials(model, call, signal, symmetry, training, ends, tell)
    trials.run(suggest)
    repairs = ranked(trials.tried)
    known = (trials.plans[repair.call] for repair in repairs if repair.call in trials.plans)
    return Audit(
        title=title or f"Audit of {type(model).__name__}",
        signal=signal,
        repairs=repairs,
        untried=tuple(trials.untried),
        symmetry=symmetry,
        plan=next(known, None) or plan_policy(model, example_inputs=call),
        receipt=receipt,
    )
