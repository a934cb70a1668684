"""Looks on while a model runs, then takes the gradients of its loss. Judges nothing."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torch_initpolicy.signal.closed import closed
from torch_initpolicy.signal.measure import measured_point
from torch_initpolicy.signal.outputs import outputs_of
from torch_initpolicy.signal.points import Point, Update
from torch_initpolicy.signal.signal import Signal
from torch_initpolicy.signal.statistics import second_moment
from torch_initpolicy.signal.training import Training, has_gradient
from torch_initpolicy.tensors.isolation import passing_by
from torch_initpolicy.trace.consumers import Uses, advance
from torch_initpolicy.trace.functorch import bare
from torch_initpolicy.trace.graph import Graph, Node
from torch_initpolicy.trace.operators import OpRole
from torch_initpolicy.trace.recorder import Ran
from torch_initpolicy.trace.stand_ins import batch_size, copied
from torch_initpolicy.trace.trees import Call, tensors_in
from torch_initpolicy.writing.shards import full


@dataclass(slots=True)
class SignalObserver:
    """Measures each operator when it runs, and the gradients when all have run.

    Its `signal`, not yet judged, is there once the forward pass has ended.
    """

    call: Call
    training: Training
    signal: Signal = field(default_factory=lambda: Signal(()))
    _uses: Uses = field(default_factory=lambda: Uses(Graph((), (), (), ())))
    _points: list[Point] = field(default_factory=list)
    _gradients: dict[int, float] = field(default_factory=dict)
    _stand_ins: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    _sources: dict[int, str] = field(default_factory=dict)
    _makers: dict[int, int] = field(default_factory=dict)
    _taken: dict[int, Tensor | None] | None = None

    def stand_in(self, name: str, parameter: Tensor) -> Tensor:
        """Return a copy of a parameter that has none of its hooks."""
        alias = copied(full(parameter)).requires_grad_(parameter.requires_grad)
        self._stand_ins.setdefault(name, []).append((alias, parameter))
        return alias

    def see(self, ran: Ran) -> None:
        """Measure what an operator made, and wait for its gradient."""
        if self._uses.graph is not ran.graph:
            self._uses = Uses(ran.graph)
        node = ran.node
        advance(self._uses, node)
        self._makers.update(dict.fromkeys(map(id, ran.outputs), node.index))
        site = _applied_weight(self._uses, node)
        source = site or self._source_of(node)
        if source is not None:
            self._sources.update(dict.fromkeys(node.outputs, source))
        output = bare(ran.outputs[0])
        if not _is_signal(self._uses, node, output):
            return
        role = self._uses.role(node)
        inputs = batch_size(self.call)
        with torch.no_grad():
            self._points.append(measured_point(ran, role, inputs, site=site, source=source))
        if output.requires_grad:
            output.register_hook(partial(self._remember, node.index))  # type: ignore[no-untyped-call]

    def _source_of(self, node: Node) -> str | None:
        """Name the weight that what a node reads has come from."""
        known = (self._sources.get(value) for value in self._uses.carried(node))
        return next((site for site in known if site is not None), None)

    def _remember(self, index: int, gradient: Tensor) -> None:
        with passing_by(gradient):
            self._gradients[index] = second_moment(gradient).item()

    def end(self, results: Any) -> None:
        """Take the gradients of the loss, and measure the parameters and what was returned."""
        loss = self.training.loss(results, batch_size(self.call))
        taken = self._taken = self._gradients_of(loss)
        with torch.no_grad():
            updates = [self._update(*named, taken) for named in self._stand_ins.items()]
            points = tuple(_finished(self._points, self._uses, self._gradients, updates))
            self.signal = Signal(
                points=points,
                updates=tuple(updates),
                outputs=tuple(outputs_of(self._uses, self._makers, points, results)),
                inputs=batch_size(self.call),
                shapes=tuple(tuple(t.shape) for t in tensors_in(tuple(self.call))),
                loss=None if taken is None or loss is None else loss.item(),
                loss_of_zeros=self.training.loss_of_zeros(results),
                one_way=self.training.no_gradient(results) if taken is None else "",
            )

    def heads(self) -> list[dict[str, Tensor]]:
        """Return the last weights before the outputs, each with its bias.

        There are none where one of them is used before as well, as that of an embedding is.
        """
        last = {point.index for point in self.signal.points if point.site and not point.leads_on}
        sites = [{use.source.site for use in self._uses.at[index]} for index in sorted(last)]
        shared = {use.source.site for use in self._uses.found if use.node.index not in last}
        if not shared.isdisjoint(set().union(*sites)):
            return []
        return [{name: self._stand_ins[name][0][0] for name in head} for head in sites]

    @torch.no_grad()
    def stepped(self) -> dict[str, Tensor]:
        """Return the stand-ins after one step of the optimizer; none where that is not known."""
        if self.training.lr is None or self._taken is None:
            return {}
        aliases = {name: pairs[0][0] for name, pairs in self._stand_ins.items()}
        gradients = ((name, alias, self._taken.get(id(alias))) for name, alias in aliases.items())
        step_ = self.training.step_
        return {name: step_(alias, found) for name, alias, found in gradients if found is not None}

    def _gradients_of(self, loss: Tensor | None) -> dict[int, Tensor | None] | None:
        """Return the gradients by all parameters, by their `id`; None where there are none."""
        # Recurrent layers run on the parameters themselves, which no swapping reaches.
        both = itertools.chain.from_iterable(itertools.chain(*self._stand_ins.values()))
        wanted = [tensor for tensor in both if tensor.requires_grad]
        if loss is None or not loss.requires_grad or not wanted:
            return None
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        return dict(zip(map(id, wanted), gradients, strict=True))

    def _update(
        self,
        site: str,
        pairs: Sequence[tuple[Tensor, Tensor]],
        taken: dict[int, Tensor | None] | None,
    ) -> Update:
        arrived = [g for pair in pairs for t in pair if (g := (taken or {}).get(id(t))) is not None]
        second = second_moment(*(alias for alias, _ in pairs)).item()
        gradient = second_moment(*arrived).item() if arrived else None
        ratio = (gradient / second) ** 0.5 if gradient is not None and second > 0 else None
        ajar = _multiplies(self._uses, site) and _is_small_constant(pairs[0][0])
        step = self.training.step(pairs[0][0], gradient)
        return Update(site, second, gradient, ratio, step, ajar)


_UNCHANGED = frozenset({OpRole.MOVES, OpRole.CASTS, OpRole.CREATES, OpRole.SUMMARISES})
"""Roles of operators behind which the numbers are the same, or no signal."""

_WRITES = frozenset({
    "setitem", "copy", "index_copy", "index_put", "scatter", "masked_scatter", "fill",
    "slice_scatter", "select_scatter", "index_fill",
})  # fmt: skip
"""Operators that write into a tensor. What they write has been measured where it was made; the rest
of the tensor may be memory that nobody has written yet."""


def _is_signal(uses: Uses, node: Node, output: Tensor) -> bool:
    made = uses.role(node) not in _UNCHANGED and node.op not in _WRITES
    signal = made and node.outputs[0] in uses.signals
    return signal and has_gradient(output) and output.numel() > 0


def _applied_weight(uses: Uses, node: Node) -> str | None:
    """Name the largest weight that a node applies, the last that was read by `uses`."""
    if node.index not in uses.weighers:
        return None
    applied = itertools.takewhile(lambda use: use.node.index == node.index, reversed(uses.found))
    sources = [use.source for use in applied if "bias" not in use.slot][::-1]
    return max(sources, key=lambda source: source.size).site if sources else None


def _multiplies(uses: Uses, site: str) -> bool:
    """Say whether a parameter is a factor of the signal, as a LayerScale is."""
    nodes = (use.node for use in uses.found if use.source.site == site)
    return any(uses.role(node) is OpRole.MULTIPLIES for node in nodes)


AJAR = 1e-2
"""The largest constant that counts as a scale which is to open in training."""


def _is_small_constant(values: Tensor) -> bool:
    if values.ndim > 1 or not values.numel() or not has_gradient(values):
        return False
    low, high = values.detach().abs().aminmax()
    return bool(low == high) and 0 < float(high) <= AJAR


def _finished(
    points: Iterable[Point], uses: Uses, gradients: dict[int, float], updates: Iterable[Update]
) -> Iterator[Point]:
    """Add to points their gradients, what closes the way to them, and where they lead."""
    points = list(points)
    zeros = {update.site: bool(update.gradient) for update in updates if update.second == 0}
    ways = closed(uses, gradients, zeros)
    leading = _leading(uses)
    calls = collections.Counter((point.module, point.op) for point in points)
    seen: collections.Counter[tuple[str, str]] = collections.Counter()
    for point in points:
        key = point.module, point.op
        seen[key] += 1
        yield dataclasses.replace(
            point,
            gradient=gradients.get(point.index),
            closed_by=tuple(sorted(name for name in ways.get(point.index, ()) if zeros[name])),
            leads_on=point.index in leading,
            skips=_skips(uses, uses.graph.nodes[point.index]),
            call=seen[key] if calls[key] > 1 and point.site is None else 0,
        )


def _skips(uses: Uses, node: Node) -> bool:
    """Say whether a node adds up two signals."""
    added = sum(value in uses.signals for value in node.inputs)
    return uses.role(node) is OpRole.ADDS and added > 1


def _leading(uses: Uses) -> set[int]:
    """Return the nodes whose outputs come to a weight."""
    found: set[int] = set()
    wanted: set[int] = set()
    for node in reversed(uses.graph.nodes):
        ahead = not wanted.isdisjoint(node.outputs)
        if ahead:
            found.add(node.index)
        if ahead or node.index in uses.weighers:
            wanted.update(uses.carried(node))
    return found
