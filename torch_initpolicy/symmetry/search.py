"""Probes a model in one way, from a rehearsal to the findings.

Each step of the search is a function that returns a value: what is suspected, what a probe has
found out, what that means.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from torch_initpolicy.errors import TraceError
from torch_initpolicy.sites import Site
from torch_initpolicy.symmetry.attempts import Attempt
from torch_initpolicy.symmetry.classify import Outcome, findings
from torch_initpolicy.symmetry.findings import Finding, Report, sort
from torch_initpolicy.symmetry.probe import (
    PATIENCE,
    ModuleTrack,
    Track,
    UnitTrack,
    follow,
    idle_parts,
    reachable,
    tracks_of,
)
from torch_initpolicy.symmetry.replica import Batches, Loss, Replica, Values, prepared, vocabulary
from torch_initpolicy.symmetry.scan import EqualModules, Suspects, scan
from torch_initpolicy.trace.trees import Call


@dataclass(frozen=True)
class Subject:
    """A model under suspicion.

    Attributes:
        model: The model, without its wrappers.
        sites: Its parameters.
        suspects: What is equal or zero at the start.
        loss: From its output to a scalar, or None.
    """

    model: nn.Module
    sites: Sequence[Site]
    suspects: Suspects
    loss: Loss | None

    @cached_property
    def names(self) -> Mapping[int, str]:
        """Name of each parameter in a replica, by its `id`."""
        return {id(p): name for name, p in self.model.named_parameters()}

    @cached_property
    def keys(self) -> Mapping[str, Sequence[str]]:
        """For each site the names of its parameters that can be trained."""
        return {
            site.name: [self.names[id(p)] for p in site.parameters if p.requires_grad]
            for site in self.sites
            if not site.lazy and (site.dtype.is_floating_point or site.dtype.is_complex)
        }

    @property
    def all_keys(self) -> tuple[str, ...]:
        """Names of all parameters that can be trained."""
        return tuple(key for keys in self.keys.values() for key in keys)

    @property
    def suspected_keys(self) -> tuple[str, ...]:
        """Names of the parameters that hold a suspect."""
        tracks, modules = self.tracks()
        keys = [track.key for track in tracks]
        keys += [key for track in modules for member in track.keys for key in member]
        return tuple(dict.fromkeys(keys))

    @property
    def is_mostly_suspect(self) -> bool:
        """Whether most numbers are in equal units, as in a net of constants."""
        sizes = {key: p.numel() for key, p in self.model.named_parameters()}
        return 2 * sum(sizes[key] for key in self.suspected_keys) > sum(sizes.values())

    def tracks(self, *, thorough: bool = False) -> tuple[list[UnitTrack], list[ModuleTrack]]:
        """Return fresh tracks of the suspects, or with `thorough` of all that is equal."""
        found = scan(self.sites, thorough=True) if thorough else self.suspects.equal_units
        modules = [ModuleTrack(copies, self.names) for copies in self.suspects.equal_modules]
        return tracks_of(found, self.names), modules


def probed(subject: Subject, attempt: Attempt) -> Report | str:
    """Probe a model in one way.

    Args:
        subject: The model with its suspects.
        attempt: How to run it.

    Returns:
        The report; or why there is none: what the model raised, or an empty string where the
        attempt has decided nothing.

    Raises:
        TraceError: The loss function returns no scalar.
    """
    with prepared(subject.model):
        if attempt.training is not None:
            subject.model.train(attempt.training)
        replica = _replica(subject, attempt, attempt.call)
        failure = _rehearsed(subject, replica)
        if failure is not None:
            return failure
        outcome = _outcome_of(subject, attempt, replica)
        if outcome is None:
            return ""
        found = list(findings(outcome, subject.suspects.names))
        if attempt.confirmed_by is not None and not _is_confirmed(subject, attempt, outcome, found):
            return ""
        judged = _with_one_target(subject, replica, found)
        return Report(sort(judged), note=_note(replica, outcome, attempt))


def _replica(subject: Subject, attempt: Attempt, call: Call) -> Replica:
    model = subject.model
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    batches = Batches(call, attempt.style, attempt.dtype, device, vocabulary(model))
    return Replica(model, batches, subject.loss)


def _rehearsed(subject: Subject, replica: Replica) -> str | None:
    """Run once; say why that fails, or None. Where the suspects get nothing, does anything?"""
    try:
        for keys in (subject.suspected_keys, subject.all_keys):
            rehearsal = replica.training(keys)
            gradients = rehearsal.gradients(1)
            if not all(bool(g.isfinite().all()) for g in gradients.values()):
                return "the gradients are not finite"
            if rehearsal.connected:
                return None
    except TraceError:
        raise
    except Exception as error:  # noqa: BLE001 - a forward may raise anything
        text = (str(error).splitlines() or [""])[0]
        return f"{type(error).__name__}: {text}"
    return "no output depends on a trained parameter"


#
# How much to train
#


def _outcome_of(subject: Subject, attempt: Attempt, replica: Replica) -> Outcome | None:
    """Train as little as decides; None where the attempt may not decide what it found."""
    if attempt.clears_only:
        return _in_a_hurry(subject, replica)
    if attempt.confirmed_by is None:
        return _suspects_alone(subject, replica) or _everything(subject, replica)
    outcome = _in_a_hurry(subject, replica)
    if outcome is None and subject.is_mostly_suspect:
        return _everything(subject, replica)
    return outcome


def _in_a_hurry(subject: Subject, replica: Replica) -> Outcome | None:
    """Train the suspects as long as each step clears some; None where that is not enough.

    A few units may get no gradient in a parameter that does: columns behind a silent unit, rows of
    a table that these inputs do not look up. They are cleared if they would get none from another
    start either.
    """
    replica = replica.training(subject.suspected_keys)
    tracks, modules = subject.tracks()
    everything: list[Track] = [*tracks, *modules]
    progress = follow(replica, everything, patience=1)
    together = any(track.moves_together for track in everything)
    if together or not all(track.key in progress.first_moved for track in tracks):
        return None
    if not all(track.is_resolved for track in modules):
        return None
    open_tracks = [track for track in tracks if not track.is_resolved]
    reach = reachable(replica, open_tracks, progress, draws=1)
    if any(True for _ in idle_parts(open_tracks, reach)):
        return None
    keys = _kept_keys(subject, replica)
    return Outcome(
        subject.sites, keys, tracks, modules, reach, progress.first_moved, progress.steps
    )


def _suspects_alone(subject: Subject, replica: Replica) -> Outcome | None:
    """Train the suspects and nothing else, which is cheap; None where that does not clear them.

    Whatever tells units apart while all else stands still also does while all else moves. Two steps
    without news are enough to give up: training everything decides.
    """
    alone = replica.training(subject.suspected_keys)
    outcome = _followed(subject, alone, *subject.tracks(), patience=2)
    tracks: list[Track] = [*outcome.tracks, *outcome.equal_modules]
    moving = any(track.moves_together for track in tracks)
    idle = any(True for _ in idle_parts(outcome.tracks, outcome.reach))
    return None if moving or idle else outcome


def _everything(subject: Subject, replica: Replica) -> Outcome:
    """Train all there is, and look at all that is equal."""
    return _followed(subject, replica.training(subject.all_keys), *subject.tracks(thorough=True))


def _followed(
    subject: Subject,
    replica: Replica,
    tracks: Sequence[UnitTrack],
    modules: Sequence[ModuleTrack],
    *,
    patience: int = PATIENCE,
) -> Outcome:
    progress = follow(replica, [*tracks, *modules], patience=patience)
    reach = reachable(replica, tracks, progress)
    keys = _kept_keys(subject, replica)
    return Outcome(
        subject.sites, keys, tracks, modules, reach, progress.first_moved, progress.steps
    )


def _kept_keys(subject: Subject, replica: Replica) -> dict[str, list[str]]:
    """Return the trained parameters behind each site that has any."""
    kept = {name: [k for k in keys if k in replica.trained] for name, keys in subject.keys.items()}
    return {name: keys for name, keys in kept.items() if keys}


#
# Second looks
#


def _is_confirmed(
    subject: Subject, attempt: Attempt, outcome: Outcome, found: Sequence[Finding]
) -> bool:
    """Tell whether what small inputs say holds on those that are meant.

    What they clear is clear: a gradient that tells units apart on some inputs is no accident. What
    they call tied must get equal gradients on the others as well, of which one is taken, at the
    start. What gets no gradient from small inputs may get one from others, and is not decided.
    """
    if any(finding.verdict == "dead" for finding in found):
        return False
    tracks: list[Track] = [*outcome.tracks, *outcome.equal_modules]
    tied = [track for track in tracks if track.moves_together]
    if not tied or attempt.confirmed_by is None:
        return True
    replica = _replica(subject, attempt, attempt.confirmed_by).training(subject.all_keys)
    gradients = replica.gradients(1)
    return not any(_parts(track, gradients, replica.precision.same) for track in tied)


def _parts(track: Track, gradients: Values, same: float) -> bool:
    """Tell whether gradients tell any units apart that are still equal."""
    again = copy.copy(track)
    again.see(gradients, 1, same)
    return not torch.equal(again.labels, track.labels)


def _with_one_target(
    subject: Subject, replica: Replica, found: Sequence[Finding]
) -> Iterator[Finding]:
    """Judge copied modules again with equal targets for equal outputs.

    Two critics with the same inputs and the same targets stay one critic.
    """
    for finding in found:
        copies = next(
            (t for t in subject.suspects.equal_modules if t.names[0] == finding.name), None
        )
        is_open = finding.along == "modules" and finding.verdict == "harmless"
        if subject.loss is None and copies is not None and is_open and _is_random(copies):
            yield _with_shared_targets(subject, replica, copies, finding)
        else:
            yield finding


def _with_shared_targets(
    subject: Subject, replica: Replica, copies: EqualModules, otherwise: Finding
) -> Finding:
    track = ModuleTrack(copies, subject.names)
    keys = tuple(dict.fromkeys(key for keys in track.keys for key in keys))
    outcome = _followed(subject, replica.training(keys, shared_targets=True), (), (track,))
    again = next(findings(outcome, ()))
    return again if again.verdict == "tied" else otherwise


def _is_random(copies: EqualModules) -> bool:
    """Whether copied modules hold more than constants, so that copying them was no accident."""
    matrices = (p for p in copies.parameters[0] if p.ndim > 1)
    return any(bool((p != p[(0,) * p.ndim]).any()) for p in matrices)


def _note(replica: Replica, outcome: Outcome, attempt: Attempt) -> str:
    kind = {"fresh": "random inputs", "near": "inputs near the given", "given": "the given inputs"}
    steps = f"{outcome.steps} step{'s' * (outcome.steps > 1)}"
    small = "small " if attempt.confirmed_by is not None else ""
    return f"{steps} on {small}{kind[replica.batches.style]} in {str(replica.batches.dtype)[6:]}"
