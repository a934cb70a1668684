"""Probes a model in one way: from suspects and inputs to a report.

As little is trained as decides: the suspects alone first, and all there is where that does not
clear them.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torch_initpolicy.errors import TraceError
from torch_initpolicy.sites import Site
from torch_initpolicy.symmetry.batches import Attempt
from torch_initpolicy.symmetry.classify import findings
from torch_initpolicy.symmetry.findings import Finding, Report, sort
from torch_initpolicy.symmetry.modules import EqualModules
from torch_initpolicy.symmetry.probe import DRAWS, Probe, Track, find_reach, follow
from torch_initpolicy.symmetry.replica import Loss, Replica, Unfit, prepared
from torch_initpolicy.symmetry.scan import Suspects, scan
from torch_initpolicy.symmetry.units import ByParameter
from torch_initpolicy.trace.failures import in_short


@dataclass(frozen=True, slots=True)
class Subject:
    """A model under suspicion, with its parameters, and a loss where its user gave one."""

    model: nn.Module
    sites: Sequence[Site]
    suspects: Suspects
    loss: Loss | None

    @property
    def trained(self) -> tuple[nn.Parameter, ...]:
        """All parameters that can be trained."""
        every = dict.fromkeys(p for site in self.sites for p in site.parameters)
        return tuple(p for p in every if p.requires_grad)

    @property
    def is_mostly_suspect(self) -> bool:
        """Whether most numbers are in equal units, as in a net of constants."""
        suspected = sum(p.numel() for p in self.suspects.parameters)
        return 2 * suspected > sum(p.numel() for p in self.trained)


def probed(subject: Subject, attempt: Attempt) -> Report | str:
    """Return the report of one attempt; or why there is none, empty where it decides nothing."""
    with prepared(subject.model) as lent:
        if attempt.training is not None:
            subject.model.train(attempt.training)
        try:
            return _judged(subject, attempt, Replica(lent, attempt.batches, subject.loss))
        except TraceError:
            raise
        except Unfit as error:
            return str(error)
        except Exception as error:  # noqa: BLE001 - a forward may raise anything
            return in_short(error)


def _judged(subject: Subject, attempt: Attempt, replica: Replica) -> Report | str:
    probe = _decisive(subject, attempt, replica)
    if probe is None or not _is_confirmed(subject, attempt, replica, probe):
        return ""
    found = list(findings(probe, subject.sites, subject.suspects.names))
    if subject.loss is None:
        found = [_with_shared_targets(subject, replica, finding) for finding in found]
    note = f"{probe.steps} step{'s' * (probe.steps > 1)} on {attempt}"
    return Report(sort(found), note=note)


# How much to train


def _decisive(subject: Subject, attempt: Attempt, replica: Replica) -> Probe | None:
    """Train as little as decides; return None where the attempt may not decide what it found."""
    is_mostly_suspect = subject.is_mostly_suspect
    if attempt.clears_only or not is_mostly_suspect:
        probe = _suspects_alone(subject, attempt, replica)
        if probe is not None or attempt.clears_only:
            return probe
    if attempt.is_partial and not is_mostly_suspect:
        return None
    return _everything(subject, replica)


def _suspects_alone(subject: Subject, attempt: Attempt, replica: Replica) -> Probe | None:
    """Train the suspects and nothing else, which is cheap; None where that does not clear them.

    Whatever tells units apart while all else stands still also does while all else moves. A step or
    two without news are enough to give up: training everything decides. A few units may get no
    gradient in a parameter that does: columns behind a silent unit, rows of a table that these
    inputs do not look up. They are cleared if they would get none from another start either.
    """
    alone = replica.training(subject.suspects.parameters)
    probe = follow(Probe.of(*subject.suspects), alone, patience=1 if attempt.is_partial else 2)
    if not alone.connected:
        _require_gradients(replica.training(subject.trained))
    if probe.moves_together:
        return None
    if attempt.is_partial and not all(p in probe.first_moved for p in subject.suspects.parameters):
        return None
    find_reach(probe, alone, draws=1 if attempt.is_partial else DRAWS)
    return None if any(not t.is_resolved for t, _ in probe.dead_units()) else probe


def _require_gradients(replica: Replica) -> None:
    replica.gradients(1)
    if not replica.connected:
        raise Unfit("no output depends on a trained parameter")


def _everything(subject: Subject, replica: Replica) -> Probe:
    """Train all there is, and look at all that is equal."""
    equal_units = scan(subject.sites, thorough=True)
    everything = replica.training(subject.trained)
    probe = follow(Probe.of(equal_units, subject.suspects.equal_modules), everything)
    if not everything.connected:
        raise Unfit("no output depends on a trained parameter")
    find_reach(probe, everything)
    return probe


# Second looks


def _is_confirmed(subject: Subject, attempt: Attempt, replica: Replica, probe: Probe) -> bool:
    """Tell whether what small inputs say holds on those that are meant.

    What they clear is clear: a gradient that tells units apart on some inputs is no accident. What
    they call tied must get equal gradients on the others as well, of which one is taken, at the
    start. What gets no gradient from small inputs may get one from others, and is not decided.
    """
    if attempt.confirmed_by is None:
        return True
    if any(True for _ in probe.dead_units()):
        return False
    tied = [track for track in probe.tracks if track.moves_together]
    if not tied:
        return True
    meant = Replica(replica.lent, attempt.confirmed_by, subject.loss).training(subject.trained)
    gradients = meant.gradients(1)
    return not any(_separates(track, gradients, meant.precision.same) for track in tied)


def _separates(track: Track[Any], gradients: ByParameter, same: float) -> bool:
    """Tell whether gradients tell any units apart that are still equal."""
    again = copy.copy(track)
    again.see(gradients, 1, same)
    return not torch.equal(again.labels, track.labels)


def _with_shared_targets(subject: Subject, replica: Replica, finding: Finding) -> Finding:
    """Judge copied modules again with equal targets for equal outputs.

    Two critics with the same inputs and the same targets stay one critic.
    """
    if finding.along != "modules" or finding.verdict != "harmless":
        return finding
    groups = (g for g in subject.suspects.equal_modules if g.names[0] == finding.name)
    copies = next((g for g in groups if _is_random(g)), None)
    if copies is None:
        return finding
    again = replica.training(copies.parameters, shared_targets=True)
    probe = follow(Probe.of((), (copies,)), again)
    (second,) = findings(probe, (), ())
    return second if second.verdict == "tied" else finding


def _is_random(copies: EqualModules) -> bool:
    """Whether copied modules hold more than constants, so that copying them was no accident."""
    matrices = (p for p in copies.held[0] if p.ndim > 1)
    return any(bool((p != p[(0,) * p.ndim]).any()) for p in matrices)
