"""Carries what is known of the size of values through a graph, in order of execution.

Knows values and where they come from; what operators do to sizes is given to it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

from torch_initpolicy.moments.gaussian import Size, activated, constant
from torch_initpolicy.sites import Site
from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.trace.activations import Composite
from torch_initpolicy.trace.composed import Composed
from torch_initpolicy.trace.constants import Constants
from torch_initpolicy.trace.consumers import Use, Uses
from torch_initpolicy.trace.expressions import moved
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OPS, UNKNOWN, OpRole


@dataclass(frozen=True, slots=True)
class Unknown:
    """A size that could not be followed.

    Attributes:
        reason: Where it was lost.
    """

    reason: str


Known = Size | Unknown


class Drawn(NamedTuple):
    """Where numbers come from that a weight made and nothing has changed since.

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
    keys: Drawn | None = None


class Written(NamedTuple):
    """Numbers that a policy writes to a site.

    Attributes:
        mean: Their mean.
        power: Their mean square.
        output: The second moment of the output of a weight whose initializer takes account of what
            the weight reads; None where it does not.
    """

    mean: float
    power: float
    output: float | None = None


NORMALISING = Written(0.0, 1.0, output=1.0)
"""A weight that is drawn so that its output has the second moment 1, whatever it reads."""

Rules = Mapping[OpRole, Callable[["Following", Node], Known]]
"""How to find the size of what an operator makes, by its role."""


@dataclass(slots=True)
class Following:
    """Goes through a graph in order of execution.

    Attributes:
        uses: The data flow.
        composites: Activations, by the value that goes into them.
        sites: The parameters, by canonical name.
        weighed: What weights do to sizes.
        carried: What other operators do.
        written: What the policy writes to each site; those that are not named are weights that
            normalise, scales of 1, biases of 0, or keep what they hold.
        sizes: What is known of each value.
        rows: What is known of attention weights.
        drawn: What a value was drawn from by the weight that made it; of logits, their keys.
        activated_at: Values behind an activation of a normal one: for what competes in a pool.
        units: Axis along which the units of the last weight lie, where it is known.
        read: What each weight read, use by use.
    """

    uses: Uses
    composites: Mapping[int, Composite]
    sites: Mapping[str, Site]
    weighed: Rules
    carried: Rules
    written: Mapping[str, Written | Unknown] = field(default_factory=dict)
    sizes: dict[int, Known] = field(default_factory=dict)
    rows: dict[int, Rows] = field(default_factory=dict)
    drawn: dict[int, Drawn] = field(default_factory=dict)
    activated_at: dict[int, tuple[Activation, Size]] = field(default_factory=dict)
    units: dict[int, int] = field(default_factory=dict)
    read: dict[str, list[Known]] = field(default_factory=dict)
    inner: dict[int, int] = field(default_factory=dict)
    at: dict[int, list[Use]] = field(default_factory=dict)
    composed: Composed = field(init=False)

    def __post_init__(self) -> None:
        self.composed = Composed(Constants(self.uses, {}))
        self.inner = {node: start for start, c in self.composites.items() for node in c.inner}
        for use in self.uses.found:
            self.at.setdefault(use.node.index, []).append(use)

    def advance(self, node: Node) -> None:
        """Find the sizes of a node's outputs."""
        self.composed.advance(node)
        try:
            self._follow(node)
        except OverflowError:
            self.sizes.update(dict.fromkeys(node.outputs, self.lost(node, _HUGE)))

    def _follow(self, node: Node) -> None:
        if node.index in self.inner:
            self._through_composite(node)
            return
        applies = node.index in self.uses.weighers
        rules = self.weighed if applies else self.carried
        rule = rules.get(self.uses.role(node))
        size = self.lost(node, _STRANGE) if rule is None else rule(self, node)
        self.sizes.update(dict.fromkeys(node.outputs, _finite(size)))
        self._place_units(node, applies=applies)

    def _through_composite(self, node: Node) -> None:
        start = self.inner[node.index]
        composite = self.composites[start]
        if node.outputs[0] == composite.end:
            self.sizes[composite.end] = _finite(self.activate(node, composite.activation, start))

    def activate(self, node: Node, activation: Activation, value: int) -> Known:
        """Return the size behind an activation of a value."""
        size = self.size(value)
        if isinstance(size, Unknown):
            return size
        try:
            made = activated(activation, size)
        except ValueError as error:
            return self.lost(node, str(error))
        if activation.moments is None:
            self.activated_at.update(dict.fromkeys(node.outputs, (activation, size)))
            if node.index in self.inner:
                self.activated_at[self.composites[self.inner[node.index]].end] = (activation, size)
        return made

    def _place_units(self, node: Node, *, applies: bool) -> None:
        """Follow the axis of the units."""
        after = self.uses.graph.values[node.outputs[0]]
        if applies:
            self.units[after.index] = len(after.shape) - 1 - _kernel_dims(node)
        elif node.inputs and node.inputs[0] in self.units:
            before = self.uses.graph.values[node.inputs[0]]
            units = self.units[before.index]
            dims = tuple((0,) if axis == units else () for axis in range(len(before.shape)))
            op = OPS.get(node.op, UNKNOWN)
            for output in node.outputs:
                there = moved(dims, op, before, self.uses.graph.values[output])
                places = [axis for axis, marks in enumerate(there) if marks]
                if places:
                    self.units[output] = places[-1]

    def sums_over_units(self, node: Node, value: int) -> bool:
        """Say whether a weight sums over the units of the last one; where in doubt it does."""
        summed = len(self.shape(value)) - 1 - _kernel_dims(node)
        return self.units.get(value, summed) == summed

    def sums_over_axis(self, node: Node) -> bool:
        """Say whether a mean is over the units and nothing else."""
        before, after = self.shape(node.inputs[0]), self.shape(node.outputs[0])
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        places = [dims] if isinstance(dims, int) else list(dims or range(len(before)))
        units = self.units.get(node.inputs[0])
        return len(after) <= len(before) and [place % len(before) for place in places] == [units]

    def differ_in_units(self, one: int, other: int) -> bool:
        """Say whether the units of two values are known to lie along different axes."""
        known = self.units.get(one), self.units.get(other)
        return None not in known and known[0] != known[1]

    def size(self, index: int) -> Known:
        """Return what is known of a value."""
        if index not in self.sizes:
            self.sizes[index] = self._given(index)
        return self.sizes[index]

    def _given(self, index: int) -> Known:
        """Return the size of an input, a parameter or a constant."""
        value = self.uses.graph.values[index]
        if value.is_input:
            return Size()
        if value.constant is not None:
            return constant(value.constant)
        if value.parameter is not None:
            return self.parameter(value.parameter)
        return Unknown("a constant of which only the shape is known")

    def parameter(self, name: str) -> Known:
        """Return the size of a parameter: what the policy will write, or what it holds."""
        site, written = self.sites[name], self.written.get(name)
        if isinstance(written, Unknown):
            return written
        if written is not None and written.output is None:
            return Size(written.mean, written.power, written.power, written.power)
        if site.role in ("norm_weight", "norm_bias", "bias"):
            return constant(1.0 if site.role == "norm_weight" else 0.0)
        return held(site)

    def behind(self, use: Use, node: Node, met: Size, fan_in: float | None) -> Known:
        """Return the size of what a weight makes of its input.

        Args:
            use: Where the weight is applied.
            node: What applies it.
            met: Its input.
            fan_in: Connections into one of its output units, or None where these are unknown.
        """
        name = use.source.site
        written = self.written.get(name, NORMALISING)
        if isinstance(written, Written) and written.output is not None:
            return met.weighed().scaled(math.sqrt(written.output))
        size = self.parameter(name)
        if isinstance(size, Unknown):
            return size
        if fan_in is None:
            return self.lost(node, f"the fan of {name!r} is unknown")
        if abs(size.mean) > _CENTRED * math.sqrt(size.second):
            return self.lost(node, f"the weights of {name!r} have a mean")
        return met.weighed().scaled(math.sqrt(fan_in * size.second * met.second))

    def lost(self, node: Node, reason: str) -> Unknown:
        """Say where a size was lost."""
        return Unknown(f"{reason} (`{node.op}` in {node.module or 'the model'!r})")

    def slots(self, node: Node) -> dict[str, int]:
        """Return the values that a node reads, by argument; the first of each."""
        found: dict[str, int] = {}
        for slot, value in self.uses.slots(node):
            found.setdefault(slot, value)
        return found

    def shape(self, value: int) -> tuple[int, ...]:
        """Return the shape of a value."""
        return self.uses.graph.values[value].shape

    def note(self, use: Use, size: Known) -> None:
        """Remember what a weight reads."""
        self.read.setdefault(use.source.site, []).append(size)


_CENTRED = 0.1
"""Mean over root mean square up to which random weights, few of them, may be off their centre."""

_STRANGE = "an operator whose effect on sizes is not known"
_HUGE = "numbers that grow beyond all bounds"


def _finite(size: Known) -> Known:
    """Let a size pass that can be counted on with."""
    if isinstance(size, Size) and not math.isfinite(size.second):
        raise OverflowError(_HUGE)
    return size


def _kernel_dims(node: Node) -> int:
    """Return how many axes lie behind that of the units: those of a kernel."""
    return int(node.op[-2]) if node.op.startswith("conv") and node.op[-1] == "d" else 0


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
