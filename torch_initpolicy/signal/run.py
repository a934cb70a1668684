"""Follows the signal through a model: one forward pass, one backward pass, and what they say.

Looks, never writes: parameters, buffers, gradients, flags and random states are as they were.
"""

import dataclasses
import itertools
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_initpolicy.errors import TraceError
from torch_initpolicy.planning.describe import folded
from torch_initpolicy.signal.closed import closed
from torch_initpolicy.signal.plots import Figure, Writer, plot_signals
from torch_initpolicy.signal.points import Point, Update
from torch_initpolicy.signal.statistics import (
    Sketch,
    as_real,
    dead_units,
    deviation,
    number,
    second_moment,
    sketch,
)
from torch_initpolicy.signal.verdicts import Verdict, verdicts
from torch_initpolicy.sites import canonical_modules, require_module, sites
from torch_initpolicy.symmetry.replica import Loss, scalar
from torch_initpolicy.tensors.base import dtype_name
from torch_initpolicy.trace.consumers import Uses, advance
from torch_initpolicy.trace.failures import refusal
from torch_initpolicy.trace.functorch import bare
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import OpRole
from torch_initpolicy.trace.real_inputs import batch_size, real_inputs, require_values
from torch_initpolicy.trace.record import observe
from torch_initpolicy.trace.recorder import Ran
from torch_initpolicy.trace.stand_ins import copied
from torch_initpolicy.trace.trees import Call, tensors_in
from torch_initpolicy.writing.shards import full


@dataclass(frozen=True, slots=True)
class Signal:
    """What one forward and one backward pass say.

    Attributes:
        points: What operators made, in order of execution.
        updates: One for each parameter that took part, in order of registration.
        verdicts: What goes wrong, in words, with the first place where it does.
        inputs: How many inputs the batch held.
        loss: Value of the loss; None where there was no backward pass.
        one_way: Why there was none; empty where there was one.
    """

    points: tuple[Point, ...]
    updates: tuple[Update, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    inputs: int = 1
    loss: float | None = None
    one_way: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing goes wrong; a signal that merely wanders is said, and is ok."""
        return all(verdict.mild for verdict in self.verdicts)

    @property
    def praise(self) -> str:
        """What may be said where there is no verdict: only of what has been looked at."""
        if not self.points:
            return "there is no signal to follow: no operator returns floating-point numbers"
        return "the signal keeps its size" + (" on its way forward" if self.one_way else "")

    @property
    def note(self) -> str:
        """Why there are no gradients, or which are zero as is meant; else empty."""
        return self.one_way or self._closed

    @property
    def _closed(self) -> str:
        """Which gradients are zero because weights start at zero."""
        behind = [point.name for point in self.weighted if point.closed_by]
        zeros = dict.fromkeys(name for point in self.points for name in point.closed_by)
        if not behind:
            return ""
        return (
            f"the gradient is zero at {listed(behind)}, as is meant: its way there leads through "
            f"{listed(zeros)}, zero at the start; these get a gradient, so "
            "that the first step opens it"
        )

    @property
    def weighted(self) -> tuple[Point, ...]:
        """The points that apply a weight."""
        return tuple(point for point in self.points if point.site is not None)

    def to_json(self) -> str:
        """Write everything that was measured as JSON; what is not finite becomes null."""
        return json.dumps(self.as_data(), indent=1, allow_nan=False)

    def as_data(self) -> dict[str, Any]:
        """Return what `to_json` writes."""
        return {key: _finite(value) for key, value in dataclasses.asdict(self).items()}

    def plot(self, *others: "Signal", labels: tuple[str, ...] = ()) -> Figure:
        """Draw the profiles over the depth, those of other signals over them.

        Args:
            others: Signals of the same model under other policies.
            labels: What to call them all, this one first.

        Raises:
            MissingExtraError: Matplotlib is not installed.
        """
        return plot_signals([signal.points for signal in (self, *others)], labels)

    def log_to(self, writer: Writer, step: int = 0, *, prefix: str = "signal") -> None:
        """Write the moments of each weighted operator to a TensorBoard writer.

        Args:
            writer: A `torch.utils.tensorboard.SummaryWriter`, or anything with its `add_scalar`.
            step: The training step.
            prefix: Put before each tag: `signal/second/layer1.0.conv1.weight`.
        """
        for point in self.weighted:
            writer.add_scalar(f"{prefix}/second/{point.name}", point.second, step)
            if point.gradient is not None:
                writer.add_scalar(f"{prefix}/gradient/{point.name}", point.gradient, step)
        for update in self.updates:
            if update.ratio is not None:
                writer.add_scalar(f"{prefix}/ratio/{update.site}", update.ratio, step)

    def __str__(self) -> str:
        words = [str(verdict) for verdict in self.verdicts] or [self.praise]
        return "\n".join((self.table, "", *map(filled, filter(None, (*words, self.note)))))

    @property
    def table(self) -> str:
        """One line for each weight, in order of execution."""
        rows = [_row(point) for point in self.weighted]
        return "\n".join(_aligned([_HEAD, *rows])) if rows else "no operator applies a weight"


_HEAD = ("weight", "op", "mean", "std", "dead", "likeness", "gradient")


_CALL = re.compile(r"\w+\([^()]*\)")


def filled(text: str, indent: str = "") -> str:
    """Break a sentence into lines of a terminal's width; names and calls stay whole.

    Args:
        text: The sentence.
        indent: Put before every line; those after the first go in further.

    Examples:
        >>> print(filled(f"{'so ' * 25}write apply_policy(model, 'signal')"))
        so so so so so so so so so so so so so so so so so so so so so so so so so write
            apply_policy(model, 'signal')
    """
    lines = textwrap.fill(
        _CALL.sub(lambda call: call[0].replace(" ", _WHOLE), text),
        98,
        initial_indent=indent,
        subsequent_indent=f"{indent}    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines.replace(_WHOLE, " ")


_WHOLE = "\N{NULL}"


def listed(names: Iterable[str], most: int = 3) -> str:
    """Write names of weights for people, those of numbered modules in one.

    Args:
        names: The names.
        most: How many to write; of others their number.

    Examples:
        >>> listed(["0.weight", "1.weight", "head.weight"])
        '{0-1}.weight, head.weight'
    """
    lines = [name for name, _ in folded((name, ()) for name in names)]
    more = f" and {len(lines) - most} more like these" if len(lines) > most else ""
    return ", ".join(lines[:most]) + more


def _row(point: Point) -> tuple[str, ...]:
    numbers = (point.mean, point.std, point.dead, point.likeness, point.gradient)
    shown = ["-" if x is None else f"{x:.3g}" for x in numbers]
    return (point.name, point.op, *shown[:-1], "closed" if point.closed_by else shown[-1])


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        yield "  ".join((*left, *right))


def _finite(data: Any) -> Any:
    """Replace what JSON has no number for by None."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and data - data != 0 else data


def audit_signal(
    model: nn.Module,
    inputs: Any = None,
    *,
    loss_fn: Loss | None = None,
) -> Signal:
    """Follow the signal through a model, forward and back.

    The model runs once in the mode it is in, on copies of its buffers, and is left untouched.
    Gradients are taken of `loss_fn`, or of a random direction of the outputs with about one unit of
    length for each input; without a `loss_fn` only their course over the depth means something.
    Complex numbers count as one each, by their absolute values: `E |z| ** 2` is twice the second
    moment of their parts.

    Args:
        model: The model, its weights initialised; wrappers are looked through.
        inputs: What its forward takes: a tensor, a tuple of arguments, or a mapping of keyword
            arguments; a batch of some ten different inputs says most. None draws random ones for a
            forward pass that can be found.
        loss_fn: Makes a real scalar of what the model returns.

    Returns:
        The points in order of execution and the verdicts. Where no gradient can be taken, as of
        indices, its `note` says why.

    Raises:
        NotAModuleError: `model` is no module.
        TraceError: The forward pass raises with these inputs, or none could be found; the loss is
            no scalar; or parameters have no values: on the meta device, or lazy before their first
            batch.

    Examples:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> signal = audit_signal(model, torch.eye(16, 64))
        >>> [point.name for point in signal.points]
        ['0.weight', '1:relu', '2.weight']
        >>> signal.ok
        True
    """
    return follow(model, inputs, loss_fn=loss_fn)[1]


def follow(
    model: nn.Module,
    inputs: Any = None,
    *,
    loss_fn: Loss | None = None,
) -> tuple[Call, Signal]:
    """Follow the signal, and say with which inputs.

    Args:
        model: As for `audit_signal`, like all that follow.
        inputs: What its forward takes; None to draw some.
        loss_fn: Makes a scalar of what the model returns.

    Raises:
        TraceError: As for `audit_signal`.
    """
    inner = next(module for _, module in canonical_modules(require_module(model)))
    found = sites(model)
    require_values(found)
    names = {id(p): site.name for site in found for p in site.parameters}
    failed: list[tuple[Call, Exception]] = []
    for call in real_inputs(inner, found, inputs):
        audit = _Audit(batch_size(call), loss_fn)
        try:
            observe(inner, call, audit, names=names, with_grad=True)
        except TraceError:
            raise
        except Exception as error:  # noqa: BLE001 - a forward may raise anything
            failed.append((call, error))
        else:
            return call, audit.signal()
    call, failure = failed[0]
    raise refusal(inner, call, failure) from failure


class _Measured(NamedTuple):
    node: Node
    site: str | None
    activates: bool
    shape: tuple[int, ...]
    sketch: Sketch
    dead: Tensor | None


@dataclass(slots=True)
class _Audit:
    """Looks on while the model runs, then takes the gradients."""

    inputs: int
    loss_fn: Loss | None
    uses: Uses | None = None
    stand_ins: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    measured: list[_Measured] = field(default_factory=list)
    gradients: dict[int, Tensor] = field(default_factory=dict)
    moved: dict[str, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    loss: Tensor | None = None
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
        advance(self.uses, ran.node)
        output = bare(ran.outputs[0])
        if not self._is_signal(self.uses, ran.node, output):
            return
        activates = self.uses.role(ran.node) in (OpRole.ACTIVATES, OpRole.GATES)
        with torch.no_grad():
            dead = dead_units(output, _unit_axis(output)) if activates else None
            measured = sketch(output.detach(), self.inputs)
        self.measured.append(
            _Measured(
                ran.node, self._weight(ran.node), activates, tuple(output.shape), measured, dead
            )
        )
        if output.requires_grad:
            hook = self._remember(ran.node.index)
            output.register_hook(hook)  # type: ignore[no-untyped-call]

    def _is_signal(self, uses: Uses, node: Node, output: Tensor) -> bool:
        made = uses.role(node) not in _UNCHANGED and node.outputs[0] in uses.signals
        return made and _has_gradient(output) and output.numel() > 0

    def _weight(self, node: Node) -> str | None:
        """Name the largest weight that a node applies."""
        if self.uses is None or node.index not in self.uses.weighers:
            return None
        applied = itertools.takewhile(
            lambda use: use.node.index == node.index, reversed(self.uses.found)
        )
        sources = [use.source for use in applied if "bias" not in use.slot][::-1]
        return max(sources, key=lambda source: source.size).site

    def _remember(self, index: int) -> Callable[[Tensor], None]:
        def remember(gradient: Tensor) -> None:
            self.gradients[index] = second_moment(gradient)

        return remember

    def end(self, results: Any) -> None:
        """Take the gradients of the loss."""
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
            self.one_way = self._why_not(list(tensors_in(results)))
        with torch.no_grad():
            for name, pairs in self.stand_ins.items():
                self.moved[name] = _moments(pairs, taken)

    def _loss(self, results: Any) -> Tensor | None:
        if self.loss_fn is not None:
            return scalar(self.loss_fn(results))
        outputs = [as_real(t) for t in tensors_in(results) if t.requires_grad]
        directed = [_in_random_direction(output, self.inputs) for output in outputs]
        return torch.stack(directed).sum() if directed else None

    def _why_not(self, results: Sequence[Tensor]) -> str:
        """Say why no gradient could be taken."""
        if self.loss_fn is not None:
            what = "the loss depends on no parameter that requires a gradient"
        elif any(map(_has_gradient, results)):
            what = "what the model returns depends on no parameter that requires a gradient"
        else:
            dtypes = dict.fromkeys(dtype_name(t.dtype) for t in results)
            what = f"the model returns {' and '.join(dtypes) or 'no tensors'}, which have none"
        return f"no gradients were followed: {what}"

    def signal(self) -> Signal:
        """Read all numbers and judge them."""
        updates = tuple(_update(name, *pair) for name, pair in self.moved.items())
        points = tuple(self._noted(tuple(map(self._point, self.measured)), updates))
        return Signal(
            points=points,
            updates=updates,
            verdicts=verdicts(points, self.inputs),
            inputs=self.inputs,
            loss=number(self.loss),
            one_way=self.one_way,
        )

    def _noted(self, points: Sequence[Point], updates: Sequence[Update]) -> Iterator[Point]:
        """Note at gradients of zero which weights close the way, if training opens it by itself."""
        zeros = {update.site: bool(update.gradient) for update in updates if update.second == 0}
        known = {p.index: p.gradient for p in points if p.gradient is not None}
        ways = {} if self.uses is None else closed(self.uses, known, zeros)
        for point in points:
            opening = tuple(sorted(name for name in ways.get(point.index, ()) if zeros[name]))
            yield dataclasses.replace(point, closed_by=opening) if opening else point

    def _point(self, measured: _Measured) -> Point:
        node, found = measured.node, measured.sketch
        mean, second = float(found.mean.item()), float(found.second.item())
        likeness, rank = (None, None) if found.likeness is None else found.likeness.tolist()
        return Point(
            index=node.index,
            module=node.module,
            op=node.op,
            site=measured.site,
            activates=measured.activates,
            shape=measured.shape,
            mean=mean,
            std=deviation(mean, second),
            second=second,
            zeros=float(found.zeros.item()),
            dead=number(measured.dead),
            likeness=likeness,
            rank=rank,
            gradient=number(self.gradients.get(node.index)),
        )


_UNCHANGED = frozenset({OpRole.MOVES, OpRole.CASTS, OpRole.CREATES, OpRole.SUMMARISES})
"""Roles of operators behind which the numbers are the same, or no signal."""


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


def _update(site: str, second: Tensor, gradient: Tensor | None) -> Update:
    size, arrived = float(second.item()), number(gradient)
    ratio = (arrived / size) ** 0.5 if arrived is not None and size > 0 else None
    return Update(site, size, arrived, ratio)
