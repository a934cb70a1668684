"""Measures a model while it runs, then takes the gradients.

Reads the graph as far as it has been recorded; judges nothing.
"""

import collections
import dataclasses
import itertools
import math
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_initpolicy.errors import UnknownNameError
from torch_initpolicy.signal import statistics
from torch_initpolicy.signal.closed import closed
from torch_initpolicy.signal.hidden import flat_gates, scores
from torch_initpolicy.signal.judges import judge
from torch_initpolicy.signal.points import Output, Point, Update
from torch_initpolicy.signal.signal import Signal
from torch_initpolicy.signal.statistics import Sketch, as_real, number, second_moment
from torch_initpolicy.symmetry.replica import Loss, scalar
from torch_initpolicy.tensors.base import dtype_name
from torch_initpolicy.trace.consumers import Uses, advance
from torch_initpolicy.trace.functorch import bare
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OpRole, argument
from torch_initpolicy.trace.recorder import Ran
from torch_initpolicy.trace.stand_ins import copied
from torch_initpolicy.trace.trees import Call, map_tensors, tensors_in
from torch_initpolicy.writing.shards import full

_SIGNED = frozenset({"adam", "adamw", "nadam", "radam", "adamax", "lion", "rmsprop", "adagrad"})
"""Optimizers whose first step has the length of the learning rate in every element."""


class Training(NamedTuple):
    """What the model will be trained with, as far as it is known.

    Attributes:
        loss_fn: Makes a scalar of what the model returns.
        signed: Whether the first step has the learning rate's length in every element, else it is
            that times the gradient.
        lr: The learning rate; None where it is not known.
    """

    loss_fn: Loss | None = None
    signed: bool = False
    lr: float | None = None

    @classmethod
    def of(cls, loss_fn: Loss | None, optimizer: str | None, lr: float | None) -> "Training":
        """Return what the arguments say.

        Raises:
            UnknownNameError: There is no rule for the optimizer.
        """
        known = _SIGNED | {"sgd"}
        if optimizer is not None and optimizer.lower() not in known:
            raise UnknownNameError(
                f"the first step of optimizer {optimizer!r} is not known, only that of "
                f"{', '.join(sorted(known))}"
            )
        return cls(loss_fn, optimizer is not None and optimizer.lower() in _SIGNED,
                   None if optimizer is None else lr)  # fmt: skip


class _Measured(NamedTuple):
    node: Node
    site: str | None
    source: str | None
    activates: bool
    shape: tuple[int, ...]
    sketch: Sketch
    dead: Tensor | None
    saturated: Tensor | None
    line: str


class _Returned(NamedTuple):
    node: int
    std: Tensor
    varies: Tensor
    excess: Tensor | None
    classes: int


@dataclass(slots=True)
class SignalObserver:
    """Looks on while the model runs, then takes the gradients.

    Attributes:
        inputs: How many inputs the batch holds.
        training: The loss and the optimizer.
    """

    inputs: int
    training: Training
    uses: Uses | None = None
    stand_ins: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    sources: dict[int, str] = field(default_factory=dict)
    makers: dict[int, int] = field(default_factory=dict)
    measured: list[_Measured] = field(default_factory=list)
    returned: list[_Returned] = field(default_factory=list)
    gradients: dict[int, Tensor] = field(default_factory=dict)
    moved: dict[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    ajar: set[str] = field(default_factory=set)
    loss: Tensor | None = None
    loss_of_zeros: Tensor | None = None
    one_way: str = ""

    def stand_in(self, name: str, parameter: Tensor) -> Tensor:
        """Return a copy of a parameter that has none of its hooks."""
        alias = copied(full(parameter)).requires_grad_(parameter.requires_grad)
        self.stand_ins.setdefault(name, []).append((alias, parameter))
        return alias

    def see(self, ran: Ran) -> None:
        """Measure what an operator made, and wait for its gradient."""
        if self.uses is None:
            self.uses = Uses(ran.graph)
        node = ran.node
        advance(self.uses, node)
        self.makers.update(dict.fromkeys(map(id, ran.outputs), node.index))
        site = self._weight(self.uses, node)
        source = site or self._source(self.uses, node)
        if source is not None:
            self.sources.update(dict.fromkeys(node.outputs, source))
        output = bare(ran.outputs[0])
        if not self._is_signal(self.uses, node, output):
            return
        self._measure(ran, output, site, source)
        if output.requires_grad:
            output.register_hook(self._remember(node.index))  # type: ignore[no-untyped-call]

    def _is_signal(self, uses: Uses, node: Node, output: Tensor) -> bool:
        made = uses.role(node) not in _UNCHANGED and node.op not in _WRITES
        return (
            made and node.outputs[0] in uses.signals
            and _has_gradient(output) and output.numel() > 0
        )  # fmt: skip

    def _measure(self, ran: Ran, output: Tensor, site: str | None, source: str | None) -> None:
        node = ran.node
        role = OpRole.CREATES if self.uses is None else self.uses.role(node)
        activates = role in (OpRole.ACTIVATES, OpRole.GATES)
        silences = activates and "softm" not in node.op
        with torch.no_grad():
            self.measured.append(_Measured(
                node=node,
                site=site,
                source=source,
                activates=activates,
                shape=tuple(output.shape),
                sketch=statistics.sketch(output.detach(), self.inputs),
                dead=statistics.dead_units(output, _unit_axis(output)) if silences else None,
                saturated=_saturated(ran, output),
                line=_line_of_model(),
            ))  # fmt: skip

    def _weight(self, uses: Uses, node: Node) -> str | None:
        """Name the largest weight that a node applies."""
        if node.index not in uses.weighers:
            return None
        applied = itertools.takewhile(
            lambda use: use.node.index == node.index, reversed(uses.found)
        )
        sources = [use.source for use in applied if "bias" not in use.slot][::-1]
        return max(sources, key=lambda source: source.size).site if sources else None

    def _source(self, uses: Uses, node: Node) -> str | None:
        """Name the weight that what a node reads has come from."""
        known = (self.sources.get(value) for value in uses.carried(node))
        return next((site for site in known if site is not None), None)

    def _remember(self, index: int) -> Callable[[Tensor], None]:
        def remember(gradient: Tensor) -> None:
            self.gradients[index] = second_moment(gradient)

        return remember

    def end(self, results: Any) -> None:
        """Measure what the model returned, then take the gradients of the loss."""
        tensors = list(tensors_in(results))
        with torch.no_grad():
            self.returned = list(self._returned(tensors))
            self.loss_of_zeros = self._loss_of_zeros(results)
        loss = self._loss(results)
        # Recurrent layers run on the parameters themselves, which no swapping reaches.
        wanted = [t for pairs in self.stand_ins.values() for pair in pairs for t in pair]
        wanted = [tensor for tensor in wanted if tensor.requires_grad]
        taken: dict[int, Tensor | None] = {}
        if loss is not None and loss.requires_grad and wanted:
            gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
            taken = dict(zip(map(id, wanted), gradients, strict=True))
            self.loss = loss.detach()
        else:
            self.one_way = self._why_not(tensors)
        with torch.no_grad():
            for name, pairs in self.stand_ins.items():
                self.moved[name] = _moments(pairs, taken)
                if self._multiplies(name) and _is_small_constant(pairs[0][0]):
                    self.ajar.add(name)

    def _multiplies(self, site: str) -> bool:
        """Say whether a parameter is a factor of the signal, as a LayerScale is."""
        found = () if self.uses is None else self.uses.found
        factors = (use for use in found if use.source.site == site)
        return self.uses is not None and any(
            self.uses.role(use.node) is OpRole.MULTIPLIES for use in factors
        )

    def _returned(self, results: Sequence[Tensor]) -> Iterator[_Returned]:
        for tensor in results:
            index = self.makers.get(id(tensor))
            if index is None or not _has_gradient(tensor) or not tensor.numel() or not tensor.ndim:
                continue
            axis = self._axis_of_classes(index, tensor)
            plain = bare(tensor)
            yield _Returned(
                node=index,
                std=statistics.second_moment(plain - plain.mean()).sqrt(),
                varies=statistics.spread(plain) if len(plain) > 1 else plain.std(correction=0),
                excess=None if axis is None else statistics.excess(plain, axis),
                classes=0 if axis is None else plain.shape[axis],
            )

    def _axis_of_classes(self, index: int, result: Tensor) -> int | None:
        """Return the axis that a softmax would run over, where a result may be logits."""
        if self.uses is None or result.is_complex():
            return None
        node = self.uses.graph.nodes[index]
        while node.index not in self.uses.weighers:
            before = dict.fromkeys(self.uses.carried(node))
            producer = self.uses.graph.values[next(iter(before))].producer if before else None
            if self.uses.role(node) not in _AS_THEY_ARE or len(before) != 1 or producer is None:
                return None
            node = self.uses.graph.nodes[producer]
        shape = self.uses.graph.values[node.outputs[0]].shape
        channels = shape[1] if node.op.startswith("conv") and len(shape) > 1 else shape[-1]
        axes = (axis for axis in (-1, 1) if result.ndim > 1 and result.shape[axis] == channels)
        return next(axes, None) if channels > 1 else None

    def _loss(self, results: Any) -> Tensor | None:
        if self.training.loss_fn is not None:
            return scalar(self.training.loss_fn(results))
        outputs = [as_real(t) for t in tensors_in(results) if t.requires_grad]
        directed = [_in_random_direction(output, self.inputs) for output in outputs]
        return torch.stack(directed).sum() if directed else None

    def _loss_of_zeros(self, results: Any) -> Tensor | None:
        if self.training.loss_fn is None:
            return None
        flat = map_tensors(lambda t: torch.zeros_like(t) if _has_gradient(t) else t, results)
        try:
            return scalar(self.training.loss_fn(flat)).detach()
        except Exception:  # noqa: BLE001 - a loss may refuse zeros, as those of probabilities do
            return None

    def _why_not(self, results: Sequence[Tensor]) -> str:
        """Say why no gradient could be taken."""
        if self.training.loss_fn is not None:
            what = "the loss depends on no parameter that requires a gradient"
        elif any(map(_has_gradient, results)):
            what = "what the model returns depends on no parameter that requires a gradient"
        else:
            dtypes = dict.fromkeys(dtype_name(t.dtype) for t in results)
            what = f"the model returns {' and '.join(dtypes) or 'no tensors'}, which have none"
        return f"no gradients were followed: {what}"

    def signal(self, call: Call) -> Signal:
        """Read all numbers and judge them."""
        updates = tuple(self._update(name, *pair) for name, pair in self.moved.items())
        points = tuple(self._noted(tuple(self._points()), updates))
        unjudged = Signal(
            points=points,
            updates=updates,
            outputs=tuple(self._outputs(points)),
            inputs=self.inputs,
            shapes=tuple(tuple(t.shape) for t in tensors_in((call.args, dict(call.kwargs)))),
            loss=number(self.loss),
            loss_of_zeros=number(self.loss_of_zeros),
            one_way=self.one_way,
        )
        return dataclasses.replace(unjudged, verdicts=judge(unjudged))

    def _points(self) -> Iterator[Point]:
        leading = self._leading()
        calls = collections.Counter((m.node.module, m.node.op) for m in self.measured)
        seen: collections.Counter[tuple[str, str]] = collections.Counter()
        for measured in self.measured:
            key = measured.node.module, measured.node.op
            seen[key] += 1
            call = seen[key] if calls[key] > 1 and measured.site is None else 0
            yield self._point(measured, leads_on=measured.node.index in leading, call=call)

    def _leading(self) -> set[int]:
        """Return the nodes whose outputs come to a weight."""
        found: set[int] = set()
        if self.uses is None:
            return found
        wanted: set[int] = set()
        for node in reversed(self.uses.graph.nodes):
            ahead = not wanted.isdisjoint(node.outputs)
            if ahead:
                found.add(node.index)
            if ahead or node.index in self.uses.weighers:
                wanted.update(self.uses.carried(node))
        return found

    def _noted(self, points: Sequence[Point], updates: Sequence[Update]) -> Iterator[Point]:
        """Note at gradients of zero which weights close the way, if training opens it by itself."""
        zeros = {update.site: bool(update.gradient) for update in updates if update.second == 0}
        known = {p.index: p.gradient for p in points if p.gradient is not None}
        ways = {} if self.uses is None else closed(self.uses, known, zeros)
        for point in points:
            opening = tuple(sorted(name for name in ways.get(point.index, ()) if zeros[name]))
            yield dataclasses.replace(point, closed_by=opening) if opening else point

    def _point(self, measured: _Measured, *, leads_on: bool, call: int) -> Point:
        node, found = measured.node, measured.sketch
        mean, second = float(found.mean.item()), float(found.second.item())
        rows = (None, None, None) if found.likeness is None else found.likeness.tolist()
        return Point(
            index=node.index,
            module=node.module,
            op=node.op,
            site=measured.site,
            activates=measured.activates,
            shape=measured.shape,
            mean=mean,
            std=statistics.deviation(mean, second),
            second=second,
            zeros=float(found.zeros.item()),
            dead=number(measured.dead),
            saturated=number(measured.saturated),
            likeness=rows[0],
            tokens=number(found.tokens),
            rank=rows[1],
            variation=rows[2],
            histogram=tuple(found.histogram.tolist()),
            over=_over(node, measured.shape),
            gradient=number(self.gradients.get(node.index)),
            source=measured.source,
            leads_on=leads_on,
            call=call,
            line=measured.line,
        )

    def _outputs(self, points: Sequence[Point]) -> Iterator[Output]:
        for found in self.returned:
            maker = next((p for p in reversed(points) if p.index <= found.node), None)
            if maker is not None:
                yield Output(
                    name=maker.name,
                    source=maker.source,
                    std=float(found.std.item()),
                    varies=float(found.varies.item()),
                    classes=found.classes,
                    excess=number(found.excess),
                )

    def _update(self, site: str, second: Tensor, gradient: Tensor | None) -> Update:
        size, arrived = float(second.item()), number(gradient)
        ratio = (arrived / size) ** 0.5 if arrived is not None and size > 0 else None
        return Update(site, size, arrived, ratio, self._step(size, ratio), site in self.ajar)

    def _step(self, second: float, ratio: float | None) -> float | None:
        """Return the first step's length over that of the values."""
        if self.training.lr is None or not ratio:
            return None
        if self.training.signed:
            return self.training.lr / math.sqrt(second)
        return self.training.lr * ratio if self.training.loss_fn is not None else None


_UNCHANGED = frozenset({OpRole.MOVES, OpRole.CASTS, OpRole.CREATES, OpRole.SUMMARISES})
"""Roles of operators behind which the numbers are the same, or no signal."""

_WRITES = frozenset({
    "setitem", "copy", "index_copy", "index_put", "scatter", "masked_scatter", "fill",
    "slice_scatter", "select_scatter", "index_fill",
})  # fmt: skip
"""Operators that write into a tensor. What they write has been measured where it was made; the rest
of the tensor may be memory that nobody has written yet."""

_AS_THEY_ARE = frozenset({OpRole.MOVES, OpRole.CASTS, OpRole.ADDS})
"""Roles of operators behind which logits are still logits."""


def _saturated(ran: Ran, output: Tensor) -> Tensor | None:
    op = ran.node.op
    attended = scores(op, ran.args, ran.kwargs)
    if attended is not None:
        return statistics.one_sided(*attended)
    if op == "softmax":
        axis = argument(ran.node, 1, "dim", -1)
        read = bare(ran.args[0]) if ran.args else output
        return statistics.one_sided(read.movedim(axis if isinstance(axis, int) else -1, -1))
    gates = flat_gates(op, ran.args, output)
    return statistics.saturated(op, output) if gates is None else gates


def _over(node: Node, shape: Sequence[int]) -> int | None:
    """Return how many elements a softmax or a normalisation takes together."""
    if node.op in ("softmax", "log_softmax"):
        axis = argument(node, 1, "dim", -1)
        return shape[axis] if isinstance(axis, int) and shape else None
    if node.op in ("layer_norm", "rms_norm"):
        return int(math.prod(argument(node, 1, "normalized_shape", shape)))
    if node.op == "group_norm":
        return math.prod(shape[1:]) // int(argument(node, 1, "num_groups", 1))
    return math.prod(shape[2:]) if node.op == "instance_norm" else None


def _unit_axis(output: Tensor) -> int:
    """Return the axis of the units: channels of images and videos, else the last one."""
    return 1 if output.ndim in (4, 5) else -1


def _has_gradient(tensor: Tensor) -> bool:
    """Say whether a tensor is of a dtype that can have a gradient."""
    return tensor.is_floating_point() or tensor.is_complex()


def _in_random_direction(output: Tensor, inputs: int) -> Tensor:
    generator = torch.Generator(output.device).manual_seed(0)
    direction = torch.randn(
        output.shape, generator=generator, device=output.device, dtype=torch.float32
    )
    length: float = (inputs / max(output.numel(), 1)) ** 0.5
    return (output.float() * direction).sum() * length


def _moments(
    pairs: list[tuple[Tensor, Tensor]], taken: Mapping[int, Tensor | None]
) -> tuple[Tensor, Tensor | None]:
    """Return the second moments of the tensors behind one site, and of what arrived at them."""
    values = [alias for alias, _ in pairs]
    arrived = [g for pair in pairs for t in pair if (g := taken.get(id(t))) is not None]
    return second_moment(*values), second_moment(*arrived) if arrived else None


AJAR = 1e-2
"""The largest constant that counts as a scale which is to open in training."""


def _is_small_constant(values: Tensor) -> bool:
    if values.ndim > 1 or not values.numel() or not _has_gradient(values):
        return False
    low, high = values.detach().abs().aminmax()
    return bool(low == high) and 0 < float(high) <= AJAR


_HERE = str(Path(__file__).parent.parent)
_TORCH = str(Path(torch.__file__).parent)


def _line_of_model() -> str:
    """Return the line of the model's code that is running: the first that is neither's."""
    left = False
    for frame, line in traceback.walk_stack(None):
        file = frame.f_code.co_filename
        if file.startswith(_HERE):
            if left:
                return ""
        else:
            left = True
            if not file.startswith(_TORCH):
                return f"{Path(file).name}:{line}"
    return ""
