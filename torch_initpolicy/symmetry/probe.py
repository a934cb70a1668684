"""Follows equal units through a few steps of training on copies, until nothing changes any more.

The theorem behind it: where the loss does not change when units are exchanged, no step of training
makes them differ, whatever the batch. So gradients on generic inputs tell; but one that is zero
tells nothing yet, which is why steps are taken.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torch_initpolicy.symmetry.replica import Replica, Values
from torch_initpolicy.symmetry.scan import EqualModules, EqualUnits
from torch_initpolicy.symmetry.units import equal_rows, groups

PATIENCE = 3
"""Steps without change that end a probe: once a point is generic among those that share its
symmetry, one more gradient decides (the function being piecewise analytic); two are for luck."""

NOISY_PATIENCE = 24
"""The same where random numbers are drawn: the masks of two units may agree by accident."""

MOST_STEPS = 60
"""Steps after which a probe ends in any case."""


class _Groups:
    """What is still equal among units or modules.

    Attributes:
        labels: For each the number of the first it still equals.
        alive: Whether a gradient has arrived at it.
    """

    labels: Tensor
    alive: Tensor

    @property
    def has_groups(self) -> bool:
        """Whether any are still equal."""
        return bool((self.labels.bincount() > 1).any())

    @property
    def moves_together(self) -> bool:
        """Whether any that are still equal have moved."""
        return any(bool(self.alive[list(group)].any()) for group in self.groups())

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """List the positions of those that are still equal, group by group."""
        return groups(self.labels)


class UnitTrack(_Groups):
    """Units of one parameter that were equal or zero at the start, and what became of them.

    With `negated_too`, units are also followed that equal another's negative.

    Attributes:
        start: What was found at the start.
        key: Name of the parameter in the replica.
        labels: For each of these units the number of the first it still equals.
        signs: Their signs relative to one another.
        alive: Whether a gradient has arrived at them.
        first_moved: The first step at which one has.
        separated: The last step at which units have been told apart.
    """

    def __init__(self, start: EqualUnits, key: str, *, negated_too: bool = False) -> None:
        self.start = start
        self.key = key
        self.units = start.units.cpu()
        self.labels = start.labels.cpu()
        self.signs = start.signs.cpu().clone()
        if not negated_too:
            self.labels = _meet(self.labels, (self.signs < 0).long(), self.units)
            self.signs = torch.ones_like(self.signs)
        self.alive = torch.zeros(len(self.labels), dtype=torch.bool)
        self.first_moved: int | None = None
        self.separated: int | None = None

    @property
    def is_resolved(self) -> bool:
        """Whether all units have moved, of a vector any, and none together."""
        moved = self.alive.any() if self.start.is_vector else self.alive.all()
        return bool(moved) and not self.moves_together

    def see(self, gradients: Values, step: int, same: float) -> bool:
        """Compare the gradients of equal units; tell whether anything is new."""
        rows = self._rows(gradients[self.key])
        moves = (rows != 0).any(1)
        if not bool(moves.any()):
            return False
        newly_moved = bool((moves & ~self.alive).any())
        self.alive |= moves
        self.first_moved = self.first_moved or step
        return self._part(rows, step, same) or newly_moved

    def _rows(self, tensor: Tensor) -> Tensor:
        rows = self.start.view.select(tensor, self.units.to(tensor.device)).cpu()
        return rows.sort(1).values if self.start.shuffled else rows

    def _part(self, rows: Tensor, step: int, same: float) -> bool:
        """Split groups whose gradients differ; tell whether any did."""
        if not self.start.shuffled:
            unsigned = self.signs == 0
            if bool(unsigned.any()):  # the sign of a row of zeros is that of its first gradient
                own = equal_rows(lambda: [rows], signed=True)[1]
                self.signs = torch.where(unsigned, own, self.signs)
            if bool((self.signs < 0).any()):
                rows = rows * torch.where(self.signs == 0, 1, self.signs).to(rows)[:, None]
        if _equal_leaders(rows, _leaders(self.labels), same):
            return False
        gradient_labels = equal_rows(lambda: [rows], near=same)[0]
        labels = _meet(self.labels, gradient_labels, self.units)
        changed = not torch.equal(labels, self.labels)
        if changed:
            self.labels, self.separated = labels, step
        return changed

    def level(self, tensors: Values) -> None:
        """Make what equal units hold exactly equal, values or gradients: rounding cannot grow."""
        if self.start.shuffled or not self.has_groups:
            return
        tensor = tensors[self.key]
        units = self.units.to(tensor.device)
        rows = self.start.view.select(tensor, units)
        leaders, signs = _leaders(self.labels).to(rows.device), self.signs.to(rows)
        turn = torch.where(signs * signs[leaders] < 0, -1.0, 1.0).to(rows)
        level = rows[leaders] * turn[:, None]
        if not torch.equal(level, rows):
            tensors[self.key] = self.start.view.put(tensor, units, level)


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


class ModuleTrack(_Groups):
    """Modules that were equal at the start, and what became of them.

    Attributes:
        equal_modules: What was found at the start.
        keys: For each module the names of its parameters in the replica.
        labels: For each module the number of the first it still equals.
        alive: Whether a gradient has arrived at them.
        first_moved: The first step at which one has.
        separated: The last step at which modules have been told apart.
    """

    def __init__(self, equal_modules: EqualModules, names: Mapping[int, str]) -> None:
        self.equal_modules = equal_modules
        self.keys = [[names[id(p)] for p in parameters] for parameters in equal_modules.parameters]
        self.labels = torch.zeros(len(self.keys), dtype=torch.int64)
        self.alive = torch.zeros(len(self.keys), dtype=torch.bool)
        self.first_moved: int | None = None
        self.separated: int | None = None

    @property
    def is_resolved(self) -> bool:
        """Whether all modules are told apart."""
        return not self.has_groups

    def see(self, gradients: Values, step: int, same: float) -> bool:
        """Compare the gradients of equal modules; tell whether anything is new."""
        labels, newly_moved = self.labels, False
        for keys in zip(*self.keys, strict=True):
            moves = torch.tensor([bool(gradients[key].any()) for key in keys])
            if bool(moves.any()):
                newly_moved |= bool((moves & ~self.alive).any())
                self.alive |= moves
                rows = torch.stack([gradients[key].flatten() for key in keys])
                rows = torch.view_as_real(rows).flatten(1) if rows.is_complex() else rows
                apart = equal_rows(lambda rows=rows: [rows], near=same)[0].cpu()  # type: ignore[misc]
                labels = _meet(labels, apart, torch.arange(len(labels)))
        self.first_moved = self.first_moved or (step if bool(self.alive.any()) else None)
        changed = not torch.equal(labels, self.labels)
        if changed:
            self.labels, self.separated = labels, step
        return changed or newly_moved

    def level(self, tensors: Values) -> None:
        """Make what equal modules hold exactly equal, values or gradients."""
        for member, leader in enumerate(_leaders(self.labels).tolist()):
            for key, source in zip(self.keys[member], self.keys[leader], strict=True):
                tensors[key] = tensors[source]


Track = UnitTrack | ModuleTrack


def tracks_of(equal_units: Sequence[EqualUnits], names: Mapping[int, str]) -> list[UnitTrack]:
    """Make a track of each start.

    A unit that negates another is worth following only where what it feeds, or is fed by, may be
    negated too: two logits under a softmax always move oppositely, and mean no loss.

    Args:
        equal_units: What was found at the start.
        names: Name of each parameter in the replica, by its `id`.
    """
    return [
        UnitTrack(
            like,
            names[id(like.site.parameters[like.part])],
            negated_too=any(_may_be_negated(other, like) for other in equal_units),
        )
        for like in equal_units
    ]


def _may_be_negated(other: EqualUnits, like: EqualUnits) -> bool:
    own = like.view
    side = "outputs" if own.along == "entries" else own.along
    return (
        other.view.count == own.count
        and other.view.along not in ("entries", side)
        and bool((other.signs <= 0).any())
    )


@dataclass
class Progress:
    """How far a probe has come.

    Attributes:
        steps: Number of gradients taken.
        first_moved: For each parameter that has got a gradient the first step at which it did.
    """

    steps: int = 0
    first_moved: dict[str, int] = field(default_factory=dict)

    def note(self, gradients: Values, tracks: Sequence[Track], same: float) -> bool:
        """Show one step's gradients to all tracks; tell whether anything is new."""
        self.steps += 1
        newly_moved = [
            k for k, g in gradients.items() if k not in self.first_moved and bool(g.any())
        ]
        self.first_moved.update(dict.fromkeys(newly_moved, self.steps))
        changed = [track.see(gradients, self.steps, same) for track in tracks]
        return any(changed) or bool(newly_moved)


def follow(replica: Replica, tracks: Sequence[Track], *, patience: int = PATIENCE) -> Progress:
    """Train the copies until all tracks are resolved, or nothing has changed for a while.

    Args:
        replica: The copies.
        tracks: What to look at, changed in place.
        patience: Steps without change that end it, where no random numbers are drawn.
    """
    snapped = dict(replica.values)
    for track in tracks:
        track.level(snapped)  # a near-tie is a tie for a long while
    if any(snapped[key] is not replica.values[key] for key in replica.trained):
        replica.values = snapped
    progress, quiet = Progress(), 0
    for step in range(1, MOST_STEPS + 1):
        gradients = replica.gradients(step)
        quiet = 0 if progress.note(gradients, tracks, replica.precision.same) else quiet + 1
        waiting = patience if not replica.noisy else patience * NOISY_PATIENCE // PATIENCE
        if quiet >= waiting or all(track.is_resolved for track in tracks):
            break
        for track in tracks:
            track.level(gradients)
        replica.descend(gradients)
    return progress


DRAWS = 4
"""How often zeros are replaced by random numbers, to see what then gets a gradient."""


def reachable(
    replica: Replica, tracks: Sequence[UnitTrack], progress: Progress, *, draws: int = DRAWS
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
    reach = {name: torch.zeros_like(replica.values[name]).abs() for name in replica.trained}
    for draw in range(draws):
        if not any(map(_is_idle, tracks)):
            break
        progress.note(replica.gradients(draw + 1), tracks, replica.precision.same)
        _raise(reach, _gradients_with_noise(replica, list(filter(_is_idle, tracks)), draw))
        equal = [track for track in tracks if _is_equal_and_idle(track)]
        if equal and any(track.moves_together for track in tracks):
            gradients = _gradients_with_noise(replica, [t for t in tracks if _is_special(t)], draw)
            _raise(reach, {key: gradients[key] for key in _with_biases(equal, tracks)})
    return reach


def _with_biases(equal: Sequence[UnitTrack], tracks: Sequence[UnitTrack]) -> set[str]:
    """Name the parameters of some tracks, and the biases that belong to them."""
    owners = [track.start.site.owner for track in equal]
    biases = (
        track.key
        for track in tracks
        if track.start.site.role == "bias" and track.start.site.owner in owners
    )
    return {*(track.key for track in equal), *biases}


def _raise(reach: Values, gradients: Values) -> None:
    for name, gradient in gradients.items():
        reach[name] = torch.maximum(reach[name], gradient.abs())


def _gradients_with_noise(replica: Replica, tracks: Sequence[UnitTrack], draw: int) -> Values:
    """Return the gradients with units that never moved, or move together, made random."""
    kept = replica.values
    replica.values = dict(kept)
    for track in tracks:
        noise = 2.0 ** (draw + 1) * _usual(track, replica.starts[track.key])
        replica.values[track.key] = _with_noise(track, replica.values[track.key], noise, draw)
    gradients = replica.gradients(draw + 1)
    replica.values = kept
    return gradients


def _is_special(track: UnitTrack) -> bool:
    return track.start.is_suspect and (_is_idle(track) or track.moves_together)


def _is_equal_and_idle(track: UnitTrack) -> bool:
    signs = track.start.signs.cpu()
    return _is_idle(track) and track.has_groups and bool(signs[~track.alive].any())


def _is_idle(track: UnitTrack) -> bool:
    return track.start.is_suspect and not bool(track.alive.all())


def _usual(track: UnitTrack, start: Tensor) -> float:
    """Return a parameter's size at the start; that of zeros is what is usual for the shape."""
    size = float(start.abs().double().pow(2).mean().sqrt())
    return size or float(track.start.view.features**-0.5)


def _with_noise(track: UnitTrack, value: Tensor, noise: float, draw: int) -> Tensor:
    """Add noise to the units that never moved, or are still equal."""
    generator = torch.Generator().manual_seed(draw)
    together = track.labels.bincount()[track.labels] > 1
    units = track.units[~track.alive | together].to(value.device)
    view = track.start.view
    rows = view.select(value, units)
    drawn = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    return view.put(value, units, rows + noise * drawn.to(rows))


def idle_parts(tracks: Iterable[UnitTrack], reach: Values) -> Iterator[tuple[UnitTrack, Tensor]]:
    """Yield tracks with the positions of units that never moved and would from another start."""
    for track in (t for t in tracks if t.key in reach and not bool(t.alive.all())):
        rows = track.start.view.select(reach[track.key], track.units.to(reach[track.key].device))
        dead = ~track.alive & (rows != 0).any(1).cpu()
        if bool(dead.any()):
            yield track, dead
