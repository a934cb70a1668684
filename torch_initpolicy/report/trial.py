"""Tries starts on copies of a model, one at a time, and measures what each does to the signal.

The order is from little to much: the parameters that are at fault alone, a policy for all of them,
the published starts for the structure that was seen, calibration on the inputs.
"""

import copy
import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

from torch import Tensor, nn

from torch_initpolicy.api import apply_policy, plan_policy
from torch_initpolicy.calibrate.lsuv import lsuv_
from torch_initpolicy.errors import InitPolicyError, InitPolicyWarning, counted
from torch_initpolicy.planning.plan import Plan
from torch_initpolicy.planning.selection import Keeping
from torch_initpolicy.policy import presets
from torch_initpolicy.policy.rules import InitPolicy, policy_named
from torch_initpolicy.report.repairs import Repair, judged, ranked, refused
from torch_initpolicy.signal.run import follow_signal
from torch_initpolicy.signal.signal import Signal
from torch_initpolicy.signal.training import Training
from torch_initpolicy.signal.verdicts import Pathology
from torch_initpolicy.sites import sites
from torch_initpolicy.symmetry.find import find_symmetry
from torch_initpolicy.symmetry.findings import Finding, Report
from torch_initpolicy.trace.trees import Call

_SILENCE: frozenset[Pathology] = frozenset({
    "dies", "saturates", "gradient stops", "not finite", "output too large",
})  # fmt: skip
"""Verdicts whose parameters cannot be meant as they are."""


def _forgets(signal: Signal) -> bool:
    """Say whether recurrent layers of gates are at fault."""
    named = {verdict.where for verdict in signal.verdicts if verdict.kind == "gradient vanishes"}
    gated = [point for point in signal.points if point.op in ("lstm", "gru")]
    return any(point.early is not None and point.name in named for point in gated)


def _waves(signal: Signal) -> bool:
    return any(point.op == "sin" for point in signal.points)


def _has_skips(signal: Signal) -> bool:
    return any(point.skips for point in signal.points)


def _attends_and_skips(signal: Signal) -> bool:
    return _has_skips(signal) and any(
        "attention" in p.op or p.op == "softmax" for p in signal.points
    )


_STARTS: Mapping[str, Callable[[Signal], bool]] = MappingProxyType({
    "chrono": _forgets,
    "siren": _waves,
    "auto": lambda _: True,
    "depth_scaled": _has_skips,
    "zero_residual": _has_skips,
    "deepnorm": _attends_and_skips,
    "signal": lambda _: True,
    "critical": lambda signal: not _has_skips(signal) and not _waves(signal),
})  # fmt: skip
"""Policies, each with the structure that it was published for; the most special first."""


@dataclass(frozen=True, slots=True)
class TrialPolicy:
    """A policy for some of a model's parameters.

    `only` and `keep` are those of `apply_policy`, `t_max` that of `presets.chrono`; `fed`: it needs
    the inputs to write the same.
    """

    policy: str
    only: tuple[str, ...] | None = None
    keep: Keeping = "meant"
    fed: bool = False
    t_max: int | None = None

    @property
    def value(self) -> InitPolicy:
        """The policy itself."""
        return policy_named(self.policy) if self.t_max is None else presets.chrono(self.t_max)

    @property
    def call(self) -> str:
        """What to write for it."""
        name = f'"{self.policy}"'
        if self.t_max is not None:
            name = f"presets.chrono({self.t_max})"
        arguments = [] if self.policy == "auto" else [name]
        arguments += [] if self.only is None else [f"only={list(self.only)!r}"]
        arguments += [] if self.keep == "meant" else [f'keep="{self.keep}"']
        arguments += ["example_inputs=batch"] if self.fed else []
        return f"apply_policy({', '.join(['model', *arguments])})"


@dataclass(slots=True)
class Trials:
    """Where copies of a model are tried, one at a time.

    Attributes:
        model: The model; it is left untouched.
        inputs: What it is called with; None to draw some.
        before: Its signal; without points where the symmetry alone is to be repaired.
        symmetry: Its units that start equal.
        ends: When to stop, on the clock of `time.perf_counter`.
        tried: What became of each start.
        untried: What there was no time for.
        plans: What the calls that were tried write.
    """

    model: nn.Module
    inputs: Call | None
    before: Signal
    symmetry: Report
    training: Training
    ends: float
    tell: Callable[[str], None] = lambda _: None
    tried: list[Repair] = field(default_factory=list)
    untried: list[str] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)
    _planned: dict[TrialPolicy, Plan] = field(default_factory=dict)
    _longest: float = 0.0

    def run(self, names: Sequence[str] | None) -> None:
        """Try policies by name, or what the verdicts ask for; calibrate where none of it helps."""
        if names is not None:
            for name in names:
                self._policy(TrialPolicy(name), known_too=True)
        elif _can_be_repaired(self.before, self.symmetry):
            self._some_parameters()
            if not self._is_repaired():
                self._all_parameters()
        if self.before.points and self.tried and not any(r.works for r in self.tried):
            self._calibrations()
        starts = {start.call: start for start in self._planned}
        for place, repair in enumerate(self.tried):
            if repair.works and repair.call in starts:
                self.tried[place] = self._as_written(repair, starts[repair.call])

    def _as_written(self, repair: Repair, start: TrialPolicy) -> Repair:
        """Name the inputs where the policy, left to find some itself, writes something else."""
        plan = self.plans[repair.call]
        try:
            same = self._plan_for(start, None).hash == plan.hash
        except InitPolicyError:
            same = False
        if same:
            return repair
        call = dataclasses.replace(start, fed=True).call
        self.plans[call] = plan
        return dataclasses.replace(repair, call=call)

    def _is_repaired(self) -> bool:
        return any(repair.outcome == "repairs" for repair in self.tried)

    def _some_parameters(self) -> None:
        """Try to start anew only what is at fault, from the fewest parameters on."""
        base = _fitting(self.before)[0]
        for names, keep in self._suspects():
            self._narrow(base, names, keep)
            if self._is_repaired():
                return

    def _all_parameters(self) -> None:
        """Try the policies that the structure asks for, the simplest first."""
        starts = _fitting(self.before)
        for start in starts:
            self._policy(start)
        works = {repair.call for repair in self.tried if repair.outcome == "repairs"}
        first = next((start for start in starts if start.call in works), TrialPolicy("auto"))
        if first.policy != "auto":
            self._narrow(first, self._differing(first))

    def _differing(self, start: TrialPolicy) -> list[str]:
        """Name the parameters that a policy starts otherwise than `auto` does, if they are few."""
        usual = {step.name: step for step in self._plan(TrialPolicy("auto"))}
        written = [step for step in self._plan(start) if not step.keeps]
        others = [step.name for step in written if step.std != usual[step.name].std]
        return others if 2 * len(others) <= len([s for s in written if len(s.shape) > 1]) else []

    def _suspects(self) -> Iterator[tuple[list[str], Keeping]]:
        """Yield what may be at fault: what verdicts name, as far as it is unlike `auto`; then all.

        The weights where it begins come first among few, and last where all of many bring something
        else about. A prior or a zero that is meant is never among it, but for what silences units
        by itself.
        """
        lasting = for_ever(self.symmetry)
        named = {name for verdict in self.before.verdicts for name in verdict.sites}
        named |= {finding.name for finding in lasting}
        silenced = {n for v in self.before.verdicts if v.kind in _SILENCE for n in v.sites}
        silenced |= {finding.name for finding in lasting if finding.verdict == "dead"}
        unlike = self._unlike("meant")
        yield _in_modules_of(unlike, named), "meant"
        yield _in_modules_of(self._unlike("nothing"), silenced), "nothing"
        yield (
            [s.name for s in self._plan(TrialPolicy("auto")) if s.name in named and not s.keeps],
            "meant",
        )
        first = _in_modules_of(unlike, {verdict.where for verdict in self.before.verdicts})
        few = len(unlike) <= SPELLED_OUT
        yield from ((names, "meant") for names in ([first, unlike] if few else [unlike, first]))

    def _unlike(self, keep: Keeping) -> list[str]:
        """Name the parameters whose size, mean or finiteness is not what `auto` would draw."""
        plan = self._plan(TrialPolicy("auto", keep=keep))
        try:
            started = self._copy(lambda other: plan.apply(other, seed=0))
        except InitPolicyError:
            return []
        now, then = _values(self.model), _values(started)
        return [
            step.name for step in plan
            if not step.keeps and _is_unlike(now[step.name], then[step.name])
        ]  # fmt: skip

    def _narrow(self, start: TrialPolicy, names: Sequence[str], keep: Keeping = "meant") -> None:
        """Try a policy on some of the parameters, where they can be named in a line."""
        globs = self._globs(names, keep)
        if 0 < len(names) < len(self._plan(TrialPolicy("auto"))) and len(globs) <= IN_A_LINE:
            self._policy(dataclasses.replace(start, only=tuple(globs), keep=keep))

    def _globs(self, names: Sequence[str], keep: Keeping) -> Sequence[str]:
        """Write many names as globs, by their last parts or by modules, that match no others."""
        parts = [name.split(".") for name in names]
        spellings = [
            {f"*.{part[-1]}" for part in parts},
            {".".join(["*", *part[-2:]] if len(part) > 2 else part) for part in parts},
            {f"{'.'.join(part[:-1])}.*" for part in parts},
        ]
        for globs in map(sorted, spellings if len(names) > SPELLED_OUT else ()):
            planned = self._plan(TrialPolicy("auto", tuple(globs), keep))
            if len(globs) < len(names) and {s.name for s in planned if not s.keeps} == set(names):
                return globs
        return names

    def _plan(self, start: TrialPolicy) -> Plan:
        """Plan once for each question: planning costs as much as a forward pass."""
        if start not in self._planned:
            self._planned[start] = self._plan_for(start, self.inputs)
        return self._planned[start]

    def _plan_for(self, start: TrialPolicy, inputs: Call | None) -> Plan:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InitPolicyWarning)
            return plan_policy(
                self.model, start.value, example_inputs=inputs, only=start.only, keep=start.keep
            )

    def _policy(self, start: TrialPolicy, *, known_too: bool = False) -> None:
        """Try a policy; one that would write what another has written only where asked for."""

        def started() -> nn.Module | None:
            plan = self._plan(start)
            if not known_too and plan.hash in {known.hash for known in self.plans.values()}:
                return None
            self.plans[start.call] = plan
            return self._copy(lambda other: plan.apply(other, seed=0))

        self._try(f"{start.policy}{', in part' if start.only else ''}", start.call, started)

    def _calibrations(self) -> None:
        """Try what scales the weights on the inputs themselves, but for those that are meant."""

        def calibrate(other: nn.Module) -> None:
            receipt = apply_policy(other, seed=0, calibrate=self.inputs)
            self.plans[_CALIBRATED] = dataclasses.replace(receipt.plan, model=self.model)

        self._try("auto, calibrated", _CALIBRATED, partial(self._copy, calibrate))
        meant = [s.name for s in self._plan(TrialPolicy("auto")) if s.keeps and len(s.shape) > 1]
        for name, centred in ("lsuv", False), ("lsuv, centred", True):
            more = (", per_channel=True" * centred) + (f", skip={meant!r}" if meant else "")
            scale = partial(lsuv_, inputs=self.inputs, per_channel=centred, skip=meant or None)
            self._try(name, f"lsuv_(model, batch{more})", partial(self._copy, scale))

    def _try(self, name: str, call: str, started: Callable[[], nn.Module | None]) -> None:
        begun = time.perf_counter()
        if self.tried and begun + self._longest > self.ends:
            self.untried.append(call)
            return
        self.tell(call)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", InitPolicyWarning)
                other = started()
                if other is None:
                    return
                repair = self._judged(name, call, other)
        except InitPolicyError as error:
            repair = refused(name, call, " ".join(str(error).split()))
        seconds = time.perf_counter() - begun
        self._longest = max(self._longest, seconds)
        plan = self.plans.get(call)
        written = None if plan is None else sum(not step.keeps for step in plan)
        self.tried.append(dataclasses.replace(repair, seconds=seconds, sites=written))

    def _judged(self, name: str, call: str, other: nn.Module) -> Repair:
        before, after = self.before, self.before
        if before.points:
            after = follow_signal(other, self.inputs, self.training)[1]
        same: list[str] = []
        if not self.symmetry.ok and after.ok:
            report = find_symmetry(other, self.inputs, self.training.loss_fn)
            same = [found.name for found in for_ever(report)]
        elif call in self.plans:
            same = [step.name for step in self.plans[call].symmetric]
        sick = bool(before.verdicts) or not self.symmetry.ok
        return judged(name, call, before, after, same=same, sick=sick)

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
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Return a report on symmetric starts whose remedy has been tried on a copy of the model."""
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


def _can_be_repaired(signal: Signal, symmetry: Report) -> bool:
    """Say whether something is wrong that another start can change."""
    found = [verdict for verdict in signal.verdicts if not verdict.structural]
    return bool(found) or not (symmetry.ok or signal.verdicts)


def _fitting(signal: Signal) -> list[TrialPolicy]:
    """Return the starts for the structure that was seen, the most special first."""
    names = [name for name, fits in _STARTS.items() if fits(signal)]
    return [
        TrialPolicy(name, t_max=_length(signal) if name == "chrono" else None) for name in names
    ]


def _length(signal: Signal) -> int:
    """Return how many steps recurrent layers read, of sequences of unequal length their mean."""
    lengths = [p.shape[:-1] for p in signal.points if p.early is not None]
    return max(3, *(math.prod(length) // signal.inputs for length in lengths))


SPELLED_OUT, IN_A_LINE = 4, 6
"""Names that are written out where globs would do, and entries of `only=` that make a line."""

_CALIBRATED = "apply_policy(model, calibrate=batch)"


def _in_modules_of(names: Sequence[str], others: Collection[str]) -> list[str]:
    """Return those names that are parameters of the same modules as others."""
    places = {other.rpartition(".")[0] for other in others}
    return [name for name in names if name.rpartition(".")[0] in places]


def _values(model: nn.Module) -> dict[str, Tensor]:
    return {site.name: site.parameters[0].detach() for site in sites(model)}


UNLIKE = 2.0
"""A factor between the sizes of a parameter now and under `auto` from which on it is suspected."""

SMALL_BIAS = 0.5
"""Values up to this size count for nothing where `auto` would write zeros."""


def _is_unlike(now: Tensor, then: Tensor) -> bool:
    """Say whether a parameter is of another size, or about another mean, than it would be."""
    if now.shape != then.shape or not now.is_floating_point() or not now.numel():
        return False
    now, then = now.double(), then.double()
    if not bool(now.isfinite().all()):
        return True
    size, usual = float(now.square().mean().sqrt()), float(then.square().mean().sqrt())
    if usual == 0:
        return size > SMALL_BIAS
    shifted = now.numel() > 1 and abs(float(now.mean() - then.mean())) > usual
    constant = now.numel() > 1 and bool(now.std() == 0) and bool(then.std() > 0)
    return not 1 / UNLIKE < size / usual < UNLIKE or shifted or constant
