"""Tries starts on copies of a model, one at a time, and measures what each does to the signal.

The order is from little to much: the parameters that are at fault alone, a policy for all of them,
the published starts for the structure that was seen, calibration on the inputs.
"""

import copy
import dataclasses
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from torch_initpolicy.api import apply_policy, plan_policy
from torch_initpolicy.calibrate.lsuv import lsuv_
from torch_initpolicy.errors import InitPolicyError, InitPolicyWarning, UnknownNameError, counted
from torch_initpolicy.planning.plan import Plan
from torch_initpolicy.planning.selection import Keeping
from torch_initpolicy.policy.presets import policy as policy_of
from torch_initpolicy.report.repairs import Repair, judged, ranked, refused
from torch_initpolicy.signal.observe import Training
from torch_initpolicy.signal.run import follow
from torch_initpolicy.signal.signal import Signal
from torch_initpolicy.signal.verdicts import Kind
from torch_initpolicy.sites import sites
from torch_initpolicy.symmetry.find import find_symmetry
from torch_initpolicy.symmetry.findings import Finding, Report
from torch_initpolicy.trace.trees import Call

_GROWS: frozenset[Kind] = frozenset({"overflows", "explodes", "gradient explodes"})
_SHRINKS: frozenset[Kind] = frozenset({"collapses", "gradient vanishes", "gradient explodes"})
_RESIDUAL: frozenset[Kind] = _GROWS | {"tokens collapse", "gradient vanishes"}

_SILENCE: frozenset[Kind] = frozenset({"dies", "saturates", "gradient stops", "not finite"})
"""Verdicts whose parameters cannot be meant as they are."""

_MENDS: Mapping[str, frozenset[Kind] | None] = MappingProxyType({
    "auto": None,
    "depth_scaled": _RESIDUAL,
    "zero_residual": _RESIDUAL,
    "deepnorm": frozenset({"tokens collapse", "gradient vanishes", "gradient explodes"}),
    "signal": None,
    "critical": _SHRINKS,
})  # fmt: skip
"""Policies by the verdicts that they may help against, None for any; the simplest first."""

_PUBLISHED: Mapping[str, str] = MappingProxyType({"sin": "siren"})
"""Published starts for a structure, by the operator that tells it."""

UNLIKE = 2.0
"""A factor between the sizes of a parameter now and under `auto` from which on it is suspected."""


@dataclass(slots=True)
class Trials:
    """Where copies of a model are tried, one at a time.

    Attributes:
        model: The model; it is left untouched.
        inputs: What it is called with; None to draw some.
        before: Its signal; without points where the symmetry alone is to be repaired.
        symmetry: Its units that start equal.
        training: The loss and the optimizer.
        ends: When to stop, on the clock of `time.perf_counter`.
        tell: Called with what is about to be tried.
    """

    model: nn.Module
    inputs: Call | None
    before: Signal
    symmetry: Report
    training: Training
    ends: float
    tell: Callable[[str], None] | None = None
    tried: list[Repair] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)
    planned: dict[tuple[str, tuple[str, ...] | None, Keeping], Plan] = field(default_factory=dict)
    longest: float = 0.0

    def run(self, names: Sequence[str] | None) -> None:
        """Try policies by name, or what the verdicts ask for; calibrate where none of it helps."""
        if names is not None:
            for name in names:
                self._policy(name, known_too=True)
        elif self._is_to_be_repaired():
            self._narrow()
            for name in () if self._is_repaired() else self._asked():
                self._policy(name)
        if self.before.points and self.tried and not any(r.works for r in self.tried):
            self._calibrations()

    def _is_to_be_repaired(self) -> bool:
        """Say whether something is wrong that another start can change."""
        found = [verdict for verdict in self.before.verdicts if not verdict.structural]
        return bool(found) or not (self.symmetry.ok or self.before.verdicts)

    def _asked(self) -> list[str]:
        """Name the policies that the verdicts and the structure ask for, the simplest first."""
        kinds = {verdict.kind for verdict in self.before.verdicts}
        asked = [name for name, mends in _MENDS.items() if mends is None or kinds & mends]
        return [*self._published(), *filter(_exists, asked)]

    def _published(self) -> list[str]:
        """Name the published starts for the structure that was seen."""
        seen = {point.op for point in self.before.points}
        return [name for op, name in _PUBLISHED.items() if op in seen and _exists(name)]

    def _narrow(self) -> None:
        """Try to start anew only what is at fault, from the fewest parameters on."""
        known: list[list[str]] = []
        base = next(iter(self._published()), "auto")
        count = len(self._plan("auto"))
        for names, keep in self._suspects():
            if names and names not in known and len(names) < count:
                known.append(names)
                self._policy(base, only=self._shortened(names, keep), keep=keep)
                if self._is_repaired():
                    return

    def _is_repaired(self) -> bool:
        return any(repair.outcome == "repairs" for repair in self.tried)

    def _suspects(self) -> Iterator[tuple[list[str], Keeping]]:
        """Yield what may be at fault: what verdicts name, as far as it is unlike `auto`; then all.

        A prior or a zero that is meant is never among it, but for what silences units by itself.
        """
        lasting = for_ever(self.symmetry)
        named = {name for verdict in self.before.verdicts for name in verdict.sites}
        named |= {finding.name for finding in lasting}
        silenced = {n for v in self.before.verdicts if v.kind in _SILENCE for n in v.sites}
        silenced |= {finding.name for finding in lasting if finding.verdict == "dead"}
        unlike = self._unlike("meant")
        yield _beside(unlike, named), "meant"
        yield _beside(self._unlike("nothing"), silenced), "nothing"
        yield [s.name for s in self._plan("auto") if s.name in named and not s.keeps], "meant"
        yield unlike, "meant"

    def _unlike(self, keep: Keeping) -> list[str]:
        """Name the parameters whose size, mean or finiteness is not what `auto` would draw."""
        plan = self._plan("auto", keep=keep)
        try:
            started = self._copy(lambda other: plan.apply(other, seed=0))
        except InitPolicyError:
            return []
        now, then = dict(_named(self.model)), dict(_named(started))
        return [
            step.name for step in plan
            if not step.keeps and _is_unlike(now[step.name], then[step.name])
        ]  # fmt: skip

    def _shortened(self, names: Sequence[str], keep: Keeping) -> Sequence[str]:
        """Write many names as globs, by their last parts or by modules, that match no others."""
        parts = [name.split(".") for name in names]
        spellings = [
            {f"*.{part[-1]}" for part in parts},
            {".".join(["*", *part[-2:]] if len(part) > 2 else part) for part in parts},
            {f"{'.'.join(part[:-1])}.*" for part in parts},
        ]
        for globs in map(sorted, spellings if len(names) > FEW else ()):
            written = {s.name for s in self._plan("auto", globs, keep) if not s.keeps}
            if len(globs) < len(names) and written == set(names):
                return globs
        return names

    def _plan(
        self, policy: str, only: Sequence[str] | None = None, keep: Keeping = "meant"
    ) -> Plan:
        """Plan once for each question: planning costs as much as a forward pass."""
        asked = (policy, None if only is None else tuple(only), keep)
        if asked not in self.planned:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InitPolicyWarning)
                self.planned[asked] = plan_policy(
                    self.model, policy, example_inputs=self.inputs, only=only, keep=keep
                )
        return self.planned[asked]

    def _policy(
        self,
        policy: str,
        *,
        only: Sequence[str] | None = None,
        keep: Keeping = "meant",
        known_too: bool = False,
    ) -> None:
        """Try a policy; one that would write what another has written only where asked for."""
        call = _call(policy, only, keep)

        def start() -> nn.Module | None:
            plan = self._plan(policy, only, keep)
            if not known_too and plan.hash in {known.hash for known in self.plans.values()}:
                return None
            self.plans[call] = plan
            return self._copy(lambda other: plan.apply(other, seed=0))

        self._try(policy if only is None else f"{policy}, in part", call, start, only)

    def _calibrations(self) -> None:
        """Try what scales the weights on the inputs themselves."""
        self._try("auto, calibrated", _CALIBRATED, lambda: self._copy(self._calibrate))
        for name, call, centred in _LSUVS:
            scale = partial(lsuv_, inputs=self.inputs, per_channel=centred)
            self._try(name, call, partial(self._copy, scale))

    def _calibrate(self, other: nn.Module) -> None:
        receipt = apply_policy(other, seed=0, calibrate=self.inputs)
        self.plans[_CALIBRATED] = dataclasses.replace(receipt.plan, model=self.model)

    def _try(
        self,
        name: str,
        call: str,
        start: Callable[[], nn.Module | None],
        only: Sequence[str] | None = None,
    ) -> None:
        begun = time.perf_counter()
        if self.tried and begun + self.longest > self.ends:
            self.untried.append(call)
            return
        if self.tell is not None:
            self.tell(call)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InitPolicyWarning)
                other = start()
                if other is None:
                    return
                repair = self._judged(name, call, other)
        except InitPolicyError as error:
            repair = refused(name, call, " ".join(str(error).split()))
        seconds = time.perf_counter() - begun
        self.longest = max(self.longest, seconds)
        sites = None if only is None else len(only)
        self.tried.append(dataclasses.replace(repair, seconds=seconds, sites=sites))

    def _judged(self, name: str, call: str, other: nn.Module) -> Repair:
        after = self.before
        if after.points:
            after = follow(other, self.inputs, self.training)[1]
        sick = bool(self.before.verdicts) or not self.symmetry.ok
        same = self._same(call, other, probe=after.ok)
        return judged(name, call, self.before, after, same=same, sick=sick)

    def _same(self, call: str, other: nn.Module, *, probe: bool) -> list[str]:
        """Name what holds units that stay equal: by probing where the model itself does."""
        if not self.symmetry.ok and probe:
            report = find_symmetry(other, self.inputs, self.training.loss_fn)
            return [found.name for found in for_ever(report)]
        return [step.name for step in self.plans[call].symmetric] if call in self.plans else []

    def _copy(self, start: Callable[[nn.Module], object]) -> nn.Module:
        other = copy.deepcopy(self.model)
        start(other)
        return other


def with_remedy(
    model: nn.Module,
    inputs: Call | None,
    report: Report,
    *,
    budget: float,
    tell: Callable[[str], None] | None = None,
) -> Report:
    """Return a report on symmetric starts whose remedy has been tried on a copy of the model.

    Args:
        model: The model; it is left untouched.
        inputs: What it is called with; None to draw some.
        report: What `find_symmetry` found.
        budget: Seconds after which nothing further is tried.
        tell: Called with what is about to be tried.
    """
    if report.ok:
        return report
    ends = time.perf_counter() + budget
    trials = Trials(model, inputs, Signal(()), report, Training(), ends, tell)
    trials.run(None)
    best = next((repair.call for repair in ranked(trials.tried) if repair.works), "")
    lasting = for_ever(report)
    mended = (
        dataclasses.replace(finding, remedy=best) if finding in lasting else finding
        for finding in report.findings
    )  # fmt: skip
    nothing = "" if best else f"{counted(len(trials.tried), 'start')} tried on copies, none helps"
    note = "; ".join(filter(None, (report.note, nothing)))
    return dataclasses.replace(report, findings=tuple(mended), note=note)


def for_ever(report: Report) -> tuple[Finding, ...]:
    """Return the findings about units that training does not change by itself."""
    return report.of("tied", "dead", "diverged")


def _beside(names: Sequence[str], others: Collection[str]) -> list[str]:
    """Return those names that are parameters of the same modules as others."""
    places = {other.rpartition(".")[0] for other in others}
    return [name for name in names if name.rpartition(".")[0] in places]


def _call(policy: str, only: Sequence[str] | None, keep: Keeping) -> str:
    arguments = [] if policy == "auto" else [f'"{policy}"']
    arguments += [] if only is None else [f"only={list(only)!r}"]
    arguments += [] if keep == "meant" else [f'keep="{keep}"']
    return f"apply_policy({', '.join(['model', *arguments])})"


FEW = 4
"""Names that are written out."""

_CALIBRATED = "apply_policy(model, calibrate=batch)"
_LSUVS = (
    ("lsuv", "lsuv_(model, batch)", False),
    ("lsuv, centred", "lsuv_(model, batch, per_channel=True)", True),
)


def _exists(policy: str) -> bool:
    try:
        policy_of(policy)
    except UnknownNameError:
        return False
    return True


def _named(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return ((site.name, site.parameters[0].detach()) for site in sites(model))


def _is_unlike(now: Tensor, then: Tensor) -> bool:
    """Say whether a parameter is of another size, or about another mean, than it would be."""
    if now.shape != then.shape or not now.is_floating_point() or not now.numel():
        return False
    now, then = now.double(), then.double()
    if not bool(torch.isfinite(now).all()):
        return True
    size, usual = float(now.square().mean().sqrt()), float(then.square().mean().sqrt())
    shift = abs(float(now.mean() - then.mean()))
    if usual == 0:
        return size > NOTHING
    large_mean = shift > usual and now.numel() > 1
    return not 1 / UNLIKE < size / usual < UNLIKE or large_mean or _is_one_number(now, then)


NOTHING = 0.5
"""Values up to this size count for nothing where `auto` would write zeros."""


def _is_one_number(now: Tensor, then: Tensor) -> bool:
    return now.numel() > 1 and bool(now.std() == 0) and bool(then.std() > 0)
