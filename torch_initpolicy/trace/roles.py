"""What a parameter does where its owner's type is silent: what its consumer makes of it."""

import itertools
from collections import deque
from collections.abc import Iterator, Mapping

from torch_initpolicy.tensors.layers import Role
from torch_initpolicy.trace.connections import repeats_rows
from torch_initpolicy.trace.consumers import Use
from torch_initpolicy.trace.contractions import facing
from torch_initpolicy.trace.flow import Flow, ahead_of
from torch_initpolicy.trace.operators import SOFTMAX, OpRole
from torch_initpolicy.trace.units import varying


def raw_role(use: Use, flow: Flow, *, in_norm: bool) -> Role:
    """Return the role of a parameter of which its owner's type says nothing."""
    role = role_at(use, flow)
    if role in ("scale", "bias", "position") and use.slot == "input":
        return _role_beside(use, flow, role, in_norm=in_norm)
    return role


def _role_beside(use: Use, flow: Flow, role: Role, *, in_norm: bool) -> Role:
    """Return the role of what is added to or multiplied with a signal."""
    kind = flow.uses.kinds.get(use.partner) if use.partner is not None else None
    if role == "scale":
        return "gate" if use.source.gated else role
    if in_norm and kind in ("normalised", "scaled"):
        return "norm_bias"
    met = ahead_of(use, flow).nearest
    if role == "position" and (met == SOFTMAX or use.source.indexed):
        return "table"
    return role


_ROLES: Mapping[OpRole, Mapping[str, Role]] = {
    OpRole.WEIGHS: {"weight": "weight", "bias": "bias", "input": "token"},
    OpRole.CONTRACTS: {"left": "weight", "right": "weight", "input": "weight", "bias": "bias"},
    OpRole.RECURS: {"input": "weight", "initial": "token"},
    OpRole.LOOKS_UP: {"weight": "embedding"},
    OpRole.NORMALISES: {"weight": "norm_weight", "bias": "norm_bias", "input": "token"},
    OpRole.PROJECTS_AND_ATTENDS: {
        "in_proj_weight": "weight", "q_proj_weight": "weight", "k_proj_weight": "weight",
        "v_proj_weight": "weight", "out_proj_weight": "weight", "in_proj_bias": "bias",
        "out_proj_bias": "bias", "bias_k": "token", "bias_v": "token", "query": "token",
        "key": "token", "value": "token",
    },
    OpRole.ATTENDS: {"mask": "table", "query": "token", "key": "token", "value": "token"},
    OpRole.ACTIVATES: {"slope": "scale", "input": "scale"},
    OpRole.GATES: {"input": "scale"},
    OpRole.COMPUTES: {"input": "scale"},
    OpRole.JOINS: {"input": "token"},
    OpRole.MOVES: {"input": "token"},
    OpRole.CASTS: {"input": "token"},
    OpRole.MIXES: {"input": "token"},
    OpRole.PICKS: {"input": "table"},
    OpRole.SUMMARISES: {"input": "scale"},
}  # fmt: skip
"""What a parameter does, by the role of its operator and the argument it stands in."""


def role_at(use: Use, flow: Flow) -> Role:
    """Return what a parameter does at one of its uses."""
    if use.source.noisy and any(not s.noisy for s in flow.uses.sources[use.value.index]):
        return "spread"
    role = flow.uses.role(use.node)
    if role is OpRole.MULTIPLIES and facing(flow.uses, use.node, use.slot, use.value):
        return _role_of_weight(use, flow)
    if role is OpRole.MULTIPLIES:
        return "norm_weight" if _ends_its_norm(use, flow) else "scale"
    if role is OpRole.ADDS:
        return _role_of_summand(use, flow)
    if role is OpRole.RECURS and len(use.value.shape) == 3:
        return "token"  # an initial state: one for each layer and sample
    found = _ROLES.get(role, {}).get(use.slot, "unknown")
    return found if found != "weight" else _role_of_weight(use, flow)


def _ends_its_norm(use: Use, flow: Flow) -> bool:
    """Say whether a parameter is multiplied to what the same module has just normalised.

    One number for all is a temperature, as a function of a parameter is, `scale.exp()`; and what is
    multiplied to another module's normalised output may be the scale of a residual branch.
    """
    if use.partner is None or use.source.size == 1 or use.source.bent:
        return False
    producer = flow.uses.graph.values[use.partner].producer
    nodes, kind = flow.uses.graph.nodes, flow.uses.kinds.get(use.partner)
    is_own = producer is not None and nodes[producer].module == use.node.module
    return is_own and kind == "normalised"


def _role_of_summand(use: Use, flow: Flow) -> Role:
    """What is added to each unit of what a weight of the same owner has made is a bias."""
    along = varying(use.value.shape)
    if not along or use.slot == "factor":
        return "scale"
    if use.source.indexed or not _follows_its_owner(use, flow):
        return "position"
    units = frozenset() if use.partner is None else flow.units.along(use.partner)
    if use.source.routed:  # it varies along what has picked it, too
        return "position" if units and along.isdisjoint(units) else "bias"
    is_bias = along <= units if units else len(along) == 1
    return "bias" if is_bias else "position"


_FOLLOWED = frozenset({
    OpRole.ADDS, OpRole.CASTS, OpRole.MOVES, OpRole.PICKS, OpRole.MIXES, OpRole.CONTRACTS,
})  # fmt: skip
"""Roles of operators that only carry, add up or aggregate what a weight has made."""


def _follows_its_owner(use: Use, flow: Flow) -> bool:
    """Say whether the signal that a parameter is added to comes from one beside it, or below."""
    makers = () if use.partner is None else _makers(use.partner, flow)
    return any(
        _is_near(other, use, flow)
        for node in itertools.chain([use.node.index], makers)
        for other in flow.uses.at.get(node, ())
    )


def _is_near(other: Use, use: Use, flow: Flow) -> bool:
    """Say whether another parameter has the same owner, or is a weight below it."""
    name, owner = other.source.site, use.source.site.rpartition(".")[0]
    is_below = name.startswith(f"{owner}." if owner else "")
    weighs_below = is_below and other.node.index in flow.uses.weighers
    return name != use.source.site and (name.rpartition(".")[0] == owner or weighs_below)


def _makers(value: int, flow: Flow) -> Iterator[int]:
    """Yield the nodes whose numbers a value holds, or sums of which, up to the next weight."""
    values, nodes = flow.uses.graph.values, flow.uses.graph.nodes
    waiting, seen = deque([value]), {value}
    while waiting:
        producer = values[waiting.popleft()].producer
        if producer is None:
            continue
        yield producer
        if _carries(producer, flow) and producer not in flow.uses.weighers:
            carried = flow.uses.carried(nodes[producer])
            waiting.extend(read for read in carried if read not in seen)
            seen.update(carried)


def _carries(index: int, flow: Flow) -> bool:
    """Say whether an operator only carries or adds up what it reads, or rescales whole samples."""
    node, values = flow.uses.graph.nodes[index], flow.uses.graph.values
    role = flow.uses.role(node)
    by_sample = any(values[read].shape[-1:] == (1,) for read in node.inputs)
    return role in _FOLLOWED or (role is OpRole.MULTIPLIES and by_sample)


def _role_of_weight(use: Use, flow: Flow) -> Role:
    """Return whether it is a weight, a scale or gate of one, or a table of whole kernels."""
    if use.source.indexed and repeats_rows(flow.uses, use):
        return "table"
    faced = facing(flow.uses, use.node, use.slot, use.value)
    if faced is not None and not faced.dims("in"):
        return "scale"
    together = flow.uses.sources[use.value.index]
    if use.source.gated and not all(source.gated for source in together):
        return "gate"
    if use.source.scales and not use.source.contracted:
        return "scale"
    return "table" if use.node.outputs[0] in flow.kernels else "weight"
