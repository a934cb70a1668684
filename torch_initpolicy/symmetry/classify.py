"""Turns what became of equal units into findings, one for each parameter or module.

Knows which units belong together (a row and its bias) and how to say it; runs nothing.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

from torch_initpolicy.sites import Site
from torch_initpolicy.symmetry.findings import Finding
from torch_initpolicy.symmetry.modules import EqualModules
from torch_initpolicy.symmetry.probe import Probe, Track
from torch_initpolicy.symmetry.scan import EqualUnits
from torch_initpolicy.symmetry.units import by_label, views

UnitGroup = tuple[int, ...]
UnitTrack = Track[EqualUnits]


def findings(probe: Probe, sites: Sequence[Site], suspects: Iterable[str]) -> Iterator[Finding]:
    """Yield a finding for each site and module that is tied, dead or among named suspects."""
    named = set(suspects)
    for site in sites:
        finding = tied_finding(probe, site, sites) or _dead(probe, site, sites)
        if finding is None and site.name in named:
            finding = _harmless(probe, site, sites)
        if finding is not None:
            yield finding
    for track in probe.modules:
        yield of_modules(probe, track)


def _of_site(probe: Probe, site: Site) -> list[UnitTrack]:
    return [track for track in probe.units if track.start.site.name == site.name]


def _has_moved(probe: Probe, site: Site) -> bool:
    """Whether any tensor behind a site has got a gradient."""
    return any(parameter in probe.first_moved for parameter in site.parameters)


# Tied


def tied_finding(probe: Probe, site: Site, sites: Sequence[Site]) -> Finding | None:
    """Say which units of a site are tied; None where none are."""
    found: dict[str, set[UnitGroup]] = {}
    for track in _of_site(probe, site):
        for group in _tied_groups(probe, sites, track):
            found.setdefault(track.start.view.along, set()).add(group)
    if not found:
        return None
    along = next(iter(found))
    units = tuple(sorted(found[along]))
    others = " and ".join(_counted(groups, o) for o, groups in found.items() if o != along)
    reason = (
        f"{_counted(units, along)} start equal and get equal gradients at every step, for any "
        f"inputs of this size{others and f'; so do {others}'}"
    )
    return Finding(
        site.name, units, "tied", reason, along, probe.steps, symmetry_remedy(site, sites)
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


def _counted(groups: Collection[UnitGroup], along: str) -> str:
    several = f" in {len(groups)} groups" if len(groups) > 1 else ""
    return f"{_many(sum(map(len, groups)), along)}{several}"


def _tied_groups(probe: Probe, sites: Sequence[Site], track: UnitTrack) -> Iterator[UnitGroup]:
    """Yield the groups of units of one track that move together."""
    site = track.start.site
    elsewhere = len(site.parameters) > 1 and _has_moved(probe, site)
    for positions in map(list, track.groups()):
        if elsewhere or bool(track.alive[positions].any()):
            for group in _by_sign(probe, track, positions):
                yield from _joint(probe, sites, track, group) if track.start.is_vector else (group,)


def _by_sign(probe: Probe, track: UnitTrack, positions: list[int]) -> Iterator[UnitGroup]:
    """Yield a group whole, or, where its negative members negate nothing else, by sign.

    A unit that is another's negative computes nothing new only if what it feeds is negated too.
    Two logits under a softmax are always opposite, and mean no loss.
    """
    units, is_negative = track.units[positions], track.signs[positions] < 0
    parts = [tuple(units[is_negative == side].tolist()) for side in (False, True)]
    if not all(parts) or _is_met(probe, track, parts[0][0], parts[1][0]):
        yield tuple(units.tolist())
    else:
        yield from (part for part in parts if len(part) > 1)


def _is_met(probe: Probe, track: UnitTrack, first: int, second: int) -> bool:
    """Whether what two units feed, or are fed by, is equal up to its sign as well."""
    own = track.start
    return any(
        other.start.view.is_across(own.view)
        and (other.start.site.name != own.site.name or other.start.view.axes != own.view.axes)
        and other.holds(first, second)
        for other in probe.units
    )


def _joint(
    probe: Probe, sites: Sequence[Site], track: UnitTrack, group: UnitGroup
) -> Iterator[UnitGroup]:
    """Yield the parts of a group of vector entries whose units are equal in the owner's matrices.

    The bias of a unit is no unit of its own: equal biases beside unequal rows mean nothing.
    """
    companions = _companions(sites, track)
    if not companions:
        yield group
        return
    parts = (_refined(group, other) for other in _beside(probe, companions, track))
    yield from next((found for found in parts if found), ())


def _companions(sites: Sequence[Site], track: UnitTrack) -> list[Site]:
    """Return the other parameters of the owner of a vector that have as many units."""
    site, count = track.start.site, track.start.view.count
    others = (s for s in sites if s.owner is site.owner and s.name != site.name)
    return [s for s in others if any(v.count == count for v in views(s.shape, s.axes))]


def _beside(probe: Probe, companions: Sequence[Site], track: UnitTrack) -> list[UnitTrack]:
    """Return the tracks of the companions of a vector that follow as many units."""
    tracks = (other for site in companions for other in _of_site(probe, site))
    return [other for other in tracks if other.start.view.count == track.start.view.count]


def _refined(group: UnitGroup, track: UnitTrack) -> tuple[UnitGroup, ...]:
    """Split a group by another track; units that are not followed there stand alone."""
    labels = dict(zip(track.units.tolist(), track.labels.tolist(), strict=True))
    known = [unit for unit in group if unit in labels]
    parts = by_label(known, (labels[unit] for unit in known))
    return tuple(units for units in parts if len(units) > 1)


# Dead


def _dead(probe: Probe, site: Site, sites: Sequence[Site]) -> Finding | None:
    """Say which units of a site never get a gradient by fault of their start; None where none."""
    if not _has_moved(probe, site):
        reach = (probe.reach[p] for p in site.parameters if p in probe.reach)
        if not any(bool(gradient.any()) for gradient in reach):
            return None
        view = views(site.shape, site.axes)[0]
        return _dead_finding(probe, site, sites, view.along, range(view.count))
    for track, units in probe.dead_units():
        if track.start.site.name == site.name:
            dead = units & _dead_rows(probe, sites, track) if track.start.is_vector else units
            if dead:
                return _dead_finding(probe, site, sites, track.start.view.along, sorted(dead))
    return None


def _dead_rows(probe: Probe, sites: Sequence[Site], track: UnitTrack) -> set[int]:
    """Return the units of a vector whose rows in the owner's matrices are dead."""
    beside = _beside(probe, _companions(sites, track), track)
    dead = (units for other, units in probe.dead_units() if other in beside)
    return set().union(*dead)


def _dead_finding(
    probe: Probe, site: Site, sites: Sequence[Site], along: str, units: Sequence[int]
) -> Finding:
    own = bool(_of_site(probe, site))
    idle = (t for t in probe.units if t.start.is_suspect and not bool(t.alive.any()))
    causes = [name for name in dict.fromkeys(t.start.site.name for t in idle) if name != site.name]
    shown = [*["it"] * own, *causes[:3], *[f"{len(causes) - 3} more"] * (len(causes) > 3)]
    reason = (
        f"{_many(len(units), along)} never get{'s' * (len(units) == 1)} a gradient from this "
        f"start, but would if {_enumerated(shown)} started with other values"
    )
    mended = symmetry_remedy(site, sites) if own else ""
    return Finding(site.name, (tuple(units),), "dead", reason, along, probe.steps, mended)


def _enumerated(names: Sequence[str]) -> str:
    """Write names of which all are meant: another start of all of them is what was tried."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def symmetry_remedy(site: Site, sites: Iterable[Site] = ()) -> str:
    """Say in code how to start a parameter differently.

    A bias starts at zero by any policy; its entries are told apart by the weights of its layer,
    which are looked for among `sites`.
    """
    weights = [s.name for s in sites if s.owner is site.owner and s.role in ("weight", "recurrent")]
    if site.role == "bias" and weights:
        return f"apply_policy(model, only={weights})"
    if site.role in ("weight", "recurrent", "embedding", "bias", "norm_weight", "norm_bias"):
        return f"apply_policy(model, only=[{site.name!r}])"
    is_vector = sum(size > 1 for size in site.shape) < 2
    how = "ones_({})" if is_vector else "normal_({}, std=0.02)"
    return f"torch.nn.init.{how.format(f'model.get_parameter({site.name!r})')}"


# Harmless


def _harmless(probe: Probe, site: Site, sites: Sequence[Site]) -> Finding:
    first = next(track for track in _of_site(probe, site) if not track.start.shuffled)
    step, along = first.separated or first.first_moved, first.start.view.along
    reason = _why_harmless(probe, first, sites)
    return Finding(site.name, first.start.groups(), "harmless", reason, along, step)


def _why_harmless(probe: Probe, track: UnitTrack, sites: Sequence[Site]) -> str:
    if track.first_moved is None:
        why = "unused, or without effect on the loss (a bias before a batch norm, rows of padding)"
        if probe.moves_together:
            why = "it has no effect on the loss, or none while the units above are tied"
        return f"no gradient arrives, nor would it from another start of its own: {why}"
    waited = _waited(probe, track.first_moved, sites) if track.first_moved > 1 else ""
    if track.separated is None:
        return f"{waited}gets a gradient from step {track.first_moved} on"
    return f"{waited}its units get different gradients, and are apart after step {track.separated}"


def _waited(probe: Probe, step: int, sites: Sequence[Site]) -> str:
    """Say what had to move first."""
    suspects = {track.start.site.name for track in probe.units if track.start.is_suspect}
    moved = (s for s in sites if any(probe.first_moved.get(p) == step - 1 for p in s.parameters))
    before = [site.name for site in moved if site.name in suspects]
    return f"waits for {', '.join(before[:3])}, and moves from step {step} on; "


# Modules


def of_modules(probe: Probe, track: Track[EqualModules]) -> Finding:
    """Say what became of modules that were copies of one another."""
    names = track.start.names
    groups = [tuple(names[at] for at in g) for g in track.groups() if track.alive[list(g)].any()]
    is_factor = all(parameter.ndim < 2 for parameter in track.start.held[0])
    if not groups or is_factor:
        reason = _FACTORS if groups else _why_separate(track)
        return Finding(names[0], (names,), "harmless", reason, "modules", track.separated)
    units = tuple(groups)
    mended = f"apply_policy(model, only={[n if '*' in n else f'{n}.*' for n in units[0][1:]]})"
    return Finding(units[0][0], units, "tied", _TIED_MODULES, "modules", probe.steps, mended)


_TIED_MODULES = (
    "these modules are copies: they start equal, see the same inputs and get equal gradients at "
    "every step, for any inputs of this size"
)

_FACTORS = (
    "these modules hold vectors alone and get equal gradients: they occur only as a product, as "
    "the norms of queries and keys do, and lose nothing by being equal"
)


def _why_separate(track: Track[EqualModules]) -> str:
    if track.first_moved is None:
        return "copies of one another that get no gradient"
    return (
        f"copies at the start; their gradients differ, and they are apart after step "
        f"{track.separated}"
    )
