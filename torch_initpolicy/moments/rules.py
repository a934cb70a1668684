"""The table of rules: how to find the size of what each operator makes."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch_initpolicy.moments import attention, carried, weights
from torch_initpolicy.moments.gaussian import Size
from torch_initpolicy.moments.state import Propagation
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OpRole
from torch_initpolicy.trace.regions import Composite


def made(state: Propagation, node: Node, composite: Composite | None) -> Size:
    """Apply the rule of an operator, or that of the activation which it completes."""
    if composite is not None:
        return carried.activate(state, node, composite.activation, composite.start)
    if node.op in _BY_NAME:
        return _BY_NAME[node.op](state, node)
    uses = state.flow.uses
    rule = (_WEIGHED if node.index in uses.weighers else _CARRIED).get(uses.role(node))
    if rule is None:
        raise state.lost(node, "an operator whose effect on sizes is not known")
    return rule(state, node)


SizeRule = Callable[[Propagation, Node], Size]
"""Finds the size of what an operator makes."""

_WEIGHED: Mapping[OpRole, SizeRule] = MappingProxyType({
    OpRole.WEIGHS: weights.product,
    OpRole.CONTRACTS: weights.product,
    OpRole.LOOKS_UP: weights.looked_up,
    OpRole.PROJECTS_AND_ATTENDS: attention.attention_layer,
    OpRole.RECURS: weights.recurring,
})  # fmt: skip
"""The rules of operators that apply a weight of the model, by role."""

_CARRIED: Mapping[OpRole, SizeRule] = MappingProxyType({
    **dict.fromkeys((OpRole.CASTS, OpRole.MOVES, OpRole.PICKS), carried.same),
    OpRole.ACTIVATES: carried.activation,
    OpRole.GATES: carried.gate,
    OpRole.COMPUTES: carried.computed,
    OpRole.MULTIPLIES: carried.multiplied,
    OpRole.ADDS: carried.added,
    OpRole.NORMALISES: carried.normalised,
    OpRole.CONTRACTS: carried.contracted,
    OpRole.ATTENDS: attention.scaled_attention,
    OpRole.MIXES: carried.mixed,
    OpRole.JOINS: carried.side_by_side,
    OpRole.CREATES: carried.created,
})  # fmt: skip
"""The rules of other operators."""

_BY_NAME: Mapping[str, SizeRule] = MappingProxyType({"softmax": attention.softmax_moments})
"""The rules of operators that their role does not settle."""
