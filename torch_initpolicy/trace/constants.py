"""Known constants between the numbers drawn for a weight and the function that reads the result.

**The law.** A rule gives a weight the variance that the next function is to read. A number that the
code multiplies on the way there is taken out of the weight again: `relu(c * (W x))`,
`relu((c * W) x)`, `relu(W (c * x))` and `relu(W x / (1 / c))` start alike. Numbers count

- *on the weight*: between the parameter and its operator, and the operator's own `alpha`;
- *on the output*: from the operator to what comes next, be it an activation, a normalisation,
  another weight or the model's output;
- *on the input*: since the last activation, normalisation or input of the model, but for those that
  a weight before has taken out already.

A product `q . k` of two outputs sums `d` terms and is `sqrt(d)` as large as they are. The usual
`1 / sqrt(d)` of attention makes up for exactly that (Vaswani et al., *Attention Is All You Need*,
2017, arXiv:1706.03762, section 3.2.1); what is missing to it, or too much, both factors share.

Numbers that do not count: weights of a mean (`(a + b) / 2`, and `/ sqrt(2)`), how the summands of a
sum are weighed against each other (the scale of a residual branch), units of the model's input
(`x / 255`, `2 * x - 1`), factors that are parameters, and what a function undoes itself
(`30 * tanh(x / 30)`).
"""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.graph import Graph, Node, Ref
from torch_initpolicy.trace.operators import OPS, UNKNOWN, OpRole, argument, attention_scale

Source = Literal["weight", "product", "activation", "input", "data", "other"]
"""What made a signal: a weight, linearly; products of two such; an activation; the model's input,
or that in units of its own; anything else."""

_DRAWN = ("weight", "product")


class Signal(NamedTuple):
    """The size of a signal next to that of what made it.

    Attributes:
        factor: Product of the known constants since then.
        source: What made it.
        summands: How many signals of the same size have been added up.
        packed: Whether it holds outputs of several matrices that are packed into one weight.
    """

    factor: float = 1.0
    source: Source = "other"
    summands: int = 1
    packed: bool = False

    @property
    def is_drawn(self) -> bool:
        """Whether some weight can be scaled to scale the signal."""
        return self.source in _DRAWN


_OTHER = Signal()
BOUNDS = frozenset({"clamp", "clip", "clamp_min", "clamp_max", "nan_to_num"})
"""Functions that leave most numbers as they are, if their bounds are not known numbers."""

_SUMS = frozenset({"sum", "nansum"})
_UNITS = (255.0, 256.0, 127.5, 128.0, 65535.0, 65536.0)
"""What pixels and samples of sound are divided by."""


def _is_near(number: float, other: float) -> bool:
    """Compare constants that are written with few digits."""
    return math.isclose(number, other, rel_tol=1e-3)


@dataclass(frozen=True, slots=True)
class Constants:
    """The known constants of a graph.

    Attributes:
        uses: The data flow.
        numbers: The values that are known numbers.
        skips: For each addition that ends a residual branch, the value that it adds the branch to.
        ends: Values that come out of an activation.
        kernels: For each node that applies a signal as its weight, this signal.
        signals: Every signal's size next to that of what made it, by value.
        packed: Nodes that apply several matrices packed into one, each of which takes out its own.
        first: The same with nothing taken out, where it is about what is left over; else None.
        taken_out: What the weights that make a value take out of it, by value.
        bilinear: Element-wise products of two outputs of weights.
    """

    uses: Uses
    numbers: Mapping[int, float]
    skips: Mapping[int, int] = field(default_factory=dict)
    ends: frozenset[int] = frozenset()
    kernels: Mapping[int, int] = field(default_factory=dict)
    signals: dict[int, Signal] = field(default_factory=dict)
    packed: frozenset[int] = frozenset()
    first: "Constants | None" = None
    taken_out: Mapping[int, float] = field(default_factory=dict)
    bilinear: set[int] = field(default_factory=set)

    def left_over(self, taken_out: Mapping[int, float]) -> "Constants":
        """Return the constants that are left where weights take some out.

        Args:
            taken_out: What each weight takes out of its output, by value.
        """
        return replace(self, first=self, taken_out=taken_out).entered()

    def entered(self) -> "Constants":
        """Return the constants with every signal's size next to what made it."""
        graph = self.uses.graph
        inputs = (value for value in graph.values if value.is_input)
        signals = {
            value.index: Signal(1.0, "input" if value.dtype.is_floating_point else "data")
            for value in inputs
        }
        entered = replace(self, signals=signals, bilinear=set())
        for node in graph.nodes:
            if node.outputs:
                entered.enter(node)
        return entered

    def on_input(self, value: int | None) -> float:
        """Return the constants on what a weight reads that no weight before has taken out."""
        signal = _OTHER if value is None else self._signal(value)
        return 1.0 if signal.source == "product" else signal.factor

    #
    # From a value on
    #

    def ahead(self, node: Node, value: int, beyond: float, *, met: bool) -> float:
        """Return the constants from a value on, through a node that carries it.

        Args:
            node: The node.
            value: What it reads.
            beyond: The constants from its output on, up to what is met there.
            met: Whether that is an activation.
        """
        signal, role = self._signal(value), self.uses.role(node)
        if role is OpRole.NORMALISES or self._is_normalised(node):
            return 1.0
        if role is OpRole.ADDS:
            return beyond * self._counted(node).get(value, 1.0) / signal.factor
        others = self._others(node, value)
        if others and role in (OpRole.MULTIPLIES, OpRole.CONTRACTS, OpRole.WEIGHS):
            return self._shared(node, value, others, beyond, met=met)
        return beyond * self.coefficient(node, value)

    def attended(self, node: Node, value: int) -> float:
        """Return the constants from a query or key on, up to the softmax inside attention."""
        given = dict(reversed(self.uses.slots(node)))
        if value not in (given.get("query"), given.get("key")):
            return 1.0
        other = given["key"] if value == given["query"] else given["query"]
        width = self.uses.graph.values[given["query"]].shape[-1]
        scale = attention_scale(node) or width**-0.5
        return self._share(value, (other,), scale * math.sqrt(width))

    def _shared(
        self, node: Node, value: int, others: Sequence[int], beyond: float, *, met: bool
    ) -> float:
        """Return the part of the constants behind a product that one of its factors takes out."""
        if node.index in self.kernels:
            if value != self.kernels[node.index]:
                return 1.0
            beside = (self._signal(other) for other in others)
            on_input = math.prod(signal.factor for signal in beside if not signal.is_drawn)
            return beyond * math.sqrt(self.terms(node)) * on_input
        if not met and any(self._signal(other).is_drawn for other in others):
            return 1.0  # nobody can say how large a product should be that no function reads
        behind = beyond * self.coefficient(node, value) * self._growth(node, (value, *others))
        return self._share(value, others, behind)

    def _share(self, value: int, others: Sequence[int], behind: float) -> float:
        """Share out constants evenly, whichever factor they are written to."""
        beside = [self._signal(other) for other in others]
        own = self._signal(value).factor
        total = behind * own * math.prod(signal.factor for signal in beside)
        return math.pow(total, 1 / (1 + sum(signal.is_drawn for signal in beside))) / own

    def _growth(self, node: Node, factors: Sequence[int]) -> float:
        """Return how much larger a sum of products is than they are; 1 for an average."""
        averages = any(self._signal(value).source == "activation" for value in factors)
        is_sum = self.uses.role(node) is not OpRole.MULTIPLIES and not averages
        return math.sqrt(self.terms(node)) if is_sum else 1.0

    def terms(self, node: Node) -> int:
        """Count the terms of each sum in a product of two signals."""
        shapes = [self.uses.graph.values[value].shape for value in node.inputs]
        if node.op == "einsum" and isinstance(node.args[0], str):
            return _summed(node.args[0], shapes)
        by_slot = {slot: self.uses.graph.values[v].shape for slot, v in self.uses.slots(node)}
        if self.uses.role(node) is OpRole.WEIGHS:
            kernel = by_slot.get("weight", (1, 1))
            return math.prod(kernel[2:]) * kernel[0 if "transpose" in node.op else 1]
        left = by_slot.get("left", shapes[0])
        return left[-1] if left else 1

    def coefficient(self, node: Node, value: int) -> float:
        """Return the number by which a node multiplies what it carries, as far as it counts."""
        signal, number = self._signal(value), abs(self._written(node, value))
        if not 0 < number < math.inf or signal.source == "data":
            return 1.0
        means = (1 / signal.summands, 1 / math.sqrt(signal.summands))
        averages = signal.summands > 1 and any(_is_near(number, mean) for mean in means)
        return 1.0 if averages or (signal.source == "input" and _is_unit(number)) else number

    def _written(self, node: Node, value: int) -> float:
        role = self.uses.role(node)
        if role is OpRole.MULTIPLIES:
            return self.multiplied(node, value)
        if role is OpRole.CONTRACTS or (role is OpRole.ADDS and node.args[1:2] == (Ref(value),)):
            return float(node.kwargs.get("alpha", 1.0))
        # Multiply and sum: a product of two outputs, written in two steps.
        return math.sqrt(self._summands(node)) if value in self.bilinear else 1.0

    def multiplied(self, node: Node, value: int) -> float:
        """Return the known number by which a product or quotient multiplies one of its operands."""
        operands = [*node.args, *(node.kwargs[key] for key in ("other",) if key in node.kwargs)]
        numbers = (self._number(each) for each in operands if each != Ref(value))
        product = math.prod(number for number in numbers if number is not None)
        if "div" not in node.op:
            return product
        return 1 / product if operands[0] == Ref(value) and product else 1.0

    def _number(self, given: Any) -> float | None:
        if isinstance(given, Ref):
            return self.numbers.get(given.value)
        return float(given) if isinstance(given, (int, float)) else None

    def _summands(self, node: Node) -> int:
        """Count the numbers in each sum that a node takes; 1 for what is no sum."""
        if node.op not in _SUMS:
            return 1
        read, made = (self.uses.graph.values[v].shape for v in (node.inputs[0], node.outputs[0]))
        return math.prod(read) // max(math.prod(made), 1)

    def _signal(self, value: int) -> Signal:
        return self.signals.get(value, _OTHER)

    def _others(self, node: Node, value: int) -> list[int]:
        """Return the other signals of a product."""
        others = list(self.uses.carried(node))
        if value in others:
            others.remove(value)
        return others

    def _is_normalised(self, node: Node) -> bool:
        return self.uses.kinds.get(node.outputs[0]) in ("normalised", "scaled")

    #
    # Sums
    #

    def added(self, node: Node) -> dict[int, Signal]:
        """Return the signals that a node adds up, each times its coefficient."""
        found = {}
        for value in self.uses.carried(node):
            if self.uses.kinds.get(value) != "statistic":
                signal = self._signal(value)
                factor = signal.factor * self.coefficient(node, value)
                found[value] = signal._replace(factor=factor)
        return found

    def _counted(self, node: Node) -> dict[int, float]:
        """Return how much of the constants on each summand its own weight takes out.

        Each takes out what stands before it alone, but what makes it smaller than the others: how
        the author weighs summands, the scale of a branch or the weights of a mean, says nothing
        of any weight.
        """
        factors = {v: signal.factor for v, signal in self.added(node).items() if signal.is_drawn}
        if node.index in self.skips:
            skip = self.skips[node.index]
            return {v: factor if v == skip else 1.0 for v, factor in factors.items()}
        if self._is_mean(node, list(factors.values())):
            return dict.fromkeys(factors, 1.0)
        least = min(1.0, max(factors.values(), default=1.0))
        return {value: max(factor, least) for value, factor in factors.items()}

    def _is_mean(self, node: Node, factors: Sequence[float]) -> bool:
        """Say whether coefficients are those of a mean, or keep the variance of one summand."""
        totals = sum(factors), math.hypot(*factors)
        return len(factors) > 1 and node.op == "add" and any(_is_near(t, 1) for t in totals)

    #
    # Up to a value
    #

    def enter(self, node: Node) -> None:
        """Note how large a node's outputs are next to what made them."""
        made = self._made(node)
        for output in node.outputs:
            signal = self._piece(node, output, made) if made.packed else made
            self.signals[output] = Signal(1.0, "activation") if output in self.ends else signal

    def _piece(self, node: Node, output: int, made: Signal) -> Signal:
        """Return one of the pieces that the output of a packed weight is cut into."""
        read = node.inputs[0]
        if node.index in self.packed or self.uses.role(node) not in _CUTS:
            return made
        ratio = self.taken_out.get(read, 1.0) / self.taken_out.get(output, 1.0)
        return made._replace(factor=made.factor * ratio)

    def _made(self, node: Node) -> Signal:
        role, carried = self.uses.role(node), self.uses.carried(node)
        if node.index in self.uses.weighers or role in _MAKES:
            start = 1 / self.taken_out.get(node.outputs[0], 1.0)
            return Signal(start, "weight", packed=node.index in self.packed)
        if role in _BENDS and node.op not in BOUNDS:
            return Signal(1.0, "activation")
        if role is OpRole.NORMALISES or self._is_normalised(node) or not carried:
            return _OTHER
        if role is OpRole.ADDS:
            return self._sum(node)
        if len(carried) > 1 and role in (OpRole.MULTIPLIES, OpRole.CONTRACTS, OpRole.WEIGHS):
            return self._product(node, carried)
        return self._carried(node, carried)

    def _carried(self, node: Node, carried: Sequence[int]) -> Signal:
        value = next((v for slot, v in self.uses.slots(node) if slot == "value"), carried[0])
        signal, number = self._signal(value), self.coefficient(node, value)
        if signal.source == "input" and _is_unit(abs(self._written(node, value))):
            return Signal(1.0, "data")
        summands = signal.summands * self._summands(node)
        if self.uses.role(node) is OpRole.JOINS:
            sizes = [math.prod(self.uses.graph.values[each].shape) for each in carried]
            squares = [self._signal(each).factor ** 2 for each in carried]
            mean = sum(map(operator.mul, squares, sizes)) / max(sum(sizes), 1)
            return Signal(math.sqrt(mean), self._source(carried))
        summands = 1 if number != 1.0 else summands
        return Signal(signal.factor * number, signal.source, summands, signal.packed)

    def _sum(self, node: Node) -> Signal:
        summed = self.added(node)
        source = self._source(tuple(summed))
        if source in ("input", "data") and len(summed) == 1:
            return Signal(1.0, "data")  # `2 * x - 1` says in which units the input is
        factors = [signal.factor for signal in summed.values()]
        even = all(_is_near(factor, factors[0]) for factor in factors)
        summands = sum(signal.summands for signal in summed.values()) if even else 1
        return Signal(self._factor_of_sum(node, summed), source, max(summands, 1))

    def _factor_of_sum(self, node: Node, summed: Mapping[int, Signal]) -> float:
        drawn = [signal.factor for signal in summed.values() if signal.is_drawn]
        if self.first is None and drawn:
            return 1.0  # whatever counts on the way to a sum is taken out on each way on its own
        if node.index in self.skips:
            return self._signal(self.skips[node.index]).factor
        factors = drawn or [signal.factor for signal in summed.values()]
        if self.first is not None:
            before = [s.factor for s in self.first.added(node).values() if s.is_drawn]
            if self._is_mean(node, before):
                return sum(factors) if _is_near(sum(before), 1) else math.hypot(*factors)
        return max(factors, default=1.0)

    def _product(self, node: Node, carried: Sequence[int]) -> Signal:
        factor = math.prod(self._signal(value).factor for value in carried)
        drawn = sum(self._signal(value).is_drawn for value in carried)
        if node.index in self.kernels:
            return Signal(factor * math.sqrt(self.terms(node)), "weight")
        if self.uses.role(node) is OpRole.WEIGHS:
            return Signal(1.0, "weight")
        factor *= self.coefficient(node, carried[0]) * self._growth(node, carried)
        if drawn > 1 and self.uses.role(node) is OpRole.CONTRACTS:
            return Signal(factor, "product")
        if drawn > 1:
            self.bilinear.update(node.outputs)
        return Signal(factor, self._source(carried))

    def _source(self, values: Sequence[int]) -> Source:
        """Return what made a mixture of signals: weights, if any of them did."""
        sources = [self._signal(value).source for value in values]
        return min(sources, key=_PRECEDENCE.index, default="other")


_PRECEDENCE: Sequence[Source] = ("product", "weight", "activation", "other", "input", "data")
_CUTS = (OpRole.MOVES, OpRole.PICKS)
_MAKES = frozenset({OpRole.LOOKS_UP, OpRole.PROJECTS_AND_ATTENDS})
_BENDS = frozenset({OpRole.RECURS, OpRole.ACTIVATES, OpRole.COMPUTES})


def _is_unit(number: float) -> bool:
    return any(_is_near(number * unit, 1.0) for unit in _UNITS)


def _summed(equation: str, shapes: Sequence[tuple[int, ...]]) -> int:
    """Count the terms of each sum of an einsum."""
    terms, _, result = equation.replace(" ", "").replace("...", "").partition("->")
    sizes = {
        letter: size
        for term, shape in zip(terms.split(","), shapes, strict=False)
        for letter, size in zip(term, shape[len(shape) - len(term) :], strict=False)
    }
    return math.prod(size for letter, size in sizes.items() if letter not in result)


#
# Values that are numbers
#

_FILLED: Mapping[str, float | None] = {
    "zeros": 0.0, "new_zeros": 0.0, "zeros_like": 0.0, "ones": 1.0, "new_ones": 1.0,
    "ones_like": 1.0, "full": None, "new_full": None, "full_like": None,
}  # fmt: skip
"""What operators that make tensors of one number fill them with; None: their second argument."""

_EVALUATED = frozenset({OpRole.MULTIPLIES, OpRole.ADDS, OpRole.COMPUTES})


def numbers(graph: Graph) -> dict[int, float]:
    """Return the values that are known numbers, in every element, whatever the parameters."""
    found = {v.index: v.constant for v in graph.values if v.constant is not None}
    for node in graph.nodes:
        if len(node.outputs) == 1 and node.outputs[0] not in found:
            number = _number_made(node, found)
            if number is not None:
                found[node.outputs[0]] = number
    return found


def _number_made(node: Node, known: Mapping[int, float]) -> float | None:
    if node.op in _FILLED:
        filled = argument(node, 1, "fill_value", None) if "full" in node.op else _FILLED[node.op]
        return float(filled) if isinstance(filled, (int, float)) else None
    role = OPS.get(node.op, UNKNOWN).role
    if not node.inputs or any(value not in known for value in node.inputs):
        return None
    if role in (OpRole.CASTS, OpRole.MOVES):
        return known[node.inputs[0]]
    return _evaluated(node, known) if role in _EVALUATED else None


def _evaluated(node: Node, known: Mapping[int, float]) -> float | None:
    args = [torch.tensor(known[a.value]) if isinstance(a, Ref) else a for a in node.args]
    try:
        with torch.device("cpu"):
            return float(node.function(*args, **node.kwargs))
    except (RuntimeError, TypeError, ValueError):
        return None  # it takes its number in a way of its own, such as `out=`
