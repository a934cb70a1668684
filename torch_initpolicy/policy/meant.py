"""What the author of a model meant: values that no random draw of its layers could have left.

Meant are zeros that close a summand or a factor, biases with a purpose, computed kernels, and what
a checkpoint brought. A random draw of another scale is not meant, nor is a constant that would
leave units tied or dead. Nothing here depends on which random numbers a model happens to hold.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from torch import Tensor

from torch_initpolicy.policy.recipes import default_of
from torch_initpolicy.sites import Site
from torch_initpolicy.tensors import initializers as init
from torch_initpolicy.tensors.base import widened
from torch_initpolicy.tensors.patterns import constant_in, is_unwritten, purpose_in, structure_in
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.trace.joins import SHUT_AT_ZERO

Look = Callable[[Site], Tensor | None]
"""How the values of a site are seen; None where it has none to see."""

_WEIGHTS = ("weight", "recurrent", "embedding")
"""Roles of matrices: what holds one of these makes units."""


def values_of(site: Site) -> Tensor | None:
    """Return the values of a site; None where there are none to see: on meta, lazy, parametrised.

    Of a shard neither: it holds a part of them, and all processes must come to the same plan.
    """
    if site.lazy or site.storage != "plain" or site.device.type == "meta":
        return None
    parameter = site.parameters[0]
    return widened(parameter.detach()) if type(parameter.data) is Tensor else None


def meant(
    sites: Sequence[Site],
    facts: Mapping[str, Facts],
    look: Look = values_of,
    drawn: Collection[str] = (),
) -> dict[str, str]:
    """Say by name which sites hold what was meant, and what: `"zero, of a head"`.

    Sites named in `drawn` are known to hold a plain random draw, seen or not. One that is missing
    from the answer may be overwritten, or nothing is known of its values.
    """
    known = {
        site.name: _see(site, facts.get(site.name) or Facts(site.role, site.axes), look(site))
        for site in sites
    }
    is_random = any(
        seen.is_weight and not seen.is_constant
        for name, seen in known.items()
        if seen.values is not None or name in drawn
    )
    zeros = _zeros(known) if is_random else {}
    repaired = {
        id(seen.site.owner)
        for name, seen in known.items()
        if seen.is_weight and seen.is_constant and name not in zeros
    }
    found = {}
    for name, seen in known.items():
        looks = is_random and seen.values is not None and id(seen.site.owner) not in repaired
        reason = _loaded(seen.site) or zeros.get(name) or (_purpose(seen) if looks else None)
        if reason is not None:
            found[name] = reason
    return found


@dataclass(frozen=True, slots=True)
class _Seen:
    """A site with what is known about it and what it holds: perhaps one number throughout."""

    site: Site
    facts: Facts
    values: Tensor | None
    constant: float | None

    @property
    def is_weight(self) -> bool:
        return self.facts.role in _WEIGHTS

    @property
    def is_constant(self) -> bool:
        return self.constant is not None


def _see(site: Site, facts: Facts, values: Tensor | None) -> _Seen:
    return _Seen(site, facts, values, None if values is None else constant_in(values))


def _purpose(seen: _Seen) -> str | None:
    """Say what other than zeros a site holds on purpose, not since nobody wrote to its memory."""
    if seen.constant == 0 or seen.values is None:
        return None
    said = _intent(seen, seen.values)
    return None if said is None or is_unwritten(seen.values) else said


def _intent(seen: _Seen, values: Tensor) -> str | None:
    facts, site = seen.facts, seen.site
    if facts.role in ("bias", "norm_bias"):
        # Ones in a layer of one's own are a placeholder, unless they are what a factor starts from.
        is_usual = seen.is_constant and _is_unknown(site) and facts.multiplied_by is None
        return None if is_usual else purpose_in(values, _reach(site))
    if facts.role == "norm_weight":
        is_scale = seen.constant is not None and seen.constant + facts.offset != 1
        return f"a scale of {seen.constant:.4g}" if is_scale else None
    if not seen.is_weight or seen.is_constant:
        return None
    axes = facts.axes or site.axes
    out = axes.outputs[0] if axes and axes.outputs else None
    return structure_in(values, out=out, groups=axes.groups if axes else 1)


def _zeros(known: Mapping[str, _Seen]) -> dict[str, str]:
    """Return the zeros that are meant: what they close opens at the first steps of training."""
    zero = {
        name
        for name, seen in known.items()
        if seen.constant == 0 and (seen.is_weight or seen.facts.role == "norm_weight")
    }
    closing = {name: said for name in zero if (said := _closed_by(known[name], zero, known))}
    while dropped := _stuck(closing, known):
        closing = {name: said for name, said in closing.items() if name not in dropped}
    return closing


def _closed_by(seen: _Seen, zero: AbstractSet[str], known: Mapping[str, _Seen]) -> str | None:
    """Say what a zero closes; None where it closes nothing, or is dead there."""
    facts = seen.facts
    if facts.role == "norm_weight" and facts.offset:
        return None
    if facts.closes_residual:
        return "zero, which closes a residual branch"
    if facts.multiplied_by is not None and zero.isdisjoint(facts.multiplied_by):
        return "zero, one factor of a product"
    if facts.is_summand:
        return "zero, which closes a summand"
    return _closed_alone(facts, known)


def _closed_alone(facts: Facts, known: Mapping[str, _Seen]) -> str | None:
    """Say what a zero closes that is joined with nothing."""
    if facts.evidence not in ("traced", "ran"):
        dead = facts.meets is not None and facts.meets.name in SHUT_AT_ZERO
        return None if dead else "zero, with no forward pass to show what it closes"
    if not facts.used:
        return "zero, which the forward pass does not use"
    if facts.role == "norm_weight" or facts.meets is not None:
        return None
    if facts.feeds_output:
        return "zero, of a head"
    following = [known[name] for name in facts.neighbours or () if name in known]
    is_factor = not all(other.is_constant for other in following)
    return "zero, one factor of a product" if is_factor else None


def _stuck(closing: Mapping[str, str], known: Mapping[str, _Seen]) -> set[str]:
    """Return the zeros whose input comes from a constant that has to be repaired.

    A net of zeros is no net of closed branches. What is added to a signal closes a branch whatever
    it reads.
    """
    repaired = (
        seen
        for name, seen in known.items()
        if seen.is_weight and seen.is_constant and name not in closing
    )
    behind = {name for seen in repaired for name in seen.facts.neighbours or ()}
    return {
        name
        for name in behind & closing.keys()
        if not (known[name].facts.is_summand or known[name].facts.closes_residual)
    }


def _loaded(site: Site) -> str | None:
    """Say whether `transformers` marks a parameter as loaded from a checkpoint."""
    marked = any(getattr(part, "_is_hf_initialized", False) for part in site.parameters)
    return "loaded from a checkpoint" if marked else None


def _is_unknown(site: Site) -> bool:
    """Say whether no default is known of a parameter: a constant there is its layer's own."""
    return isinstance(default_of(site.owner, site.attribute), init.Keep)


def _reach(site: Site) -> float:
    """Return the farthest number that the owner's own constructor could have drawn, or 0."""
    default = default_of(site.owner, site.attribute)
    return default.high if isinstance(default, init.Uniform) else 0.0


def is_plain_draw(initializer: init.Initializer) -> bool:
    """Say whether an initializer draws numbers about which nothing can be meant."""
    if isinstance(initializer, init.Uniform):
        return initializer.low == -initializer.high
    if isinstance(initializer, (init.Normal, init.TruncatedNormal)):
        return initializer.mean == 0
    return isinstance(initializer, (init.VarianceScaling, init.Orthogonal))
