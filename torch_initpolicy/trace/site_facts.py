"""From the data flow to facts about each site.

Knows what follows from the roles of operators; decides nothing about initialisation.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch_initpolicy.sites import Site
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.layers import Role
from torch_initpolicy.trace.connections import axes_at_use, full_fans, is_masked
from torch_initpolicy.trace.consumers import Use
from torch_initpolicy.trace.contractions import facing
from torch_initpolicy.trace.destinations import NOWHERE
from torch_initpolicy.trace.facts import Composition, Evidence, Facts, ForwardMultiplier
from torch_initpolicy.trace.flow import Flow, ahead_of
from torch_initpolicy.trace.joins import ALONE, beside, makers
from torch_initpolicy.trace.operators import SOFTMAX, OpRole, argument
from torch_initpolicy.trace.products import dot_products, tied_heads
from torch_initpolicy.trace.roles import raw_role, role_at
from torch_initpolicy.trace.walks import EMPTY_WALK, Walk


def facts(sites: Sequence[Site], flow: Flow, evidence: Evidence) -> dict[str, Facts]:
    """Say what is known about each site, by canonical name."""
    found: dict[str, list[Use]] = {}
    for use in flow.uses.found:
        found.setdefault(use.source.site, []).append(use)
    for each in found.values():
        # What a weight makes of the constant that a recurrence starts from is added like a bias: so
        # where an operator applies it comes first.
        each.sort(key=flow.uses.applies, reverse=True)
    norms = {use.source.site for use in flow.uses.found if role_at(use, flow) == "norm_weight"}
    owners = {id(site.owner) for site in sites if site.name in norms}
    known = {
        site.name: _facts(
            site, found.get(site.name, []), flow, evidence, in_norm=id(site.owner) in owners
        )
        for site in sites
    }
    for name, size in dot_products(flow).items():
        known[name] = replace(known[name], dot_product=size)
    heads = dict(tied_heads(flow))
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
        replace(
            whole,
            multiplier=_multiplier(found[0], walk, flow, whole.composition),
            **_meeting(walk),
        )
        for walk in walks
    )
    return replace(whole, blocks=each) if len(set(each)) > 1 else whole


def _ahead_of_blocks(use: Use, axes: Axes, flow: Flow) -> Iterator[Walk]:
    """Yield what each matrix packed into a weight meets; nothing at all where it is not known."""
    pack = flow.packs.get(use.node.index)
    if use.slot in ("in_proj_weight", "in_proj_bias"):
        yield from (Walk(((1, SOFTMAX),)), Walk(((1, SOFTMAX),)), EMPTY_WALK)
    elif pack is not None and len(pack.blocks) == len(axes.blocks):
        for units in pack.units():
            yield flow.looking.of_units(units, pack.shown, flow.ahead)


def _facts(
    site: Site, found: Sequence[Use], flow: Flow, evidence: Evidence, *, in_norm: bool
) -> Facts:
    branches = flow.residuals.total
    if not found:
        return Facts(
            site.role,
            site.axes,
            residual_branches=branches,
            neighbours=_weights_around(site.role, found, flow),
            evidence=evidence,
        )
    first = found[0]
    axes = _joined_axes(site, first, flow)
    role = site.role if site.role != "unknown" else raw_role(first, flow, in_norm=in_norm)
    if role == "weight" and axes is None:  # how many connections it makes is not known
        role = "unknown"
    met = _met_at_uses(found, flow)
    fed = flow.behind.get(first.partner, EMPTY_WALK) if first.partner is not None else EMPTY_WALK
    output = _own_output(first, flow)
    join, end = flow.joins.get(output, ALONE), flow.destinations.get(output, NOWHERE)
    composition = _composition(first, flow)
    return Facts(
        role=role,
        axes=axes,
        op=first.node.op,
        fed_by=fed.nearest,
        reads_input=fed.at_border and fed.nearest is None,
        ends_residual=output in flow.residuals.ending,
        closes_residual=output in flow.residuals.closing,
        residual_branches=branches,
        branch_depth=flow.residuals.depths.get(first.node.index, 0),
        neighbours=_weights_around(role, found, flow),
        multiplier=_multiplier(first, ahead_of(first, flow), flow, composition),
        is_summand=bool(join.summands),
        multiplied_by=makers(join, flow.neighbours.made_by),
        composition=composition,
        reader=end.reader,
        ends_in_norm=end.ends_in_norm,
        in_batch_norm=first.node.index in flow.residuals.batch_normalised,
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


def _multiplier(
    use: Use, walk: Walk, flow: Flow, composition: Composition | None
) -> ForwardMultiplier:
    """Collect the known constants on the way of a weight; none where its size says nothing.

    A standardised weight is as large as its operator makes it, whatever is drawn.
    """
    terms = flow.composed.terms(use.value.index, use.source.site)
    if not terms or any(math.isnan(term.constant) for term in terms):
        return ForwardMultiplier()
    largest = max(term.constant for term in terms)
    constant = largest if composition is None else 1.0
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


def _weights_around(role: Role, found: Sequence[Use], flow: Flow) -> tuple[str, ...] | None:
    return flow.neighbours.of(found) if role in _OF_UNITS else None


def _meeting(met: Walk) -> dict[str, Any]:
    """Return the facts that a walk ahead says."""
    return {
        "meets": met.nearest,
        "feeds_output": met.at_border,
        "stopped_by": met.stopped_by[0] if met.stopped_by else None,
    }


def _met_at_uses(found: Sequence[Use], flow: Flow) -> Walk:
    """Say what the output of a site meets, at its first use and then at the others."""
    walks = [ahead_of(use, flow) for use in found]
    first, others = walks[0], [pair for walk in walks[1:] for pair in walk.activations]
    seen = {activation for _, activation in first.activations}
    more = {a: d for d, a in sorted(others, key=lambda pair: -pair[0]) if a not in seen}
    return first._replace(
        activations=(*first.activations, *((d, a) for a, d in reversed(more.items())))
    )


def _joined_axes(site: Site, use: Use, flow: Flow) -> Axes | None:
    """Join what the type says of the axes with what the operator says."""
    axes = site.axes or _axes_at(site, use, flow)
    if site.axes and not site.axes.blocks and is_masked(flow.uses, use):
        axes = _axes_at(site, use, flow) or axes
    pack = flow.packs.get(use.node.index)
    if axes is None or pack is None or axes.blocks or axes.groups > 1 or axes.view:
        return axes
    return pack.within(axes, site.shape)


def _axes_at(site: Site, use: Use, flow: Flow) -> Axes | None:
    if role_at(use, flow) not in ("weight", "embedding"):
        return None
    return axes_at_use(flow.uses, use, site.shape)
