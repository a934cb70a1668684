"""What the author of a model meant: values that no random draw of its layers could have left.

Meant are zeros that close a summand or a factor, biases with a purpose, computed kernels, and what
a checkpoint brought. A random draw of another scale is not meant, nor is a constant that would
leave units tied or dead. Nothing here depends on which random numbers a model happens to hold.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from torch_initpolicy.policy.recipes import default_of
from torch_initpolicy.sites import Site
from torch_initpolicy.tensors.initializers import (
    Initializer,
    Keep,
    Normal,
    Orthogonal,
    TruncatedNormal,
    Uniform,
    VarianceScaling,
)
from torch_initpolicy.tensors.patterns import constant_in, purpose_in, structure_in
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.trace.joins import SHUT_AT_ZERO

Look = Callable[[Site], Tensor | None]
"""How the values of a site are seen; None where it has none to see."""

_WEIGHTS = ("weight", "recurrent", "embedding")
"""Roles of matrices: what holds one of these makes units."""


def values_of(site: Site) -> Tensor | None:
    """Return the values of a site; None where there are none to see: on meta, sharded, lazy.

    A shard holds a part of the values, and every process must come to the same plan. A parametrised
    weight is computed from others, and what is zero there is one of these.
    """
    if site.lazy or site.storage != "plain" or site.device.type == "meta":
        return None
    parameter = site.parameters[0]
    return parameter.detach() if type(parameter.data) is Tensor else None


def meant(
    sites: Sequence[Site],
    facts: Mapping[str, Facts],
    look: Look = values_of,
    drawn: Collection[str] = (),
) -> dict[str, str]:
    """Say which sites hold what was meant, and what that is.

    Args:
        sites: The parameters of a model.
        facts: What the trace says about each, by canonical name.
        look: How values are seen.
        drawn: Names of sites that are known to hold a plain random draw, seen or not.

    Returns:
        By canonical name, in a few words: `"zero, which closes a residual branch"`. A site that is
        missing may be overwritten, or nothing is known of its values.
    """
    known = {
        site.name: _Seen(site, facts.get(site.name) or Facts(site.role, site.axes), look(site))
        for site in sites
    }
    return dict(_Judge(known, drawn).meant())


@dataclass(frozen=True, slots=True)
class _Seen:
    """A site with what is known about it and what it holds."""

    site: Site
    facts: Facts
    values: Tensor | None

    @property
    def is_weight(self) -> bool:
        return self.facts.role in _WEIGHTS

    @property
    def is_traced(self) -> bool:
        return self.facts.evidence in ("traced", "ran")


class _Judge:
    """Judges the sites of one model together: what a zero does depends on its neighbours."""

    def __init__(self, known: Mapping[str, _Seen], drawn: Collection[str]) -> None:
        self.known = known
        self.constants = {
            name: number
            for name, seen in known.items()
            if seen.values is not None and (number := constant_in(seen.values)) is not None
        }
        self.is_random = any(
            seen.is_weight and name not in self.constants
            for name, seen in known.items()
            if seen.values is not None or name in drawn
        )
        self.before: dict[str, list[str]] = {name: [] for name in known}
        for name, seen in known.items():
            for following in seen.facts.neighbours or ():
                self.before.get(following, []).append(name)
        self.zeros = dict(self._zeros())

    def meant(self) -> Iterator[tuple[str, str]]:
        """Yield the names of what is meant, each with what it is."""
        repaired = {
            id(self.known[name].site.owner)
            for name in self.constants
            if self.known[name].is_weight and name not in self.zeros
        }
        for name, seen in self.known.items():
            reason = _loaded(seen.site) or self.zeros.get(name) or self._pattern(name, repaired)
            if reason is not None:
                yield name, reason

    def _pattern(self, name: str, repaired: set[int]) -> str | None:
        """Say what other than zeros a site holds on purpose."""
        seen, role = self.known[name], self.known[name].facts.role
        if seen.values is None or id(seen.site.owner) in repaired or not self.is_random:
            return None
        if role in ("bias", "norm_bias"):
            own = name in self.constants and _is_unknown(seen.site)
            return None if own else purpose_in(seen.values, _reach(seen.site))
        if role == "norm_weight":
            scale = self.constants.get(name)
            is_unit = scale is None or scale + seen.facts.offset == 1
            return None if is_unit or not scale else f"a scale of {scale:.4g}"
        if seen.is_weight and name not in self.constants:
            axes = seen.facts.axes or seen.site.axes
            return structure_in(
                seen.values,
                out=axes.outputs[0] if axes and axes.outputs else None,
                groups=axes.groups if axes else 1,
            )
        return None

    #
    # Zeros
    #

    def _zeros(self) -> Iterator[tuple[str, str]]:
        """Yield the zeros that are meant: what they close opens at the first steps of training."""
        zero = {
            name
            for name, number in self.constants.items()
            if number == 0 and self.known[name].facts.role in (*_WEIGHTS, "norm_weight")
        }
        closing = {name: said for name in zero if (said := self._closing(name, zero))}
        while dropped := {name for name in closing if self._is_stuck(name, closing)}:
            for name in dropped:
                del closing[name]
        yield from closing.items()

    def _closing(self, name: str, zero: set[str]) -> str | None:
        """Say what a zero closes; None where it closes nothing, or is dead there."""
        seen = self.known[name]
        facts = seen.facts
        if not self.is_random or (facts.role == "norm_weight" and facts.offset):
            return None
        if seen.is_traced and not facts.used:
            return "zero, which the forward pass does not use"
        if facts.closes_residual:
            return "zero, which closes a residual branch"
        others = facts.multiplied_by
        if others is not None and zero.isdisjoint(others):
            return "zero, one factor of a product"
        if facts.is_summand:
            return "zero, which closes a summand"
        return None if facts.role == "norm_weight" else self._alone(facts)

    def _alone(self, facts: Facts) -> str | None:
        """Say what a zero weight closes that is joined with nothing."""
        if facts.meets is not None:
            is_dead = facts.meets.name in SHUT_AT_ZERO or facts.evidence in ("traced", "ran")
            return None if is_dead else "zero, no dead end"
        if facts.feeds_output:
            return "zero, of a head"
        following = facts.neighbours
        if following and all(name in self.constants for name in following):
            return None
        return "zero, one factor of a product" if following else None

    def _is_stuck(self, name: str, closing: Mapping[str, str]) -> bool:
        """Say whether what a zero reads is a constant that has to be repaired.

        A net of zeros is no net of closed branches. What is added to a signal closes a branch
        whatever it reads.
        """
        if self.known[name].facts.is_summand or self.known[name].facts.closes_residual:
            return False
        return any(
            before in self.constants and before not in closing and self.known[before].is_weight
            for before in self.before[name]
        )


def _loaded(site: Site) -> str | None:
    """Say whether `transformers` marks a parameter as loaded from a checkpoint."""
    marked = any(getattr(part, "_is_hf_initialized", False) for part in site.parameters)
    return "loaded from a checkpoint" if marked else None


def _is_unknown(site: Site) -> bool:
    """Say whether no default is known of a parameter: a constant there is its layer's own."""
    return isinstance(default_of(site.owner, site.attribute), Keep)


def _reach(site: Site) -> float:
    """Return the farthest number that the owner's own constructor could have drawn, or 0."""
    default = default_of(site.owner, site.attribute)
    return default.high if isinstance(default, Uniform) else 0.0


def is_plain_draw(initializer: Initializer) -> bool:
    """Say whether an initializer draws numbers about which nothing can be meant."""
    if isinstance(initializer, Uniform):
        return initializer.low == -initializer.high
    if isinstance(initializer, (Normal, TruncatedNormal)):
        return initializer.mean == 0
    return isinstance(initializer, (VarianceScaling, Orthogonal))
