"""Scales recurrent layers: what goes into the gates gets the wanted standard deviation.

The state comes back through the weights that are scaled, so a layer runs until its gates have
settled; a few runs of the one layer do, because the state is bounded.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from torch_initpolicy.engine.scaling import TOLERANCE, Operand, Scaler, Target
from torch_initpolicy.trace.capture import Ran, tensors_in

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


@dataclass(frozen=True, slots=True)
class _Direction:
    """One layer in one direction.

    Attributes:
        run: Runs it: signal, weights and initial states to outputs.
        weights: Its weights, `(ih, hh, *biases, *projection)`.
        states: Its initial states, `(1, batch, size)`.
        time: Axis of the time.
        backward: Whether it reads from the end.
    """

    run: Callable[[Tensor, Sequence[Tensor], tuple[Tensor, ...]], Tensor]
    weights: tuple[Tensor, ...]
    states: tuple[Tensor, ...]
    time: int
    backward: bool

    def outputs(self, signal: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Return what the layer gives at each time, in the order in which it reads."""
        return self.run(signal, weights, self.states)

    def turned(self, signal: Tensor) -> Tensor:
        """Bring a signal into the order in which the layer reads it, or back."""
        return signal.flip(self.time) if self.backward else signal

    def gates(self, signal: Tensor, scale: float) -> Tensor:
        """Return what the scaled weights bring to the gates, `(time, batch, gates)` or so."""
        ih, hh = (weight * scale for weight in self.weights[:2])
        states = self.outputs(signal, (ih, hh, *self.weights[2:]))
        start = self.states[0].movedim(0, self.time)
        before = torch.cat(
            (start, states.narrow(self.time, 0, states.shape[self.time] - 1)), self.time
        )
        return F.linear(signal, ih) + F.linear(before, hh)


def scale_recurrent(scaler: Scaler, ran: Ran, operands: Sequence[Operand]) -> None:
    """Scale the weights of a recurrent layer or cell, and write what it then gives."""
    if ran.node.op.endswith("_cell"):
        _scale_cell(scaler, ran, operands)
        return
    if not isinstance(ran.args[2], (list, tuple)):
        for name in _names(scaler, operands).values():
            scaler.left.setdefault(name, "its sequences are packed; pad them for this")
        return
    # The layer holds its parameters in a list of its own, which stand-ins do not reach.
    held = ((operand, scaler.parameter_of(operand)) for operand in operands)
    ours = {id(o.tensor): scaler.parts_of(site)[0] for o, site in held if site is not None}
    held_by_layer: Sequence[Tensor] = ran.args[2]
    flat = [ours.get(id(weight), weight) for weight in held_by_layer]
    names = _names(scaler, operands)
    signal = ran.args[0]
    for layer in _layers(ran, flat):
        made = [_scaled(scaler, direction, signal, names) for direction in layer]
        signal = F.dropout(torch.cat(made, -1), ran.args[5], training=ran.args[6])
    results = ran.node.function(*ran.args[:2], flat, *ran.args[3:])
    for output, again in zip(ran.outputs, tensors_in(results), strict=False):
        output.copy_(again)


def _names(scaler: Scaler, operands: Sequence[Operand]) -> dict[int, str]:
    """Name the sites whose weights may be scaled, by the `id` of what stands in for them."""
    matrices = (o for o in operands if o.tensor.ndim == 2 and scaler.parameter_of(o) is not None)
    found = filter(None, map(scaler.site_behind, matrices))
    return {id(scaler.parts_of(site)[0]): site.name for site in found if scaler.parts_of(site)}


def _layers(ran: Ran, flat: Sequence[Tensor]) -> Iterator[list[_Direction]]:
    """Take a layer apart: its weights come layer by layer, direction by direction."""
    _, hx, _, biases, count, _, _, bidirectional, batch_first = ran.args
    states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    directions = 2 if bidirectional else 1
    each = len(flat) // (count * directions)

    def run(signal: Tensor, weights: Sequence[Tensor], start: tuple[Tensor, ...]) -> Tensor:
        initial: Any = start[0] if isinstance(hx, Tensor) else start
        options = (biases, 1, 0.0, False, False, batch_first)
        found: Tensor = ran.node.function(signal, initial, list(weights), *options)[0]
        return found

    for layer in range(count):
        numbers = range(layer * directions, (layer + 1) * directions)
        yield [
            _Direction(
                run=run,
                weights=tuple(flat[number * each : (number + 1) * each]),
                states=tuple(state[number : number + 1] for state in states),
                time=1 if batch_first else 0,
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
            return scaler.line(direction.gates(turned, scale), None).std(1.0)

        count = float(direction.gates(turned, 1.0).numel())
        target = Target(tuple(names[id(part)] for part in parts), "gates", parts)
        scaler.settle(target, Feedback(count, measure))
    for projection in direction.weights[2:]:
        if id(projection) in names:
            scaler.left.setdefault(names[id(projection)], "a projection inside a recurrence")
    return direction.turned(direction.outputs(turned, direction.weights))


def _scale_cell(scaler: Scaler, ran: Ran, operands: Sequence[Operand]) -> None:
    """Scale one step of a recurrence; over the steps its weights are shared."""
    signal, hx, ih, hh = ran.args[:4]
    state = hx if isinstance(hx, Tensor) else hx[0]
    weights = [operand for operand in operands if operand.tensor is ih or operand.tensor is hh]
    found = [scaler.site_behind(operand) for operand in weights]
    sites = [site for site in found if site is not None]
    if len(sites) < len(weights):
        return
    parts = tuple(part for site in sites for part in scaler.parts_of(site))
    line = scaler.line(F.linear(signal, ih) + F.linear(state, hh), None)
    scaler.settle(Target(tuple(site.name for site in sites), "gates", parts), line)
    results = ran.node.function(*ran.args, **ran.kwargs)
    for output, again in zip(ran.outputs, tensors_in(results), strict=False):
        output.copy_(again)
