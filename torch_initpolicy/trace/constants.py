"""Known constants between the numbers drawn for a weight and the function that reads the result.

**The law.** A rule gives a weight the variance that the next function is to read. A number that the
code multiplies on the way there is taken out of the weight again: `relu(c * (W x))`,
`relu((c * W) x)`, `relu(W (c * x))` and `relu(W x / (1 / c))` start with one variance. Numbers
count

- *on the weight*: between the parameter and its operator, and the operator's own `alpha`;
- *on the output*: from the operator to what comes next, be it an activation, a normalisation,
  another weight or the model's output (`shares` says how factors of a product share them);
- *on the input*: since the last activation, normalisation or input of the model, but for those that
  a weight before has taken out already.

Numbers that do not count: weights of a mean (`(a + b) / 2`, and `/ sqrt(2)`), how the summands of a
sum are weighed against each other (the scale of a residual branch), units of the model's input
(`x / 255`, `2 * x - 1`), factors that are parameters, and what a function undoes itself
(`30 * tanh(x / 30)`).

Here every signal gets its size next to that of what made it, in one pass in order of execution: by
a rule for each role that an operator has, and the same rules whether weights have taken anything
out or not.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch_initpolicy.trace.contractions import terms
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OpRole
from torch_initpolicy.trace.scalars import Scalars

MadeBy = Literal["product", "weight", "activation", "other", "input", "data"]
"""What made a signal: products of two outputs of weights; a weight, linearly; an activation;
anything else; the model's input, or that in units of its own."""

_PRECEDENCE: Sequence[MadeBy] = ("product", "weight", "activation", "other", "input", "data")
"""What is said to have made a mixture: the first of these that did."""


class SignalSize(NamedTuple):
    """The size of a signal next to that of what made it.

    Attributes:
        factor: Product of the known constants since then.
        source: What made it.
        total: Sum of the constants on all that has been added up.
        power: The same of their squares, and the root of it.
        packed: Whether it holds outputs of several matrices that are packed into one weight.
    """

    factor: float = 1.0
    source: MadeBy = "other"
    total: float = 1.0
    power: float = 1.0
    packed: bool = False

    @property
    def is_drawn(self) -> bool:
        """Whether some weight can be scaled to scale the signal."""
        return self.source in ("weight", "product")

    def times(self, number: float, *, count: int = 1) -> "SignalSize":
        """Return the sum of `count` such signals, times a number."""
        total, power = self.total * count, self.power * math.sqrt(count)
        each = (number * self.factor, number * total, number * power)
        return SignalSize(each[0], self.source, *each[1:], self.packed)


def _single(factor: float, source: MadeBy, *, packed: bool = False) -> SignalSize:
    return SignalSize(factor, source, factor, factor, packed)


_OTHER = SignalSize()


@dataclass(frozen=True, slots=True)
class Constants:
    """The known constants of a graph.

    Attributes:
        scalars: The numbers that the code writes.
        skips: For each addition that ends a residual branch, the value that it adds the branch to.
        ends: Values that come out of an activation.
        kernels: For each node that applies a signal as its weight, this signal.
        packed: Nodes that apply several matrices packed into one, each of which takes out its own.
        aggregations: Products that sum over positions, not over units: those of neighbours, say.
        signals: Every signal's size next to that of what made it, by value.
        bilinear: Element-wise products of two outputs of weights.
        first: The constants with nothing taken out, where these are about what is left over.
        taken_out: What the weights that make a value take out of it, by value.
    """

    scalars: Scalars
    skips: Mapping[int, int] = field(default_factory=dict)
    ends: frozenset[int] = frozenset()
    kernels: Mapping[int, int] = field(default_factory=dict)
    packed: frozenset[int] = frozenset()
    aggregations: frozenset[int] = frozenset()
    signals: dict[int, SignalSize] = field(default_factory=dict)
    bilinear: set[int] = field(default_factory=set)
    first: "Constants | None" = None
    taken_out: Mapping[int, float] = field(default_factory=dict)

    def left_over(self, taken_out: Mapping[int, float]) -> "Constants":
        """Return the constants that are left where weights take some out, by value."""
        if all(number == 1 for number in taken_out.values()):
            return self
        left = replace(self, first=self, taken_out=taken_out, signals={}, bilinear=set())
        return left.entered()

    def entered(self) -> "Constants":
        """Go through the graph once, and note every signal's size."""
        graph = self.scalars.uses.graph
        for value in graph.values:
            if value.is_input:
                source: MadeBy = "input" if value.dtype.is_floating_point else "data"
                self.signals[value.index] = SignalSize(1.0, source)
        for node in graph.nodes:
            made = _made(self, node)
            for output in node.outputs:
                piece = _piece(self, node, output, made)
                self.signals[output] = _ACTIVATED if output in self.ends else piece
        return self

    def on_input(self, value: int | None) -> float:
        """Return the constants on what a weight reads that no weight before has taken out."""
        signal = _OTHER if value is None else self.signal(value)
        return 1.0 if signal.source == "product" else signal.factor

    def signal(self, value: int) -> SignalSize:
        """Return the size of a value."""
        return self.signals.get(value, _OTHER)

    def coefficient(self, node: Node, value: int) -> float:
        """Return the number by which a node multiplies what it carries, as far as it counts."""
        signal, number = self.signal(value), self.scalars.factor(node, value)
        if value in self.bilinear:  # multiply and sum: a product of two outputs, in two steps
            number *= math.sqrt(self.summands(node))
        if number == 1.0 or not 0 < number < math.inf or signal.source == "data":
            return 1.0
        sizes = (signal.total, signal.power) if signal.total > signal.factor else ()
        averages = any(_is_near(number * size, signal.factor) for size in sizes)
        return 1.0 if averages or (signal.source == "input" and _is_unit(number)) else number

    def growth(self, node: Node, factors: Sequence[int]) -> float:
        """Return how much larger a sum of products is than they are; 1 for an average.

        What an input weighs positions by, as an adjacency matrix does, is taken for an average.
        """
        signals = [self.signal(value) for value in factors]
        weighs = node.index in self.aggregations and sum(s.is_drawn for s in signals) < 2
        averages = weighs or any(signal.source == "activation" for signal in signals)
        is_sum = self.scalars.uses.role(node) is not OpRole.MULTIPLIES and not averages
        return math.sqrt(terms(self.scalars.uses, node)) if is_sum else 1.0

    def summands(self, node: Node) -> int:
        """Count the numbers in each sum that a node takes; 1 for what is no sum."""
        if node.op not in ("sum", "nansum"):
            return 1
        values = self.scalars.uses.graph.values
        read, made = (values[v].shape for v in (node.inputs[0], node.outputs[0]))
        return math.prod(read) // max(math.prod(made), 1)

    def added(self, node: Node) -> dict[int, SignalSize]:
        """Return the signals that a node adds up, each times its coefficient."""
        uses = self.scalars.uses
        return {
            value: signal.times(self.coefficient(node, value))
            for value, signal in ((v, self.signal(v)) for v in uses.carried(node))
            if uses.kinds.get(value) != "statistic"
        }

    def mean(self, node: Node) -> int | None:
        """Say whether a sum's total (0) is 1, as a mean's, or its power (1); None for neither."""
        before = self.first or self
        drawn = [signal for signal in before.added(node).values() if signal.is_drawn]
        if len(drawn) < 2 or node.op != "add":
            return None
        return next(
            (i for i, size in enumerate(_total_and_power(drawn)) if _is_near(size, 1)), None
        )

    def is_normalised(self, node: Node) -> bool:
        """Say whether a node makes numbers of one size, whatever it reads."""
        uses = self.scalars.uses
        kind, before = uses.kinds.get(node.outputs[0]), map(uses.kinds.get, node.inputs)
        by_hand = kind in ("normalised", "scaled") and kind not in before
        return uses.role(node) is OpRole.NORMALISES or by_hand


def _is_near(number: float, other: float) -> bool:
    """Compare constants that are written with few digits."""
    return math.isclose(number, other, rel_tol=1e-3)


_UNITS = (255.0, 256.0, 127.5, 128.0, 65535.0, 65536.0)
"""What pixels and samples of sound are divided by."""


def _is_unit(number: float) -> bool:
    return any(_is_near(number * unit, 1.0) for unit in _UNITS)


# What operators make of signals

BOUNDS = frozenset({"clamp", "clip", "clamp_min", "clamp_max", "nan_to_num"})
"""Functions that leave most numbers as they are, if their bounds are not known numbers."""

_MAKES = (OpRole.LOOKS_UP, OpRole.PROJECTS_AND_ATTENDS)
_ACTIVATED = SignalSize(1.0, "activation")


def _made(constants: Constants, node: Node) -> SignalSize:
    uses = constants.scalars.uses
    role, carried = uses.role(node), uses.carried(node)
    if not node.outputs:
        return _OTHER
    if node.index in uses.weighers or role in _MAKES:
        start = 1 / constants.taken_out.get(node.outputs[0], 1.0)
        return _single(start, "weight", packed=node.index in constants.packed)
    if not carried or constants.is_normalised(node):
        return _OTHER
    return _SIZES.get(role, _carried)(constants, node, carried)


def _piece(constants: Constants, node: Node, output: int, made: SignalSize) -> SignalSize:
    """Return one of the pieces that the output of a packed weight is cut into."""
    cuts = constants.scalars.uses.role(node) in (OpRole.MOVES, OpRole.PICKS)
    if not made.packed or not cuts or node.index in constants.packed:
        return made
    whole, part = (constants.taken_out.get(value, 1.0) for value in (node.inputs[0], output))
    return made.times(whole / part)


def _activated(constants: Constants, node: Node, carried: Sequence[int]) -> SignalSize:
    return _carried(constants, node, carried) if node.op in BOUNDS else _ACTIVATED


def _carried(constants: Constants, node: Node, carried: Sequence[int]) -> SignalSize:
    """Return the same signal, in other places or times a number."""
    slots = constants.scalars.uses.slots(node)
    value = next((v for slot, v in slots if slot == "value"), carried[0])
    signal, number = constants.signal(value), constants.coefficient(node, value)
    written = constants.scalars.factor(node, value)
    if signal.source == "input" and _is_unit(written):
        return SignalSize(1.0, "data")
    if written == number == 1.0:
        return signal.times(1.0, count=constants.summands(node))
    return _single(signal.factor * number, signal.source, packed=signal.packed)


def _side_by_side(constants: Constants, node: Node, carried: Sequence[int]) -> SignalSize:
    """Return the root mean square of what lies side by side."""
    values = constants.scalars.uses.graph.values
    sizes = {value: math.prod(values[value].shape) for value in carried}
    squares = (size * constants.signal(value).factor ** 2 for value, size in sizes.items())
    mean = sum(squares) / max(sum(sizes.values()), 1)
    return _single(math.sqrt(mean), _source(map(constants.signal, carried)))


def _size_of_sum(constants: Constants, node: Node, carried: Sequence[int]) -> SignalSize:
    summed = constants.added(node).values()
    source = _source(summed)
    if source in ("input", "data") and len(summed) == 1:
        return SignalSize(1.0, "data")  # `2 * x - 1` says in which units the input is
    if node.index in constants.skips:
        return _single(constants.signal(constants.skips[node.index]).factor, source)
    drawn = [signal for signal in summed if signal.is_drawn] or list(summed)
    mean, sizes = constants.mean(node), _total_and_power(drawn)
    if mean is not None:
        return _single(sizes[mean], source)
    return SignalSize(max((signal.factor for signal in drawn), default=1.0), source, *sizes)


def _total_and_power(summed: Iterable[SignalSize]) -> tuple[float, float]:
    """Return the sum of what is added up, and the root of the sum of squares."""
    each = [(signal.total, signal.power) for signal in summed]
    return math.fsum(total for total, _ in each), math.hypot(*(power for _, power in each))


def _size_of_product(constants: Constants, node: Node, carried: Sequence[int]) -> SignalSize:
    """Return the size of a product, of signals where there are several."""
    role, uses = constants.scalars.uses.role(node), constants.scalars.uses
    if len(carried) == 1:
        return _carried(constants, node, carried)
    factors = [constants.signal(value) for value in carried]
    factor = math.prod(signal.factor for signal in factors)
    if node.index in constants.kernels:
        return _single(factor * math.sqrt(terms(uses, node)), "weight")
    if role is OpRole.WEIGHS:
        return SignalSize(1.0, "weight")
    factor *= constants.coefficient(node, carried[0]) * constants.growth(node, carried)
    bilinear = sum(signal.is_drawn for signal in factors) > 1
    if bilinear and role is OpRole.MULTIPLIES:
        constants.bilinear.update(node.outputs)
    is_sum = bilinear and role is OpRole.CONTRACTS
    return _single(factor, "product" if is_sum else _source(factors))


def _source(signals: Iterable[SignalSize]) -> MadeBy:
    """Return what made a mixture of signals: weights, if any of them did."""
    return min((s.source for s in signals), key=_PRECEDENCE.index, default="other")


_SIZES: Mapping[OpRole, Callable[[Constants, Node, Sequence[int]], SignalSize]] = MappingProxyType({
    OpRole.RECURS: _activated,
    OpRole.ACTIVATES: _activated,
    OpRole.COMPUTES: _activated,
    OpRole.ADDS: _size_of_sum,
    OpRole.MULTIPLIES: _size_of_product,
    OpRole.CONTRACTS: _size_of_product,
    OpRole.WEIGHS: _size_of_product,
    OpRole.JOINS: _side_by_side,
})  # fmt: skip
"""How to find the size of what an operator makes, by its role; the others carry what they read."""
