"""The size of what weights make, and what they read to make it."""

import math
from collections.abc import Sequence

from torch_initpolicy.moments.gaussian import Size, constant_size
from torch_initpolicy.moments.padding import reached
from torch_initpolicy.moments.state import (
    LostError,
    Propagation,
    Unknown,
    WeightOutput,
    WrittenMoments,
)
from torch_initpolicy.trace.consumers import Use
from torch_initpolicy.trace.contractions import facing
from torch_initpolicy.trace.graph import Node

NORMALISING = WrittenMoments(0.0, 1.0, output=1.0)
"""A weight that is drawn so that its output has the second moment 1, whatever it reads."""

_CENTRED = 0.1
"""Mean over root mean square up to which random weights, few of them, may be off their centre."""


def moments_behind(
    state: Propagation, use: Use, node: Node, met: Size, fan_in: float | None
) -> Size:
    """Return the size of what a weight makes of its input; raise where it is not known."""
    name = use.source.site
    written = state.written.get(name, NORMALISING)
    if isinstance(written, WrittenMoments) and written.output is not None:
        return met.weighed().scaled(math.sqrt(written.output))
    size = state.parameter(name)
    if fan_in is None:
        raise state.lost(node, f"the fan of {name!r} is unknown")
    if abs(size.mean) > _CENTRED * math.sqrt(size.second):
        raise state.lost(node, f"the weights of {name!r} have a mean")
    return met.weighed().scaled(math.sqrt(fan_in * size.second * met.second))


def product(state: Propagation, node: Node) -> Size:
    """Follow `weight * input`, also where the operator fixes the weight's size itself."""
    used = state.flow.uses.applied(node.index)
    proportional = state.flow.composed.proportional
    fixed = [use for use in used if use.source.site not in proportional(use.value.index)]
    try:
        met = _read_by(state, node, used)
    except LostError as error:
        for use in used:
            state.note(use, error.unknown)
        raise
    if fixed:
        return _fixed(state, node, fixed[0], met)
    for use in used:
        state.note(use, met)
    if len(used) != 1:
        return met.weighed()  # products of weights are made 1 together
    fan_in = _fan_in(state, used[0], node)
    if used[0].partner is not None and fan_in:
        state.comes_from(node, WeightOutput(used[0].partner, int(fan_in)))
    made = moments_behind(state, used[0], node, met, fan_in)
    bias = state.slots(node).get("bias")
    added = constant_size(0.0) if bias is None else state.size(bias)
    return made.plus(added)


def _read_by(state: Propagation, node: Node, used: Sequence[Use]) -> Size:
    """Return what a weight reads: the product of the signals it meets, less the zero padding."""
    signals = dict.fromkeys(
        value
        for slot, value in state.flow.uses.slots(node)
        if value in state.flow.uses.signals and slot != "bias"
    )
    sizes = {value: state.size(value) for value in signals}
    if not used:
        raise state.lost(node, "a weight that is no parameter")
    met = constant_size(1.0)
    for value, size in sizes.items():
        met = met.times(size if _sums_over_units(state, node, value) else size.unshared())
    if not signals:
        return met
    taps = reached(node, state.shape(next(iter(signals))), used[0].value.shape)
    return Size(met.mean, met.second * taps.once, met.shared * taps.twice, met.near * taps.beside)


def _sums_over_units(state: Propagation, node: Node, value: int) -> bool:
    """Say whether a weight sums over the units of the last one; where in doubt it does."""
    behind_units = int(node.op[-2]) if node.op.startswith("conv") and node.op[-1] == "d" else 0
    units = state.flow.units.along(value)
    return not units or -1 - behind_units in units


def _fixed(state: Propagation, node: Node, use: Use, met: Size) -> Size:
    """Return the output of a weight whose size an expression fixes: standardised weights."""
    known = state.known(use.value.index)
    is_known = isinstance(known, Size)
    state.note(use, Unknown("its operator fixes the weight's size") if is_known else known)
    weight, fan_in = state.size(use.value.index), _fan_in(state, use, node)
    if fan_in is None:
        raise state.lost(node, "the fan of its weight is unknown")
    return met.weighed().scaled(math.sqrt(fan_in * weight.second * met.second))


def _fan_in(state: Propagation, use: Use, node: Node) -> float | None:
    """Count the connections into one unit of the expression that an operator applies."""
    faced = facing(state.flow.uses, node, use.slot, use.value)
    return None if faced is None else faced.fan_in


def looked_up(state: Propagation, node: Node) -> Size:
    """Rows of a table: as large as its numbers; a table that is a head too is as large as a head's.

    One connection leads into each number, so a table of its own gets numbers of second moment 1.
    """
    found = state.flow.uses.applied(node.index)
    if not found:
        raise state.lost(node, "a table that is no parameter")
    site = found[0].source.site
    tied = [use for use in state.flow.uses.found if use.source.site == site]
    head = next((use for use in tied if not use.node.op.startswith("embedding")), None)
    fan_in = (None if head is None else _fan_in(state, head, head.node)) or 1.0
    state.note(found[0], Size(0.0, fan_in))
    return Size(0.0, 1.0 / fan_in)


def recurring(state: Propagation, node: Node) -> Size:
    """Recurrent layers: their inputs are known, their states are not followed."""
    lost = state.lost(node, "the state of a recurrent layer")
    for use in state.flow.uses.applied(node.index):
        is_input = "_ih" in use.source.site.rpartition(".")[2] and "_ih_l0" in use.source.site
        state.note(use, state.known(node.inputs[0]) if is_input else lost.unknown)
    raise lost
