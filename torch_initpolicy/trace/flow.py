"""The data flow: everything that follows from one recorded forward pass.

Decides nothing about initialisation, and knows no parameter but by its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.trace.activations import composites
from torch_initpolicy.trace.composed import Composed
from torch_initpolicy.trace.constants import Constants
from torch_initpolicy.trace.consumers import Use, Uses, uses
from torch_initpolicy.trace.destinations import Destination, destinations
from torch_initpolicy.trace.graph import Graph
from torch_initpolicy.trace.joins import Join, joins
from torch_initpolicy.trace.kernels import kernels
from torch_initpolicy.trace.neighbours import Neighbours
from torch_initpolicy.trace.operators import SOFTMAX, OpRole
from torch_initpolicy.trace.packs import Pack, packs
from torch_initpolicy.trace.regions import Composite
from torch_initpolicy.trace.residuals import Residuals, residuals
from torch_initpolicy.trace.scalars import Scalars, numbers
from torch_initpolicy.trace.units import Following, following
from torch_initpolicy.trace.walks import EMPTY_WALK, Ahead, Walk, behind, hidden


@dataclass(frozen=True, slots=True)
class Flow:
    """Everything that follows from one recorded forward pass.

    Attributes:
        uses: Where parameters meet the signal.
        composites: Activations, by the value that goes into them.
        ahead: What each value meets.
        behind: Where each value comes from.
        packs: Weights that are several matrices packed into one, by node.
        kernels: Values that become the weight of another operator.
        units: Which units of which weights each value shows.
        leftover: The known constants that no weight before has taken out.
        joins: What each value is added to or multiplied by.
        composed: What each expression of parameters is made of.
        destinations: What reads each value in the end.
    """

    uses: Uses
    composites: Mapping[int, Composite]
    looking: Ahead
    ahead: dict[int, Walk]
    behind: Mapping[int, Walk]
    residuals: Residuals
    packs: Mapping[int, Pack]
    kernels: frozenset[int]
    neighbours: Neighbours
    units: Following
    leftover: Constants
    joins: Mapping[int, Join]
    composed: Composed
    destinations: Mapping[int, Destination]


def flow(graph: Graph, *, parameters: Mapping[str, float] | None = None) -> Flow:
    """Read a graph: a few passes over its nodes, each linear in their number."""
    used = uses(graph)
    roles = {node.index: used.role(node) for node in graph.nodes}
    known = numbers(graph)
    activated = {
        start: composite
        for start, composite in composites(graph, roles, known, parameters or {}).items()
        if start not in used.kinds or any(roles[i] is OpRole.ACTIVATES for i in composite.inner)
    }  # the root of a variance is a step of a normalisation
    branches, followed = residuals(used), following(used)
    packed = packs(followed)
    constants = Constants(
        scalars=Scalars(used, known),
        skips=branches.skips,
        ends=frozenset(composite.end for composite in activated.values()),
        kernels=kernels(used, followed.shown),
        packed=frozenset(packed),
        aggregations=frozenset(
            node.index
            for node in graph.nodes
            if roles[node.index] is OpRole.CONTRACTS and followed.aggregates(node)
        ),
    ).entered()
    composed = Composed(constants.scalars)
    for node in graph.nodes:
        composed.advance(node)
    looking = Ahead(used, activated, constants, hidden(used))
    ahead = looking.of_values()
    return Flow(
        uses=used,
        composites=activated,
        looking=looking,
        ahead=ahead,
        behind=behind(used, activated),
        residuals=branches,
        packs=packed,
        kernels=_kernels(used),
        neighbours=Neighbours(used),
        units=followed,
        leftover=constants.left_over({value: walk.factor for value, walk in ahead.items()}),
        joins=joins(used, branches),
        composed=composed,
        destinations=destinations(used, branches),
    )


def unknown_operators(flow: Flow) -> dict[str, int]:
    """Count the operators of unknown role through which a signal goes, by name."""
    counts: dict[str, int] = {}
    for node in flow.uses.graph.nodes:
        if flow.uses.role(node) is OpRole.UNKNOWN and not flow.uses.signals.isdisjoint(node.inputs):
            counts[node.op] = counts.get(node.op, 0) + 1
    return counts


_INSIDE: Mapping[str, Walk] = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "lstm_cell", "gru_cell", "rnn_tanh_cell"),
                    Walk(((1, Activation("tanh")),))),
    **dict.fromkeys(("rnn_relu", "rnn_relu_cell"), Walk(((1, Activation("relu")),))),
}  # fmt: skip
"""What the weights inside an operator meet there, by its name."""


def ahead_of(use: Use, flow: Flow) -> Walk:
    """Return what the output of a parameter meets at one of its uses."""
    if use.node.op in _INSIDE:
        return _INSIDE[use.node.op]
    if flow.uses.role(use.node) is OpRole.PROJECTS_AND_ATTENDS and "out_proj" not in use.slot:
        return EMPTY_WALK if use.slot == "v_proj_weight" else Walk(((1, SOFTMAX),))
    if flow.uses.role(use.node) is OpRole.ATTENDS and use.slot != "value":
        return Walk(((1, SOFTMAX),))
    return flow.ahead.get(use.node.outputs[0], EMPTY_WALK)


def _kernels(uses: Uses) -> frozenset[int]:
    """Return the signals that become, through moves alone, the weight of another operator."""
    each = [(node, uses.role(node)) for node in uses.graph.nodes]
    weighed = [slot for node, role in each if role is OpRole.WEIGHS for slot in uses.slots(node)]
    weights = {value for slot, value in weighed if slot == "weight"} & uses.signals
    moves = (OpRole.MOVES, OpRole.CASTS)
    return uses.leading(weights, [node for node, role in each if role in moves])
