"""The audit of a model: what its signal does, what starts alike, and what repairs it.

Composes the checks with policies, which are tried on copies of the model: what is said to repair it
has been measured.
"""

import copy
import dataclasses
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from torch_initpolicy.api import apply_policy, plan_policy
from torch_initpolicy.calibrate.lsuv import lsuv_
from torch_initpolicy.errors import InitPolicyError, InitPolicyWarning, counted
from torch_initpolicy.planning.plan import Plan, Receipt
from torch_initpolicy.report.html import Page
from torch_initpolicy.signal.repairs import Repair, judged, ranked, refused
from torch_initpolicy.signal.observe import Training
from torch_initpolicy.signal.run import audit_signal, follow
from torch_initpolicy.signal.signal import Signal, filled
from torch_initpolicy.signal.verdicts import Kind, Verdict
from torch_initpolicy.symmetry.find import find_symmetry
from torch_initpolicy.symmetry.findings import Finding, Report
from torch_initpolicy.symmetry.replica import Loss
from torch_initpolicy.trace.trees import Call

NOW = "as it is"

DRAWN = 3
"""How many repairs have their profile drawn beside the model's own."""

BUDGET = 120.0
"""Seconds after which nothing further is tried."""


@dataclass(frozen=True, slots=True)
class Audit:
    """What was found out about a model, and what repairs it.

    Printing it writes all of it, `write` a page. The signals of what was tried are in `repairs`.

    Attributes:
        title: What was audited.
        signal: The signal of the model as it is.
        repairs: What was tried on copies of the model with the same inputs: what repairs it first,
            the simplest first among equals. Empty where there is nothing to repair.
        untried: What would have been tried, had it not taken too long: what to write for each.
        symmetry: Units that start alike.
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
        """Whether nothing goes wrong that training does not cope with."""
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

    def __str__(self) -> str:
        repairs = [filled(str(repair), "  ") for repair in self.repairs]
        tried = [filled(self.cost + ":"), *repairs, ""] if repairs else []
        findings = [verdict.finding for verdict in self.signal.verdicts]
        said = [*map(filled, filter(None, (*findings, self.signal.note)))]
        said += [""] if said else []
        return "\n".join((self.signal.table, "", *said, *tried, *map(filled, _sentences(self))))

    def to_json(self) -> str:
        """Write the signal as `Signal.to_json` does, and beside it what repairs it."""
        best = self.recommended
        data = {
            **self.signal.as_data(),
            "ok": self.ok,
            "headline": self.headline,
            "recommended": None if best is None else best.call,
            "repairs": [_repair_data(repair) for repair in self.repairs],
            "untried": list(self.untried),
            "symmetry": [dataclasses.asdict(finding) for finding in self.symmetry.findings],
        }
        return json.dumps(data, indent=1, allow_nan=False)

    @property
    def page(self) -> Page:
        """The audit as a page; the best repairs' profiles are drawn over the model's own."""
        drawn = {r.name: r.signal for r in self.repairs if r.signal is not None}
        best = dict(list(drawn.items())[:DRAWN])
        return Page(
            title=self.title,
            headline=self.headline,
            signals={NOW: self.signal, **best},
            repairs=self.repairs,
            cost=self.cost,
            plan=self.plan,
            findings=self.symmetry.findings,
            receipt=None if self.receipt is None else self.receipt.to_json(),
        )

    def write(self, path: str | Path) -> None:
        """Write the audit to a file, as one page of HTML that needs no network."""
        self.page.write(path)


def _repair_data(repair: Repair) -> dict[str, Any]:
    signal = repair.signal
    return {
        "name": repair.name,
        "call": repair.call,
        "outcome": repair.outcome,
        "reason": repair.reason,
        "seconds": repair.seconds,
        "verdicts": [] if signal is None else [dataclasses.asdict(v) for v in signal.verdicts],
    }


def _sentences(audit: Audit) -> Iterator[str]:
    said = audit.signal.verdicts
    grave = [verdict for verdict in said if not verdict.mild]
    yield _told(grave or said, audit.signal.all_well) + (
        ", which training copes with." if said and not grave else "."
    )
    if alike := len(_for_ever(audit.symmetry)):
        what = "parameter holds" if alike == 1 else "parameters hold"
        yield f"{alike} {what} units that are tied or dead for ever: see find_symmetry(model)."
    if audit.recommended is not None and (said or alike):
        yield f"{audit.recommended.call} repairs it."
    elif audit.repairs and (said or alike):
        yield _UNTRIED if audit.untried else _NOTHING


_NOTHING = (
    "Nothing that was tried repairs it: give the model normalisation or residual branches, another "
    "activation, or less depth."
)
_UNTRIED = (
    "What was tried does not repair it; a larger budget, or smaller inputs, lets more be tried."
)


def _for_ever(report: Report) -> tuple[Finding, ...]:
    return report.of("tied", "dead", "diverged")


def _told(verdicts: Sequence[Verdict], praise: str) -> str:
    """Tell all verdicts in one sentence, the signal's own first; where there is none, praise."""
    clauses: dict[str, list[str]] = {}
    for verdict in verdicts:
        *whose, what = verdict.kind.split()
        told = clauses.setdefault(" ".join(whose) or "signal", [])
        told.append(f"{what} at {verdict.where!r}")
    parts = [f"the {whose} {', '.join(whats)}" for whose, whats in clauses.items()]
    sentence = ", ".join(parts) or praise
    return f"T{sentence[1:]}"


def audit_model(
    model: nn.Module,
    inputs: Any = None,
    *,
    suggest: Sequence[str] | None = None,
    loss_fn: Loss | None = None,
    title: str | None = None,
    budget: float = BUDGET,
    receipt: Receipt | None = None,
    tell: Callable[[str], None] | None = None,
) -> Audit:
    """Audit a model, and find out by trying what repairs it.

    What the verdicts ask for is tried on copies of the model, one at a time and each with one
    forward and one backward pass on the same inputs; where no policy repairs it, calibrations on
    these inputs are tried too. The model is left untouched.

    Args:
        model: The model, its weights initialised.
        inputs: As for `audit_signal`.
        suggest: Names of policies to try, the preferred first; None for those that the verdicts ask
            for, which are none where nothing is wrong.
        loss_fn: As for `audit_signal`, and for `find_symmetry`, which also calls it with what a
            copy of the model in float64 returns.
        title: What to call it.
        budget: Seconds after which nothing further is tried; the first one always is.
        receipt: What `apply_policy` returned for this model, to be shown on the page.
        tell: Is told what is about to be tried.

    Returns:
        The audit: `print(audit)`, `audit.recommended`, `audit.write("report.html")`.

    Raises:
        TraceError: As for `audit_signal`.

    Examples:
        >>> import torch
        >>> layers = [layer for _ in range(8) for layer in (nn.Linear(128, 128), nn.ReLU())]
        >>> model = nn.Sequential(*layers, nn.Linear(128, 8))
        >>> receipt = apply_policy(model, "normal", seed=0)  # 0.02, whatever the width
        >>> batch = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
        >>> audit = audit_model(model, batch)
        >>> audit.signal.verdicts[0].kind, audit.signal.verdicts[0].where
        ('vanishes', '2.weight')
        >>> audit.recommended.call, audit.recommended.outcome
        ('apply_policy(model)', 'repairs')
    """
    call, signal = follow(model, inputs, Training(loss_fn))
    symmetry = find_symmetry(model, call, loss_fn)
    workshop = _Workshop(model, call, signal, symmetry, loss_fn, budget, tell)
    workshop.try_policies(suggest)
    if workshop.tried and not any(repair.works for repair in workshop.tried):
        workshop.try_calibrations()
    repairs = ranked(workshop.tried)
    return Audit(
        title=title or f"Audit of {type(model).__name__}",
        signal=signal,
        repairs=repairs,
        untried=tuple(workshop.untried),
        symmetry=symmetry,
        plan=workshop.plan_of(repairs),
        receipt=receipt,
    )


_ALL: frozenset[Kind] = frozenset({
    "overflows", "vanishes", "explodes", "wanders", "dies", "collapses",
    "gradient vanishes", "gradient explodes",
})  # fmt: skip

_GROWS: frozenset[Kind] = frozenset({"overflows", "explodes", "gradient explodes"})

_MENDS: dict[str, frozenset[Kind]] = {
    "auto": _ALL,
    "depth_scaled": _GROWS,
    "zero_residual": _GROWS,
    "signal": _ALL,
    "critical": frozenset({"collapses", "gradient vanishes", "gradient explodes"}),
}
"""What to try against what; the simplest first."""


@dataclass(slots=True)
class _Workshop:
    """Where copies of a model are tried, one at a time."""

    model: nn.Module
    inputs: Call
    before: Signal
    symmetry: Report
    loss_fn: Loss | None
    budget: float
    tell: Callable[[str], None] | None
    begun: float = field(default_factory=time.perf_counter)
    tried: list[Repair] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)

    def try_policies(self, names: Sequence[str] | None) -> None:
        """Try policies by name; those that verdicts ask for only where they differ."""
        for name in self._asked() if names is None else names:
            self._try(name, _call(name), self._applying(name, known_too=names is not None))

    def _asked(self) -> list[str]:
        """Name the policies that the verdicts ask for, the simplest first."""
        kinds = {verdict.kind for verdict in self.before.verdicts}
        return [name for name, mends in _MENDS.items() if kinds & mends] or self._anew()

    def _anew(self) -> list[str]:
        """Name the policies that draw units which start alike apart, where there are such."""
        return [] if self.symmetry.ok else ["auto", "signal"]

    def try_calibrations(self) -> None:
        """Try what scales the weights on the inputs themselves."""
        self._try("auto, calibrated", "apply_policy(model, calibrate=batch)", self._calibrate)
        self._try("lsuv", "lsuv_(model, batch)", self._scale(per_channel=False))
        self._try(
            "lsuv, centred", "lsuv_(model, batch, per_channel=True)", self._scale(per_channel=True)
        )

    def plan_of(self, repairs: Sequence[Repair]) -> Plan:
        """Return the plan of the best of them that has one; else that of `auto`."""
        known = [self.plans[repair.name] for repair in repairs if repair.name in self.plans]
        return known[0] if known else plan_policy(self.model, example_inputs=self.inputs)

    def _try(self, name: str, call: str, start: "_Start") -> None:
        begun = time.perf_counter()
        if self.tried and begun > self.begun + self.budget:
            self.untried.append(call)
            return
        if self.tell is not None:
            self.tell(call)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InitPolicyWarning)
                other = start(name)
                if other is None:
                    return
                after = audit_signal(other, self.inputs, loss_fn=self.loss_fn)
        except InitPolicyError as error:
            repair = refused(name, call, " ".join(str(error).split()))
        else:
            sick = bool(self.before.verdicts) or not self.symmetry.ok
            alike = self._alike(name, other)
            repair = judged(name, call, self.before, after, alike=alike, sick=sick)
        self.tried.append(dataclasses.replace(repair, seconds=time.perf_counter() - begun))

    def _alike(self, name: str, other: nn.Module) -> list[str]:
        """Name what holds units that are alike for ever: by probing where the model itself does."""
        if not self.symmetry.ok:
            return [found.name for found in _for_ever(self._looked(other))]
        return [step.name for step in self.plans[name].symmetric] if name in self.plans else []

    def _looked(self, other: nn.Module) -> Report:
        return find_symmetry(other, self.inputs, self.loss_fn)

    def _applying(self, policy: str, *, known_too: bool) -> "_Start":
        def start(name: str) -> nn.Module | None:
            plan = plan_policy(self.model, policy, example_inputs=self.inputs)
            if not known_too and plan.hash in {known.hash for known in self.plans.values()}:
                return None
            self.plans[name] = plan
            return self._copy(lambda other: plan.apply(other, seed=0))

        return start

    def _calibrate(self, name: str) -> nn.Module:
        def start(other: nn.Module) -> None:
            receipt = apply_policy(other, seed=0, calibrate=self.inputs)
            self.plans[name] = dataclasses.replace(receipt.plan, model=self.model)

        return self._copy(start)

    def _scale(self, *, per_channel: bool) -> "_Start":
        def start(other: nn.Module) -> object:
            return lsuv_(other, self.inputs, per_channel=per_channel)

        return lambda _: self._copy(start)

    def _copy(self, start: Callable[[nn.Module], object]) -> nn.Module:
        other = copy.deepcopy(self.model)
        start(other)
        return other


_Start = Callable[[str], nn.Module | None]
"""Makes a copy of the model, started anew under a name; None where another has been the same."""


def _call(policy: str) -> str:
    return "apply_policy(model)" if policy == "auto" else f'apply_policy(model, "{policy}")'
