"""Slopes of activations against width, and what they say.

Knows numbers by layer and width; runs nothing. Pictures need the extra `torch-initpolicy[plots]`.
"""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from torch_initpolicy.errors import MissingExtraError
from torch_initpolicy.notebook import framed
from torch_initpolicy.planning.describe import aligned
from torch_initpolicy.signal.plots import INK, Figure, as_svg, inked, open_figure

Sizes = tuple[float, ...]
"""A root mean square at each width, the geometric mean over seeds."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What one module puts out before the first step, and its change by the last, at each width."""

    name: str
    start: Sizes
    change: Sizes
    start_slope: float
    change_slope: float
    tolerance: float

    @property
    def verdict(self) -> str | None:
        """What is wrong, in words; None where all is well.

        An output may be smaller at the start of a wider model, as that of a head under muP is, and
        then its change has a part that fades alike: what the random weights make of the features'
        change. Whatever else a step changes must not depend on width.
        """
        if not all(map(math.isfinite, (*self.start, *self.change))):
            return "is not finite after the steps: the learning rate is too large"
        if self.start_slope > self.tolerance:
            return f"starts larger in wider models, as width^{self.start_slope:.2f}"
        if self.change_slope > self.tolerance:
            return f"changes more in wider models, as width^{self.change_slope:.2f}"
        if self.change_slope < min(0.0, self.start_slope + 2 * self.tolerance) - self.tolerance:
            return f"changes less in wider models, as width^{self.change_slope:.2f}"
        return None


def slope(widths: Sequence[int], sizes: Sequence[float]) -> float:
    """Return the slope of the logarithm of sizes against that of widths, by least squares.

    Sizes of zero have no logarithm: where all are zero nothing grows.
    """
    pairs = [(math.log(w), math.log(s)) for w, s in zip(widths, sizes, strict=True) if s > 0]
    if len(pairs) < 2:
        return 0.0
    return statistics.linear_regression(*zip(*pairs, strict=True)).slope


def layer(name: str, widths: Sequence[int], start: Sizes, change: Sizes, tolerance: float) -> Layer:
    """Return what is known of a module, with its slopes."""
    return Layer(name, start, change, slope(widths, start), slope(widths, change), tolerance)


@dataclass(frozen=True, slots=True)
class ScalingCheck:
    """What a coordinate check has found.

    `print` writes the verdict and a table.

    Attributes:
        layers: Modules with parameters of their own, in order of execution.
        widths: The widths.
        steps: Steps of training between the two looks.
        title: What was checked.
    """

    layers: tuple[Layer, ...]
    widths: tuple[int, ...]
    steps: int
    title: str

    @property
    def findings(self) -> tuple[Layer, ...]:
        """The layers whose outputs, or changes of these, go with width."""
        return tuple(layer for layer in self.layers if layer.verdict is not None)

    @property
    def ok(self) -> bool:
        """Whether there are none."""
        return not self.findings

    def __getitem__(self, name: str) -> Layer:
        return next(layer for layer in self.layers if layer.name == name)

    def __str__(self) -> str:
        return f"{self.verdict}\n\n{self._table()}"

    @property
    def verdict(self) -> str:
        """The verdict in a few lines."""
        over = f"{self.title}: widths {', '.join(map(str, self.widths))}, {self.steps} steps"
        if self.ok:
            return f"{over}\nall {len(self.layers)} layers change as much at every width"
        wrong = (f"{layer.name or 'the model'} {layer.verdict}" for layer in self.findings)
        count = f"{len(self.findings)} of {len(self.layers)} layers go with width:"
        return "\n".join((over, count, *(f"  - {case}" for case in wrong)))

    def _table(self) -> str:
        rows = [("layer", "start", "slope", "change", "slope")]
        rows += [
            (
                layer.name,
                _numbers(layer.start),
                f"{layer.start_slope:+.2f}",
                _numbers(layer.change),
                f"{layer.change_slope:+.2f}",
            )
            for layer in self.layers
        ]
        return aligned(rows)

    def to_json(self) -> str:
        """Write the check as JSON."""
        layers = [{**asdict(layer), "verdict": layer.verdict} for layer in self.layers]
        return json.dumps({"format": 1, **asdict(self), "ok": self.ok, "layers": layers}, indent=2)

    def plot(self) -> Figure:
        """Draw the sizes against width, before the first step and what the steps change.

        Returns:
            The figure, with one axes for each; `figure.savefig("check.png")` writes it. A layer
            that is well is a flat line on the right.

        Raises:
            MissingExtraError: Matplotlib is not installed.
        """
        figure = open_figure(10, 4.5)
        titles = ("output at the start", f"change of it after {self.steps} steps")
        sizes = ([layer.start for layer in self.layers], [layer.change for layer in self.layers])
        for axes, title, of_layers in zip(figure.subplots(1, 2), titles, sizes, strict=True):
            for layer, found in zip(self.layers, of_layers, strict=True):
                style = "--" if layer.verdict else "-"
                axes.plot(self.widths, found, style, marker=".", label=layer.name)
            inked(axes, f"root mean square of the {title}")
            axes.set(xscale="log", yscale="log", xlabel="width", xticks=self.widths)
            axes.set_xticklabels(map(str, self.widths))
            axes.set_xticks([], minor=True)
            axes.grid(visible=True, alpha=0.3)
        if len(self.layers) <= _NAMED:
            axes.legend(frameon=False, fontsize="small", labelcolor=INK)
        return figure

    def _repr_html_(self) -> str:
        try:
            picture = as_svg(self.plot(), self.verdict)
        except MissingExtraError:
            picture = ""
        return framed(picture, str(self))


_NAMED = 12
"""Layers up to which a legend is of help."""


def _numbers(sizes: Sequence[float]) -> str:
    return " ".join(f"{size:.3g}" for size in sizes)
