"""Turns what became of equal units into findings, one for each parameter or module.

Knows which units belong together (a row and its bias) and how to say it; runs nothing.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch_initpolicy.sites import Site
from torch_initpolicy.symmetry.findings import Finding
from torch_initpolicy.symmetry.probe import ModuleTrack, Track, UnitTrack, idle_parts
from torch_initpolicy.symmetry.replica import Values
from torch_initpolicy.symmetry.scan import EqualUnits
from torch_initpolicy.symmetry.units import View, views

Groups = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Outcome:
    """Everything that a probe has found out.

    Attributes:
        sites: All parameters of the model.
        keys: For each site the names of its trained tensors in the replica.
        tracks: Units that were equal or zero at the start.
        equal_modules: Modules that were.
        reach: Which elements get a gradient where what never moved is made random.
        first_moved: For each tensor that got a gradient the first step at which it did.
        steps: Number of steps taken.
    """

    sites: Sequence[Site]
    keys: Mapping[str, Sequence[str]]
    tracks: Sequence[UnitTrack]
    equal_modules: Sequence[ModuleTrack]
    reach: Values
    first_moved: Mapping[str, int]
    steps: int
    by_site: Mapping[str, Sequence[UnitTrack]] = field(init=False)
    relations: Mapping[str, Sequence["Relation"]] = field(init=False)

    def __post_init__(self) -> None:
        by_site: dict[str, list[UnitTrack]] = {}
        for track in self.tracks:
            by_site.setdefault(track.start.site.name, []).append(track)
        object.__setattr__(self, "by_site", by_site)
        relations = {name: [Relation(t) for t in tracks] for name, tracks in by_site.items()}
        object.__setattr__(self, "relations", relations)

    def has_moved(self, site: Site) -> bool:
        """Whether any tensor behind a site has got a gradient."""
        return any(key in self.first_moved for key in self.keys[site.name])

    def is_reachable(self, site: Site) -> bool:
        """Whether any tensor behind a site would get a gradient from another start."""
        return any(bool(self.reach[key].any()) for key in self.keys[site.name] if key in self.reach)


class Relation:
    """Which units of a track are still equal, by unit number."""

    def __init__(self, track: UnitTrack) -> None:
        self.view = track.start.view
        self.units = track.units.tolist()
        self.label = dict(zip(self.units, track.labels.tolist(), strict=True))

    def holds(self, first: int, second: int) -> bool:
        """Whether two units are still equal."""
        return first in self.label and self.label[first] == self.label.get(second, -1)


def findings(outcome: Outcome, suspects: Iterable[str]) -> Iterator[Finding]:
    """Yield a finding for each site and module that is tied, dead or was suspected.

    Args:
        outcome: What the probe has found out.
        suspects: Names of the sites that are to be cleared by name where nothing is wrong.
    """
    named = set(suspects)
    for site in outcome.sites:
        if site.name in outcome.keys:
            finding = tied(outcome, site) or _dead(outcome, site)
            if finding is None and site.name in named:
                finding = _harmless(outcome, site)
            if finding is not None:
                yield finding
    for copies in outcome.equal_modules:
        yield of_modules(outcome, copies)


#
# Tied
#


def tied(outcome: Outcome, site: Site) -> Finding | None:
    """Say which units of a site are tied; None where none are."""
    found: dict[str, set[tuple[int, ...]]] = {}
    for track in outcome.by_site.get(site.name, ()):
        for group in _tied_groups(outcome, site, track):
            found.setdefault(track.start.view.along, set()).add(group)
    if not found:
        return None
    along = next(iter(found))
    units = tuple(sorted(found[along]))
    others = " and ".join(_counted(groups, o) for o, groups in found.items() if o != along)
    return Finding(
        name=site.name,
        units=units,
        verdict="tied",
        along=along,
        step=outcome.steps,
        reason=(
            f"{_counted(units, along)} start equal and get equal gradients at every step, for any "
            f"inputs of this size{others and f'; so do {others}'}"
        ),
        remedy=remedy(site, outcome.sites),
    )


_NOUNS = {
    "outputs": ("output unit", "output units"),
    "inputs": ("input unit", "input units"),
    "copies": ("copy", "copies"),
    "entries": ("entry", "entries"),
}


def _many(count: int, along: str) -> str:
    one, several = _NOUNS.get(along, (f"unit along {along}", f"units along {along}"))
    return f"{count} {one if count == 1 else several}"


def _counted(groups: Collection[tuple[int, ...]], along: str) -> str:
    several = f" in {len(groups)} groups" if len(groups) > 1 else ""
    return f"{_many(sum(map(len, groups)), along)}{several}"


def _tied_groups(outcome: Outcome, site: Site, track: UnitTrack) -> Iterator[tuple[int, ...]]:
    """Yield the groups of units of one track that move together."""
    for positions in track.groups():
        moved = bool(track.alive[list(positions)].any())
        elsewhere = len(outcome.keys[site.name]) > 1 and outcome.has_moved(site)
        if moved or elsewhere:
            group = tuple(track.units[list(positions)].tolist())
            signs = track.signs[list(positions)].tolist()
            for part in _same_sign_or_met(outcome, track, group, signs):
                yield from _joint(outcome, site, track, part) if _is_vector(track) else (part,)


def _is_vector(track: UnitTrack) -> bool:
    return track.start.is_vector


def _same_sign_or_met(
    outcome: Outcome, track: UnitTrack, group: tuple[int, ...], signs: Sequence[int]
) -> Iterator[tuple[int, ...]]:
    """Yield a group whole, or, where its negative members negate nothing else, by sign.

    A unit that is another's negative computes nothing new only if what it feeds is negated too.
    Two logits under a softmax are always opposite, and mean no loss.
    """
    turned = [unit for unit, sign in zip(group, signs, strict=True) if sign < 0]
    straight = [unit for unit, sign in zip(group, signs, strict=True) if sign >= 0]
    if not turned or not straight or _met(outcome, track, straight[0], turned[0]):
        yield group
        return
    for part in (straight, turned):
        if len(part) > 1:
            yield tuple(part)


def _met(outcome: Outcome, track: UnitTrack, first: int, second: int) -> bool:
    """Whether what the units feed, or are fed by, is equal up to its sign as well."""
    own = track.start.view
    side = "outputs" if own.along == "entries" else own.along
    return any(
        relation.holds(first, second)
        for name, relations in outcome.relations.items()
        for relation in relations
        if relation.view.count == own.count
        and relation.view.along not in ("entries", side)
        and (name != track.start.site.name or relation.view.axes != own.axes)
    )


def _joint(
    outcome: Outcome, site: Site, track: UnitTrack, group: tuple[int, ...]
) -> Iterator[tuple[int, ...]]:
    """Yield the parts of a group of vector entries whose units are equal in the owner's matrices.

    The bias of a unit is no unit of its own: equal biases beside unequal rows mean nothing.
    """
    companions = [other for other in outcome.sites if _is_companion(other, site, track)]
    if not companions:
        yield group
        return
    relations = [r for c in companions for r in outcome.relations.get(c.name, ())]
    fitting = [r for r in relations if r.view.count == track.start.view.count]
    parts = (_refined(group, relation) for relation in fitting)
    yield from next((found for found in parts if found), ())


def _is_companion(other: Site, site: Site, track: UnitTrack) -> bool:
    if other.owner is not site.owner or other.name == site.name:
        return False
    return any(v.count == track.start.view.count for v in _views(other))


def _views(site: Site) -> tuple[View, ...]:
    return views(site.shape, site.axes)


def _refined(group: tuple[int, ...], relation: Relation) -> Groups:
    """Split a group by another relation; units that the relation does not know stand alone."""
    parts: dict[int, list[int]] = {}
    for unit in group:
        if unit in relation.label:
            parts.setdefault(relation.label[unit], []).append(unit)
    return tuple(tuple(units) for units in parts.values() if len(units) > 1)


#
# Dead
#


def _dead(outcome: Outcome, site: Site) -> Finding | None:
    """Say which units of a site never get a gradient by fault of their start; None where none."""
    if not outcome.has_moved(site):
        if not outcome.is_reachable(site):
            return None
        view = _views(site)[0]
        units = tuple(range(view.count))
        return _dead_finding(outcome, site, view.along, units)
    parts = idle_parts(outcome.by_site.get(site.name, ()), outcome.reach)
    for track, dead in parts:
        numbers = set(track.units[dead].tolist())
        if _is_vector(track):
            numbers &= _dead_rows(outcome, site, track)
        if numbers:
            along = track.start.view.along
            return _dead_finding(outcome, site, along, tuple(sorted(numbers)))
    return None


def _dead_rows(outcome: Outcome, site: Site, track: UnitTrack) -> set[int]:
    """Return the units whose rows in the owner's matrices are dead."""
    companions = [other for other in outcome.sites if _is_companion(other, site, track)]
    tracks = [t for c in companions for t in outcome.by_site.get(c.name, ()) if not _is_vector(t)]
    fitting = [t for t in tracks if t.start.view.count == track.start.view.count]
    return {
        unit for t, dead in idle_parts(fitting, outcome.reach) for unit in t.units[dead].tolist()
    }


def _dead_finding(outcome: Outcome, site: Site, along: str, units: tuple[int, ...]) -> Finding:
    own = site.name in outcome.by_site
    causes = [name for name in _idle_suspects(outcome) if name != site.name]
    shown = [*["it"] * own, *causes[:3], *[f"{len(causes) - 3} more"] * (len(causes) > 3)]
    return Finding(
        name=site.name,
        units=(units,),
        verdict="dead",
        along=along,
        step=outcome.steps,
        reason=(
            f"{_many(len(units), along)} never get{'s' * (len(units) == 1)} a gradient from this "
            f"start, but would if {_enumerated(shown)} started with other values"
        ),
        remedy=remedy(site, outcome.sites) if own else "",
    )


def _enumerated(names: Sequence[str]) -> str:
    """Write names of which all are meant: another start of all of them is what was tried."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def _idle_suspects(outcome: Outcome) -> list[str]:
    """Name the suspects of which some unit never moved."""
    return list(
        dict.fromkeys(
            track.start.site.name
            for track in outcome.tracks
            if track.start.is_suspect and not bool(track.alive.any())
        )
    )


def remedy(site: Site, sites: Iterable[Site] = ()) -> str:
    """Say in code how to start a parameter differently.

    A bias starts at zero by any policy; its entries are told apart by the weights of its layer.

    Args:
        site: The parameter.
        sites: Those among which the weights of its layer are.
    """
    weights = [s.name for s in sites if s.owner is site.owner and s.role in ("weight", "recurrent")]
    if site.role == "bias" and weights:
        return f"apply_policy(model, only={weights})"
    if site.role in ("weight", "recurrent", "embedding", "bias", "norm_weight", "norm_bias"):
        return f"apply_policy(model, only=[{site.name!r}])"
    is_vector = sum(size > 1 for size in site.shape) < 2
    how = "ones_({})" if is_vector else "normal_({}, std=0.02)"
    return f"torch.nn.init.{how.format(f'model.get_parameter({site.name!r})')}"


#
# Harmless
#


def _harmless(outcome: Outcome, site: Site) -> Finding:
    tracks = [t for t in outcome.by_site.get(site.name, ()) if not t.start.shuffled]
    first = tracks[0]
    return Finding(
        name=site.name,
        units=groups_of(first.start),
        verdict="harmless",
        along=first.start.view.along,
        step=first.separated or first.first_moved,
        reason=_why_harmless(outcome, first),
    )


def groups_of(like: EqualUnits) -> Groups:
    """List the units that were equal at the start, by group; a row of zeros may stand alone."""
    members: dict[int, list[int]] = {}
    for unit, label in zip(like.units.tolist(), like.labels.tolist(), strict=True):
        members.setdefault(label, []).append(unit)
    return tuple(map(tuple, members.values()))


def _why_harmless(outcome: Outcome, track: UnitTrack) -> str:
    if track.first_moved is None:
        return _unmoved(outcome)
    waited = _waited(outcome, track.first_moved) if track.first_moved > 1 else ""
    if track.separated is None:
        return f"{waited}gets a gradient from step {track.first_moved} on"
    return f"{waited}its units get different gradients, and are apart after step {track.separated}"


def _unmoved(outcome: Outcome) -> str:
    """Say why a parameter that never moves is not to blame."""
    why = "unused, or without effect on the loss (a bias before a batch norm, rows of padding)"
    tracks: list[Track] = [*outcome.tracks, *outcome.equal_modules]
    if any(track.moves_together for track in tracks):
        why = "it has no effect on the loss, or none while the units above are tied"
    return f"no gradient arrives, nor would it from another start of its own: {why}"


def _waited(outcome: Outcome, step: int) -> str:
    """Say what had to move first."""
    before = [
        name
        for name in outcome.by_site
        if any(outcome.first_moved.get(key) == step - 1 for key in outcome.keys[name])
    ]
    return f"waits for {', '.join(before[:3])}, and moves from step {step} on; "


#
# Modules
#


def of_modules(outcome: Outcome, copies: ModuleTrack) -> Finding:
    """Say what became of modules that were copies of one another."""
    names = copies.equal_modules.names
    moving = [g for g in copies.groups() if bool(copies.alive[list(g)].any())]
    if not moving:
        return _harmless_modules(copies, _separated_modules(copies))
    if all(parameter.ndim < 2 for parameter in copies.equal_modules.parameters[0]):
        return _harmless_modules(copies, _FACTORS)
    tied = tuple(tuple(names[member] for member in group) for group in moving)
    return Finding(
        name=tied[0][0],
        units=tied,
        verdict="tied",
        along="modules",
        step=outcome.steps,
        reason=_TIED_MODULES,
        remedy=f"apply_policy(model, only={[f'{n}.*' for n in tied[0][1:]]})",
    )


def _harmless_modules(copies: ModuleTrack, reason: str) -> Finding:
    names = copies.equal_modules.names
    return Finding(
        name=names[0],
        units=(names,),
        verdict="harmless",
        along="modules",
        step=copies.separated,
        reason=reason,
    )


_TIED_MODULES = (
    "these modules are copies: they start equal, see the same inputs and get equal gradients at "
    "every step, for any inputs of this size"
)

_FACTORS = (
    "these modules hold vectors alone and get equal gradients: they occur only as a product, as "
    "the norms of queries and keys do, and lose nothing by being equal"
)


def _separated_modules(copies: ModuleTrack) -> str:
    if copies.first_moved is None:
        return "copies of one another that get no gradient"
    step = copies.separated
    return f"copies at the start; their gradients differ, and they are apart after step {step}"
