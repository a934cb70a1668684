"""Where parameters meet the signal: one pass over the graph, in order of execution.

Every value is a signal (it depends on the model's input, or comes out of a weight), an expression
of parameters, or a constant. A parameter is used where its expression meets a signal.
What has happened to it before says what it is; where its elements have gone is for `coordinates`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from torch_initpolicy.trace.graph import Graph, Node, Value
from torch_initpolicy.trace.operators import OPS, RANDOM, UNKNOWN, Operator, OpRole, slots_of

NormStep = Literal["statistic", "inverse", "normalised", "scaled"]
"""A step of a normalisation written out in primitives: `x * rsqrt(mean(x ** 2)) * weight`."""


@dataclass(frozen=True, slots=True)
class Source:
    """A parameter inside an expression of parameters.

    Attributes:
        at: The value that is the parameter itself.
        contracted: Whether it has been multiplied with another parameter and summed.
        shift: What has been added to it: 1.0 for `1 + weight`.
        gated: Whether an activation has been applied to it.
        bent: Whether any function of one number has: an activation, an exponential, a root.
        indexed: Whether rows have been picked out of it by a table of indices.
        routed: Whether whole matrices have been picked out of it by the signal.
        scales: Whether it has been multiplied with a larger parameter, element by element.
        noisy: Whether it has been multiplied by noise.
    """

    site: str
    size: int
    at: int
    contracted: bool = False
    shift: float = 0.0
    gated: bool = False
    bent: bool = False
    indexed: bool = False
    routed: bool = False
    scales: bool = False
    noisy: bool = False

    def marked(self, **marks: bool) -> "Source":
        """Return the source with more that has happened to it."""
        new: dict[str, Any] = {mark: True for mark, holds in marks.items() if holds}
        return replace(self, **new) if new else self


class Use(NamedTuple):
    """One place where a parameter meets the signal, the `partner` where that is its only one."""

    source: Source
    node: Node
    slot: str
    value: Value
    partner: int | None


@dataclass(slots=True)
class Uses:
    """What the pass found, value by value and node by node.

    Attributes:
        signals: Values that depend on the model's input, or come out of a weight.
        sources: Parameters inside each expression of parameters.
        kinds: Steps of normalisations that are written out in primitives.
        found: Where parameters meet the signal.
        at: The same, by node.
        weighers: Nodes that apply a weight of the model to the signal.
        chosen: Values that are indices or masks found in the signal, which is not carried on.
        routing: Indices that have picked whole matrices out of a parameter.
        random: Values that hold random numbers and nothing of the signal or of parameters.
        arguments: What `slots` has answered, by node.
        carrying: What `carried` answers, by node.
    """

    graph: Graph
    signals: set[int] = field(default_factory=set)
    sources: dict[int, tuple[Source, ...]] = field(default_factory=dict)
    kinds: dict[int, NormStep] = field(default_factory=dict)
    found: list[Use] = field(default_factory=list)
    at: dict[int, list[Use]] = field(default_factory=dict)
    weighers: set[int] = field(default_factory=set)
    chosen: set[int] = field(default_factory=set)
    routing: set[int] = field(default_factory=set)
    random: set[int] = field(default_factory=set)
    arguments: dict[int, tuple[tuple[str, int], ...]] = field(default_factory=dict, repr=False)
    carrying: dict[int, tuple[int, ...]] = field(default_factory=dict, repr=False)

    def role(self, node: Node) -> OpRole:
        """Return the role of a node's operator."""
        return OPS.get(node.op, UNKNOWN).role

    def slots(self, node: Node) -> tuple[tuple[str, int], ...]:
        """Return the values that a node reads, each with the argument it stands in."""
        known = self.arguments.get(node.index)
        if known is None:
            known = tuple(slots_of(node, OPS.get(node.op, UNKNOWN)))
            self.arguments[node.index] = known
        return known

    def applied(self, node: int) -> list[Use]:
        """Return the weights that a node applies to the signal, without their biases."""
        return [use for use in self.at.get(node, []) if self.applies(use)]

    def applies(self, use: Use) -> bool:
        """Say whether an operator applies a parameter as its weight, not as a bias."""
        return use.node.index in self.weighers and "bias" not in use.slot

    def holds(self, value: int, site: str) -> bool:
        """Say whether a value is an expression of a parameter."""
        return any(source.site == site for source in self.sources.get(value, ()))

    def carried(self, node: Node) -> tuple[int, ...]:
        """Return the signals whose numbers go into the output of a node that has been read."""
        return self.carrying[node.index]

    def leading(self, ends: Iterable[int], nodes: Sequence[Node]) -> frozenset[int]:
        """Return some values, and those whose numbers reach them through some nodes alone."""
        found = set(ends)
        for node in reversed(nodes):
            if not found.isdisjoint(node.outputs):
                found.update(self.carried(node))
        return frozenset(found)


_READ_ONLY = frozenset({"index", "like", "state", "size"})
"""Arguments whose numbers do not go into the output."""


def uses(graph: Graph) -> Uses:
    """Read a graph once, from its inputs on."""
    result = Uses(graph)
    for node in graph.nodes:
        advance(result, node)
    return result


def advance(result: Uses, node: Node) -> None:
    """Read the next node, in order of execution: also of a forward pass that is still running."""
    for value in node.inputs:
        _enter(result, result.graph.values[value])
    role, slots = result.role(node), result.slots(node)
    result.carrying[node.index] = tuple(
        value for slot, value in slots if value in result.signals and slot not in _READ_ONLY
    )
    if node.op in RANDOM or not result.random.isdisjoint(node.inputs):
        result.random.update(node.outputs)
    if node.op in _CHOOSES and not result.signals.isdisjoint(node.inputs):
        result.chosen.update(node.outputs)
    if not result.chosen.isdisjoint(node.inputs):
        result.chosen.update(node.outputs)
    if role is OpRole.CREATES:
        return
    expressions = [(slot, value) for slot, value in slots if value in result.sources]
    signals = [value for slot, value in slots if value in result.signals and slot != "like"]
    if _routes(result, node, role, expressions):
        _express(result, node, [value for _, value in expressions], routed=True)
        return
    if expressions and (signals or _weighs(role, expressions)):
        _meet(result, node, expressions, signals)
    elif expressions:
        _express(result, node, [value for _, value in expressions])
    if signals or _weighs(role, expressions):
        result.signals.update(node.outputs)
        _note_kind(result, node, signals, expressions)


def _enter(result: Uses, value: Value) -> None:
    if value.is_input:
        result.signals.add(value.index)
    if value.parameter is not None and value.index not in result.sources:
        itself = Source(value.parameter, math.prod(value.shape), value.index)
        result.sources[value.index] = (itself,)


def _routes(result: Uses, node: Node, role: OpRole, expressions: Sequence[tuple[str, int]]) -> bool:
    """Say whether the signal picks whole matrices out of a parameter: experts, one per token.

    The same indices pick a row each out of the experts' biases.
    """
    if role is not OpRole.PICKS or len(expressions) != 1 or expressions[0][0] != "input":
        return False
    indices = {value for slot, value in result.slots(node) if slot == "index"}
    left = len(result.graph.values[expressions[0][1]].shape) - len(indices)
    if left >= _MATRIX and not (
        result.signals.isdisjoint(indices) and result.chosen.isdisjoint(indices)
    ):
        result.routing |= indices
    return left > 0 and not result.routing.isdisjoint(indices)


_CHOOSES = frozenset(
    "argmax argmin argsort nonzero multinomial searchsorted bucketize eq ne lt le gt ge".split()
)
"""Operators that find indices or masks in a signal."""

_MATRIX = 2
"""Dimensions of a matrix."""


def _weighs(role: OpRole, expressions: Sequence[tuple[str, int]]) -> bool:
    """Say whether an operator is a layer by itself: its output is a signal whatever goes in."""
    if role in (OpRole.RECURS, OpRole.LOOKS_UP, OpRole.PROJECTS_AND_ATTENDS):
        return bool(expressions)
    return role is OpRole.WEIGHS and any(slot == "weight" for slot, _ in expressions)


def _meet(
    result: Uses, node: Node, expressions: Sequence[tuple[str, int]], signals: Sequence[int]
) -> None:
    # A recurrent layer reads its first signal; the others are states, or the sizes of a pack.
    alone = len(set(signals)) == 1 or (bool(signals) and result.role(node) is OpRole.RECURS)
    partner = signals[0] if alone else None
    for slot, value in expressions:
        for source in result.sources[value]:
            use = Use(source, node, slot, result.graph.values[value], partner)
            result.found.append(use)
            result.at.setdefault(node.index, []).append(use)
    if _weighs(result.role(node), expressions) or result.role(node) is OpRole.CONTRACTS:
        result.weighers.add(node.index)


def _express(result: Uses, node: Node, read: Sequence[int], *, routed: bool = False) -> None:
    """Follow the parameters of an operator into its outputs, which are expressions of them.

    A parameter that comes on two ways (standardised: itself, and its own norm) is followed on the
    one that keeps more of it.
    """
    op = OPS.get(node.op, UNKNOWN)
    sizes = {value: math.prod(result.graph.values[value].shape) for value in read}
    noisy = op.role is OpRole.MULTIPLIES and any(_is_noise(result, value) for value in node.inputs)
    contracted = op.role is OpRole.CONTRACTS and len(sizes) > 1
    indexed = op.role is OpRole.PICKS and any(
        math.prod(result.graph.values[value].shape) > 1
        for slot, value in result.slots(node)
        if slot == "index"
    )
    followed: dict[str, Source] = {}
    for value in sorted(sizes, key=sizes.__getitem__):
        scales = op.role in _SCALES and sizes[value] < max(sizes.values())
        for source in result.sources[value]:
            there = replace(source, routed=True) if routed else _through(source, node, op)
            followed[source.site] = there.marked(
                contracted=contracted, indexed=indexed and not routed, noisy=noisy, scales=scales
            )
    result.sources.update(dict.fromkeys(node.outputs, tuple(followed.values())))


def _through(source: Source, node: Node, op: Operator) -> Source:
    """Follow a parameter through an operator that reads parameters and constants only."""
    if op.role is OpRole.ADDS:
        return replace(source, shift=source.shift + _added_number(node))
    gates, bends = op.role is OpRole.ACTIVATES, op.role in (OpRole.ACTIVATES, OpRole.COMPUTES)
    return replace(source, gated=source.gated or gates, bent=source.bent or bends)


def _added_number(node: Node) -> float:
    numbers = [arg for arg in node.args if isinstance(arg, (int, float))]
    return float(numbers[0]) if len(numbers) == 1 else 0.0


_SCALES = (OpRole.MULTIPLIES, OpRole.NORMALISES)
"""Roles of operators in which the smaller of two parameters scales the larger."""


def _is_noise(result: Uses, value: int) -> bool:
    """Say whether a factor is random, or a buffer of numbers that are no mask."""
    if value in result.random:
        return True
    held = result.graph.values[value].held
    if held is None or held.numel() < 2 or not held.is_floating_point() or held.is_meta:
        return False
    return bool(((held != 0) & (held != 1)).any())


def _note_kind(
    result: Uses, node: Node, signals: Sequence[int], expressions: Sequence[tuple[str, int]]
) -> None:
    kinds = [result.kinds.get(value) for value in signals]
    kind = _kind(node, result.role(node), kinds, scaled=bool(expressions))
    if kind is not None:
        result.kinds.update(dict.fromkeys(node.outputs, kind))


def _kind(
    node: Node, role: OpRole, kinds: Sequence[NormStep | None], *, scaled: bool
) -> NormStep | None:
    """Say which step of a normalisation a node's output is, given those of what it reads."""
    if role is OpRole.SUMMARISES or node.op in ("mean", "sum"):
        return "statistic"
    if role is OpRole.NORMALISES:
        return "scaled" if scaled else "normalised"
    if role is OpRole.MULTIPLIES:
        return _kind_of_product(node, kinds, scaled=scaled)
    if role is OpRole.COMPUTES:
        inverts = node.op in ("rsqrt", "reciprocal", "rdiv") or _is_negative_power(node)
        return ("inverse" if inverts else "statistic") if "statistic" in kinds else None
    if role in (OpRole.ADDS, OpRole.CASTS, OpRole.MOVES):
        return kinds[0] if len(set(kinds)) == 1 else None
    return None


def _kind_of_product(
    node: Node, kinds: Sequence[NormStep | None], *, scaled: bool
) -> NormStep | None:
    if scaled and "normalised" in kinds:
        return "scaled"
    if len(kinds) == 1:
        return kinds[0]  # times a number
    divides = node.op.startswith("div") and kinds[-1] == "statistic"
    return "normalised" if divides or "inverse" in kinds else None


def _is_negative_power(node: Node) -> bool:
    exponent = node.args[1] if len(node.args) > 1 else 1
    return node.op == "pow" and isinstance(exponent, (int, float)) and exponent < 0
