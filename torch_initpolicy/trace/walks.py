"""Walks from a value to the nearest activation: forward what it meets, back what feeds it.

Both are computed for all values at once, in one pass over the nodes each.
"""

import math
from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.trace.constants import BOUNDS, Constants
from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import CARRIERS, SOFTMAX, OpRole, activation_of, argument
from torch_initpolicy.trace.regions import Composite
from torch_initpolicy.trace.shares import ahead, attended
from torch_initpolicy.trace.units import Shown, Units


class ShownPart(NamedTuple):
    """Some units of a weight, and what a value shows of that weight."""

    units: Units
    shown: Shown

    def is_among(self, units: Units) -> bool:
        """Say whether one of the units is among others."""
        return bool(self.units & units)


class Walk(NamedTuple):
    """What lies ahead of a value, or behind it.

    Attributes:
        activations: Nearest first, each with the number of operators up to it.
        at_border: Whether the model's output (ahead) or its input (behind) can be reached.
        stopped_by: Operators of unknown role at which a walk had to stop.
        factor: Product of the known constants on the way to the nearest activation; where there is
            none, to whatever comes first.
    """

    activations: tuple[tuple[int, Activation], ...] = ()
    at_border: bool = False
    stopped_by: tuple[str, ...] = ()
    factor: float = 1.0

    @property
    def nearest(self) -> Activation | None:
        """The nearest activation, or None."""
        return self.activations[0][1] if self.activations else None

    @property
    def distance(self) -> float:
        """How many operators lie before the nearest activation."""
        return self.activations[0][0] if self.activations else math.inf


EMPTY_WALK = Walk()


def _merged(walks: Sequence[Walk]) -> Walk:
    """Join what several paths lead to; of one activation the shortest way counts."""
    if len(walks) == 1:
        return walks[0]
    nearest: dict[Activation, int] = {}
    for walk in walks:
        for distance, activation in walk.activations:
            nearest[activation] = min(distance, nearest.get(activation, distance))
    return Walk(
        tuple(sorted(((d, a) for a, d in nearest.items()), key=lambda pair: pair[0])),
        any(walk.at_border for walk in walks),
        tuple(dict.fromkeys(op for walk in walks for op in walk.stopped_by)),
        min(walks, key=lambda walk: walk.distance).factor if walks else 1.0,
    )


def _further(walk: Walk, factor: float = 1.0) -> Walk:
    return walk._replace(activations=tuple((d + 1, a) for d, a in walk.activations), factor=factor)


@dataclass(frozen=True, slots=True)
class Ahead:
    """Looks ahead of values.

    Attributes:
        composites: Activations, by the value that goes into them.
        constants: The known constants on the way.
        hidden: Values behind which there is another weight.
    """

    uses: Uses
    composites: Mapping[int, Composite]
    constants: Constants
    hidden: frozenset[int]

    def of_values(self) -> dict[int, Walk]:
        """Say for every value what its numbers meet before the next weight."""
        found: dict[int, Walk] = {}
        for value in reversed(self.uses.graph.values):
            if value.index in self.uses.signals:
                walks = self._onward(found, value.index)
                if walks:
                    found[value.index] = _merged(walks)
        return found

    def of_units(self, units: Units, shown: Mapping[int, Shown], found: dict[int, Walk]) -> Walk:
        """Say what some of the units of a weight's output meet before the next weight."""
        narrowed: ChainMap[int, Walk] = ChainMap({}, found)
        for value in sorted(shown, reverse=True):
            part = ShownPart(units, shown[value])
            shows = part.is_among(part.shown.units)
            narrowed[value] = _merged(self._onward(narrowed, value, part) if shows else [])
        return narrowed[min(shown)]

    def _onward(
        self, found: Mapping[int, Walk], value: int, part: ShownPart | None = None
    ) -> list[Walk]:
        """Return what lies ahead of a value, or of the part that it shows of a weight's output."""
        nodes = [self.uses.graph.nodes[index] for index in self.uses.graph.consumers[value]]
        walks = [
            # A function on the way to the output alone, as in a divergence that the forward pass
            # returns beside its result, activates nothing that another weight reads.
            walk
            if value not in self.hidden or self._leads(node)
            else Walk(at_border=walk.at_border)
            for node in nodes
            for walk in self._through(found, node, value, part)
        ]
        return [*walks, Walk(at_border=True)] if value in self.uses.graph.results else walks

    def _leads(self, node: Node) -> bool:
        """Say whether a node is a weight, or another lies behind it."""
        return _applies(self.uses, node) or not self.hidden.isdisjoint(node.outputs)

    def _through(
        self, found: Mapping[int, Walk], node: Node, value: int, part: ShownPart | None
    ) -> Iterator[Walk]:
        """Yield what lies ahead of a value through one of its consumers."""
        composite = self.composites.get(value)
        role = self.uses.role(node)
        slots = [slot for slot, read in self.uses.slots(node) if read == value]
        if composite is not None and node.index in composite.inner:
            yield Walk(((1, composite.activation),))
        elif role is OpRole.ACTIVATES:
            yield Walk(((1, activation_of(node)),))
        elif role is OpRole.COMPUTES:
            yield from self._through_function(found, node, value)
        elif role is OpRole.GATES:
            yield from self._through_gate(found, node, value, part)
        elif role is OpRole.ATTENDS:
            yield self._through_attention(found, node, value, slots)
        elif self._is_weight(node):
            yield EMPTY_WALK
        elif role in CARRIERS or role in (OpRole.CONTRACTS, OpRole.WEIGHS):
            if not {"index", "like", "state"}.issuperset(slots):
                yield from self._beyond(found, node, value)
        elif role is OpRole.UNKNOWN:
            yield Walk(stopped_by=(node.op,))

    def _is_weight(self, node: Node) -> bool:
        """Say whether a node applies a weight of the model, be it one that the signal modulates."""
        modulated = self.uses.role(node) is OpRole.WEIGHS
        return _applies(self.uses, node) or (modulated and node.index not in self.constants.kernels)

    def _through_attention(
        self, found: Mapping[int, Walk], node: Node, value: int, slots: Sequence[str]
    ) -> Walk:
        if {"query", "key", "mask"}.isdisjoint(slots):
            return _merged([EMPTY_WALK, *self._beyond(found, node, value)])
        return Walk(((1, SOFTMAX),), factor=attended(self.constants, node, value))

    def _through_gate(
        self, found: Mapping[int, Walk], node: Node, value: int, part: ShownPart | None
    ) -> Iterator[Walk]:
        """The second half meets a sigmoid, and the first half what comes after the product."""
        read = self.uses.graph.values[value]
        axis = argument(node, 1, "dim", -1) % len(read.shape)
        halves = part.shown.halves(axis) if part else (0, 0)
        goes_on, gates = (part is None or part.is_among(half) for half in halves)
        if gates:
            yield Walk(((1, Activation("sigmoid")),))
        if goes_on:
            yield from self._beyond(found, node, value)

    def _beyond(self, found: Mapping[int, Walk], node: Node, value: int) -> Iterator[Walk]:
        """Yield what lies ahead of the outputs of a node that carries a value."""
        if node.index in self.constants.kernels and value != self.constants.kernels[node.index]:
            yield EMPTY_WALK  # what a generated weight reads
            return
        for walk in (found[output] for output in node.outputs if output in found):
            met = bool(walk.activations)
            yield _further(walk, ahead(self.constants, node, value, walk.factor, met=met))

    def _through_function(
        self, found: Mapping[int, Walk], node: Node, value: int
    ) -> Iterator[Walk]:
        """A function that could not be evaluated stops the walk, unless it bounds or measures."""
        kinds, consumers = self.uses.kinds, self.uses.graph.consumers[node.outputs[0]]
        is_step = value in kinds or all(
            kinds.get(output) == "statistic"
            for index in consumers
            for output in self.uses.graph.nodes[index].outputs
        )
        if node.op in BOUNDS:
            yield from self._beyond(found, node, value)
        elif not is_step:
            yield Walk(stopped_by=(node.op,))


_APPLIES = frozenset({OpRole.RECURS, OpRole.LOOKS_UP, OpRole.PROJECTS_AND_ATTENDS})


def _applies(uses: Uses, node: Node) -> bool:
    """Say whether a node applies a weight of the model to a signal."""
    return node.index in uses.weighers or uses.role(node) in _APPLIES


def hidden(uses: Uses) -> frozenset[int]:
    """Return the values behind which there is another weight, whatever lies between."""
    found: set[int] = set()
    for node in reversed(uses.graph.nodes):
        if _applies(uses, node) or not found.isdisjoint(node.outputs):
            found.update(node.inputs)
    return frozenset(found)


def behind(uses: Uses, composites: Mapping[int, Composite]) -> Mapping[int, Walk]:
    """Say for every value which activation its numbers come from, since the last weight."""
    ends = {composite.end: composite.activation for composite in composites.values()}
    found: dict[int, Walk] = {
        value.index: Walk(at_border=True) for value in uses.graph.values if value.is_input
    }
    for node in uses.graph.nodes:
        walk = _behind(uses, found, node)
        for output in node.outputs:
            here = Walk(((0, ends[output]),)) if output in ends else walk
            if here is not None:
                found[output] = here
    return found


def _behind(uses: Uses, found: Mapping[int, Walk], node: Node) -> Walk | None:
    role = uses.role(node)
    if role is OpRole.ACTIVATES:
        return Walk(((0, activation_of(node)),))
    if node.index in uses.weighers or role is OpRole.CREATES:
        return None
    if role is OpRole.UNKNOWN:
        return Walk(stopped_by=(node.op,))
    if role is OpRole.GATES:
        return Walk(((0, Activation("sigmoid")),))
    walks = [_further(found[value]) for value in _feeding(uses, node) if value in found]
    return _merged(walks) if walks else None


def _feeding(uses: Uses, node: Node) -> Iterator[int]:
    """Yield the values whose numbers go on: not what attention or a norm weighs them by."""
    if uses.role(node) is OpRole.ATTENDS:
        yield from (value for slot, value in uses.slots(node) if slot == "value")
        return
    carried = uses.carried(node)
    weighed_by = ("inverse", "statistic") if uses.role(node) is OpRole.MULTIPLIES else ()
    main = tuple(value for value in carried if uses.kinds.get(value) not in weighed_by)
    yield from main or carried
