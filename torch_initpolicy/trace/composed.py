"""What weights in use are made of: products and sums of parameters and known constants.

`weight.T * 0.1` grows with `weight`, `gain * standardised(weight)` with `gain` alone, and `u @ v`
with both. As variances of independent numbers multiply and add, each expression of parameters is a
sum of terms, and each term a constant times some parameters: the standard deviation of the term is
that of the constant times those of the parameters.

Reference:
    Khodak, Tenenholtz, Mackey and Fusi, *Initialization and Regularization of Factorized Neural
    Layers*, 2021, arXiv:2105.01029: factors are scaled so that their product starts like the weight
    it stands for, and all with one standard deviation.
"""

import functools
import math
import operator
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

    def without(self, names: frozenset[str]) -> "Term":
        """Return the term, of unknown size, where it does not grow with some parameters."""
        sites, scales = (tuple(s for s in each if s not in names) for each in self[1:])
        return Term(math.nan, sites, scales)


Terms = tuple[Term, ...]
"""A sum of terms."""

Parts = tuple[Terms, ...]
"""What lies side by side in a value."""

_UNKNOWN: Parts = ((Term(math.nan),),)


@dataclass(frozen=True, slots=True)
class Composed:
    """Follows parameters through expressions, node by node: what each value is `made` of."""

    scalars: Scalars
    made: dict[int, Parts] = field(default_factory=dict)

    def proportional(self, value: int) -> frozenset[str]:
        """Name the parameters that a value is proportional to, wherever they have gone into it."""
        each = [(site, terms) for terms in self.of(value) for site in set(_names(terms))]
        return frozenset(
            site for site, terms in each if all(t.everything.count(site) == 1 for t in terms)
        )

    def terms(self, value: int, site: str) -> Terms:
        """Return what a value is made of where a parameter has gone into it; nothing elsewhere."""
        made = next((terms for terms in self.of(value) if site in _names(terms)), ())
        return tuple(term for term in made if term.everything)

    def advance(self, node: Node) -> None:
        """Read the next node; one whose output is a signal says nothing of parameters."""
        uses = self.scalars.uses
        if uses.signals.isdisjoint(node.outputs) and any(v in uses.sources for v in node.inputs):
            rule = _contracted if node.op in _OUTERS else _RULES.get(uses.role(node))
            pieces = rule(self, node) if rule else _UNKNOWN
            self.made.update(dict.fromkeys(node.outputs, pieces))

    def of(self, value: int) -> Parts:
        """Return what a value is made of."""
        parameter = self.scalars.uses.graph.values[value].parameter
        if parameter is not None:
            return ((Term(1.0, (parameter,)),),)
        return self.made.get(value, _number(self.scalars.numbers.get(value, 1.0)))

    def is_drawn(self, value: int) -> bool:
        """Say whether any parameter has gone into a value."""
        return any(_names(terms) for terms in self.of(value))

    def size(self, value: int) -> int:
        """Count the elements of a value."""
        return math.prod(self.scalars.uses.graph.values[value].shape)

    def repeated(self, node: Node) -> frozenset[str]:
        """Name the parameters in several operands: `w / w.norm()` does not grow with `w`."""
        sources = self.scalars.uses.sources
        each = [{source.site for source in sources.get(value, ())} for value in node.inputs]
        names = [site for sites in each for site in sites]
        return frozenset(site for site in names if names.count(site) > 1)


def _names(terms: Terms) -> list[str]:
    return [site for term in terms for site in term.everything]


def _number(number: float) -> Parts:
    return ((Term(abs(number)),),)


# What operators that read no signal make of parameters


def _mixed(composed: Composed, node: Node) -> Parts:
    """Divide by the count of a mean; that a sum joins connections shows in its fans."""
    mixed = next(filter(composed.is_drawn, node.inputs), node.inputs[0])
    read, made = composed.size(node.inputs[0]), composed.size(node.outputs[0])
    share = max(made, 1) / max(read, 1) if node.op in ("mean", "nanmean") else 1.0
    return _times(composed.of(mixed), _number(share))


def _normalised(composed: Composed, node: Node) -> Parts:
    """A standardised weight is as large as what it is scaled by."""
    scales = [value for slot, value in composed.scalars.uses.slots(node) if slot == "weight"]
    return _times(composed.of(scales[0]), _UNKNOWN) if scales else _UNKNOWN


def _contracted(composed: Composed, node: Node) -> Parts:
    growth = _number(math.sqrt(terms_of(composed.scalars.uses, node)))
    return _independent(composed, node, [growth, *map(composed.of, node.inputs)])


def _product(composed: Composed, node: Node) -> Parts:
    first = composed.of(node.inputs[0])
    if len(node.inputs) == 1:
        return _times(first, _number(composed.scalars.factor(node, node.inputs[0])))
    if "div" in node.op:
        return _independent(composed, node, [first, _inverse(composed.of(node.inputs[1]))])
    whole = composed.size(node.outputs[0])
    spread = {value for value in node.inputs if composed.size(value) < whole}
    if not any(map(composed.is_drawn, set(node.inputs) - spread)):
        spread = set()
    each = [(composed.of(value), value in spread) for value in node.inputs]
    return _independent(composed, node, (_scaling(made) if s else made for made, s in each))


def _scaling(made: Parts) -> Parts:
    """Return what is made of parameters that only scale others."""
    return tuple(tuple(Term(t.constant, (), t.everything) for t in terms) for terms in made)


def _sum(composed: Composed, node: Node) -> Parts:
    """Add up parameters; their own mean, taken away, changes little."""
    summands = [
        _times(composed.of(value), _number(composed.scalars.factor(node, value)))
        for value in node.inputs
        if composed.is_drawn(value) or not _comes_from(composed, value, composed.repeated(node))
    ]
    if any(isinstance(given, (int, float)) and given for given in node.args):
        summands.append(_number(1.0))
    return functools.reduce(functools.partial(_crossed, operator.add), summands, ((),))


def _comes_from(composed: Composed, value: int, names: frozenset[str]) -> bool:
    return any(source.site in names for source in composed.scalars.uses.sources.get(value, ()))


def _independent(composed: Composed, node: Node, factors: Iterable[Parts]) -> Parts:
    """Return the product of independent factors; parameters in several of them say nothing."""
    made, repeated = functools.reduce(_times, factors), composed.repeated(node)
    if not repeated:
        return made
    return tuple(tuple(term.without(repeated) for term in terms) for terms in made)


def _times(one: Parts, other: Parts) -> Parts:
    """Multiply two expressions term by term."""
    return _crossed(lambda p, q: tuple(a.times(b) for a in p for b in q), one, other)


def _crossed(combine: Callable[[Terms, Terms], Terms], one: Parts, other: Parts) -> Parts:
    """Combine each piece of two expressions with the first of the other."""
    rest = (combine(one[0], terms) for terms in other[1:])
    return (*(combine(terms, other[0]) for terms in one), *rest)


def _inverse(made: Parts) -> Parts:
    """Return one over a number; of unknown size over anything else."""
    (term, *others), *pieces = made
    known = not (others or pieces or term.sites) and term.constant
    return _number(1 / term.constant if known else math.nan)


TermsRule = Callable[[Composed, Node], Parts]

_RULES: Mapping[OpRole, TermsRule] = MappingProxyType({
    **dict.fromkeys(
        (OpRole.MOVES, OpRole.CASTS, OpRole.PICKS),
        lambda composed, node: composed.of(node.inputs[0]),
    ),
    OpRole.MULTIPLIES: _product,
    OpRole.CONTRACTS: _contracted,
    OpRole.ADDS: _sum,
    OpRole.JOINS: lambda composed, node: tuple(
        terms for value in node.inputs for terms in composed.of(value)
    ),
    OpRole.MIXES: _mixed,
    OpRole.NORMALISES: _normalised,
})  # fmt: skip
"""How to find what an expression is made of, by the role of its operator."""

_OUTERS = frozenset({"kron", "outer", "ger"})
"""Operators that multiply each number of one tensor by each of another."""
