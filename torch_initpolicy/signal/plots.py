"""Pictures of signals over the depth of a model, drawn by matplotlib.

Needs the extra `torch-initpolicy[plots]`.
"""

import io
import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from torch_initpolicy.errors import MissingExtraError
from torch_initpolicy.signal.points import Point, Update
from torch_initpolicy.signal.profiles import Profile, backward, forward
from torch_initpolicy.signal.statistics import DECADES

if TYPE_CHECKING:
    from matplotlib import figure as matplotlib_figure
    from matplotlib.axes import Axes

Figure: TypeAlias = "matplotlib_figure.Figure"
"""A matplotlib figure."""


class Writer(Protocol):
    """What takes scalars: a `torch.utils.tensorboard.SummaryWriter`, for one."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Write one number."""


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.figure import Figure as Canvas  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError("plot()", "plots") from error
    return Canvas(figsize=(width, height), layout="constrained")


def as_svg(figure: Figure) -> str:
    """Return a figure as an `<svg>` element that takes the colour of the text around it.

    Args:
        figure: The figure; what is drawn in `INK` gets the surrounding colour.
    """
    from matplotlib import rc_context  # noqa: PLC0415 - an extra

    written = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "torch-initpolicy"}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    return text[text.index("<svg") :].replace(INK, "currentColor")


INK = "#010203"
"""Stands for the colour of the text around a picture."""

#
# Profiles
#


def plot_signals(courses: Sequence[Sequence[Point]], labels: Sequence[str] = ()) -> Figure:
    """Draw second moments forward and back over the depth, several signals over one another.

    Args:
        courses: The points of one or more signals.
        labels: What to call them.

    Returns:
        The figure, with one axes for each direction; `figure.savefig("signal.png")` writes it.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    figure = _figure(10, 6)
    above, below = figure.subplots(2, 1, sharex=True)
    names = [*labels, *(f"signal {i + 1}" for i in range(len(labels), len(courses)))]
    for points, name in zip(courses, names, strict=False):
        _draw(above, forward(points), name)
        _draw(below, backward(points), name)
    _finish(above, "second moment of the output", legend=len(courses) > 1 or bool(labels))
    _finish(below, "squared length of the gradient", legend=False)
    below.set_xlabel("weights, in order of execution")
    return figure


def _draw(axes: "Axes", profile: Profile, name: str) -> None:
    depths = [place for place, height in enumerate(profile.heights) if height is not None]
    heights = [height for height in profile.heights if height is not None]
    axes.plot(depths, heights, marker=".", label=name)


def _finish(axes: "Axes", title: str, *, legend: bool) -> None:
    axes.set_title(title, loc="left", fontsize="medium")
    axes.set_yscale("log")
    axes.grid(visible=True, alpha=0.3)
    if legend:
        axes.legend(frameon=False)


#
# The picture of an audit
#

_COLUMNS = 160
_BLUE, _RED, _VIOLET = (0.05, 0.34, 0.82), (0.78, 0.15, 0.12), (0.55, 0.2, 0.75)


def plot_picture(
    title: str, courses: Mapping[str, Sequence[Point]], tied: Collection[str] = ()
) -> Figure:
    """Draw models side by side: gradients, the histogram of each layer, dead and tied units.

    The depth runs from left to right. Each column is the histogram of absolute values behind one
    weight or activation: the darker, the more of them.

    Args:
        title: What goes wrong, in a sentence.
        courses: The points of one or two signals, by what they are called.
        tied: Names of weights whose units are tied, in the first of them.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    figure = _figure(6.0 * max(len(courses), 1), 5.2)
    figure.suptitle(title, color=INK, wrap=True, fontsize="medium")
    grid = figure.subplots(
        3, max(len(courses), 1), squeeze=False, sharex="col", sharey="row", height_ratios=(3, 6, 1)
    )
    for column, (name, points) in enumerate(courses.items()):
        shown = _columns(points)
        above, middle, strip = (grid[row][column] for row in range(3))
        above.set_title(name, color=INK, fontsize="small")
        _gradients(above, shown)
        _histograms(middle, shown)
        _strip(strip, shown, tied if column == 0 else ())
    for axes in grid.flat:
        _inked(axes)
    return figure


def _columns(points: Sequence[Point]) -> Sequence[Point]:
    """Take weights and activations, evenly where there are too many of them."""
    shown = [point for point in points if point.site is not None or point.activates]
    return shown[:: -(-len(shown) // _COLUMNS) or 1]


def _gradients(axes: "Axes", points: Sequence[Point]) -> None:
    known = [(i, p.gradient**0.5) for i, p in enumerate(points) if p.gradient]
    axes.plot(*zip(*known, strict=True) if known else ((), ()), color=_RED, marker=".")
    axes.set_yscale("log")
    axes.set_ylabel("gradient (rms)")


def _histograms(axes: "Axes", points: Sequence[Point]) -> None:
    low, high = DECADES
    rows = int(2 * (high - low))
    image = [
        [(*_BLUE, math.sqrt(p.histogram[row]) if p.histogram else 0.0) for p in points]
        for row in range(rows)
    ]
    if points:
        axes.imshow(
            image, aspect="auto", origin="lower", interpolation="none",
            extent=(-0.5, len(points) - 0.5, low, high),
        )  # fmt: skip
    axes.set_ylabel("log10 of |activation|")


def _strip(axes: "Axes", points: Sequence[Point], tied: Collection[str]) -> None:
    """Draw the share of dead units above that of tied ones."""
    shares = ([(*_VIOLET, float(p.source in tied and p.site is not None)) for p in points],
              [(*_RED, p.dead or 0.0) for p in points])  # fmt: skip
    if points:
        axes.imshow(list(shares), aspect="auto", origin="lower", interpolation="none",
                    extent=(-0.5, len(points) - 0.5, 0, 2))  # fmt: skip
    axes.set_yticks((0.5, 1.5), ("tied", "dead"))
    axes.set_xlabel("weights and activations, in order of execution")


def _inked(axes: "Axes") -> None:
    axes.tick_params(colors=INK, labelsize="small")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize="small")
    for spine in axes.spines.values():
        spine.set_color(INK)


#
# Four plots
#


def plot_four(points: Sequence[Point], updates: Sequence[Update]) -> Figure:
    """Draw saturation, gradients, update ratios and dead units of any model.

    Args:
        points: The points of a signal.
        updates: Its parameters.

    Raises:
        MissingExtraError: Matplotlib is not installed.

    Reference:
        Karpathy, *Neural Networks: Zero to Hero*, 2022, part 4 (makemore, activations and
        gradients).
    """
    figure = _figure(11, 7)
    flat, slopes, ratios, dead = figure.subplots(2, 2).flat
    _bars(flat, "saturated share of each bounded activation",
          [(p.name, p.saturated) for p in points if p.saturated is not None])  # fmt: skip
    _bars(dead, "dead share of each activation",
          [(p.name, p.dead) for p in points if p.dead is not None])  # fmt: skip
    _draw(slopes, backward(points), "gradient")
    _finish(slopes, "squared length of the gradient behind each weight", legend=False)
    steps = [(u.site, u.ratio if u.step is None else u.step) for u in updates]
    known = [step for _, step in steps if step]
    ratios.plot(range(len(known)), known, marker=".")
    stepped = any(u.step is not None for u in updates)
    if stepped:
        ratios.axhline(1e-3, linestyle=":", color="gray")
    what = "first step over values" if stepped else "gradient over values"
    _finish(ratios, f"{what}, of each parameter", legend=False)
    return figure


def _bars(axes: "Axes", title: str, shares: Sequence[tuple[str, float]]) -> None:
    axes.bar(range(len(shares)), [share for _, share in shares])
    axes.set_ylim(0, 1)
    axes.set_title(title, loc="left", fontsize="medium")
