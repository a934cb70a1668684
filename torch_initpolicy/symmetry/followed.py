"""Follows the units of one model that start equal through the first steps of its training.

Uses the training's own weights and gradients; runs nothing of its own.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from torch_initpolicy.errors import InitPolicyWarning, PlanError, warn
from torch_initpolicy.sites import sites, unwrapped
from torch_initpolicy.symmetry.classify import of_modules, symmetry_remedy, tied_finding
from torch_initpolicy.symmetry.findings import Finding
from torch_initpolicy.symmetry.probe import Probe, Track
from torch_initpolicy.symmetry.replica import dense
from torch_initpolicy.symmetry.scan import EqualUnits, suspects
from torch_initpolicy.symmetry.units import ByParameter


class Followed:
    """One model, and what has been seen of its training.

    The hooks on the model, which tell whether its forward pass draws random numbers, keep this
    object alive, and nothing else does. A copy of the model is not followed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.found: tuple[Finding, ...] = ()
        self.is_done = False
        self._follower: _Follower | None = None
        self._noise = _Noise()
        modules = list(_callable(model))
        self._handles = [
            *(module.register_forward_pre_hook(self._enter) for module in modules),
            *(module.register_forward_hook(self._leave) for module in modules),
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
        """Look at one step of one optimizer, at first with a scan; tell whether that was enough."""
        if self._follower is None:
            own = frozenset(self.model.parameters())
            if not any(p in own and p.grad is not None for p in _trained(optimizer)):
                return False
            try:
                self._follower = _Follower(self.model)
            except PlanError as error:  # of an engine: training goes on
                warn(f"not watched: {error}", InitPolicyWarning, through=("torch",))
                self.is_done = True
                return True
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


def _trained(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    """Yield the parameters that an optimizer is about to move."""
    for group in optimizer.param_groups:
        if float(group.get("lr", 1.0)) != 0.0:  # a warm-up from zero moves nothing yet
            yield from group["params"]


_SURE = 1
"""Steps without news after which a tie is certain where everything moves and nothing is random."""

_WAITING = 5
"""The same where something may still be waiting for a zero to move, or for units that
have separated elsewhere: with short steps it takes a few until the others show it."""

_NOISY = 24
"""The same where random numbers are drawn: the masks of two units may agree by accident."""

_DEAD = 10
"""Steps with a gradient of exactly zero after which a parameter of zeros is dead."""

_SAME: Mapping[torch.dtype, float] = {torch.float64: 3e-7, torch.float32: 3e-6}
"""Gradients are equal where they differ by less than this, relatively: rounding makes up a tenth of
it, and units that have just separated move the gradients of others by the step length."""

_SAME_IN_HALF = 1e-2


@dataclass
class _Observed:
    """A track, the steps since it changed, and gradients that wait for another optimizer's."""

    track: Track[Any]
    quiet: int = 0
    pending: ByParameter = field(default_factory=dict)

    @property
    def is_spreading(self) -> bool:
        """Whether units have separated that got equal gradients before.

        Others tell them apart, by as little as those have moved; what is left of such a group may
        still be on its way.
        """
        return (self.track.separated or 0) > (self.track.first_moved or 0)

    def show(self, gradients: ByParameter, idle: ByParameter, step: int) -> None:
        """Show the track what one optimizer is about to use, once all of its gradients are there.

        `idle` holds zeros for what has no gradient: experts that no sample has chosen.
        """
        wanted = self.track.start.parameters
        self.pending |= {p: gradients[p] for p in wanted if p in gradients}
        if self.pending:
            self.pending = {p: idle[p] for p in wanted if p in idle} | self.pending
        if len(self.pending) == len(wanted):
            seen, self.pending = self.pending, {}
            same = max(_SAME.get(g.dtype, _SAME_IN_HALF) for g in seen.values())
            self.quiet = 0 if self.track.see(seen, step, same) else self.quiet + 1


class _Follower:
    """Follows the suspects of one model through the steps of its optimizers."""

    def __init__(self, model: nn.Module) -> None:
        self.sites = sites(model)
        found = suspects(unwrapped(model), self.sites)
        self.wanted = frozenset(found.parameters)
        self.probe = Probe.of(*found)
        self.observed = [_Observed(track) for track in self.probe.tracks]
        self.patience = _WAITING

    def look(self, optimizer: Optimizer, noise: int) -> None:
        """Compare the gradients that an optimizer is about to use; wait so long for noise."""
        held = [p for p in _trained(optimizer) if p in self.wanted]
        gradients = {p: dense(p.grad) for p in held if p.grad is not None}
        if not gradients or not all(bool(g.isfinite().all()) for g in gradients.values()):
            return
        self.probe.steps += 1
        idle = {p: torch.zeros_like(p) for p in held if p.grad is None}
        for observed in self.observed:
            observed.show(gradients, idle, self.probe.steps)
        blocked = not all(bool(observed.track.alive.any()) for observed in self.observed)
        self.patience = noise or (_WAITING if blocked else _SURE)

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing more to learn."""
        most = max(self.patience, _DEAD)
        return all(o.track.is_resolved or o.quiet >= most for o in self.observed)

    def found(self) -> tuple[Finding, ...]:
        """Return what is tied, once any of it is certain; else, at the end, what is dead."""
        moving = [o for o in self.observed if o.track.moves_together and not o.is_spreading]
        certain = any(o.quiet >= self._patience_with(o.track) for o in moving)
        ties = tuple(self._ties()) if certain and any(_reads(o.track) for o in moving) else ()
        if ties or not self.is_settled:
            return ties
        waited = {id(o.track) for o in self.observed if o.quiet >= _DEAD}
        dead = ((t, _dead_units(t)) for t in self.probe.units if id(t) in waited)
        return tuple({t.start.site.name: _dead(t, units) for t, units in dead if units}.values())

    def _patience_with(self, track: Track[Any]) -> int:
        """Return the steps to wait for a track; more where its units may be about to separate."""
        separated = [other for other in self.probe.units if other.separated]
        may_follow = any(_is_of_as_many(other, track) for other in separated)
        return max(self.patience, _WAITING) if may_follow else self.patience

    def _ties(self) -> Iterator[Finding]:
        yield from filter(None, (tied_finding(self.probe, site, self.sites) for site in self.sites))
        of_copies = (of_modules(self.probe, track) for track in self.probe.modules)
        yield from (finding for finding in of_copies if finding.verdict == "tied")


def _is_of_as_many(other: Track[EqualUnits], track: Track[Any]) -> bool:
    """Whether units could be those of another track, or of one of its gates."""
    start = track.start
    is_own = not isinstance(start, EqualUnits) or other is track
    return not is_own and other.start.view.count % start.view.count == 0


def _reads(track: Track[Any]) -> bool:
    """Whether a tie is not only one of outputs.

    Where hidden units are tied, so are the inputs of what reads them. Outputs alone are tied where
    the loss treats the outputs of the model equally, which is the loss' affair.
    """
    start = track.start
    if not isinstance(start, EqualUnits):
        return True
    return start.view.along != "outputs" or start.site.role == "embedding"


def _dead_units(track: Track[EqualUnits]) -> tuple[int, ...]:
    """Return the units that have got nothing but zeros for gradients by fault of their start.

    All units of a constant parameter; or the rows that alone start at zero, but not in a lookup
    table, which may just not have met them.
    """
    like = track.start
    if like.is_whole:
        return () if bool(track.alive.any()) else tuple(range(like.view.count))
    if like.is_vector or like.view.along != "outputs" or like.site.role == "embedding":
        return ()
    idle = ~track.alive & (like.signs == 0)
    return tuple(track.units[idle].tolist())


def _dead(track: Track[EqualUnits], units: tuple[int, ...]) -> Finding:
    site, along = track.start.site, track.start.view.along
    reason = f"{_DEAD} steps have brought no gradient to {len(units)} units"
    return Finding(site.name, (units,), "dead", reason, along, remedy=symmetry_remedy(site))


# Random numbers


@dataclass
class _Noise:
    """Whether the forward passes of a model draw random numbers."""

    started: Tensor | None = None
    has_run: bool = False
    has_drawn: bool = False

    def before(self) -> None:
        """Note the random states before a forward pass."""
        self.started = _random_states()

    def after(self) -> None:
        """Compare them with those after it."""
        if self.started is not None:
            self.has_run = True
            self.has_drawn |= not torch.equal(self.started, _random_states())
            self.started = None

    def patience(self, model: nn.Module) -> int:
        """Return the steps to wait for the sake of noise: 0 where there is none."""
        if self.has_drawn:
            return _NOISY
        if self.has_run:
            return 0
        return _NOISY if any(map(_drops, model.modules())) else _WAITING


def _random_states() -> Tensor:
    """Return the states of torch's generators, one after the other."""
    is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cat([torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if is_used else ())])


def _callable(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules that have a forward pass: containers have none."""
    if type(model).forward is not nn.Module.forward:
        yield model
        return
    for child in model.children():
        yield from _callable(child)


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0  # noqa: SLF001 - torch names no public base
