"""Matchers as values: one class for each question that can be asked of a site and its facts.

Knows sites and facts, not initializers. A matcher's repr is the call of
`torch_initpolicy.policy.match` that makes it.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, get_args

from torch_initpolicy.errors import PolicyError, UnknownNameError, nearest
from torch_initpolicy.policy import regex
from torch_initpolicy.sites import Site
from torch_initpolicy.tensors.axes import block_fans
from torch_initpolicy.tensors.base import plain_number
from torch_initpolicy.tensors.gains import CUSTOM, KNOWN, Activation, ActivationFamily, family
from torch_initpolicy.tensors.layers import Role
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.trace.operators import OPS, OpRole


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
        if not isinstance(other, Matcher):
            return NotImplemented
        return AllOf((*_parts(AllOf, self), *_parts(AllOf, other)))

    def __or__(self, other: "Matcher") -> "AnyOf":
        if not isinstance(other, Matcher):
            return NotImplemented
        return AnyOf((*_parts(AnyOf, self), *_parts(AnyOf, other)))

    def __invert__(self) -> "Matcher":
        return self.inner if isinstance(self, Not) else Not(self)

    def __bool__(self) -> bool:
        """Refuse, because Python's `and`, `or` and `not` would silently drop one side."""
        raise TypeError("a matcher is neither true nor false; combine matchers with &, | and ~")


# Combinations


def _parts(combination: "type[AllOf | AnyOf]", matcher: Matcher) -> tuple[Matcher, ...]:
    """Return the parts of a combination of one sort: `&` is associative, and so is `|`."""
    return matcher.parts if isinstance(matcher, combination) else (matcher,)


def _check_parts(parts: tuple[Matcher, ...]) -> None:
    strangers = [part for part in parts if not isinstance(part, Matcher)]
    if strangers or not parts:
        raise PolicyError(f"expected one matcher or more, got {strangers or 'none'}")


@dataclass(frozen=True, slots=True)
class AllOf(Matcher):
    """Match what all parts match; written `a & b`."""

    parts: tuple[Matcher, ...]

    def __post_init__(self) -> None:
        _check_parts(self.parts)

    def matches(self, site: Site, facts: Facts) -> bool:
        return all(part.matches(site, facts) for part in self.parts)

    def __repr__(self) -> str:
        return " & ".join(f"({p!r})" if isinstance(p, AnyOf) else repr(p) for p in self.parts)


@dataclass(frozen=True, slots=True)
class AnyOf(Matcher):
    """Match what any part matches; written `a | b`."""

    parts: tuple[Matcher, ...]

    def __post_init__(self) -> None:
        _check_parts(self.parts)

    def matches(self, site: Site, facts: Facts) -> bool:
        return any(part.matches(site, facts) for part in self.parts)

    def __repr__(self) -> str:
        return " | ".join(map(repr, self.parts))


@dataclass(frozen=True, slots=True)
class Not(Matcher):
    """Match what `inner` does not match; written `~a`."""

    inner: Matcher

    def __post_init__(self) -> None:
        _check_parts((self.inner,))

    def matches(self, site: Site, facts: Facts) -> bool:
        return not self.inner.matches(site, facts)

    def __repr__(self) -> str:
        combined = isinstance(self.inner, (AllOf, AnyOf))
        return f"~({self.inner!r})" if combined else f"~{self.inner!r}"


# By name, by the owner's class, by role


@dataclass(frozen=True, slots=True)
class Name(Matcher):
    """Match a name of the site, its ties included."""

    globs: tuple[str, ...] = ()
    regex: str | None = None

    def __post_init__(self) -> None:
        if not self.globs and self.regex is None:
            raise PolicyError("name() matches nothing: pass globs, or regex=...")
        for glob in self.globs:
            _check_glob(glob)
        if self.regex is not None:
            regex.compiled(self.regex)

    def matches(self, site: Site, facts: Facts) -> bool:
        return any(map(self._fits, site.names))

    def _fits(self, name: str) -> bool:
        if self.regex is not None and regex.compiled(self.regex).fullmatch(name):
            return True
        return any(glob == name or fnmatchcase(name, glob) for glob in self.globs)

    def __repr__(self) -> str:
        return _call("name", *self.globs, regex=self.regex)


def _check_glob(glob: object) -> None:
    if not isinstance(glob, str) or not glob:
        raise PolicyError(f"a glob is a string like 'head.*', got {glob!r}")
    if "[" in re.sub(r"\[!?.[^\]]*\]", "", glob):
        raise PolicyError(f"the '[' in glob {glob!r} is never closed; write '[[]' for a bracket")


@dataclass(frozen=True, slots=True)
class Kind(Matcher):
    """Match the class of the module that holds the site, subclasses included."""

    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.classes:
            raise PolicyError("kind() matches nothing: pass classes, e.g. kind(nn.Linear)")
        for name in self.classes:
            if not isinstance(name, str) or not name.strip(". "):
                raise PolicyError(f"a kind is a class or the name of one, got {name!r}")

    def matches(self, site: Site, facts: Facts) -> bool:
        mro = type(site.owner).__mro__
        return any(_is_called(kind, name) for name in self.classes for kind in mro)

    def __repr__(self) -> str:
        return _call("kind", *self.classes)


def _is_called(kind: type, name: str) -> bool:
    """Say whether `name` names the class, from any package above the module it lives in."""
    if name in (kind.__name__, kind.__qualname__):
        return True
    package, dot, rest = name.removesuffix(kind.__qualname__).rpartition(".")
    return bool(dot) and not rest and f"{kind.__module__}.".startswith(f"{package}.")


@dataclass(frozen=True, slots=True)
class HasRole(Matcher):
    """Match what the parameter does; see `torch_initpolicy.tensors.layers.Role`."""

    roles: tuple[Role, ...]

    def __post_init__(self) -> None:
        _check_words("role", self.roles, get_args(Role))

    def matches(self, site: Site, facts: Facts) -> bool:
        return facts.role in self.roles

    def __repr__(self) -> str:
        return _call("role", *self.roles)


# By the data flow

NOTHING = "nothing"
"""What a site meets, or is fed by, where that is no activation."""

INPUT = "input"
"""What a site is fed by where that is the model's own input."""

ACTIVATIONS = frozenset({
    *KNOWN,
    *get_args(ActivationFamily),
    *(name for name, op in OPS.items() if op.role in (OpRole.ACTIVATES, OpRole.COMPUTES)),
    "product",
    CUSTOM,
    NOTHING,
})  # fmt: skip
"""Every word that `meets` and `fed_by` understand: activations, operators that act as one, and
families."""

MAPS = ("weight", "recurrent", "embedding")
"""Roles of parameters that have an input and an output of their own."""


@dataclass(frozen=True, slots=True)
class Meets(Matcher):
    """Match the weights whose output meets an activation first."""

    activations: tuple[str, ...]
    biases: bool = False

    def __post_init__(self) -> None:
        _check_words("activation", self.activations, ACTIVATIONS)

    def matches(self, site: Site, facts: Facts) -> bool:
        fits = facts.role in MAPS or (self.biases and facts.role == "bias")
        return fits and not _called(facts.meets).isdisjoint(self.activations)

    def __repr__(self) -> str:
        return _call("meets", *self.activations, biases=self.biases or None)


@dataclass(frozen=True, slots=True)
class FedBy(Matcher):
    """Match the weights, not the biases, whose input comes from an activation."""

    activations: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_words("activation", self.activations, (*ACTIVATIONS, INPUT))

    def matches(self, site: Site, facts: Facts) -> bool:
        names = {INPUT} if facts.reads_input else _called(facts.fed_by)
        return facts.role in MAPS and not names.isdisjoint(self.activations)

    def __repr__(self) -> str:
        return _call("fed_by", *self.activations)


def _called(activation: Activation | None) -> frozenset[str]:
    """Return the name of an activation and that of its family."""
    return frozenset({NOTHING} if activation is None else {activation.name, family(activation)})


@dataclass(frozen=True, slots=True)
class Op(Matcher):
    """Match the operator that consumes the parameter: `"conv2d"`, `"matmul"`."""

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names or not all(isinstance(name, str) and name for name in self.names):
            raise PolicyError(f"op() takes names of operators like 'conv2d', got {self.names!r}")

    def matches(self, site: Site, facts: Facts) -> bool:
        return facts.op in self.names

    def __repr__(self) -> str:
        return _call("op", *self.names)


Fact = Literal[
    "ends_residual", "closes_residual", "in_residual", "reads_input", "feeds_output", "used",
    "frozen", "tied", "in_batch_norm", "ends_in_norm", "is_summand",
]  # fmt: skip
"""What can be said of a site with yes or no."""


@dataclass(frozen=True, slots=True)
class Is(Matcher):
    """Match where a fact holds."""

    fact: Fact

    def __post_init__(self) -> None:
        _check_words("fact", (self.fact,), get_args(Fact))

    def matches(self, site: Site, facts: Facts) -> bool:
        if self.fact == "in_residual":
            return facts.branch_depth > 0
        if self.fact == "frozen":
            return not site.requires_grad
        if self.fact == "tied":
            return len(site.names) > 1
        return bool(getattr(facts, self.fact))

    def __repr__(self) -> str:
        return _call(self.fact)


@dataclass(frozen=True, slots=True)
class Offset(Matcher):
    """Match parameters that the operator adds a constant to, as in `(1 + weight) * x`."""

    value: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _number("offset", self.value))

    def matches(self, site: Site, facts: Facts) -> bool:
        return facts.offset == self.value

    def __repr__(self) -> str:
        return _call("offset", self.value)


Bounds = tuple[float | None, float | None]
"""Lowest and highest value allowed, both included; None leaves a side open."""

OPEN: Bounds = (None, None)


@dataclass(frozen=True, slots=True)
class Fan(Matcher):
    """Match weights whose fans lie within bounds, in each packed block.

    Parameters that are no linear map have no fans, and are not matched.
    """

    fan_in: Bounds = OPEN
    fan_out: Bounds = OPEN

    def __post_init__(self) -> None:
        if self.fan_in == self.fan_out == OPEN:
            raise PolicyError("fan() matches nothing: pass fan_in=(low, high) or fan_out=...")
        for side in ("fan_in", "fan_out"):
            object.__setattr__(self, side, _bounds(side, getattr(self, side)))

    def matches(self, site: Site, facts: Facts) -> bool:
        blocks = block_fans(site.shape, facts.axes or site.axes)
        return bool(blocks) and all(
            _within(fan_in, self.fan_in) and _within(fan_out, self.fan_out)
            for fan_in, fan_out in blocks
        )

    def __repr__(self) -> str:
        sides = {"fan_in": self.fan_in, "fan_out": self.fan_out}
        return _call("fan", **{side: b for side, b in sides.items() if b != OPEN})


def _bounds(side: str, bounds: object) -> Bounds:
    """Return bounds as numbers of Python's own."""
    if not isinstance(bounds, tuple) or len(bounds) != 2:
        raise PolicyError(f"{side} is a number or (low, high), None for an open side: {bounds!r}")
    low, high = (None if end is None else _number(side, end) for end in bounds)
    if low is not None and high is not None and low > high:
        raise PolicyError(f"{side}={bounds} holds no number: the lower bound is the higher one")
    return low, high


def _within(value: float, bounds: Bounds) -> bool:
    low, high = bounds
    return (low is None or low <= value) and (high is None or value <= high)


@dataclass(frozen=True, slots=True)
class Shape(Matcher):
    """Match the shape, or the number of dimensions."""

    sizes: tuple[int | None, ...] | None = None
    ndim: int | None = None

    def __post_init__(self) -> None:
        if self.sizes is None and self.ndim is None:
            raise PolicyError("shape() matches nothing: pass sizes, or ndim=...")
        numbers = [size for size in (*(self.sizes or ()), self.ndim) if size is not None]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise PolicyError(f"sizes and ndim are whole numbers from 0, got {numbers}")

    def matches(self, site: Site, facts: Facts) -> bool:
        if self.ndim not in (None, len(site.shape)):
            return False
        return self.sizes is None or (
            len(self.sizes) == len(site.shape)
            and all(want in (None, size) for want, size in zip(self.sizes, site.shape, strict=True))
        )

    def __repr__(self) -> str:
        return _call("shape", *(self.sizes or ()), ndim=self.ndim)


@dataclass(frozen=True, slots=True)
class Anything(Matcher):
    """Match every site."""

    def matches(self, site: Site, facts: Facts) -> bool:
        return True

    def __repr__(self) -> str:
        return _call("anything")


Question = Callable[[Site, Facts], bool]


@dataclass(frozen=True, slots=True)
class Predicate(Matcher):
    """Match where a function of your own says so; such a policy cannot be written to a file."""

    function: Question

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise PolicyError(f"predicate() takes a function of (site, facts): {self.function!r}")

    def matches(self, site: Site, facts: Facts) -> bool:
        try:
            return bool(self.function(site, facts))
        except Exception as error:
            raise PolicyError(f"{self!r} raised {error!r} at {site.name!r}") from error

    def __repr__(self) -> str:
        return f"predicate({getattr(self.function, '__qualname__', self.function)})"


SERIALISABLE: tuple[type[Matcher], ...] = (
    AllOf, AnyOf, Not, Name, Kind, HasRole, Meets, FedBy, Op, Is, Offset, Fan, Shape, Anything,
)  # fmt: skip
"""The classes of matchers that a file may hold: all but `Predicate`."""


def _check_words(what: str, words: tuple[str, ...], known: Iterable[str]) -> None:
    """Raise unless there is a word and all of them are known."""
    if not words:
        raise PolicyError(f"name at least one {what}")
    allowed = sorted(known)
    every = f"; there are {', '.join(allowed)}" if len(allowed) <= _FEW else ""
    for word in words:
        if word not in allowed:
            raise UnknownNameError(
                f"no {what} is called {word!r}{nearest(str(word), allowed) or every}"
            )


_FEW = 16
"""Words that are all listed where none is close to what was written."""


def _number(what: str, value: object) -> float:
    """Return a number as Python's own; infinity is one, NaN is none."""
    number = plain_number(value)
    if number is None or math.isnan(number):
        raise PolicyError(f"{what} must be a number, got {value!r:.80}")
    return number


def _call(function: str, *values: object, **fields: object) -> str:
    """Write the call of a function, without the fields that are None."""
    named = (f"{key}={value!r}" for key, value in fields.items() if value is not None)
    return f"{function}({', '.join((*map(repr, values), *named))})"
