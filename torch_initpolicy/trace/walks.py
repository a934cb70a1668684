"""Walks from a value to the nearest activation: forward what it meets, back what feeds it.

Both are computed for all values at once, in one pass over the nodes each.
"""

from collections import ChainMap
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.trace.activations import Composite
from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.layouts import Layout
from torch_initpolicy.trace.operators import OpRole, activation_of, argument

CARRIERS = frozenset({
    OpRole.MULTIPLIES, OpRole.ADDS, OpRole.NORMALISES, OpRole.CASTS, OpRole.MOVES, OpRole.PICKS,
    OpRole.MIXES, OpRole.JOINS,
})  # fmt: skip
"""Roles of operators that only carry the signal: what lies behind them is still met."""

SOFTMAX = Activation("softmax")


class Part(NamedTuple):
    """Some units of a weight, and where its units lie in a value.

    Attributes:
        units: The units, as bits.
        layout: Where they lie.
    """

    units: int
    layout: Layout

    def is_among(self, shown: int | None) -> bool:
        """Say whether one of the units is among others; None stands for any."""
        return shown is None or bool(self.units & shown)


class Walk(NamedTuple):
    """What lies ahead of a value, or behind it.

    Attributes:
        activations: Nearest first, each with the number of operators up to it.
        at_border: Whether the model's output (ahead) or its input (behind) can be reached.
        stopped_by: Operators of unknown role at which a walk had to stop.
    """

    activations: tuple[tuple[int, Activation], ...] = ()
    at_border: bool = False
    stopped_by: tuple[str, ...] = ()

    @property
    def nearest(self) -> Activation | None:
        """The nearest activation, or None."""
        return self.activations[0][1] if self.activations else None


NOTHING = Walk()


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
    )


def _further(walk: Walk, steps: int = 1) -> Walk:
    return walk._replace(activations=tuple((d + steps, a) for d, a in walk.activations))


def ahead(uses: Uses, composites: Mapping[int, Composite]) -> dict[int, Walk]:
    """Say for every value what its numbers meet before the next weight.

    Args:
        uses: The graph with its signals and weights.
        composites: Activations, by the value that goes into them.

    Returns:
        By value; a value that is missing meets nothing.
    """
    found: dict[int, Walk] = {}
    for value in reversed(uses.graph.values):
        if value.index in uses.signals:
            walks = list(_onward(uses, composites, found, value.index))
            if walks:
                found[value.index] = _merged(walks)
    return found


def ahead_of(
    units: int,
    layouts: Mapping[int, Layout],
    uses: Uses,
    composites: Mapping[int, Composite],
    found: dict[int, Walk],
) -> Walk:
    """Say what some of the units of a weight's output meet before the next weight.

    Args:
        units: The units, as bits.
        layouts: Where the weight's units lie in the values that show some of them, by value; the
            first of these is the output itself.
        uses: The graph with its signals and weights.
        composites: Activations, by the value that goes into them.
        found: What whole values meet, by value.
    """
    narrowed: ChainMap[int, Walk] = ChainMap({}, found)
    for value in sorted(layouts, reverse=True):
        part = Part(units, layouts[value])
        shows = part.is_among(part.layout.units(uses.graph.values[value]))
        walks = list(_onward(uses, composites, narrowed, value, part)) if shows else []
        narrowed[value] = _merged(walks)
    return narrowed[min(layouts)]


def _onward(
    uses: Uses,
    composites: Mapping[int, Composite],
    found: Mapping[int, Walk],
    value: int,
    part: Part | None = None,
) -> Iterator[Walk]:
    """Yield what lies ahead of a value, or of the part that it shows of a weight's output."""
    for index in uses.graph.consumers[value]:
        yield from _through(uses, composites, found, uses.graph.nodes[index], value, part=part)
    if value in uses.graph.results:
        yield Walk(at_border=True)


def _through(
    uses: Uses,
    composites: Mapping[int, Composite],
    found: Mapping[int, Walk],
    node: Node,
    value: int,
    *,
    part: Part | None,
) -> Iterator[Walk]:
    """Yield what lies ahead of a value through one of its consumers."""
    composite = composites.get(value)
    role = uses.role(node)
    slots = [slot for slot, read in uses.slots(node) if read == value]
    if composite is not None and node.index in composite.inner:
        yield Walk(((1, composite.activation),))
    elif role is OpRole.ACTIVATES:
        yield Walk(((1, activation_of(node)),))
    elif role is OpRole.COMPUTES:
        yield from _through_function(uses, found, node, value)
    elif role is OpRole.GATES:
        yield from _through_gate(uses, found, node, value, part)
    elif role is OpRole.ATTENDS:
        attended = {"query", "key", "mask"} & set(slots)
        yield Walk(((1, SOFTMAX),)) if attended else _merged([NOTHING, *_beyond(found, node)])
    elif role in CARRIERS or (role is OpRole.CONTRACTS and node.index not in uses.weighers):
        if not {"index", "like", "state"}.issuperset(slots):
            yield from _beyond(found, node)
    elif role is OpRole.UNKNOWN:
        yield Walk(stopped_by=(node.op,))


def _through_gate(
    uses: Uses, found: Mapping[int, Walk], node: Node, value: int, part: Part | None
) -> Iterator[Walk]:
    """The second half meets a sigmoid, and the first half what comes after the product."""
    read = uses.graph.values[value]
    axis = argument(node, 1, "dim", -1) % len(read.shape)
    halves = part.layout.halves(read, axis) if part else (None, None)
    goes_on, gates = (part is None or part.is_among(half) for half in halves)
    if gates:
        yield Walk(((1, Activation("sigmoid")),))
    if goes_on:
        yield from _beyond(found, node)


def _beyond(found: Mapping[int, Walk], node: Node) -> Iterator[Walk]:
    yield from (_further(found[output]) for output in node.outputs if output in found)


_BOUNDS = frozenset({"clamp", "clip", "clamp_min", "clamp_max", "nan_to_num"})
"""Functions that leave most numbers as they are, if their bounds are not known numbers."""


def _through_function(
    uses: Uses, found: Mapping[int, Walk], node: Node, value: int
) -> Iterator[Walk]:
    """A function that could not be evaluated stops the walk, unless it only bounds or measures."""
    is_step = value in uses.kinds or all(
        uses.kinds.get(output) == "statistic"
        for index in uses.graph.consumers[node.outputs[0]]
        for output in uses.graph.nodes[index].outputs
    )
    if node.op in _BOUNDS:
        yield from _beyond(found, node)
    elif not is_step:
        yield Walk(stopped_by=(node.op,))


def behind(uses: Uses, composites: Mapping[int, Composite]) -> Mapping[int, Walk]:
    """Say for every value which activation its numbers come from, since the last weight.

    Args:
        uses: The graph with its signals and weights.
        composites: Activations, by the value that goes into them.

    Returns:
        By value; a value that is missing comes straight out of a weight, or out of nothing.
    """
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
