"""Follow the moments of the signal through a graph: what does each weight read, on average?

Inputs are taken to be standard normal and independent, and batches to be normalised by their own
statistics, as in training. Weights, scales and biases are what the policy writes: a weight whose
initializer takes account of what it reads makes an output of known second moment, any other one
multiplies what it reads by its own moments. What cannot be followed is left unknown, with the
reason, up to the next normalisation.

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
from dataclasses import dataclass

from torch_initpolicy.moments.gaussian import Size
from torch_initpolicy.moments.signal_rules import CARRIED
from torch_initpolicy.moments.state import Following, Known, Unknown, Written
from torch_initpolicy.moments.weight_rules import WEIGHED
from torch_initpolicy.sites import Site
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


def reads(
    flow: Flow, sites: Sequence[Site], written: Mapping[str, Written | Unknown]
) -> dict[str, Reads]:
    """Compute what each weight of a model reads, by canonical name.

    Args:
        flow: The recorded forward pass.
        sites: The parameters of the model.
        written: What a policy writes to the sites, by canonical name; sites that are not named
            are weights that normalise, scales of 1, biases of 0, or keep what they hold.
    """
    following = Following(
        flow.uses, flow.composites, {site.name: site for site in sites}, WEIGHED, CARRIED, written
    )
    for node in flow.uses.graph.nodes:
        following.advance(node)
    return {name: _joined(found) for name, found in following.read.items()}


def _joined(found: Sequence[Known]) -> Reads:
    unknown = next((size for size in found if isinstance(size, Unknown)), None)
    if unknown is not None:
        return Reads(None, unknown.reason)
    seconds = [size.second for size in found if isinstance(size, Size)]
    second = sum(seconds) / len(seconds)
    return Reads(second) if second else Reads(None, "what makes its input nothing but zeros")
