"""What weights in use are made of: products and sums of parameters and known constants.

`weight.T * 0.1` grows with `weight`, `gain * standardised(weight)` with `gain` alone, and `u @ v`
with both. As variances of independent numbers multiply and add, each expression of parameters is a
sum of terms, and each term a constant times some parameters: the standard deviation of the term is
that of the constant times those of the parameters.

Reference:
    Khodak, Tenenholtz, Mackey and Fusi, *Initialization and Regularization of Factorized Neural
    Layers*, 2021, arXiv:2105.01029: factors are scaled so that their product starts like the weight
    it stands for, and alike among themselves.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from torch_initpolicy.trace.contractions import terms as terms_of
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OpRole
from torch_initpolicy.trace.scalars import Scalars


class Term(NamedTuple):
    """A product of parameters.

    Attributes:
        constant: What their standard deviations are multiplied by; nan where that is unknown.
        sites: Canonical names of the parameters.
        scales: Names of smaller ones that are spread out over them: they scale, and are kept.
    """

    constant: float = 1.0
    sites: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()

    @property
    def everything(self) -> tuple[str, ...]:
        """The names of all parameters that the term is proportional to."""
        return (*self.sites, *self.scales)

    def times(self, other: "Term") -> "Term":
        """Return the product with an independent term."""
        constant = self.constant * other.constant
        return Term(constant, (*self.sites, *other.sites), (*self.scales, *other.scales))


Terms = tuple[Term, ...]
"""A sum of terms."""

Made = Mapping[str | None, Terms]
"""What a value is made of where each parameter has gone into it; None for where there is none."""

_UNKNOWN: Made = {None: (Term(math.nan),)}


@dataclass(frozen=True, slots=True)
class Composed:
    """Follows parameters through expressions, one node at a time.

    Attributes:
        scalars: The known numbers of the data flow.
        made: What each expression is made of, by value.
    """

    scalars: Scalars
    made: dict[int, Made] = field(default_factory=dict)

    def proportional(self, value: int) -> frozenset[str]:
        """Name the parameters that a value is proportional to."""
        return frozenset(
            site
            for site, terms in self.of(value).items()
            if site is not None and all(term.everything.count(site) == 1 for term in terms)
        )

    def terms(self, value: int, site: str) -> Terms:
        """Return what a value is made of where a parameter has gone into it; nothing elsewhere."""
        return tuple(term for term in self.of(value).get(site, ()) if term.everything)

    def advance(self, node: Node) -> None:
        """Read the next node; one whose output is a signal says nothing of parameters."""
        if node.inputs and not self.scalars.uses.signals.intersection(node.outputs):
            if not any(value in self.scalars.uses.sources for value in node.inputs):
                return
            self.made.update(dict.fromkeys(node.outputs, self._made(node)))

    def of(self, value: int) -> Made:
        """Return what a value is made of."""
        parameter = self.scalars.uses.graph.values[value].parameter
        if parameter is not None:
            return {parameter: (Term(1.0, (parameter,)),)}
        number = self.scalars.numbers.get(value, 1.0)
        return self.made.get(value, {None: (Term(abs(number)),)})

    def _made(self, node: Node) -> Made:
        rule = _OUTERS.get(node.op) or _RULES.get(self.scalars.uses.role(node))
        return rule(self, node) if rule else _UNKNOWN


#
# What operators that read no signal make of parameters
#


def _same(composed: Composed, node: Node) -> Made:
    return composed.of(node.inputs[0])


def _contracted(composed: Composed, node: Node) -> Made:
    growth = math.sqrt(terms_of(composed.scalars.uses, node))
    return _without(_multiplied(map(composed.of, node.inputs), growth), _repeated(composed, node))


def _outer(composed: Composed, node: Node) -> Made:
    return _without(_multiplied(map(composed.of, node.inputs)), _repeated(composed, node))


def _joined(composed: Composed, node: Node) -> Made:
    return {site: terms for v in node.inputs for site, terms in composed.of(v).items()}


def _mixed(composed: Composed, node: Node) -> Made:
    mixed = next((value for value in node.inputs if _drawn(composed, [value])), node.inputs[0])
    return _times(composed.of(mixed), Term(_mean(composed, node)))


def _normalised(composed: Composed, node: Node) -> Made:
    """A standardised weight is as large as what it is scaled by."""
    scales = [value for slot, value in composed.scalars.uses.slots(node) if slot == "weight"]
    return _times(composed.of(scales[0]), Term(math.nan)) if scales else _UNKNOWN


def _mean(composed: Composed, node: Node) -> float:
    """Return what a mean divides by; that a sum joins connections shows in its fans."""
    read, made = (math.prod(_shape(composed, value)) for value in (node.inputs[0], node.outputs[0]))
    return max(made, 1) / max(read, 1) if node.op in ("mean", "nanmean") else 1.0


def _product(composed: Composed, node: Node) -> Made:
    first = node.inputs[0]
    if len(node.inputs) == 1:
        return _times(composed.of(first), Term(composed.scalars.factor(node, first)))
    if "div" in node.op:
        quotient = _times(composed.of(first), _inverse(composed.of(node.inputs[1])))
        return _without(quotient, _repeated(composed, node))
    spread = _spread_out(composed, node)
    factors = [
        _scaling(composed.of(value)) if value in spread else composed.of(value)
        for value in node.inputs
    ]
    return _without(_multiplied(factors), _repeated(composed, node))


def _spread_out(composed: Composed, node: Node) -> frozenset[int]:
    """Return the factors that are spread out over a parameter as large as the product."""
    whole = math.prod(_shape(composed, node.outputs[0]))
    spread = {v for v in node.inputs if math.prod(_shape(composed, v)) < whole}
    return frozenset(spread if _drawn(composed, set(node.inputs) - spread) else ())


def _scaling(made: Made) -> Made:
    """Return what is made of parameters that only scale others."""
    return {
        site: tuple(Term(term.constant, (), term.everything) for term in terms)
        for site, terms in made.items()
    }


def _drawn(composed: Composed, values: Iterable[int]) -> bool:
    return any(site is not None for value in values for site in composed.of(value))


def _multiplied(factors: Iterable[Made], growth: float = 1.0) -> Made:
    """Return the product of independent factors, `growth` times as large."""
    return functools.reduce(_crossed, factors, {None: (Term(growth),)})


def _repeated(composed: Composed, node: Node) -> frozenset[str]:
    """Name the parameters in several factors: `w / w.norm()` does not grow with `w`."""
    sources = composed.scalars.uses.sources
    each = [{source.site for source in sources.get(value, ())} for value in node.inputs]
    names = [site for sites in each for site in sites]
    return frozenset(site for site in names if names.count(site) > 1)


def _without(made: Made, repeated: frozenset[str]) -> Made:
    if not repeated:
        return made
    kept: Made = {
        site: tuple(
            Term(
                math.nan,
                tuple(s for s in term.sites if s not in repeated),
                tuple(s for s in term.scales if s not in repeated),
            )
            for term in terms
        )
        for site, terms in made.items()
        if site not in repeated
    }
    return kept or _UNKNOWN


def _sum(composed: Composed, node: Node) -> Made:
    """Add up parameters; their own mean, taken away, changes little."""
    sources = composed.scalars.uses.sources
    repeated = _repeated(composed, node)
    summands = [
        _times(composed.of(value), Term(composed.scalars.factor(node, value)))
        for value in node.inputs
        if _drawn(composed, [value]) or not any(s.site in repeated for s in sources.get(value, ()))
    ]
    if any(isinstance(given, (int, float)) and given for given in node.args):
        summands.append({None: (Term(),)})
    added = [next(iter(made.values())) for made in summands]
    return {
        site: (*mine, *(term for i, terms in enumerate(added) for term in terms if i != j))
        for j, made in enumerate(summands)
        for site, mine in made.items()
        if site is not None
    } or _UNKNOWN


def _shape(composed: Composed, value: int) -> tuple[int, ...]:
    return composed.scalars.uses.graph.values[value].shape


Rule = Callable[[Composed, Node], Made]

_RULES: Mapping[OpRole, Rule] = MappingProxyType({
    **dict.fromkeys((OpRole.MOVES, OpRole.CASTS, OpRole.PICKS), _same),
    OpRole.MULTIPLIES: _product,
    OpRole.CONTRACTS: _contracted,
    OpRole.ADDS: _sum,
    OpRole.JOINS: _joined,
    OpRole.MIXES: _mixed,
    OpRole.NORMALISES: _normalised,
})  # fmt: skip
"""How to find what an expression is made of, by the role of its operator."""

_OUTERS: Mapping[str, Rule] = MappingProxyType(dict.fromkeys(("kron", "outer", "ger"), _outer))
"""The same of operators that multiply each number of one tensor by each of another."""


def _crossed(one: Made, other: Made) -> Made:
    """Multiply two expressions term by term."""
    first, second = (next(iter(made.values())) for made in (one, other))
    made = {
        **{site: _each(terms, second) for site, terms in one.items()},
        **{site: _each(first, terms) for site, terms in other.items()},
    }
    return {s: terms for s, terms in made.items() if s is not None or len(made) == 1}


def _each(one: Terms, other: Terms) -> Terms:
    return tuple(a.times(b) for a in one for b in other)


def _times(made: Made, term: Term) -> Made:
    """Multiply all terms of an expression."""
    return {site: _each(terms, (term,)) for site, terms in made.items()}


def _inverse(made: Made) -> Term:
    """Return one over a number; of unknown size over anything else."""
    (terms,) = made.values() if len(made) == 1 else ((),)
    constant = terms[0].constant if len(terms) == 1 and not terms[0].sites else math.nan
    return Term(1 / constant if constant else math.nan)
