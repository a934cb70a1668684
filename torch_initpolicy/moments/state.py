"""What is known of the sizes of values, while a graph is followed in order of execution.

Knows values and where they come from, not what operators do to sizes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import nn

from torch_initpolicy.moments.gaussian import Size, constant_size
from torch_initpolicy.sites import Site
from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.trace.consumers import Use
from torch_initpolicy.trace.flow import Flow
from torch_initpolicy.trace.graph import Node


@dataclass(frozen=True, slots=True)
class Unknown:
    """A size that could not be followed, and where it was lost."""

    reason: str


Known = Size | Unknown


class LostError(Exception):
    """Ends the rule of an operator whose output cannot be followed."""

    def __init__(self, unknown: Unknown) -> None:
        super().__init__(unknown.reason)
        self.unknown = unknown


class WeightOutput(NamedTuple):
    """Numbers that a weight made, and nothing has changed since; or the logits of such keys.

    Attributes:
        signal: The value that the weight read.
        width: How many numbers of it each sum runs over.
    """

    signal: int
    width: int


class Rows(NamedTuple):
    """Weights of an average, of which each row sums to one.

    Attributes:
        squares: Sum of the squares of a row, on average.
        power: Variance of the logits behind them.
        keys: What the logits' keys were drawn from, where that is known.
    """

    squares: float
    power: float
    keys: WeightOutput | None = None


class Activated(NamedTuple):
    """An activation of a nearly normal signal."""

    activation: Activation
    normal: Size


Provenance = WeightOutput | Rows | Activated
"""What else is known of a value, until an operator changes its numbers."""

AnyProvenance = TypeVar("AnyProvenance", WeightOutput, Rows, Activated)


class WrittenMoments(NamedTuple):
    """Numbers that a policy writes to a site.

    Attributes:
        output: The second moment of the output of a weight whose initializer takes account of what
            the weight reads; None where it does not.
    """

    mean: float
    power: float
    output: float | None = None


@dataclass(frozen=True, slots=True)
class Propagation:
    """What has been found on the way through a graph.

    Attributes:
        sites: The parameters, by canonical name.
        written: What the policy writes to each site; those that are not named are weights that
            normalise, scales of 1, biases of 0, or keep what they hold.
        sizes: What is known of each value.
        origins: Where values come from, by value.
        read: What each weight read, use by use.
    """

    flow: Flow
    sites: Mapping[str, Site]
    written: Mapping[str, WrittenMoments | Unknown]
    sizes: dict[int, Known] = field(default_factory=dict)
    origins: dict[int, Provenance] = field(default_factory=dict)
    read: dict[str, list[Known]] = field(default_factory=dict)

    def known(self, value: int) -> Known:
        """Return what is known of a value."""
        if value not in self.sizes:
            self.sizes[value] = self._given(value)
        return self.sizes[value]

    def size(self, value: int) -> Size:
        """Return the size of a value; raise where it is not known."""
        return require(self.known(value))

    def _given(self, index: int) -> Known:
        """Return the size of an input, a parameter or a constant."""
        value = self.flow.uses.graph.values[index]
        if value.is_input:
            return Size()
        if value.constant is not None:
            return constant_size(value.constant)
        if value.parameter is not None:
            return self._parameter(value.parameter)
        return Unknown("a constant of which only the shape is known")

    def parameter(self, name: str) -> Size:
        """Return the size of a parameter: what the policy will write, or what it holds."""
        return require(self._parameter(name))

    def _parameter(self, name: str) -> Known:
        site, written = self.sites[name], self.written.get(name)
        if isinstance(written, Unknown):
            return written
        if written is not None and written.output is None:
            return Size(written.mean, written.power, written.power, written.power)
        if site.role in ("norm_weight", "norm_bias", "bias"):
            return constant_size(1.0 if site.role == "norm_weight" else 0.0)
        return held(site)

    def origin(self, value: int, kind: type[AnyProvenance]) -> AnyProvenance | None:
        """Return where a value comes from, if that is of a kind."""
        found = self.origins.get(value)
        return found if isinstance(found, kind) else None

    def comes_from(self, node: Node, origin: Provenance | None) -> None:
        """Note where a node's outputs come from."""
        if origin is not None:
            self.origins.update(dict.fromkeys(node.outputs, origin))

    def lost(self, node: Node, reason: str) -> LostError:
        """Say where a size was lost."""
        return LostError(Unknown(f"{reason} (`{node.op}` in {node.module or 'the model'!r})"))

    def slots(self, node: Node) -> dict[str, int]:
        """Return the values that a node reads, by argument; the first of each."""
        return dict(reversed(self.flow.uses.slots(node)))

    def shape(self, value: int) -> tuple[int, ...]:
        """Return the shape of a value."""
        return self.flow.uses.graph.values[value].shape

    def note(self, use: Use, known: Known) -> None:
        """Remember what a weight reads."""
        self.read.setdefault(use.source.site, []).append(known)


def require(known: Known) -> Size:
    """Return a size that is known, or raise."""
    if isinstance(known, Unknown):
        raise LostError(known)
    return known


def held(site: Site) -> Known:
    """Return the moments of the values that a parameter holds."""
    parameter = site.parameters[0]
    if parameter.device.type == "meta" or type(parameter) is not nn.Parameter:
        return Unknown(f"{site.name!r} keeps its value, which is not there yet")
    with torch.no_grad():
        values = parameter.detach().float()
        mean, second = values.mean().item(), values.square().mean().item()
    if not math.isfinite(second):
        return Unknown(f"{site.name!r} keeps its value, which is not finite")
    spread_out = sum(size > 1 for size in site.shape) > 1
    size = Size(mean, second, second, second)
    return size.unshared() if spread_out else size
