"""Follows the size of the signal through a graph: what does each weight read, on average?

Every weight is taken to be scaled so that its output has the second moment 1, inputs to be standard
normal and independent, biases zero, normalisations the identity on what they normalise, and batches
to be normalised by their own statistics, as in training. What cannot be followed is left unknown,
with the reason, up to the next normalisation.

All this is the mean over many draws of the weights; three things make a single net differ.
Where a layer has few units, as the squeeze of a SqueezeNet or of a gate does, its second moment is
itself a draw: `n` units that all inputs and positions share spread by `sqrt(2 / n)`, and every
layer behind them inherits it. A depthwise kernel is a sum over few taps: neighbours within one
image vary together, on average over kernels by the square of their correlation, so that the mean
over a small map varies more than the mean of as many independent positions. And beside zero padding
the signal is smaller than inside, where convolutions and pools read it more often.

Reference:
    Bingham and Miikkulainen, *AutoInit: Analytic Signal-Preserving Weight Initialization for Neural
    Networks*, 2021, arXiv:2109.08958; Poole et al., *Exponential expressivity in deep neural
    networks through transient chaos*, 2016, arXiv:1606.05340, eq. 3 and 5, for what positions and
    inputs share.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch_initpolicy.moments.gaussian import Size
from torch_initpolicy.moments.signal_rules import CARRIED
from torch_initpolicy.moments.state import Following, Known, Unknown
from torch_initpolicy.moments.weight_rules import WEIGHED
from torch_initpolicy.sites import Site
from torch_initpolicy.trace.activations import Composite
from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.trace.flow import Flow


@dataclass(frozen=True, slots=True)
class Reads:
    """What a weight reads, all its uses together.

    Attributes:
        second: Mean square of what it reads, zeros of a padding included; None where unknown.
        reason: Why it is unknown, or None.
    """

    second: float | None
    reason: str | None = None


UNREAD = Reads(None)
"""Of what is no weight of any operator."""


def reads(
    uses: Uses, composites: Mapping[int, Composite], sites: Sequence[Site]
) -> dict[str, Reads]:
    """Say what each weight of a model reads, by canonical name.

    Args:
        uses: The data flow.
        composites: Activations, by the value that goes into them.
        sites: The parameters of the model.
    """
    following = Following(uses, composites, {site.name: site for site in sites}, WEIGHED, CARRIED)
    for node in uses.graph.nodes:
        following.advance(node)
    return {name: _joined(found) for name, found in following.read.items()}


def with_reads(
    facts: Mapping[str, Facts], flow: Flow | None, sites: Sequence[Site]
) -> Mapping[str, Facts]:
    """Add what each weight reads to the facts of the forward pass that was recorded.

    Args:
        facts: What is known about each site, by canonical name.
        flow: The recorded forward pass; None where there is none, and nothing is added.
        sites: The parameters of the model.
    """
    if flow is None:
        return facts
    found = reads(flow.uses, flow.composites, sites)
    return {name: _with(fact, found.get(name, UNREAD)) for name, fact in facts.items()}


def _with(facts: Facts, read: Reads) -> Facts:
    blocks = tuple(_with(block, read) for block in facts.blocks)
    return replace(facts, reads=read.second, reads_unknown=read.reason, blocks=blocks)


def _joined(found: Sequence[Known]) -> Reads:
    unknown = next((size for size in found if isinstance(size, Unknown)), None)
    if unknown is not None:
        return Reads(None, unknown.reason)
    seconds = [size.second for size in found if isinstance(size, Size)]
    return Reads(sum(seconds) / len(seconds))
