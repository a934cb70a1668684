"""Follows the units of one model that start equal through the first steps of its training.

Uses the training's own weights and gradients; runs nothing of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_initpolicy.sites import canonical_modules, sites
from torch_initpolicy.symmetry.classify import Outcome, of_modules, remedy, tied
from torch_initpolicy.symmetry.findings import Finding
from torch_initpolicy.symmetry.probe import ModuleTrack, Progress, Track, UnitTrack, tracks_of
from torch_initpolicy.symmetry.replica import Values, dense, random_states
from torch_initpolicy.symmetry.scan import suspects


class Followed:
    """One model, and what has been seen of its training.

    The hooks on the model, which tell whether its forward pass draws random numbers, keep this
    object alive, and nothing else does. A copy of the model is not followed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.found: tuple[Finding, ...] = ()
        self.is_done = False
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._follower: _Follower | None = None
        self._noise = _Noise()
        self._handles = [
            handle
            for module in _callable(model)
            for handle in (
                module.register_forward_pre_hook(self._enter),
                module.register_forward_hook(self._leave),
            )
        ]

    def __deepcopy__(self, memo: dict[int, object]) -> "Followed":
        return _ended()

    def __reduce__(self) -> tuple[Any, ...]:
        return _ended, ()

    def remove(self) -> None:
        """Take the hooks off the model."""
        self.is_done = True
        for handle in self._handles:
            handle.remove()

    def look(self, optimizer: Optimizer) -> bool:
        """Look at one step of one optimizer; tell whether that was enough.

        The first step that trains the model starts the scan.
        """
        if self._follower is None:
            self._names = {id(p): name for name, p in self.model.named_parameters()}
            if not any(True for _ in _gradients(optimizer, self._names)):
                return False
            self._follower = _Follower(self.model)
        self._follower.look(optimizer, self._noise.patience(self.model))
        self.found = self._follower.found()
        self.is_done = bool(self.found) or self._follower.is_settled
        return self.is_done

    def _enter(self, module: nn.Module, args: Any) -> None:
        if not (self.is_done or torch.compiler.is_compiling()):
            self._noise.before()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if not (self.is_done or torch.compiler.is_compiling()):
            self._noise.after()


def _ended() -> Followed:
    """Return what the hooks on a copied or loaded model call: it follows nothing."""
    followed = object.__new__(Followed)
    followed.is_done = True
    return followed


def _gradients(optimizer: Optimizer, names: Mapping[int, str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the gradients of the named parameters that an optimizer is about to use."""
    for name, parameter in _trained(optimizer, names):
        if parameter.grad is not None:
            yield name, parameter.grad


def _without_gradients(
    optimizer: Optimizer, names: Mapping[int, str]
) -> Iterator[tuple[str, Tensor]]:
    """Yield zeros for the named parameters to which no gradient has come."""
    for name, parameter in _trained(optimizer, names):
        if parameter.grad is None:
            yield name, torch.zeros_like(parameter)


def _trained(optimizer: Optimizer, names: Mapping[int, str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the named parameters that an optimizer is about to move."""
    for group in optimizer.param_groups:
        if float(group.get("lr", 1.0)) == 0.0:  # a warm-up from zero moves nothing yet
            continue
        for parameter in group["params"]:
            if id(parameter) in names:
                yield names[id(parameter)], parameter


_SURE = 1
"""Steps without news after which a tie is certain where everything moves and nothing is random."""

_WAITING = 5
"""The same where something may still be waiting for a zero to move, or for units that
have separated elsewhere: with short steps it takes a few until the others show it."""

_NOISY = 24
"""The same where random numbers are drawn: the masks of two units may agree by accident."""

_DEAD = 10
"""Steps with a gradient of exactly zero after which a parameter of zeros is dead."""

_SAME: Mapping[torch.dtype, float] = {torch.float64: 1e-6, torch.float32: 1e-5}
"""Gradients are equal where they differ by less than this, relatively: rounding makes up 1e-6 at
most, and units that have just separated move the gradients of others by the step length."""

_SAME_IN_HALF = 3e-2


@dataclass
class _Observed:
    """A track with what the training has shown it so far.

    Attributes:
        track: The track.
        keys: Names of the parameters it needs gradients of.
        quiet: Steps since anything changed.
        pending: Gradients that wait for those of another optimizer.
    """

    track: Track
    keys: frozenset[str]
    quiet: int = 0
    pending: Values = field(default_factory=dict)

    @property
    def is_spreading(self) -> bool:
        """Whether units have separated that got equal gradients before.

        Others tell them apart, by as little as those have moved; what is left of such a group may
        still be on its way.
        """
        return (self.track.separated or 0) > (self.track.first_moved or 0)

    def show(self, gradients: Values, idle: Values, step: int) -> None:
        """Show the track its gradients, once all of them are there.

        Args:
            gradients: What one optimizer is about to use.
            idle: Zeros for what it holds without a gradient: experts that no sample has chosen.
            step: Number of the step.
        """
        self.pending |= {key: g for key, g in gradients.items() if key in self.keys}
        if self.pending:
            self.pending = {key: g for key, g in idle.items() if key in self.keys} | self.pending
        if self.pending.keys() < self.keys:
            return
        seen, self.pending = self.pending, {}
        same = max(_SAME.get(g.dtype, _SAME_IN_HALF) for g in seen.values())
        self.quiet = 0 if self.track.see(seen, step, same) else self.quiet + 1


class _Follower:
    """Follows the suspects of one model through the steps of its optimizers."""

    def __init__(self, model: nn.Module) -> None:
        self.sites = sites(model)
        inner = next(module for _, module in canonical_modules(model))
        found = suspects(inner, self.sites)
        names = {id(p): name for name, p in inner.named_parameters()}
        self.tracks = tracks_of(found.equal_units, names)
        self.equal_modules = [ModuleTrack(copies, names) for copies in found.equal_modules]
        self.observed = [
            *(_Observed(track, frozenset((track.key,))) for track in self.tracks),
            *(_Observed(copies, frozenset().union(*copies.keys)) for copies in self.equal_modules),
        ]
        wanted = frozenset[str]().union(*(o.keys for o in self.observed))
        self.names = {number: name for number, name in names.items() if name in wanted}
        self.progress = Progress()
        self.patience = _WAITING

    def look(self, optimizer: Optimizer, noise: int) -> None:
        """Compare the gradients that an optimizer is about to use.

        Args:
            optimizer: The optimizer.
            noise: Steps to wait because random numbers are drawn; 0 where none are.
        """
        gradients = {name: dense(g) for name, g in _gradients(optimizer, self.names)}
        if not gradients or not all(bool(g.isfinite().all()) for g in gradients.values()):
            return
        self.progress.note(gradients, (), 0.0)
        idle = dict(_without_gradients(optimizer, self.names))
        for observed in self.observed:
            observed.show(gradients, idle, self.progress.steps)
        blocked = not all(bool(observed.track.alive.any()) for observed in self.observed)
        self.patience = noise or (_WAITING if blocked else _SURE)

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing more to learn."""
        most = max(self.patience, _DEAD)
        return all(o.track.is_resolved or o.quiet >= most for o in self.observed)

    def found(self) -> tuple[Finding, ...]:
        """Return what is tied, once any of it is certain; else, at the end, what is dead."""
        outcome = self._outcome()
        moving = [o for o in self.observed if o.track.moves_together and not o.is_spreading]
        certain = any(o.quiet >= self._patience_with(o.track) for o in moving)
        ties = tuple(_ties(outcome)) if certain and any(_reads(o.track) for o in moving) else ()
        if ties or not self.is_settled:
            return ties
        waited = [o.track for o in self.observed if o.quiet >= _DEAD]
        dead = ((t, _dead_units(t)) for t in self.tracks if t in waited)
        findings = {t.start.site.name: _dead(t, units) for t, units in dead if units}
        return tuple(findings.values())

    def _patience_with(self, track: Track) -> int:
        """Return the steps to wait for a track; more where its units may be about to separate."""
        may_follow = any(_is_of_as_many(other, track) for other in self.tracks if other.separated)
        return max(self.patience, _WAITING) if may_follow else self.patience

    def _outcome(self) -> Outcome:
        keys = {
            site.name: [self.names[id(p)] for p in site.parameters if id(p) in self.names]
            for site in self.sites
        }
        kept = {name: of_site for name, of_site in keys.items() if of_site}
        first_moved, steps = self.progress.first_moved, self.progress.steps
        return Outcome(self.sites, kept, self.tracks, self.equal_modules, {}, first_moved, steps)


def _is_of_as_many(other: UnitTrack, track: Track) -> bool:
    """Whether units could be those of another track, or of one of its gates."""
    if isinstance(track, ModuleTrack) or other is track:
        return False
    return other.start.view.count % track.start.view.count == 0


def _reads(track: Track) -> bool:
    """Whether a tie is not only one of outputs.

    Where hidden units are tied, so are the inputs of what reads them. Outputs alone are tied where
    the loss treats the outputs of the model equally, which is the loss' affair.
    """
    if isinstance(track, ModuleTrack):
        return True
    like = track.start
    return like.view.along != "outputs" or like.site.role == "embedding"


def _ties(outcome: Outcome) -> Iterator[Finding]:
    trained = (site for site in outcome.sites if site.name in outcome.keys)
    yield from filter(None, (tied(outcome, site) for site in trained))
    of_twins = (of_modules(outcome, copies) for copies in outcome.equal_modules)
    yield from (finding for finding in of_twins if finding.verdict == "tied")


def _dead_units(track: UnitTrack) -> tuple[int, ...]:
    """Return the units that have got gradients, and nothing but zeros, by fault of their start.

    All units of a parameter that starts at a constant; or the rows that alone start at zero, but
    not in a lookup table, which may just not have met them.
    """
    like = track.start
    if len(like.units) == like.view.count:
        return () if bool(track.alive.any()) else tuple(range(like.view.count))
    if like.is_vector or like.view.along != "outputs" or like.site.role == "embedding":
        return ()
    idle = ~track.alive & (like.signs == 0).cpu()
    return tuple(track.units[idle].tolist())


def _dead(track: UnitTrack, units: tuple[int, ...]) -> Finding:
    site = track.start.site
    return Finding(
        name=site.name,
        units=(units,),
        verdict="dead",
        along=track.start.view.along,
        reason=f"{_DEAD} steps have brought no gradient to {len(units)} units",
        remedy=remedy(site),
    )


#
# Random numbers
#


@dataclass
class _Noise:
    """Whether the forward passes of a model draw random numbers."""

    started: list[Tensor] | None = None
    has_run: bool = False
    has_drawn: bool = False

    def before(self) -> None:
        """Note the random states before a forward pass."""
        self.started = random_states()

    def after(self) -> None:
        """Compare them with those after it."""
        if self.started is None:
            return
        before, now, self.started = self.started, random_states(), None
        self.has_run = True
        self.has_drawn |= len(now) != len(before) or any(
            not torch.equal(a, b) for a, b in zip(before, now, strict=True)
        )

    def patience(self, model: nn.Module) -> int:
        """Return the steps to wait for the sake of noise: 0 where there is none."""
        if self.has_drawn:
            return _NOISY
        if self.has_run:
            return 0
        return _NOISY if any(map(_drops, model.modules())) else _WAITING


def _callable(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules that have a forward pass: containers have none."""
    if type(model).forward is not nn.Module.forward:
        yield model
        return
    for child in model.children():
        yield from _callable(child)


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0  # noqa: SLF001 - torch names no public base
