"""Finds units that start equal and stay equal, and parameters that can never move.

The one verb of this file composes the scan of the weights, the probe and the judge.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_initpolicy.errors import TraceError
from torch_initpolicy.sites import Site, canonical_modules, require_module, sites
from torch_initpolicy.symmetry.classify import Outcome, findings, groups_of
from torch_initpolicy.symmetry.findings import Finding, Report, sort
from torch_initpolicy.symmetry.probe import (
    AnyTrack,
    Journey,
    Track,
    TwinTrack,
    awakened,
    follow,
    idle_parts,
    tracks_of,
)
from torch_initpolicy.symmetry.replica import Batches, Loss, Trial, Values, laboratory, vocabulary
from torch_initpolicy.symmetry.scan import FAR, Likeness, Suspects, Twins, scan, suspects
from torch_initpolicy.symmetry.shards import shard_findings
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.trace.failures import EXPECTED
from torch_initpolicy.trace.inputs import as_call
from torch_initpolicy.trace.read import Reading, read
from torch_initpolicy.trace.real_inputs import batch_size, require_values
from torch_initpolicy.trace.trees import Call, tensors_in


def find_symmetry(
    model: nn.Module, example_inputs: Any = None, loss_fn: Callable[[Any], Tensor] | None = None
) -> Report:
    """Find units that are identical and will stay identical, and parameters that cannot move.

    Equal values alone mean little: zero-initialised last layers, LoRA's B, adaLN-zero, norms and
    identity kernels break by themselves. So the weights are scanned for equal units first; only
    where there are any, copies of the parameters are trained for a few steps of gradient descent
    on generic inputs, in float64, and what is then still equal is `tied`, what never got a
    gradient though another start would give it one is `dead`, and the rest `harmless`. The model
    itself, its buffers, gradients, hooks and the random states are untouched.

    Args:
        model: Any module, wrapped or not, in the mode it is to be trained in: dropout can tell
            units apart.
        example_inputs: What its forward takes: a tensor, a tuple of arguments, or a mapping of
            keyword arguments. New numbers like these are drawn at every step. None to look for
            inputs; where none are found, what is equal is only `suspect`.
        loss_fn: From the model's output to a scalar. By default every element of every output
            has a random weight of its own, as if it had a target of its own.

    Returns:
        The report: `report.ok`, `report.findings`, and a table as its text.

    Raises:
        NotAModuleError: `model` is no module.
        TraceError: The forward pass raises with the given inputs, the loss is no scalar, or
            parameters have no values: on the meta device, or lazy before their first batch.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> find_symmetry(model).ok
        True
        >>> for parameter in model.parameters():
        ...     _ = nn.init.constant_(parameter, 0.1)
        >>> [(f.name, f.along) for f in find_symmetry(model).of("tied")]
        [('0.weight', 'outputs'), ('0.bias', 'entries'), ('2.weight', 'inputs')]
    """
    inner = next(module for _, module in canonical_modules(require_module(model)))
    found = sites(model)
    require_values(found)
    spread = tuple(shard_findings(found))
    suspected = suspects(inner, found, asked=example_inputs is not None)
    if not suspected:
        return replace(_NOTHING, findings=spread, note="" if spread else _NOTHING.note)
    search = _Search(inner, found, suspected, loss_fn)
    call = None if example_inputs is None else as_call(example_inputs)
    report = search.with_found_inputs() if call is None else search.with_inputs(call)
    named = {finding.name for finding in spread}
    others = (finding for finding in report.findings if finding.name not in named)
    return replace(report, findings=sort((*spread, *others)))


_NOTHING = Report((), "scanned", "no weight holds equal units")


def _is_raw(site: Site) -> bool:
    return site.axes is None and site.role == "unknown" and len(site.parameters) == 1


_SMOOTH = ("sigmoid", "softmax", "log_softmax", "tanh")


def _is_fine(like: Likeness, used: Mapping[str, Facts]) -> bool:
    """Whether a constant bias meets nothing that it could switch off: focal loss' prior."""
    facts = used.get(like.site.name)
    if facts is None or like.site.role != "bias" or not like.is_vector:
        return False
    is_smooth = facts.meets is None or facts.meets.name in _SMOOTH
    return is_smooth and abs(like.value) <= FAR


def _told(site: Site, facts: Facts) -> Site:
    """Return a raw parameter with what its use says; a number that is only added is a bias."""
    is_added = facts.op in ("add", "sub") and facts.role in ("scale", "gate", "unknown")
    axes = facts.axes and _with_stacks(facts.axes, site.shape, facts.op or "")
    return replace(site, axes=axes, role="bias" if is_added else facts.role)


def _with_stacks(axes: Axes, shape: Sequence[int], op: str) -> Axes:
    """Return axes with those that are named nowhere as copies; only convolutions have kernels."""
    named = (*axes.inputs, *axes.outputs, *axes.copies)
    rest = (axis for axis in range(len(axes.view or shape)) if axis not in named)
    return axes if "conv" in op else replace(axes, copies=(*axes.copies, *rest))


class Attempt(NamedTuple):
    """One way to run a model.

    Attributes:
        call: Inputs of the right shapes.
        style: How to draw inputs like them.
        dtype: What to run in.
        training: The mode to run in; None for that of the model.
        clears_only: Whether it can clear suspects, but not convict them.
    """

    call: Call
    style: str
    dtype: torch.dtype
    training: bool | None = None
    clears_only: bool = False


class _Search:
    """Tries to run a model, and judges what is suspected of it."""

    def __init__(
        self, model: nn.Module, found: Sequence[Site], suspected: Suspects, loss: Loss | None
    ) -> None:
        self.model = model
        self.sites = found
        self.suspects = suspected
        self.loss = loss
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.keys = {
            site.name: [self.names[id(p)] for p in site.parameters if p.requires_grad]
            for site in found
            if not site.lazy and (site.dtype.is_floating_point or site.dtype.is_complex)
        }
        self.failures: list[str] = []

    def with_inputs(self, call: Call) -> Report:
        """Probe with inputs like the user's."""
        with contextlib.suppress(TraceError):
            self._learn(read(self.model, self.sites, call), asked=True)
        if not self.suspects:
            return _NOTHING
        ways = ((style, dtype) for dtype in self._dtypes() for style in ("fresh", "near", "given"))
        for style, dtype in ways:
            report = self._attempt(Attempt(call, style, dtype))
            if report is not None:
                return report
        raise TraceError(
            f"the forward and backward pass of {type(self.model).__name__} raises with the given "
            f"example_inputs: {self.failures[0]}; {EXPECTED}"
            + ("" if self.loss is None else ", and a loss_fn for what it returns")
        )

    def with_found_inputs(self) -> Report:
        """Probe with inputs that are looked for; where there are none, suspect only."""
        reading = read(self.model, self.sites)
        self._learn(reading, asked=False)
        if not self.suspects:
            return _NOTHING
        if reading.call is None:
            self.failures.append(reading.failure or "no inputs were found")
            return self._unprobed()
        for attempt in self._ways(reading.call):
            report = self._attempt(attempt)
            if report is not None:
                return report
        return self._unprobed()

    def _ways(self, call: Call) -> Iterator[Attempt]:
        """Yield ways to run the model: on little first, on more samples, on what was found."""
        first, *_ = dtypes = self._dtypes()
        small, one, many = _with_small_images(call), _with_one_large(call), _with_more_samples(call)
        if small is not None:
            yield Attempt(small, "fresh", first, clears_only=True)
        if one is not None:
            yield Attempt(one, "fresh", torch.float32, clears_only=True)
        if many is not None:
            yield Attempt(many, "fresh", first)
        for dtype, training in itertools.product(dtypes, (None, False)):
            yield Attempt(call, "fresh", dtype, training)

    def _learn(self, reading: Reading, *, asked: bool) -> None:
        """Look again at raw parameters and at biases, now that their use is known."""
        used = {name: facts for name, facts in reading.facts.items() if facts.used}
        raw = {site.name for site in self.sites if _is_raw(site)} & used.keys()
        excused = [like.site.name for like in self.suspects.likenesses if _is_fine(like, used)]
        if raw or excused:
            self.sites = tuple(
                _told(site, used[site.name]) if site.name in raw else site for site in self.sites
            )
            self.suspects = suspects(self.model, self.sites, excused=excused, asked=asked)

    def _dtypes(self) -> tuple[torch.dtype, ...]:
        numbers = sum(p.numel() for p in self.model.parameters())
        on_mps = any(p.device.type == "mps" for p in self.model.parameters())
        if on_mps or numbers > _MOST_IN_DOUBLE:
            return (torch.float32,)
        return (torch.float64, torch.float32)

    def _unprobed(self) -> Report:
        reason = f"units are equal at the start; {self.failures[0]}"
        likenesses = {like.site.name: like for like in reversed(self.suspects.likenesses)}
        rows = (
            Finding(name, groups_of(like), "suspect", reason, along=like.view.along)
            for name, like in reversed(likenesses.items())
        )
        modules = (
            Finding(twin.names[0], (twin.names,), "suspect", reason, along="modules")
            for twin in self.suspects.twins
        )
        return Report((*rows, *modules), "scanned", self.failures[0])

    #
    # One way of running it
    #

    def _attempt(self, attempt: Attempt) -> Report | None:
        """Probe in one way; None where the model does not run so."""
        with laboratory(self.model):
            if attempt.training is not None:
                self.model.train(attempt.training)
            trial = Trial(self.model, self._batches(attempt), self.loss)
            if not self._runs(trial):
                return None
            trial.trained = self._suspected_keys()
            if attempt.clears_only:
                outcome = self._in_a_hurry(trial)
            else:
                outcome = self._suspects_alone(trial) or self._everything(trial)
            if outcome is None:
                return None
            found = list(findings(outcome, self.suspects.names))
            return Report(sort(self._with_one_target(trial, found)), note=_note(trial, outcome))

    def _batches(self, attempt: Attempt) -> Batches:
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return Batches(attempt.call, attempt.style, attempt.dtype, device, vocabulary(self.model))

    def _runs(self, trial: Trial) -> bool:
        """Rehearse; where the suspects get nothing, see whether anything does."""
        try:
            for trial.trained in (self._suspected_keys(), self._all_keys()):
                gradients = trial.gradients(1)
                if not all(bool(g.isfinite().all()) for g in gradients.values()):
                    self.failures.append("the gradients are not finite")
                    return False
                if trial.connected:
                    return True
        except TraceError:
            raise
        except Exception as error:  # noqa: BLE001 - a forward may raise anything
            text = (str(error).splitlines() or [""])[0]
            self.failures.append(f"{type(error).__name__}: {text}")
            return False
        self.failures.append("no output depends on a trained parameter")
        return False

    def _suspected_keys(self) -> tuple[str, ...]:
        likenesses, of_modules = self._suspected_tracks()
        keys = [track.key for track in likenesses]
        keys += [key for track in of_modules for member in track.keys for key in member]
        return tuple(dict.fromkeys(keys))

    def _all_keys(self) -> tuple[str, ...]:
        return tuple(key for keys in self.keys.values() for key in keys)

    def _suspected_tracks(self) -> tuple[list[Track], list[TwinTrack]]:
        of_modules = [TwinTrack(twin, self.names) for twin in self.suspects.twins]
        return tracks_of(self.suspects.likenesses, self.names), of_modules

    def _in_a_hurry(self, trial: Trial) -> Outcome | None:
        """Train the suspects as long as each step clears some; None where that is not enough.

        A few units may get no gradient in a parameter that does: columns behind a silent unit, rows
        of a table that these inputs do not look up. They are cleared if they would get none from
        another start either.
        """
        tracks, of_modules = self._suspected_tracks()
        everything: list[AnyTrack] = [*tracks, *of_modules]
        journey = follow(trial, everything, patience=1)
        together = any(track.moves_together for track in everything)
        if together or not all(track.key in journey.stirred for track in tracks):
            return None
        if not all(track.is_resolved for track in of_modules):
            return None
        open_tracks = [track for track in tracks if not track.is_resolved]
        reach = awakened(trial, open_tracks, journey, draws=1)
        trial.reset()
        if any(True for _ in idle_parts(open_tracks, reach)):
            return None
        return self._outcome(trial, tracks, of_modules, reach, journey)

    def _suspects_alone(self, trial: Trial) -> Outcome | None:
        """Train the suspects and nothing else, which is cheap; None where that does not clear them.

        Whatever tells units apart while all else stands still also does while all else moves.
        """
        outcome = self._followed(trial, *self._suspected_tracks())
        trial.reset()
        tracks: list[AnyTrack] = [*outcome.tracks, *outcome.twins]
        moving = any(track.moves_together for track in tracks)
        idle = any(True for _ in idle_parts(outcome.tracks, outcome.reach))
        return None if moving or idle else outcome

    def _everything(self, trial: Trial) -> Outcome:
        """Train all there is, and look at all that is equal."""
        trial.trained = self._all_keys()
        tracks = tracks_of(scan(self.sites, thorough=True), self.names)
        of_modules = [TwinTrack(twin, self.names) for twin in self.suspects.twins]
        outcome = self._followed(trial, tracks, of_modules)
        trial.reset()
        return outcome

    def _followed(
        self, trial: Trial, tracks: Sequence[Track], of_modules: Sequence[TwinTrack]
    ) -> Outcome:
        journey = follow(trial, [*tracks, *of_modules])
        reach = awakened(trial, tracks, journey)
        return self._outcome(trial, tracks, of_modules, reach, journey)

    def _outcome(
        self,
        trial: Trial,
        tracks: Sequence[Track],
        of_modules: Sequence[TwinTrack],
        reach: Values,
        journey: Journey,
    ) -> Outcome:
        stirred, steps = journey.stirred, journey.steps
        keys = self._kept_keys(trial)
        return Outcome(self.sites, keys, tracks, of_modules, reach, stirred, steps)

    def _kept_keys(self, trial: Trial) -> dict[str, list[str]]:
        """Return the trained tensors behind each site that has any."""
        kept = {name: [k for k in keys if k in trial.trained] for name, keys in self.keys.items()}
        return {name: keys for name, keys in kept.items() if keys}

    def _with_one_target(self, trial: Trial, found: Sequence[Finding]) -> Iterator[Finding]:
        """Judge copied modules again with equal targets for equal outputs.

        Two critics with the same inputs and the same targets stay one critic.
        """
        for finding in found:
            twin = next((t for t in self.suspects.twins if t.names[0] == finding.name), None)
            is_open = finding.along == "modules" and finding.verdict == "harmless"
            if self.loss is None and twin is not None and is_open and _is_random(twin):
                yield self._with_shared_targets(trial, twin, finding)
            else:
                yield finding

    def _with_shared_targets(self, trial: Trial, twin: Twins, otherwise: Finding) -> Finding:
        trial.reset()
        trial.shared_targets = True
        track = TwinTrack(twin, self.names)
        trial.trained = tuple(dict.fromkeys(key for keys in track.keys for key in keys))
        outcome = self._followed(trial, (), (track,))
        trial.shared_targets = False
        again = next(findings(outcome, ()))
        return again if again.verdict == "tied" else otherwise


def _is_random(twin: Twins) -> bool:
    """Whether copied modules hold more than constants, so that copying them was no accident."""
    matrices = (p for p in twin.parameters[0] if p.ndim > 1)
    return any(bool((p != p[(0,) * p.ndim]).any()) for p in matrices)


_MOST_IN_DOUBLE = 300_000_000
"""Parameters of the largest model that is copied to float64."""

_EDGE = 64
"""Edge of the images that are tried first, in pixels."""

_BATCH = 8
"""Number of small inputs that are drawn at once."""


def _with_small_images(call: Call) -> Call | None:
    """Return the call with small images, which most models take; None where it has no others."""

    def small(tensor: Tensor) -> Tensor:
        if tensor.ndim != 4 or tensor.shape[1] > 4 or min(tensor.shape[2:]) <= _EDGE:
            return tensor
        return tensor.new_empty((_BATCH // 2, tensor.shape[1], _EDGE, _EDGE), device="meta")

    return _changed(call, small)


def _with_one_large(call: Call) -> Call | None:
    """Return the call with a single sample; None where samples are small."""
    before = batch_size(call)

    def one(tensor: Tensor) -> Tensor:
        if tensor.ndim < 2 or tensor.shape[0] != before or tensor.numel() <= before << 14:
            return tensor
        return tensor.new_empty((1, *tensor.shape[1:]), device="meta")

    return _changed(call, one)


def _with_more_samples(call: Call) -> Call | None:
    """Return the call with more samples, so that more is generic; None where they are large."""
    before = batch_size(call)

    def more(tensor: Tensor) -> Tensor:
        if not tensor.ndim or tensor.shape[0] != before or tensor.numel() > before << 14:
            return tensor
        return tensor.new_empty((_BATCH, *tensor.shape[1:]), device="meta")

    return _changed(call, more)


def _changed(call: Call, change: Callable[[Tensor], Tensor]) -> Call | None:
    changed = call.mapped(change)
    before, after = tensors_in((call.args, call.kwargs)), tensors_in((changed.args, changed.kwargs))
    same = all(a is b for a, b in zip(before, after, strict=True))
    return None if same else changed


def _note(trial: Trial, outcome: Outcome) -> str:
    kind = {"fresh": "random inputs", "near": "inputs near the given", "given": "the given inputs"}
    steps = f"{outcome.steps} step{'s' * (outcome.steps > 1)}"
    return f"{steps} on {kind[trial.batches.style]} in {str(trial.batches.dtype)[6:]}"
