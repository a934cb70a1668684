"""The result of an audit of the signal: points, parameters, outputs, verdicts, and their table."""

import dataclasses
import json
import re
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch_initpolicy.errors import MissingExtraError
from torch_initpolicy.notebook import framed
from torch_initpolicy.planning.describe import aligned, folded
from torch_initpolicy.signal.plots import Figure, as_svg, plot_four, plot_picture, plot_signals
from torch_initpolicy.signal.points import Output, Point, Update
from torch_initpolicy.signal.verdicts import Verdict


@runtime_checkable
class Writer(Protocol):
    """A `torch.utils.tensorboard.SummaryWriter`, or what takes scalars as it does."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Write one number."""


class MetricsRun(Protocol):
    """A run of Weights & Biases, or what takes numbers by name as it does."""

    def log(self, data: dict[str, Any], *, step: int) -> object:
        """Write the numbers of one step."""


@dataclass(frozen=True, slots=True)
class Signal:
    """What one forward and one backward pass say.

    Attributes:
        points: What operators made, in order of execution.
        updates: One for each parameter that took part, in order of registration.
        outputs: One for each floating-point tensor that the model returned.
        verdicts: What goes wrong, in words, with the first place where it does.
        inputs: How many inputs the batch held.
        shapes: Shapes of the tensors that the model was called with.
        loss: Value of the loss; None where there was no backward pass.
        loss_of_zeros: The loss where the last weights and their biases are zero, such as
            `ln(classes)`; None without a `loss_fn`.
        loud: The parameters of a head without which the loss would not be much larger than that.
        loss_after_step: The loss of the same inputs after the optimizer's first step; None where
            that is not known.
        one_way: Why there was no backward pass; empty where there was one.
    """

    points: tuple[Point, ...]
    updates: tuple[Update, ...] = ()
    outputs: tuple[Output, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    inputs: int = 1
    shapes: tuple[tuple[int, ...], ...] = ()
    loss: float | None = None
    loss_of_zeros: float | None = None
    loud: tuple[str, ...] = ()
    loss_after_step: float | None = None
    one_way: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing goes wrong; a signal that merely wanders is reported, and is ok."""
        return all(verdict.mild for verdict in self.verdicts)

    @property
    def all_well(self) -> str:
        """What may be said where there is no verdict: only of what has been looked at."""
        if not self.points:
            return "there is no signal to follow: no operator returns floating-point numbers"
        return "the signal keeps its size" + (" on its way forward" if self.one_way else "")

    @property
    def note(self) -> str:
        """Why there are no gradients, or which are zero as is meant; else empty."""
        behind = [point.name for point in self.weighted if point.closed_by]
        zeros = dict.fromkeys(name for point in self.points for name in point.closed_by)
        if self.one_way or not behind:
            return self.one_way
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
        """Draw second moments and gradients over the depth, those of other signals over them.

        Args:
            others: Signals of the same model under other policies.
            labels: What to call them all, this one first.

        Raises:
            MissingExtraError: Matplotlib is not installed.
        """
        signals = (self, *others)
        names = [*labels, *(f"signal {i + 1}" for i in range(len(labels), len(signals)))]
        courses = (signal.points for signal in signals)
        return plot_signals(dict(zip(names, courses, strict=False)))

    def plot_four(self) -> Figure:
        """Draw saturation, gradients, update ratios and dead units: four plots for any model.

        Raises:
            MissingExtraError: Matplotlib is not installed.
        """
        return plot_four(self.points, self.updates)

    def _repr_html_(self) -> str:
        words = [verdict.finding for verdict in self.verdicts] or [self.all_well]
        picture = picture_of(words[0], {"as it is": self.points})
        return framed(picture, f"{self._words}\n\n{_LEGEND}", HEAD, self.rows)

    def log_to(self, writer: Writer | MetricsRun, step: int = 0, *, prefix: str = "signal") -> None:
        """Write the moments of each weighted operator to TensorBoard or Weights & Biases.

        Of a weight that runs again and again the last call is written.

        Args:
            writer: A `torch.utils.tensorboard.SummaryWriter` or anything with its `add_scalar`; a
                `wandb.Run` or anything with its `log`, `wandb` itself included.
            step: The training step.
            prefix: Put before each tag: `signal/second/layer1.0.conv1.weight`.
        """
        scalars = {f"{prefix}/{name}": value for name, value in self._scalars()}
        if isinstance(writer, Writer):
            for name, value in scalars.items():
                writer.add_scalar(name, value, step)
        else:
            writer.log(scalars, step=step)

    def _scalars(self) -> Iterator[tuple[str, float]]:
        for point in self.weighted:
            yield f"second/{point.name}", point.second
            if point.gradient is not None:
                yield f"gradient/{point.name}", point.gradient
        for update in self.updates:
            if update.ratio is not None:
                yield f"ratio/{update.site}", update.ratio

    def __repr__(self) -> str:
        found = ", ".join(verdict.kind for verdict in self.verdicts) or "nothing wrong"
        return f"<Signal at {len(self.points)} points: {found}: print it>"

    def __str__(self) -> str:
        return f"{self.table}\n\n{self._words}"

    @property
    def _words(self) -> str:
        words = [str(verdict) for verdict in self.verdicts] or [self.all_well]
        return "\n".join(map(wrapped, filter(None, (*words, self.note))))

    @property
    def table(self) -> str:
        """One line for each weight and output, in order of execution, and what the columns mean."""
        rows = self.rows
        if not rows:
            return "no operator applies a weight"
        return "\n".join((self.called_with, aligned([HEAD, *rows]), _LEGEND))

    @property
    def called_with(self) -> str:
        """How many inputs there were, and of which shapes."""
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.shapes if shape)
        return f"{self.inputs} inputs" + (f" ({shapes})" if shapes else "")

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """The lines of the table; of a weight that runs again and again the first and last call."""
        behind = {p.source: p for p in reversed(self.points) if p.activates and not p.site}
        returned = {output.name for output in self.outputs}
        calls: dict[str, list[Point]] = {}
        for point in self.points:
            if point.site or point.name in returned:
                calls.setdefault(point.name, []).append(point)
        ends = [(p, f"{p.name}{_which(i, len(own))}") for own in calls.values()
                for i, p in enumerate(own) if i in (0, len(own) - 1)]  # fmt: skip
        ends.sort(key=lambda end: end[0].index)
        return [(name, *_numbers_of(p, behind.get(p.site, p) if p.site else p)) for p, name in ends]


def picture_of(
    title: str, courses: Mapping[str, Sequence[Point]], tied: Collection[str] = ()
) -> str:
    """Return `plot_picture` as SVG; empty where matplotlib is not installed."""
    try:
        return as_svg(plot_picture(title, courses, tied), title)
    except MissingExtraError:
        return ""


HEAD = ("weight or output", "op", "mean", "std", "dead", "flat", "cosine", "gradient")
_LEGEND = (
    "mean, std: of the output; dead, flat: share of silent and of saturated units in the\n"
    "activation behind it; cosine: between inputs; gradient: root mean square by the output"
)


def _which(place: int, count: int) -> str:
    return f" (call {place + 1} of {count})" if count > 1 else ""


def _numbers_of(point: Point, activation: Point) -> tuple[str, ...]:
    gradient = None if point.gradient is None else point.gradient**0.5
    numbers = (
        point.mean, point.std, activation.dead, activation.saturated, point.likeness, gradient,
    )  # fmt: skip
    shown = ["-" if x is None else f"{x:.3g}" for x in numbers]
    return (point.op, *shown[:-1], "closed" if point.closed_by else shown[-1])


_CALL = re.compile(r"\w+\([^()]*\)")


def wrapped(text: str, indent: str = "") -> str:
    """Break a sentence into lines of a terminal's width; names and calls stay whole.

    Lines after the first go in further than `indent`.

    Examples:
        >>> print(wrapped(f"{'so ' * 25}write apply_policy(model, 'signal')"))
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
    """Write `most` names of weights for people, those of numbered modules in one.

    Examples:
        >>> listed(["0.weight", "1.weight", "head.weight"])
        '{0-1}.weight, head.weight'
    """
    lines = [name for name, _ in folded((name, ()) for name in names)]
    more = f" and {len(lines) - most} more like these" if len(lines) > most else ""
    return ", ".join(lines[:most]) + more


def _finite(data: Any) -> Any:
    """Replace what JSON has no number for by None."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and data - data != 0 else data
