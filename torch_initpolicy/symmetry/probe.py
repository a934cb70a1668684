"""Follows equal units through a few steps of training on copies, until nothing changes any more.

The theorem behind it: where the loss does not change when units are exchanged, no step of training
makes them differ, whatever the batch. So gradients on generic inputs tell; but one that is zero
tells nothing yet, which is why steps are taken.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torch_initpolicy.symmetry.replica import Trial, Values
from torch_initpolicy.symmetry.scan import Likeness, Twins
from torch_initpolicy.symmetry.units import alike, groups

PATIENCE = 3
"""Steps without change that end a probe: once a point is generic among those that share its
symmetry, one more gradient decides (the function being piecewise analytic); two are for luck."""

NOISY_PATIENCE = 24
"""The same where random numbers are drawn: the masks of two units may agree by accident."""

MOST_STEPS = 60
"""Steps after which a probe ends in any case."""


class Track:
    """Units of one parameter that were equal or zero at the start, and what became of them.

    With `turns`, units are also followed that equal another's negative.

    Attributes:
        likeness: What was found at the start.
        key: Name of the parameter in the trial.
        labels: For each of the likeness' units the number of the first it still equals.
        signs: Their signs relative to one another.
        alive: Whether a gradient has arrived at them.
        stirred: The first step at which one has.
        parted: The last step at which units have been told apart.
    """

    def __init__(self, likeness: Likeness, key: str, *, turns: bool = False) -> None:
        self.likeness = likeness
        self.key = key
        self.units = likeness.units.cpu()
        self.labels = likeness.labels.cpu()
        self.signs = likeness.signs.cpu().clone()
        if not turns:
            self.labels = _meet(self.labels, (self.signs < 0).long(), self.units)
            self.signs = torch.ones_like(self.signs)
        self.alive = torch.zeros(len(self.labels), dtype=torch.bool)
        self.stirred: int | None = None
        self.parted: int | None = None

    @property
    def is_resolved(self) -> bool:
        """Whether all units have moved, of a vector any, and none together."""
        moved = self.alive.any() if self.likeness.is_vector else self.alive.all()
        return bool(moved) and not self.moves_together

    @property
    def has_groups(self) -> bool:
        """Whether any units are still equal."""
        return bool((self.labels.bincount() > 1).any())

    @property
    def moves_together(self) -> bool:
        """Whether any units that are still equal have moved."""
        return any(bool(self.alive[list(group)].any()) for group in self.groups())

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """List the positions, among the likeness' units, of those that are still equal."""
        return groups(self.labels)

    def snap(self, values: Values) -> None:
        """Make units that are nearly equal exactly so: a near-tie is a tie for a long while."""
        self._level(values)

    def see(self, gradients: Values, step: int, same: float) -> bool:
        """Compare the gradients of equal units; tell whether anything is new."""
        rows = self._rows(gradients[self.key])
        stirs = (rows != 0).any(1)
        if not bool(stirs.any()):
            return False
        woken = bool((stirs & ~self.alive).any())
        self.alive |= stirs
        self.stirred = self.stirred or step
        return self._part(rows, step, same) or woken

    def _rows(self, tensor: Tensor) -> Tensor:
        rows = self.likeness.view.select(tensor, self.units.to(tensor.device)).cpu()
        return rows.sort(1).values if self.likeness.shuffled else rows

    def _part(self, rows: Tensor, step: int, same: float) -> bool:
        """Split groups whose gradients differ; tell whether any did."""
        if not self.likeness.shuffled:
            unsigned = self.signs == 0
            if bool(unsigned.any()):  # the sign of a row of zeros is that of its first gradient
                own = alike(lambda: [rows], signed=True)[1]
                self.signs = torch.where(unsigned, own, self.signs)
            if bool((self.signs < 0).any()):
                rows = rows * torch.where(self.signs == 0, 1, self.signs).to(rows)[:, None]
        if _equal_leaders(rows, _leaders(self.labels), same):
            return False
        gradient_labels = alike(lambda: [rows], near=same)[0]
        labels = _meet(self.labels, gradient_labels, self.units)
        changed = not torch.equal(labels, self.labels)
        if changed:
            self.labels, self.parted = labels, step
        return changed

    def level(self, gradients: Values) -> None:
        """Make the gradients of equal units exactly equal, so that rounding cannot grow."""
        self._level(gradients)

    def _level(self, tensors: Values) -> None:
        if self.likeness.shuffled or not self.has_groups:
            return
        tensor = tensors[self.key]
        units = self.units.to(tensor.device)
        rows = self.likeness.view.select(tensor, units)
        leaders, signs = _leaders(self.labels).to(rows.device), self.signs.to(rows)
        turn = torch.where(signs * signs[leaders] < 0, -1.0, 1.0).to(rows)
        level = rows[leaders] * turn[:, None]
        if not torch.equal(level, rows):
            tensors[self.key] = self.likeness.view.put(tensor, units, level)


def _equal_leaders(rows: Tensor, leaders: Tensor, same: float) -> bool:
    """Tell whether each row equals that of its leader; one pass over them, without a sort."""
    first = leaders[0]
    together = bool((leaders == first).all())
    apart = (rows - (rows[first] if together else rows[leaders])).abs().amax(1)
    scale = rows.abs().amax(1)
    return bool((apart <= same * torch.maximum(scale, scale[leaders])).all())


def _meet(first: Tensor, second: Tensor, units: Tensor) -> Tensor:
    """Label units that share both labels by the first of them."""
    pairs = torch.stack((first, second), 1)
    inverse = torch.unique(pairs, dim=0, return_inverse=True)[1]
    return units[_leaders(inverse)]


def _leaders(labels: Tensor) -> Tensor:
    """Return, for each position, the first position with the same label."""
    dense = torch.unique(labels, return_inverse=True)[1]
    first = torch.full((int(dense.max()) + 1,), len(labels), dtype=torch.int64)
    first.scatter_reduce_(0, dense, torch.arange(len(labels)), "amin")
    return first[dense]


class TwinTrack:
    """Modules that were equal at the start, and what became of them.

    Attributes:
        twins: What was found at the start.
        keys: For each module the names of its parameters in the trial.
        labels: For each module the number of the first it still equals.
        alive: Whether a gradient has arrived at them.
        stirred: The first step at which one has.
        parted: The last step at which modules have been told apart.
    """

    def __init__(self, twins: Twins, names: Mapping[int, str]) -> None:
        self.twins = twins
        self.keys = [[names[id(p)] for p in parameters] for parameters in twins.parameters]
        self.labels = torch.zeros(len(self.keys), dtype=torch.int64)
        self.alive = torch.zeros(len(self.keys), dtype=torch.bool)
        self.stirred: int | None = None
        self.parted: int | None = None

    @property
    def is_resolved(self) -> bool:
        """Whether all modules are told apart."""
        return not self.has_groups

    @property
    def has_groups(self) -> bool:
        """Whether any modules are still equal."""
        return bool((self.labels.bincount() > 1).any())

    @property
    def moves_together(self) -> bool:
        """Whether any modules that are still equal have moved."""
        return any(bool(self.alive[list(group)].any()) for group in self.groups())

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """List the numbers of the modules that are still equal."""
        return groups(self.labels)

    def see(self, gradients: Values, step: int, same: float) -> bool:
        """Compare the gradients of equal modules; tell whether anything is new."""
        labels, woken = self.labels, False
        for keys in zip(*self.keys, strict=True):
            stirs = torch.tensor([bool(gradients[key].any()) for key in keys])
            if bool(stirs.any()):
                woken |= bool((stirs & ~self.alive).any())
                self.alive |= stirs
                rows = torch.stack([gradients[key].flatten() for key in keys])
                rows = torch.view_as_real(rows).flatten(1) if rows.is_complex() else rows
                apart = alike(lambda rows=rows: [rows], near=same)[0].cpu()  # type: ignore[misc]
                labels = _meet(labels, apart, torch.arange(len(labels)))
        self.stirred = self.stirred or (step if bool(self.alive.any()) else None)
        changed = not torch.equal(labels, self.labels)
        if changed:
            self.labels, self.parted = labels, step
        return changed or woken

    def snap(self, values: Values) -> None:
        """Make modules that are nearly equal exactly so."""
        self.level(values)

    def level(self, gradients: Values) -> None:
        """Make the gradients of equal modules exactly equal, so that rounding cannot grow."""
        for member, leader in enumerate(_leaders(self.labels).tolist()):
            for key, source in zip(self.keys[member], self.keys[leader], strict=True):
                gradients[key] = gradients[source]


AnyTrack = Track | TwinTrack


def tracks_of(likenesses: Sequence[Likeness], names: Mapping[int, str]) -> list[Track]:
    """Make a track of each likeness.

    A unit that negates another is worth following only where what it feeds, or is fed by, may be
    negated too: two logits under a softmax always move oppositely, and mean no loss.

    Args:
        likenesses: What was found at the start.
        names: Name of each parameter in the trial, by its `id`.
    """
    return [
        Track(
            like,
            names[id(like.site.parameters[like.part])],
            turns=any(_turns(other, like) for other in likenesses),
        )
        for like in likenesses
    ]


def _turns(other: Likeness, like: Likeness) -> bool:
    own = like.view
    side = "outputs" if own.along == "entries" else own.along
    return (
        other.view.count == own.count
        and other.view.along not in ("entries", side)
        and bool((other.signs <= 0).any())
    )


@dataclass
class Journey:
    """How far a probe has come.

    Attributes:
        steps: Number of gradients taken.
        stirred: For each parameter that has got a gradient the first step at which it did.
    """

    steps: int = 0
    stirred: dict[str, int] = field(default_factory=dict)

    def note(self, gradients: Values, tracks: Sequence[AnyTrack], same: float) -> bool:
        """Show one step's gradients to all tracks; tell whether anything is new."""
        self.steps += 1
        woken = [k for k, g in gradients.items() if k not in self.stirred and bool(g.any())]
        self.stirred.update(dict.fromkeys(woken, self.steps))
        changed = [track.see(gradients, self.steps, same) for track in tracks]
        return any(changed) or bool(woken)


def follow(trial: Trial, tracks: Sequence[AnyTrack], *, patience: int = PATIENCE) -> Journey:
    """Train the copies until all tracks are resolved, or nothing has changed for a while.

    Args:
        trial: The copies.
        tracks: What to look at, changed in place.
        patience: Steps without change that end it, where no random numbers are drawn.
    """
    snapped = dict(trial.values)
    for track in tracks:
        track.snap(snapped)
    if any(snapped[key] is not trial.values[key] for key in trial.trained):
        trial.values = snapped
    journey, quiet = Journey(), 0
    for step in range(1, MOST_STEPS + 1):
        gradients = trial.gradients(step)
        quiet = 0 if journey.note(gradients, tracks, trial.precision.same) else quiet + 1
        waiting = patience if not trial.noisy else patience * NOISY_PATIENCE // PATIENCE
        if quiet >= waiting or all(track.is_resolved for track in tracks):
            break
        for track in tracks:
            track.level(gradients)
        trial.descend(gradients)
    return journey


DRAWS = 4
"""How often zeros are replaced by random numbers, to see what then gets a gradient."""


def awakened(
    trial: Trial, tracks: Sequence[Track], journey: Journey, *, draws: int = DRAWS
) -> Values:
    """Tell which elements would get a gradient if the units that never moved were random.

    What gets none even so is out of the reach of any initialisation: unused, frozen or without
    effect on the loss (the bias before a batch norm, the key bias of attention, rows of padding);
    or it has no effect while others are tied (the router of equal experts), and moves once they
    are not. Only units that are themselves equal, and not zero, are part of such a tie: for them
    it counts as well what they would get if all that is tied were random.

    What gets a gradient on the same inputs without any of that has only been late, and is noted as
    moved.

    Returns:
        For each trained parameter the largest gradients seen.
    """
    reach = {name: torch.zeros_like(trial.values[name]).abs() for name in trial.trained}
    for draw in range(draws):
        if not any(map(_is_idle, tracks)):
            break
        journey.note(trial.gradients(draw + 1), tracks, trial.precision.same)
        _raise(reach, _shaken_gradients(trial, list(filter(_is_idle, tracks)), draw))
        equal = [track for track in tracks if _is_equal_and_idle(track)]
        if equal and any(track.moves_together for track in tracks):
            gradients = _shaken_gradients(trial, [t for t in tracks if _is_special(t)], draw)
            _raise(reach, {key: gradients[key] for key in _with_biases(equal, tracks)})
    return reach


def _with_biases(equal: Sequence[Track], tracks: Sequence[Track]) -> set[str]:
    """Name the parameters of some tracks, and the biases that belong to them."""
    owners = [track.likeness.site.owner for track in equal]
    biases = (
        track.key
        for track in tracks
        if track.likeness.site.role == "bias" and track.likeness.site.owner in owners
    )
    return {*(track.key for track in equal), *biases}


def _raise(reach: Values, gradients: Values) -> None:
    for name, gradient in gradients.items():
        reach[name] = torch.maximum(reach[name], gradient.abs())


def _shaken_gradients(trial: Trial, tracks: Sequence[Track], draw: int) -> Values:
    """Return the gradients with units that never moved, or move together, made random."""
    kept = trial.values
    trial.values = dict(kept)
    for track in tracks:
        noise = 2.0 ** (draw + 1) * _usual(track, trial.starts[track.key])
        trial.values[track.key] = _shaken(track, trial.values[track.key], noise, draw)
    gradients = trial.gradients(draw + 1)
    trial.values = kept
    return gradients


def _is_special(track: Track) -> bool:
    return track.likeness.is_suspect and (_is_idle(track) or track.moves_together)


def _is_equal_and_idle(track: Track) -> bool:
    signs = track.likeness.signs.cpu()
    return _is_idle(track) and track.has_groups and bool(signs[~track.alive].any())


def _is_idle(track: Track) -> bool:
    return track.likeness.is_suspect and not bool(track.alive.all())


def _usual(track: Track, start: Tensor) -> float:
    """Return a parameter's size at the start; that of zeros is what is usual for the shape."""
    size = float(start.abs().double().pow(2).mean().sqrt())
    return size or float(track.likeness.view.features**-0.5)


def _shaken(track: Track, value: Tensor, noise: float, draw: int) -> Tensor:
    """Add noise to the units that never moved, or are still equal."""
    generator = torch.Generator().manual_seed(draw)
    together = track.labels.bincount()[track.labels] > 1
    units = track.units[~track.alive | together].to(value.device)
    view = track.likeness.view
    rows = view.select(value, units)
    drawn = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    return view.put(value, units, rows + noise * drawn.to(rows))


def idle_parts(tracks: Iterable[Track], reach: Values) -> Iterator[tuple[Track, Tensor]]:
    """Yield tracks with the positions of units that never moved and would from another start."""
    for track in (t for t in tracks if t.key in reach and not bool(t.alive.all())):
        rows = track.likeness.view.select(reach[track.key], track.units.to(reach[track.key].device))
        dead = ~track.alive & (rows != 0).any(1).cpu()
        if bool(dead.any()):
            yield track, dead
