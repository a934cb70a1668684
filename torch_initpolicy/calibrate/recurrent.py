"""Scales recurrent layers: what goes into the gates gets the wanted standard deviation.

The state comes back through the weights that are scaled, so a layer runs until its gates have
settled; a few runs of the one layer do, because the state is bounded. Each layer runs alone in
each direction, on packed sequences: padded ones are packed sequences of one length.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from torch_initpolicy.calibrate.response import Feedback
from torch_initpolicy.calibrate.scaler import Operand, Scaler
from torch_initpolicy.calibrate.scales import Target
from torch_initpolicy.trace.recorder import Ran
from torch_initpolicy.trace.shapes import is_packed
from torch_initpolicy.trace.trees import tensors_in


class _Steps:
    """Sequences of several lengths, longest first, a row for each step of each that still runs."""

    def __init__(self, batch_sizes: Tensor) -> None:
        running: list[int] = batch_sizes.tolist()
        starts = [0, *itertools.accumulate(running)]
        lengths = [sum(count > n for count in running) for n in range(running[0])]
        self.sizes = batch_sizes
        self.running = running
        self.mirrored = [
            starts[lengths[n] - 1 - step] + n
            for step, count in enumerate(running)
            for n in range(count)
        ]

    def before(self, states: Tensor, start: Tensor) -> Tensor:
        """Return the state before each step, from those after each and the initial ones."""
        each = (start[0], *torch.split(states, self.running)[:-1])
        return torch.cat([step[:n] for step, n in zip(each, self.running, strict=True)])


@dataclass(frozen=True, slots=True)
class _Direction:
    """One layer in one direction.

    Attributes:
        weights: Its weights, `(ih, hh, *biases, *projection)`.
        has_biases: Whether there are biases among them.
        hx: Its initial states, `(1, batch, size)`: one tensor, or one for each kind of state.
        backward: Whether it reads from the end.
    """

    function: Callable[..., Any]
    steps: _Steps
    weights: tuple[Tensor, ...]
    has_biases: bool
    hx: Any
    backward: bool

    def outputs(self, rows: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Return what the layer gives at each step, in the order in which it reads."""
        options = (self.has_biases, 1, 0.0, False, False)
        found: Tensor = self.function(rows, self.steps.sizes, self.hx, list(weights), *options)[0]
        return found

    def in_order(self, rows: Tensor) -> Tensor:
        """Bring a signal into the order in which the layer reads it, or back."""
        return rows[self.steps.mirrored] if self.backward else rows

    def gates(self, rows: Tensor, scale: float) -> Tensor:
        """Return what the scaled weights bring to the gates, `(..., gates)`."""
        ih, hh = (weight * scale for weight in self.weights[:2])
        states = self.outputs(rows, (ih, hh, *self.weights[2:]))
        start = self.hx if isinstance(self.hx, Tensor) else self.hx[0]
        return F.linear(rows, ih) + F.linear(self.steps.before(states, start), hh)


def scale_recurrent(scaler: Scaler, ran: Ran, operands: Sequence[Operand]) -> None:
    """Scale the weights of a recurrent layer or cell, and write what it then gives."""
    if ran.node.op.endswith("_cell"):
        _scale_cell(scaler, ran, operands)
        return
    # The layer holds its parameters in a list of its own, which stand-ins do not reach.
    held = ((operand, scaler.parameter_of(operand)) for operand in operands)
    ours = {id(o.tensor): scaler.copies_of(site)[0] for o, site in held if site is not None}
    # Torch calls it as `(input, hx, weights, ...)`, or `(data, batch_sizes, hx, weights, ...)`.
    lead = 3 if is_packed(ran.args) else 2
    flat = [ours.get(id(weight), weight) for weight in ran.args[lead]]
    names = _names_of_matrices(scaler, operands)
    dropout, training = ran.args[lead + 3 : lead + 5]
    rows, sizes = _rows_and_sizes(ran.args)
    for layer in _layers(ran, lead, flat, _Steps(sizes)):
        made = [_scaled_direction(scaler, direction, rows, names) for direction in layer]
        rows = F.dropout(torch.cat(made, -1), dropout, training=training)
    run_again(ran, (*ran.args[:lead], flat, *ran.args[lead + 1 :]))


def _rows_and_sizes(args: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Return the rows that a layer reads, and how many there are at each step."""
    if is_packed(args):
        return args[0], args[1]
    signal = args[0].transpose(0, 1) if args[8] else args[0]  # batch first
    steps, batch = signal.shape[:2]
    return signal.flatten(0, 1), torch.full((steps,), batch, device="cpu")


def _names_of_matrices(scaler: Scaler, operands: Sequence[Operand]) -> dict[int, str]:
    """Name the sites whose weights may be scaled, by the `id` of what stands in for them."""
    matrices = (o for o in operands if o.tensor.ndim == 2 and scaler.parameter_of(o) is not None)
    found = filter(None, map(scaler.site_behind, matrices))
    return {id(scaler.copies_of(site)[0]): site.name for site in found if scaler.copies_of(site)}


def _layers(
    ran: Ran, lead: int, flat: Sequence[Tensor], steps: _Steps
) -> Iterator[list[_Direction]]:
    """Yield the directions of each layer; weights come layer by layer, direction by direction."""
    has_biases, count, _, _, bidirectional = ran.args[lead + 1 : lead + 6]
    hx, directions = ran.args[lead - 1], 2 if bidirectional else 1
    each = len(flat) // (count * directions)

    def direction(number: int) -> _Direction:
        own = slice(number, number + 1)
        states = hx[own] if isinstance(hx, Tensor) else tuple(state[own] for state in hx)
        weights = tuple(flat[number * each : (number + 1) * each])
        backward = number % directions == 1
        return _Direction(ran.node.function, steps, weights, has_biases, states, backward)

    for first in range(0, count * directions, directions):
        yield [direction(number) for number in range(first, first + directions)]


def _scaled_direction(
    scaler: Scaler, direction: _Direction, rows: Tensor, names: Mapping[int, str]
) -> Tensor:
    """Scale one layer in one direction and return its output."""
    in_order = direction.in_order(rows)
    parts = direction.weights[:2]
    if all(id(part) in names for part in parts):
        gates = partial(direction.gates, in_order)
        target = Target(tuple(names[id(part)] for part in parts), "gates", parts)
        feedback = Feedback(gates(1.0).numel(), lambda scale: scaler.measure(gates(scale)).std(1.0))
        scaler.settle(target, feedback)
    else:
        scaler.leave((names[id(part)] for part in parts if id(part) in names), _ONE_LEFT)
    for projection in direction.weights[2:]:
        if id(projection) in names:
            scaler.leave([names[id(projection)]], "a projection inside a recurrence")
    return direction.in_order(direction.outputs(in_order, direction.weights))


_ONE_LEFT = "the other weight of its recurrence is left, and both are scaled as one"


def _scale_cell(scaler: Scaler, ran: Ran, operands: Sequence[Operand]) -> None:
    """Scale one step of a recurrence; over the steps its weights are shared."""
    signal, hx, ih, hh = ran.args[:4]
    state = hx if isinstance(hx, Tensor) else hx[0]
    weights = [operand for operand in operands if operand.tensor is ih or operand.tensor is hh]
    sites = list(filter(None, map(scaler.site_behind, weights)))
    if len(sites) < len(weights):
        scaler.leave((site.name for site in sites), _ONE_LEFT)
        return
    parts = tuple(part for site in sites for part in scaler.copies_of(site))
    line = scaler.measure(F.linear(signal, ih) + F.linear(state, hh))
    scaler.settle(Target(tuple(site.name for site in sites), "gates", parts), line)
    run_again(ran, ran.args)


def run_again(ran: Ran, args: Sequence[Any]) -> None:
    """Write what an operator gives with scaled weights in place of what it gave."""
    results = ran.node.function(*args, **ran.kwargs)
    for output, again in zip(ran.outputs, tensors_in(results), strict=False):
        output.copy_(again)
