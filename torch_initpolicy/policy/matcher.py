"""The base of all matchers, and how they are combined.

Knows sites and facts; the matchers themselves are in `matchers`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.sites import Site
from torch_initpolicy.trace.facts import Facts


class Matcher(ABC):
    """A question about a site and its facts, answered with yes or no.

    Examples:
        >>> from torch_initpolicy.policy.match import name, role, tied
        >>> name("head.*") & ~(role("bias") | tied())
        name('head.*') & ~(role('bias') | tied())
    """

    __slots__ = ()

    @abstractmethod
    def matches(self, site: Site, facts: Facts) -> bool:
        """Say whether a rule with this matcher is meant for the site."""

    def __and__(self, other: "Matcher") -> "AllOf":
        """Match what both match."""
        if not isinstance(other, Matcher):
            return NotImplemented
        return AllOf(tuple(_flat(AllOf, self, other)))

    def __or__(self, other: "Matcher") -> "AnyOf":
        """Match what either matches."""
        if not isinstance(other, Matcher):
            return NotImplemented
        return AnyOf(tuple(_flat(AnyOf, self, other)))

    def __invert__(self) -> "Matcher":
        """Match what this does not match."""
        return self.inner if isinstance(self, Not) else Not(self)

    def __bool__(self) -> bool:
        """Refuse, because Python's `and`, `or` and `not` would silently drop one side."""
        raise TypeError("a matcher is neither true nor false; combine matchers with &, | and ~")


#
# Combinations
#


def _combined(parts: tuple[Matcher, ...]) -> None:
    strangers = [part for part in parts if not isinstance(part, Matcher)]
    if strangers or not parts:
        raise PolicyError(f"expected one matcher or more, got {strangers or 'none'}")


@dataclass(frozen=True, slots=True)
class AllOf(Matcher):
    """Match what all parts match; written `a & b`."""

    parts: tuple[Matcher, ...]

    def __post_init__(self) -> None:
        _combined(self.parts)

    def matches(self, site: Site, facts: Facts) -> bool:
        """Say whether every part matches."""
        return all(part.matches(site, facts) for part in self.parts)

    def __repr__(self) -> str:
        return " & ".join(f"({p!r})" if isinstance(p, AnyOf) else repr(p) for p in self.parts)


@dataclass(frozen=True, slots=True)
class AnyOf(Matcher):
    """Match what any part matches; written `a | b`."""

    parts: tuple[Matcher, ...]

    def __post_init__(self) -> None:
        _combined(self.parts)

    def matches(self, site: Site, facts: Facts) -> bool:
        """Say whether a part matches."""
        return any(part.matches(site, facts) for part in self.parts)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.parts))


@dataclass(frozen=True, slots=True)
class Not(Matcher):
    """Match what `inner` does not match; written `~a`."""

    inner: Matcher

    def __post_init__(self) -> None:
        _combined((self.inner,))

    def matches(self, site: Site, facts: Facts) -> bool:
        """Say whether `inner` does not match."""
        return not self.inner.matches(site, facts)

    def __repr__(self) -> str:
        return (
            f"~({self.inner!r})" if isinstance(self.inner, (AllOf, AnyOf)) else f"~{self.inner!r}"
        )


def _flat(combination: type[AllOf] | type[AnyOf], *matchers: Matcher) -> Iterator[Matcher]:
    """Yield the parts of combinations of the same sort in place of these: `&` is associative."""
    for matcher in matchers:
        yield from matcher.parts if isinstance(matcher, combination) else (matcher,)
