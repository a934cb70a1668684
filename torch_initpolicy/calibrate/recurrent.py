"""Scales recurrent layers: what goes into the gates gets the wanted standard deviation.

The state comes back through the weights that are scaled, so a layer runs until its gates have
settled; a few runs of the one layer do, because the state is bounded.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from torch_initpolicy.calibrate.scaler import Operand, Scaler
from torch_initpolicy.calibrate.scales import TOLERANCE, Target
from torch_initpolicy.trace.recorder import Ran
from torch_initpolicy.trace.shapes import is_packed
from torch_initpolicy.trace.trees import tensors_in

ITERATIONS = 50
"""Times that a layer runs until its gates have settled."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """How the standard deviation of a layer's gates depends on the scale of its weights.

    Attributes:
        count: How many numbers go into the gates.
        measure: Runs the layer with its weights times a scale, and measures its gates.
    """

    count: float
    measure: Callable[[float], float]

    def std(self, scale: float) -> float:
        """Return the standard deviation at a scale."""
        return self.measure(scale)

    def solve(self, std: float) -> float | str:
        """Return the positive scale that gives a standard deviation, or why there is none."""
        scale = 1.0
        for _ in range(ITERATIONS):
            found = self.measure(scale)
            if not (found > 0 and math.isfinite(found)):
                return f"its gates have a standard deviation of {found:.3g}"
            if abs(found / std - 1) < TOLERANCE / 10:
                return scale
            scale *= std / found
        return f"its gates do not settle within {ITERATIONS} runs"


class _Steps(Protocol):
    """How a signal is laid out over time."""

    def reversed(self, signal: Tensor) -> Tensor:
        """Return a signal with each of its sequences from its end."""

    def before(self, states: Tensor, start: Tensor) -> Tensor:
        """Return the state before each step, from those after each and the initial ones."""


@dataclass(frozen=True, slots=True)
class _Padded:
    """Sequences of one length along the axis `time`."""

    time: int

    def reversed(self, signal: Tensor) -> Tensor:
        return signal.flip(self.time)

    def before(self, states: Tensor, start: Tensor) -> Tensor:
        steps = states.shape[self.time]
        first = start.movedim(0, self.time)
        return torch.cat((first, states.narrow(self.time, 0, steps - 1)), self.time)


class _Packed:
    """Sequences of several lengths, longest first, a row for each step of each that still runs."""

    def __init__(self, batch_sizes: Tensor) -> None:
        running: list[int] = batch_sizes.tolist()
        starts = [0, *itertools.accumulate(running)]
        lengths = [sum(count > n for count in running) for n in range(running[0])]
        self.running = running
        self.mirrored = [
            starts[lengths[n] - 1 - step] + n
            for step, count in enumerate(running)
            for n in range(count)
        ]

    def reversed(self, signal: Tensor) -> Tensor:
        return signal[self.mirrored]

    def before(self, states: Tensor, start: Tensor) -> Tensor:
        each = (start[0], *torch.split(states, self.running)[:-1])
        return torch.cat([step[:n] for step, n in zip(each, self.running, strict=True)])


@dataclass(frozen=True, slots=True)
class _Call:
    """What a recurrent layer was called with.

    Torch calls it as `(input, hx, weights, ...)`, and as `(data, batch_sizes, hx, weights, ...)`
    for packed sequences.

    Attributes:
        ran: The layer as it ran.
        lead: How many arguments come before the weights.
    """

    ran: Ran
    lead: int

    @classmethod
    def of(cls, ran: Ran) -> "_Call":
        """Tell which of the two forms a call has."""
        return cls(ran, 3 if is_packed(ran.args) else 2)

    @property
    def hx(self) -> Tensor | Sequence[Tensor]:
        """The initial states."""
        found: Tensor | Sequence[Tensor] = self.ran.args[self.lead - 1]
        return found

    @property
    def states(self) -> tuple[Tensor, ...]:
        """The initial states, one tensor for each kind."""
        return (self.hx,) if isinstance(self.hx, Tensor) else tuple(self.hx)

    @property
    def weights(self) -> Sequence[Tensor]:
        """The weights, layer by layer, direction by direction."""
        found: Sequence[Tensor] = self.ran.args[self.lead]
        return found

    @property
    def options(self) -> tuple[Any, ...]:
        """What follows: biases, layers, dropout, training, bidirectional, batch first if padded."""
        return tuple(self.ran.args[self.lead + 1 :])

    @property
    def steps(self) -> _Steps:
        """How the signal is laid out."""
        return _Packed(self.ran.args[1]) if self.lead == 3 else _Padded(int(self.options[5]))

    def again(self, weights: Sequence[Tensor]) -> Any:
        """Run the layer with other weights."""
        before = self.ran.args[: self.lead]
        return self.ran.node.function(*before, list(weights), *self.options)

    def alone(
        self, signal: Tensor, weights: Sequence[Tensor], states: tuple[Tensor, ...]
    ) -> Tensor:
        """Run one layer in one direction and return its output."""
        sizes = self.ran.args[1 : self.lead - 1]
        hx: Any = states[0] if isinstance(self.hx, Tensor) else states
        options = (self.options[0], 1, 0.0, False, False, *self.options[5:])
        found: Tensor = self.ran.node.function(signal, *sizes, hx, list(weights), *options)[0]
        return found


@dataclass(frozen=True, slots=True)
class _Direction:
    """One layer in one direction.

    Attributes:
        call: The call of all layers.
        steps: How its signal is laid out.
        weights: Its weights, `(ih, hh, *biases, *projection)`.
        states: Its initial states, `(1, batch, size)`.
        backward: Whether it reads from the end.
    """

    call: _Call
    steps: _Steps
    weights: tuple[Tensor, ...]
    states: tuple[Tensor, ...]
    backward: bool

    def outputs(self, signal: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Return what the layer gives at each time, in the order in which it reads."""
        return self.call.alone(signal, weights, self.states)

    def turned(self, signal: Tensor) -> Tensor:
        """Bring a signal into the order in which the layer reads it, or back."""
        return self.steps.reversed(signal) if self.backward else signal

    def gates(self, signal: Tensor, scale: float) -> Tensor:
        """Return what the scaled weights bring to the gates, `(..., gates)`."""
        ih, hh = (weight * scale for weight in self.weights[:2])
        states = self.outputs(signal, (ih, hh, *self.weights[2:]))
        before = self.steps.before(states, self.states[0])
        return F.linear(signal, ih) + F.linear(before, hh)


def scale_recurrent(scaler: Scaler, ran: Ran, operands: Sequence[Operand]) -> None:
    """Scale the weights of a recurrent layer or cell, and write what it then gives."""
    if ran.node.op.endswith("_cell"):
        _scale_cell(scaler, ran, operands)
        return
    call = _Call.of(ran)
    # The layer holds its parameters in a list of its own, which stand-ins do not reach.
    held = ((operand, scaler.parameter_of(operand)) for operand in operands)
    ours = {id(o.tensor): scaler.copies_of(site)[0] for o, site in held if site is not None}
    flat = [ours.get(id(weight), weight) for weight in call.weights]
    names = _names(scaler, operands)
    signal = ran.args[0]
    _, _, dropout, training, *_ = call.options
    for layer in _layers(call, flat):
        made = [_scaled(scaler, direction, signal, names) for direction in layer]
        signal = F.dropout(torch.cat(made, -1), dropout, training=training)
    for output, again in zip(ran.outputs, tensors_in(call.again(flat)), strict=False):
        output.copy_(again)


def _names(scaler: Scaler, operands: Sequence[Operand]) -> dict[int, str]:
    """Name the sites whose weights may be scaled, by the `id` of what stands in for them."""
    matrices = (o for o in operands if o.tensor.ndim == 2 and scaler.parameter_of(o) is not None)
    found = filter(None, map(scaler.site_behind, matrices))
    return {id(scaler.copies_of(site)[0]): site.name for site in found if scaler.copies_of(site)}


def _layers(call: _Call, flat: Sequence[Tensor]) -> Iterator[list[_Direction]]:
    """Yield the directions of each layer; weights come layer by layer, direction by direction."""
    _, count, _, _, bidirectional, *_ = call.options
    directions = 2 if bidirectional else 1
    each = len(flat) // (count * directions)
    steps = call.steps
    for layer in range(count):
        numbers = range(layer * directions, (layer + 1) * directions)
        yield [
            _Direction(
                call=call,
                steps=steps,
                weights=tuple(flat[number * each : (number + 1) * each]),
                states=tuple(state[number : number + 1] for state in call.states),
                backward=number % directions == 1,
            )
            for number in numbers
        ]


def _scaled(scaler: Scaler, direction: _Direction, signal: Tensor, names: dict[int, str]) -> Tensor:
    """Scale one layer in one direction and return its output."""
    turned = direction.turned(signal)
    parts = direction.weights[:2]
    if all(id(part) in names for part in parts):

        def measure(scale: float) -> float:
            return scaler.measure(direction.gates(turned, scale)).std(1.0)

        count = float(direction.gates(turned, 1.0).numel())
        target = Target(tuple(names[id(part)] for part in parts), "gates", parts)
        scaler.settle(target, Feedback(count, measure))
    else:
        scaler.leave((names[id(part)] for part in parts if id(part) in names), _ONE_LEFT)
    for projection in direction.weights[2:]:
        if id(projection) in names:
            scaler.leave([names[id(projection)]], "a projection inside a recurrence")
    return direction.turned(direction.outputs(turned, direction.weights))


_ONE_LEFT = "the other weight of its recurrence is left, and both are scaled as one"


def _scale_cell(scaler: Scaler, ran: Ran, operands: Sequence[Operand]) -> None:
    """Scale one step of a recurrence; over the steps its weights are shared."""
    signal, hx, ih, hh = ran.args[:4]
    state = hx if isinstance(hx, Tensor) else hx[0]
    weights = [operand for operand in operands if operand.tensor is ih or operand.tensor is hh]
    found = [scaler.site_behind(operand) for operand in weights]
    sites = [site for site in found if site is not None]
    if len(sites) < len(weights):
        scaler.leave((site.name for site in sites), _ONE_LEFT)
        return
    parts = tuple(part for site in sites for part in scaler.copies_of(site))
    line = scaler.measure(F.linear(signal, ih) + F.linear(state, hh))
    scaler.settle(Target(tuple(site.name for site in sites), "gates", parts), line)
    results = ran.node.function(*ran.args, **ran.kwargs)
    for output, again in zip(ran.outputs, tensors_in(results), strict=False):
        output.copy_(again)
