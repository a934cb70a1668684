"""Follow the moments of the signal through a graph: what does each weight read, on average?

Inputs are taken to be standard normal and independent, and batches to be normalised by their own
statistics, as in training. Weights, scales and biases are what the policy writes: a weight whose
initializer takes account of what it reads makes an output of known second moment, any other one
multiplies what it reads by its own moments. What cannot be followed is left unknown, with the
reason, up to the next normalisation.

All this is the mean over many draws of the weights; a single net differs. Where a layer has few
units, as the squeeze of a SqueezeNet or of a gate does, its second moment is itself a draw: `n`
units that all inputs and positions share spread by `sqrt(2 / n)`. A depthwise kernel is a sum over
few taps: neighbours within one image vary together. Beside zero padding the signal is smaller than
inside, where convolutions and pools read it more often. And a signal is taken for normal: where a
skewed one passes a normalisation without a weight (the identity branch of a RepVGG), what a ReLU
makes of it is up to 40 % off.

Reference:
    Bingham and Miikkulainen, *AutoInit: Analytic Signal-Preserving Weight Initialization for Neural
    Networks*, 2021, arXiv:2109.08958; Poole et al., *Exponential expressivity in deep neural
    networks through transient chaos*, 2016, arXiv:1606.05340, eq. 3 and 5, for what positions and
    inputs share.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch_initpolicy.moments.gaussian import Size
from torch_initpolicy.moments.rules import made
from torch_initpolicy.moments.state import Known, LostError, Propagation, Unknown, WrittenMoments
from torch_initpolicy.sites import Site
from torch_initpolicy.trace.flow import Flow
from torch_initpolicy.trace.graph import Node


@dataclass(frozen=True, slots=True)
class Reads:
    """What a weight reads, all its uses together.

    Attributes:
        second: Mean square of what it reads, zeros of a padding included; None where unknown.
        reason: Why it is unknown, or None.
    """

    second: float | None
    reason: str | None = None


def reads(
    flow: Flow, sites: Sequence[Site], written: Mapping[str, WrittenMoments | Unknown]
) -> dict[str, Reads]:
    """Compute what each weight of a model reads, by canonical name.

    Sites that are not `written` are weights that normalise, scales of 1, biases of 0, or keep what
    they hold.
    """
    state = Propagation(flow, {site.name: site for site in sites}, written)
    inside = {node: start for start, each in flow.composites.items() for node in each.inner}
    for node in flow.uses.graph.nodes:
        _advance(state, node, inside.get(node.index))
    return {name: _joined(found) for name, found in state.read.items()}


def _advance(state: Propagation, node: Node, start: int | None) -> None:
    """Find the size of a node's outputs; of the nodes inside an activation, of the last alone."""
    composite = None if start is None else state.flow.composites[start]
    if composite is not None and composite.end not in node.outputs:
        return
    huge = state.lost(node, "numbers that grow beyond all bounds").unknown
    known: Known = huge
    try:
        size = made(state, node, composite)
        known = size if math.isfinite(size.second) else huge
    except LostError as error:
        known = error.unknown
    except OverflowError:
        pass
    state.sizes.update(dict.fromkeys(node.outputs, known))


def _joined(found: Sequence[Known]) -> Reads:
    unknown = next((size for size in found if isinstance(size, Unknown)), None)
    if unknown is not None:
        return Reads(None, unknown.reason)
    seconds = [size.second for size in found if isinstance(size, Size)]
    second = sum(seconds) / len(seconds)
    return Reads(second) if second else Reads(None, "what makes its input nothing but zeros")
