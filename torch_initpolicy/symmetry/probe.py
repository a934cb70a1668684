"""Follows equal units through a few steps of training on copies, until nothing changes any more.

The theorem behind it: where the loss does not change when units are exchanged, no step of training
makes them differ, whatever the batch. So gradients on generic inputs tell; but one that is zero
tells nothing yet, which is why steps are taken.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from torch_initpolicy.symmetry.modules import EqualModules
from torch_initpolicy.symmetry.replica import Replica, Unfit, largest, size_of
from torch_initpolicy.symmetry.scan import EqualUnits
from torch_initpolicy.symmetry.units import (
    ByParameter,
    Fingerprints,
    View,
    equal_groups,
    firsts,
    row_fingerprints,
)

PATIENCE = 3
"""Steps without change that end a probe: once a point is generic among those that share its
symmetry, one more gradient decides (the function being piecewise analytic); two are for luck."""

NOISE = 8
"""How many times as many where random numbers are drawn: two masks may agree by accident."""

MOST_STEPS = 60
"""Steps after which a probe ends in any case."""


Start = TypeVar("Start", EqualUnits, EqualModules)


class Track(Generic[Start]):
    """Units or modules that were equal or zero at the start, and what became of them.

    Attributes:
        start: What was found at the start.
        units: Their numbers.
        labels: For each of them the number of the first it still equals.
        signs: Their signs relative to one another, where negatives count as equal.
        alive: Whether a gradient has arrived at them.
        first_moved: The first step at which one has.
        separated: The last step at which some have been told apart.
        drift: The largest difference, relative to their size, of those that count as equal.
    """

    def __init__(self, start: Start, *, negated_too: bool = False) -> None:
        self.start: Start = start
        self.units = start.units
        self.labels, self.signs = start.labels, start.signs
        if not negated_too:
            self.labels = _meet(self.labels, (self.signs < 0).long(), self.units)
            self.signs = torch.ones_like(self.signs)
        self.alive = torch.zeros(len(self.labels), dtype=torch.bool)
        self.first_moved: int | None = None
        self.separated: int | None = None
        self.drift = 0.0

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """List the positions of those that are still equal, group by group."""
        return equal_groups(self.labels)

    @property
    def moves_together(self) -> bool:
        """Whether any that are still equal have moved."""
        moved = torch.unique(self.labels[self.alive])
        return bool((self.labels.bincount()[moved] > 1).any())

    @property
    def is_resolved(self) -> bool:
        """Whether all have moved, and none together."""
        return self.has_moved and not self.moves_together

    @property
    def has_moved(self) -> bool:
        """Whether a gradient has arrived at all, of a vector at any."""
        return bool(self.alive.any() if self.start.is_vector else self.alive.all())

    def holds(self, first: int, second: int) -> bool:
        """Whether two units, by number, are still equal."""
        labels = self.labels[(self.units == first) | (self.units == second)]
        return len(labels) == 2 and bool(labels[0] == labels[1])

    def see(self, gradients: ByParameter, step: int, same: float) -> bool:
        """Compare the gradients of what is equal; tell whether anything is new."""
        found = [row_fingerprints(rows) for rows in self.start.rows(gradients)]
        moves = torch.stack([prints.scale > 0 for prints in found]).any(0)
        if not bool(moves.any()):
            return False
        newly_moved = bool((moves & ~self.alive).any())
        self.alive |= moves
        self.first_moved = self.first_moved or step
        self.drift = 0.0
        separated = [self._separate(self._turned(prints), same) for prints in found]
        if any(separated):
            self.separated = step
        return any(separated) or newly_moved

    def _turned(self, prints: Fingerprints) -> Fingerprints:
        """Return fingerprints as if all units had one sign; a row of zeros takes its first."""
        if bool((self.signs == 0).any()):
            self.signs = torch.where(self.signs == 0, prints.keys[0].sign(), self.signs).char()
        return prints.turned(self.signs)

    def _separate(self, prints: Fingerprints, same: float) -> bool:
        """Split groups whose gradients differ; tell whether any did."""
        drift = float(prints.distances(firsts(self.labels)).amax())
        if drift <= same:
            self.drift = max(self.drift, drift)
            return False
        labels = _meet(self.labels, prints.labels(same), self.units)
        changed = not torch.equal(labels, self.labels)
        self.labels = labels
        return changed

    def drift_of(self, tensors: ByParameter) -> float:
        """Return the largest relative difference in some tensors of what counts as equal."""
        found = (row_fingerprints(rows).turned(self.signs) for rows in self.start.rows(tensors))
        return max(float(prints.distances(firsts(self.labels)).amax()) for prints in found)

    def distrust(self, gradients: ByParameter, mirrored: ByParameter) -> None:
        """Part units whose gradient is zero, or another than that of their negatives."""
        for rows, others in zip(self.start.rows(gradients), self.start.rows(mirrored), strict=True):
            prints = row_fingerprints(torch.cat((rows, others)))
            positions = torch.arange(len(rows))
            apart = prints.distances(positions.repeat(2))[len(rows) :]
            is_zero = (apart <= _SIMILAR) & (prints.scale[: len(rows)] > 0)
            self.labels = torch.where(is_zero, self.labels, self.units)
        self.labels = self.units[firsts(self.labels)]

    def level(self, tensors: ByParameter, limit: float) -> None:
        """Make what is equal exactly equal, values or gradients, where it drifts beyond a limit."""
        if self.drift > limit:
            leaders = firsts(self.labels)
            turn = torch.where(self.signs * self.signs[leaders] < 0, -1.0, 1.0)
            self.start.level(tensors, leaders, turn)


def _meet(first: Tensor, second: Tensor, units: Tensor) -> Tensor:
    """Label units that share both labels by the first of them."""
    pairs = torch.stack((first, second), 1)
    return units[firsts(torch.unique(pairs, dim=0, return_inverse=True)[1])]


def _may_be_negated(other: EqualUnits, like: EqualUnits) -> bool:
    return other.view.is_across(like.view) and bool((other.signs <= 0).any())


@dataclass
class Probe:
    """What training has shown of the units and modules that are followed.

    Attributes:
        units: Units, and what became of them.
        modules: Modules, likewise.
        steps: Number of gradients taken.
        first_moved: First step at which a gradient has come to a parameter, where one has.
        reach: The largest gradients that parameters get where what never moved is made random.
    """

    units: Sequence[Track[EqualUnits]]
    modules: Sequence[Track[EqualModules]]
    steps: int = 0
    first_moved: dict[nn.Parameter, int] = field(default_factory=dict)
    reach: ByParameter = field(default_factory=dict)

    @classmethod
    def of(
        cls, equal_units: Iterable[EqualUnits], equal_modules: Iterable[EqualModules] = ()
    ) -> "Probe":
        """Start to follow what is equal.

        A unit that negates another is worth following only where what it feeds, or is fed by, may
        be negated too: two logits under a softmax always move oppositely, and mean no loss.
        """
        found = tuple(equal_units)
        negated = [any(_may_be_negated(other, like) for other in found) for like in found]
        units = [Track(like, negated_too=too) for like, too in zip(found, negated, strict=True)]
        return cls(units, [Track(copies) for copies in equal_modules])

    @property
    def tracks(self) -> tuple[Track[Any], ...]:
        """All that is followed."""
        return (*self.units, *self.modules)

    @property
    def moves_together(self) -> bool:
        """Whether anything that is still equal has moved."""
        return any(track.moves_together for track in self.tracks)

    @property
    def idle(self) -> list[Track[EqualUnits]]:
        """The suspected units to which no gradient has come."""
        return [track for track in self.units if track.start.is_suspect and not track.has_moved]

    def note(self, gradients: ByParameter, same: float) -> bool:
        """Show one step's gradients to all tracks; tell whether anything is new."""
        self.steps += 1
        waiting = (p for p in gradients if p not in self.first_moved)
        newly_moved = [p for p in waiting if bool(gradients[p].any())]
        self.first_moved.update(dict.fromkeys(newly_moved, self.steps))
        changed = [track.see(gradients, self.steps, same) for track in self.tracks]
        return any(changed) or bool(newly_moved)

    def dead_units(self) -> Iterator[tuple[Track[EqualUnits], set[int]]]:
        """Yield tracks with the units that never moved and would from another start."""
        for track in self.units:
            if track.start.parameter in self.reach and not bool(track.alive.all()):
                (rows,) = track.start.rows(self.reach)
                dead = track.units[~track.alive & (rows != 0).any(1).cpu()]
                if len(dead):
                    yield track, set(dead.tolist())


def follow(probe: Probe, replica: Replica, *, patience: int = PATIENCE) -> Probe:
    """Train copies until all tracks are resolved, or nothing has changed for as many steps."""
    same = replica.precision.same
    values = dict(replica.values)
    for track in probe.tracks:
        track.drift = track.drift_of(values)
    _part_at_kinks([track for track in probe.units if track.drift > _NEXT_TO_ZERO], replica)
    for track in probe.tracks:
        track.level(values, _DRIFT * same)  # a near-tie is a tie for a long while
    replica.values, quiet = values, 0
    for step in range(1, MOST_STEPS + 1):
        gradients = replica.gradients(step)
        if not all(math.isfinite(largest(gradient)) for gradient in gradients.values()):
            if step == 1:
                raise Unfit("the gradients are not finite")
            break
        quiet = 0 if probe.note(gradients, same) else quiet + 1
        waiting = patience * NOISE if replica.noisy else patience
        if quiet >= waiting or all(track.is_resolved for track in probe.tracks):
            break
        for track in probe.tracks:
            track.level(gradients, _DRIFT * same)
        replica.descend(gradients)
    return probe


def _part_at_kinks(tracks: Sequence[Track[EqualUnits]], replica: Replica) -> None:
    """Part units next to zero where the loss has a kink: there they are as far apart as any.

    Where it is smooth, a unit so small has the gradient of its negative.
    """
    if tracks:
        gradients, values = replica.gradients(1), replica.values
        replica.values = dict(values)
        for start in (track.start for track in tracks):
            units = start.units[start.signs == 0]
            rows = start.view.rows(values[start.parameter], units)
            mirrored = start.view.put(replica.values[start.parameter], units, -rows)
            replica.values[start.parameter] = mirrored
        others, replica.values = replica.gradients(1), values
        for track in tracks:
            track.distrust(gradients, others)


_NEXT_TO_ZERO, _SIMILAR = 1e-4, 1e-3
"""Relative difference beyond which what counts as equal is next to zero, not next to each other;
and up to which gradients of a unit and its negative are equal."""

_DRIFT = 1e-3
"""Share of the difference that tells units apart up to which rounding may grow between them."""


DRAWS = 4
"""How often zeros are replaced by random numbers, to see what then gets a gradient."""


def find_reach(probe: Probe, replica: Replica, *, draws: int = DRAWS) -> None:
    """Find out which elements would get a gradient if the units that never moved were random.

    What gets none even so is out of the reach of any initialisation: unused, or without effect on
    the loss (a bias before a batch norm, the key bias of attention, rows of padding). Or it has no
    effect while others are tied (the router of equal experts): for units that are themselves equal
    and not zero it counts as well what they would get if all that is tied were random.
    """
    probe.reach = {p: torch.zeros_like(replica.values[p]).abs() for p in replica.trained}
    for draw in range(draws):
        if not probe.idle:
            break
        probe.note(replica.gradients(draw + 1), replica.precision.same)  # some were only late
        idle = probe.idle
        _raise(probe.reach, _gradients_with_noise(replica, idle, draw))
        equal = [t for t in idle if t.groups() and bool(t.start.signs[~t.alive].any())]
        if equal and probe.moves_together:
            tied = [t for t in probe.units if t.start.is_suspect and t.moves_together]
            gradients = _gradients_with_noise(replica, [*idle, *tied], draw)
            _raise(probe.reach, {p: gradients[p] for p in _with_biases(equal, probe.units)})


def _raise(reach: ByParameter, gradients: ByParameter) -> None:
    for parameter, gradient in gradients.items():
        reach[parameter] = torch.maximum(reach[parameter], gradient.abs())


def _with_biases(
    equal: Sequence[Track[EqualUnits]], tracks: Sequence[Track[EqualUnits]]
) -> set[nn.Parameter]:
    """Return the parameters of some tracks, and the biases that belong to them."""
    owners = [track.start.site.owner for track in equal]
    sites = (track.start.site for track in tracks)
    biases = [site for site in sites if site.role == "bias" and site.owner in owners]
    return {track.start.parameter for track in equal}.union(*(site.parameters for site in biases))


def _gradients_with_noise(
    replica: Replica, tracks: Sequence[Track[EqualUnits]], draw: int
) -> ByParameter:
    """Return the gradients with units that never moved, or move together, made random."""
    kept = replica.values
    replica.values = dict(kept)
    for track in tracks:
        parameter = track.start.parameter
        usual = size_of(replica.starts[parameter]) or track.start.view.features**-0.5
        noise = 2.0 ** (draw + 1) * usual
        replica.values[parameter] = _with_noise(track, replica.values[parameter], noise, draw)
    gradients = replica.gradients(draw + 1)
    replica.values = kept
    return gradients


def _with_noise(track: Track[EqualUnits], value: Tensor, noise: float, draw: int) -> Tensor:
    """Add noise to the units that never moved, or are still equal."""
    generator = torch.Generator().manual_seed(draw)
    together = track.labels.bincount()[track.labels] > 1
    units = track.units[~track.alive | together]
    view: View = track.start.view
    rows = view.rows(value, units)
    drawn = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    return view.put(value, units, rows + noise * drawn.to(rows))
