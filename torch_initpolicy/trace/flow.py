"""From a recorded forward pass to facts about each site.

Knows what follows from the roles of operators; decides nothing about initialisation.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from torch_initpolicy.sites import Site
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.tensors.layers import Role
from torch_initpolicy.trace.activations import Composite, composites
from torch_initpolicy.trace.composed import Composed
from torch_initpolicy.trace.connections import axes_of, full_fans, repeats
from torch_initpolicy.trace.constants import Constants, numbers
from torch_initpolicy.trace.consumers import Use, Uses, uses
from torch_initpolicy.trace.contractions import facing
from torch_initpolicy.trace.destinations import (
    NOWHERE,
    Destination,
    batch_normalised,
    destinations,
)
from torch_initpolicy.trace.facts import Composition, Evidence, Facts, ForwardMultiplier
from torch_initpolicy.trace.graph import Graph
from torch_initpolicy.trace.joins import ALONE, Join, beside, joins, makers
from torch_initpolicy.trace.kernels import kernels
from torch_initpolicy.trace.neighbours import Neighbours
from torch_initpolicy.trace.operators import OpRole, argument
from torch_initpolicy.trace.packs import Pack, packs
from torch_initpolicy.trace.products import dot_products, tied_heads
from torch_initpolicy.trace.residuals import Residuals, residuals
from torch_initpolicy.trace.units import Units, varying
from torch_initpolicy.trace.walks import NOTHING, SOFTMAX, Ahead, Walk, behind, hidden


@dataclass(frozen=True, slots=True)
class Flow:
    """Everything that follows from one recorded forward pass.

    Attributes:
        uses: Where parameters meet the signal.
        composites: Activations, by the value that goes into them.
        looking: Looks ahead of values.
        ahead: What each value meets.
        behind: Where each value comes from.
        residuals: The residual branches.
        packs: Weights that are several matrices packed into one, by node.
        kernels: Values that become the weight of another operator.
        neighbours: The weights around each value.
        units: Along which dimensions of a value the units of its weight lie.
        leftover: The known constants that no weight before has taken out.
        joins: What each value is added to or multiplied by.
        composed: What each expression of parameters is made of.
        destinations: What reads each value in the end.
        batch_normalised: Nodes in residual branches with a batch normalisation.
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
    units: Units
    leftover: Constants
    joins: Mapping[int, Join]
    composed: Composed
    destinations: Mapping[int, Destination]
    batch_normalised: frozenset[int]


def flow(graph: Graph, *, parameters: Mapping[str, float] | None = None) -> Flow:
    """Read a graph: a few passes over its nodes, each linear in their number.

    Args:
        graph: The recorded forward pass.
        parameters: Values of parameters that are a single number, by name.
    """
    used = uses(graph)
    roles = {node.index: used.role(node) for node in graph.nodes}
    known = numbers(graph)
    activated = {
        start: composite
        for start, composite in composites(graph, roles, known, parameters or {}).items()
        if start not in used.kinds or any(roles[i] is OpRole.ACTIVATES for i in composite.inner)
    }  # the root of a variance is a step of a normalisation
    branches, packed = residuals(used), packs(used)
    constants = Constants(
        uses=used,
        numbers=known,
        skips=branches.skips(used),
        ends=frozenset(composite.end for composite in activated.values()),
        kernels=kernels(used),
        packed=frozenset(packed),
    ).entered()
    composed = Composed(constants)
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
        kernels=frozenset(_kernels(used)),
        neighbours=Neighbours(used),
        units=Units(used),
        leftover=constants.left_over({value: walk.factor for value, walk in ahead.items()}),
        joins=joins(used, branches),
        composed=composed,
        destinations=destinations(used, branches),
        batch_normalised=batch_normalised(used, branches),
    )


def unknown_operators(flow: Flow) -> dict[str, int]:
    """Count the operators of unknown role through which a signal goes, by name."""
    counts: dict[str, int] = {}
    for node in flow.uses.graph.nodes:
        if flow.uses.role(node) is OpRole.UNKNOWN and not flow.uses.signals.isdisjoint(node.inputs):
            counts[node.op] = counts.get(node.op, 0) + 1
    return counts


def facts(sites: Sequence[Site], flow: Flow, evidence: Evidence) -> dict[str, Facts]:
    """Say what is known about each site, by canonical name.

    Args:
        sites: The parameters of the model.
        flow: What its forward pass says.
        evidence: How the forward pass was recorded.
    """
    found: dict[str, list[Use]] = {}
    for use in flow.uses.found:
        found.setdefault(use.source.site, []).append(use)
    norms = {use.source.site for use in flow.uses.found if _role(use, flow) == "norm_weight"}
    owners = {id(site.owner) for site in sites if site.name in norms}
    known = {
        site.name: _facts(
            site,
            found.get(site.name, []),
            flow,
            evidence,
            in_norm=id(site.owner) in owners,
        )
        for site in sites
    }
    for name, size in dot_products(flow.uses).items():
        known[name] = replace(known[name], dot_product=size)
    heads = dict(tied_heads(flow.uses))
    for name, factor in heads.items():
        known[name] = replace(known[name], tied_head=factor)
    for name, factor in beside(heads, flow.uses, flow.joins, flow.neighbours.made_by):
        known[name] = replace(known[name], head_multiplier=factor)
    return {name: _by_block(fact, found.get(name, []), flow) for name, fact in known.items()}


def _by_block(whole: Facts, found: Sequence[Use], flow: Flow) -> Facts:
    """Add what is known of each packed block, where they meet different things."""
    if not found or whole.axes is None or not whole.axes.blocks:
        return whole
    walks = _ahead_of_blocks(found[0], whole.axes, flow)
    each = tuple(
        replace(whole, multiplier=_multiplier(found[0], walk, flow), **_meeting(walk))
        for walk in walks
    )
    return replace(whole, blocks=each) if len(set(each)) > 1 else whole


def _ahead_of_blocks(use: Use, axes: Axes, flow: Flow) -> Iterator[Walk]:
    """Yield what each matrix packed into a weight meets; nothing at all where it is not known."""
    pack = flow.packs.get(use.node.index)
    if use.slot in ("in_proj_weight", "in_proj_bias"):
        yield from (Walk(((1, SOFTMAX),)), Walk(((1, SOFTMAX),)), NOTHING)
    elif pack is not None and (pack.blocks, pack.repeats) == (axes.blocks, axes.repeats):
        for units in pack.units():
            yield flow.looking.of_units(units, pack.layouts, flow.ahead)


def _facts(
    site: Site,
    found: Sequence[Use],
    flow: Flow,
    evidence: Evidence,
    *,
    in_norm: bool,
) -> Facts:
    branches = len(flow.residuals.branches)
    if not found:
        return Facts(
            site.role,
            site.axes,
            residual_branches=branches,
            neighbours=_neighbours(site.role, found, flow),
            evidence=evidence,
        )
    first = found[0]
    role = site.role if site.role != "unknown" else _raw_role(first, flow, in_norm=in_norm)
    met = _met(found, flow)
    fed = flow.behind.get(first.partner, NOTHING) if first.partner is not None else NOTHING
    output = _own_output(first, flow)
    join, end = flow.joins.get(output, ALONE), flow.destinations.get(output, NOWHERE)
    return Facts(
        role=role,
        axes=_axes(site, first, flow),
        op=first.node.op,
        fed_by=fed.nearest,
        reads_input=fed.at_border and fed.nearest is None,
        ends_residual=output in flow.residuals.ending,
        closes_residual=output in flow.residuals.closing,
        residual_branches=branches,
        branch_depth=flow.residuals.depth_around(first.node.index),
        neighbours=_neighbours(role, found, flow),
        multiplier=_multiplier(first, _ahead(first, flow), flow),
        is_summand=bool(join.summands),
        multiplied_by=makers(join, flow.neighbours.made_by),
        composition=_composition(first, flow),
        reader=end.reader,
        ends_in_norm=end.ends_in_norm,
        in_batch_norm=first.node.index in flow.batch_normalised,
        offset=first.source.shift,
        padding=_padding(found),
        used=True,
        evidence=evidence,
        **_meeting(met),
    )


def _own_output(use: Use, flow: Flow) -> int:
    """Return the value that a parameter's output is; none has number -1: attention goes on."""
    role = flow.uses.role(use.node)
    inside = role is OpRole.PROJECTS_AND_ATTENDS and "out_proj" not in use.slot
    return -1 if inside else use.node.outputs[0]


def _multiplier(use: Use, walk: Walk, flow: Flow) -> ForwardMultiplier:
    """Collect the known constants on the way of a weight; none where its size says nothing.

    A standardised weight is as large as its operator makes it, whatever is drawn.
    """
    terms = flow.composed.terms(use.value.index, use.source.site)
    if not terms or any(math.isnan(term.constant) for term in terms):
        return ForwardMultiplier()
    largest = max(term.constant for term in terms)
    constant = largest if _composition(use, flow) is None else 1.0
    alpha = float(use.node.kwargs.get("alpha", 1.0)) if use.slot in ("left", "right") else 1.0
    return ForwardMultiplier(alpha * constant, flow.leftover.on_input(use.partner), walk.factor)


def _composition(use: Use, flow: Flow) -> Composition | None:
    """Say how a weight in use is made of several parameters; None where it is one of them alone."""
    terms = flow.composed.terms(use.value.index, use.source.site)
    mine = next((term for term in terms if use.source.site in term.sites), None)
    if mine is None or len(mine.sites) < 2 or math.isnan(mine.constant):
        return None
    faced = facing(flow.uses, use.node, use.slot, use.value)
    if faced is None:
        return None
    count = full_fans(faced)
    return Composition(len(mine.sites), mine.constant, len(terms), count.fan_in, count.fan_out)


def _padding(found: Sequence[Use]) -> int | None:
    """Return the row that an operator looks up where there is nothing, from the front."""
    for use in found:
        if use.node.op in _PADDING and use.slot == "weight":
            row = argument(use.node, _PADDING[use.node.op], "padding_idx", None)
            if row is not None:
                return int(row) % use.value.shape[0]
    return None


_PADDING: Mapping[str, int] = {"embedding": 2, "embedding_bag": 10}
"""Position of the argument `padding_idx`, by operator."""

_OF_UNITS: frozenset[Role] = frozenset({"weight", "recurrent"})
"""Roles of what makes units of its own out of a signal."""


def _neighbours(role: Role, found: Sequence[Use], flow: Flow) -> tuple[str, ...] | None:
    return flow.neighbours.of(found) if role in _OF_UNITS else None


class _Meeting(TypedDict):
    """What a walk ahead says."""

    meets: Activation | None
    feeds_output: bool
    stopped_by: str | None


def _meeting(met: Walk) -> _Meeting:
    return {
        "meets": met.nearest,
        "feeds_output": met.at_border,
        "stopped_by": met.stopped_by[0] if met.stopped_by else None,
    }


def _met(found: Sequence[Use], flow: Flow) -> Walk:
    """Say what the output of a site meets, at its first use and then at the others."""
    walks = [_ahead(use, flow) for use in found]
    first, others = walks[0], [pair for walk in walks[1:] for pair in walk.activations]
    seen = {activation for _, activation in first.activations}
    more = {a: d for d, a in sorted(others, key=lambda pair: -pair[0]) if a not in seen}
    return first._replace(
        activations=(*first.activations, *((d, a) for a, d in reversed(more.items())))
    )


_INSIDE: Mapping[str, Walk] = {
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "lstm_cell", "gru_cell", "rnn_tanh_cell"),
                    Walk(((1, Activation("tanh")),))),
    **dict.fromkeys(("rnn_relu", "rnn_relu_cell"), Walk(((1, Activation("relu")),))),
}  # fmt: skip
"""What the weights inside an operator meet there, by its name."""


def _ahead(use: Use, flow: Flow) -> Walk:
    if use.node.op in _INSIDE:
        return _INSIDE[use.node.op]
    if flow.uses.role(use.node) is OpRole.PROJECTS_AND_ATTENDS and "out_proj" not in use.slot:
        return NOTHING if use.slot == "v_proj_weight" else Walk(((1, SOFTMAX),))
    if flow.uses.role(use.node) is OpRole.ATTENDS and use.slot != "value":
        return Walk(((1, SOFTMAX),))
    return flow.ahead.get(use.node.outputs[0], NOTHING)


def _axes(site: Site, use: Use, flow: Flow) -> Axes | None:
    """Join what the type says of the axes with what the operator says."""
    axes = site.axes or _axes_at(site, use, flow)
    pack = flow.packs.get(use.node.index)
    if axes is None or pack is None or axes.blocks or not axes.outputs or axes.groups > 1:
        return axes
    fits = not axes.view and sum(pack.blocks) * pack.repeats == site.shape[axes.outputs[0]]
    return replace(axes, blocks=pack.blocks, repeats=pack.repeats) if fits else axes


def _axes_at(site: Site, use: Use, flow: Flow) -> Axes | None:
    if _role(use, flow) not in ("weight", "embedding"):
        return None
    return axes_of(flow.uses, use, site.shape)


def _raw_role(use: Use, flow: Flow, *, in_norm: bool) -> Role:
    """Return the role of a parameter of which its owner's type says nothing."""
    role = _role(use, flow)
    if role in ("scale", "bias", "position") and use.slot == "input":
        return _role_beside(use, flow, role, in_norm=in_norm)
    return role


def _role_beside(use: Use, flow: Flow, role: Role, *, in_norm: bool) -> Role:
    """Tell apart what is added to or multiplied with a signal."""
    kind = flow.uses.kinds.get(use.partner) if use.partner is not None else None
    if role == "scale":
        return "gate" if use.source.gated else role
    if in_norm and kind in ("normalised", "scaled"):
        return "norm_bias"
    met = _ahead(use, flow).nearest
    if role == "position" and (met == SOFTMAX or use.source.indexed):
        return "table"
    return role


_ROLES: Mapping[OpRole, Mapping[str, Role]] = {
    OpRole.WEIGHS: {"weight": "weight", "bias": "bias", "input": "token"},
    OpRole.CONTRACTS: {"left": "weight", "right": "weight", "input": "weight", "bias": "bias"},
    OpRole.RECURS: {"input": "weight"},
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


def _role(use: Use, flow: Flow) -> Role:
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
    is_own = producer is not None and _module(producer, flow) == use.node.module
    return is_own and flow.uses.kinds.get(use.partner) == "normalised"


def _module(node: int, flow: Flow) -> str:
    return flow.uses.graph.nodes[node].module


def _role_of_summand(use: Use, flow: Flow) -> Role:
    """What is added to each unit of what a weight of the same owner has made is a bias."""
    along = varying(use.value.shape)
    if not along or use.slot == "factor":
        return "scale"
    if use.source.indexed or not _follows_its_owner(use, flow):
        return "position"
    units = flow.units.of(use.partner) if use.partner is not None else None
    is_bias = along <= units if units else len(along) == 1
    return "bias" if is_bias else "position"


_FOLLOWED = frozenset({
    OpRole.ADDS, OpRole.CASTS, OpRole.MOVES, OpRole.PICKS, OpRole.MIXES, OpRole.CONTRACTS,
})  # fmt: skip
"""Roles of operators that only carry, add up or aggregate what a weight has made."""


def _follows_its_owner(use: Use, flow: Flow) -> bool:
    """Say whether the signal that a parameter is added to comes from one beside it, or below."""
    owner = use.source.site.rpartition(".")[0]
    below = f"{owner}." if owner else ""
    made_by = {
        other.node.index
        for other in flow.uses.found
        if other.source.site != use.source.site
        and (
            other.source.site.rpartition(".")[0] == owner
            or (other.source.site.startswith(below) and other.node.index in flow.uses.weighers)
        )
    }
    return use.node.index in made_by or (
        use.partner is not None and not made_by.isdisjoint(_makers(use.partner, flow))
    )


def _makers(value: int, flow: Flow) -> Iterator[int]:
    """Yield the nodes whose numbers a value holds, or sums of which, up to the next weight."""
    values, nodes = flow.uses.graph.values, flow.uses.graph.nodes
    waiting, seen = [value], {value}
    while waiting:
        producer = values[waiting.pop()].producer
        if producer is None:
            continue
        yield producer
        if flow.uses.role(nodes[producer]) in _FOLLOWED and producer not in flow.uses.weighers:
            carried = flow.uses.carried(nodes[producer])
            waiting += [read for read in carried if read not in seen]
            seen.update(carried)


def _role_of_weight(use: Use, flow: Flow) -> Role:
    """Tell the weight itself from what only scales it, and from tables of whole kernels."""
    if use.source.indexed and repeats(flow.uses, use):
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


def _kernels(uses: Uses) -> Iterator[int]:
    """Yield the signals that become, through moves alone, the weight of another operator."""
    found: set[int] = set()
    for node in reversed(uses.graph.nodes):
        role = uses.role(node)
        for slot, value in uses.slots(node):
            moves = role in (OpRole.MOVES, OpRole.CASTS) and not found.isdisjoint(node.outputs)
            if value in uses.signals and (moves or (role is OpRole.WEIGHS and slot == "weight")):
                found.add(value)
    yield from found
