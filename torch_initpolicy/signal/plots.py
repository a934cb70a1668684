"""Pictures of signals over the depth of a model, drawn by matplotlib.

Needs the extra `torch-initpolicy[plots]`.
"""

import html
import io
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from torch_initpolicy.errors import MissingExtraError
from torch_initpolicy.signal.points import Point, Update
from torch_initpolicy.signal.statistics import DECADES

if TYPE_CHECKING:
    from matplotlib import figure as matplotlib_figure
    from matplotlib.axes import Axes

Figure: TypeAlias = "matplotlib_figure.Figure"
"""A matplotlib figure."""

INK = "#010203"
"""Stands for the colour of the text around a picture."""

BLUE, RED, VIOLET = (0.05, 0.34, 0.82), (0.78, 0.15, 0.12), (0.55, 0.2, 0.75)
"""Colours that can be told apart on light and on dark paper."""


def open_figure(width: float, height: float) -> Figure:
    """Return an empty figure, or say which extra is missing."""
    try:
        from matplotlib.figure import Figure as Canvas  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError("plot()", "plots") from error
    return Canvas(figsize=(width, height), layout="constrained")


def as_svg(figure: Figure, label: str = "") -> str:
    """Return a figure as an `<svg>` element that takes the colour of the text around it.

    What is drawn in `INK` gets that colour; the label says what it shows, for whoever cannot see
    it.
    """
    from matplotlib import rc_context  # noqa: PLC0415 - an extra

    written = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "torch-initpolicy"}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = re.sub("<metadata>.*?</metadata>", "", written.getvalue(), flags=re.DOTALL)
    named = f'<svg role="img" aria-label="{html.escape(label)}"'
    return text[text.index("<svg") :].replace("<svg", named, 1).replace(INK, "currentColor")


def inked(axes: "Axes", title: str = "", y_label: str = "") -> None:
    """Write the words of a plot, and draw its frame, in the colour of the text around it."""
    axes.set_title(title, loc="left", color=INK, fontsize="medium")
    axes.set_ylabel(y_label, color=INK, fontsize="small")
    axes.xaxis.label.set(color=INK, fontsize="small")
    axes.tick_params(colors=INK, labelsize="small")
    for spine in axes.spines.values():
        spine.set_color(INK)


def _curve(
    axes: "Axes", heights: Sequence[float | None], label: str = "", color: object = None
) -> None:
    """Draw numbers on a logarithmic scale, without those that have no place there."""
    known = [(i, h) for i, h in enumerate(heights) if h is not None and 0 < h < math.inf]
    axes.plot(
        *zip(*known, strict=True) if known else ((), ()), marker=".", label=label, color=color
    )
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter("")
    axes.grid(visible=True, alpha=0.3)
    if known:  # at least a decade, so that some power of ten is written
        low, high = min(h for _, h in known), max(h for _, h in known)
        axes.update_datalim([(0, low / 10**0.5), (0, high * 10**0.5)])
        axes.autoscale_view()


def plot_signals(
    courses: Mapping[str, Sequence[Point]], marks: tuple[str, str] = ("", "")
) -> Figure:
    """Draw second moments forward and back over the depth, several signals over one another.

    `marks` are the names of the weights where the first goes wrong: on its way forward, and back.
    """
    figure = open_figure(10, 6)
    above, below = figure.subplots(2, 1, sharex=True)
    for name, points in courses.items():
        weighted = [point for point in points if point.site is not None]
        _curve(above, [point.second for point in weighted], name)
        _curve(below, [point.length for point in weighted], name)
    names = [p.site for points in list(courses.values())[:1] for p in points if p.site is not None]
    for axes, mark in zip((above, below), marks, strict=True):
        if mark in names:
            axes.axvline(names.index(mark), color=RED, linestyle=":", label="here it goes wrong")
    below.set_xlabel("weights, in order of execution")
    inked(above, "second moment of the output")
    inked(below, "squared length of the gradient by the output")
    above.legend(frameon=False, labelcolor=INK)
    return figure


_COLUMNS = 160


def plot_picture(
    title: str, courses: Mapping[str, Sequence[Point]], tied: Collection[str] = ()
) -> Figure:
    """Draw models side by side: gradients, the histogram of each layer, dead and tied units.

    The depth runs from left to right. Each column is the histogram of absolute values behind one
    weight or activation: the darker, the more of them.
    """
    count = max(len(courses), 1)
    figure = open_figure(1.2 + 2.6 * count, 4.2)
    figure.suptitle(title, color=INK, wrap=True, fontsize="medium")
    grid = figure.subplots(
        3, count, squeeze=False, sharex="col", sharey="row", height_ratios=(3, 6, 1)
    )
    for column, (name, points) in enumerate(courses.items()):
        shown = [point for point in points if point.site is not None or point.activates]
        shown = shown[:: -(-len(shown) // _COLUMNS) or 1]
        above, middle, strip = (grid[row][column] for row in range(3))
        _curve(above, [p.gradient and p.gradient**0.5 for p in shown], color=RED)
        rows = range(int(2 * (DECADES[1] - DECADES[0])))
        shares = [[math.sqrt(p.histogram[row]) for p in shown] for row in rows]
        _image(middle, [[(*BLUE, share) for share in row] for row in shares], DECADES)
        ties = [p.source in tied and p.site is not None and column == 0 for p in shown]
        _image(strip, [[(*VIOLET, float(tie)) for tie in ties],
                       [(*RED, p.dead or 0.0) for p in shown]], (0, 2))  # fmt: skip
        strip.set_yticks((0.5, 1.5), ("tied", "dead"))
        strip.locator_params(axis="x", integer=True, nbins=5)
        inked(above, name, "gradient (rms)" if column == 0 else "")
        inked(middle, y_label="log10 of |activation|" if column == 0 else "")
        inked(strip)
    figure.supxlabel("weights and activations, in order of execution", color=INK, fontsize="small")
    return figure


def _image(axes: "Axes", rows: list[list[tuple[float, ...]]], heights: tuple[float, float]) -> None:
    columns = len(rows[0])
    if columns:
        axes.imshow(rows, aspect="auto", origin="lower", interpolation="none",
                    extent=(-0.5, columns - 0.5, *heights))  # fmt: skip


def plot_four(points: Sequence[Point], updates: Sequence[Update]) -> Figure:
    """Draw saturation, gradients, update ratios and dead units of any model.

    Reference:
        Karpathy, *Neural Networks: Zero to Hero*, 2022, part 4 (makemore, activations and
        gradients).
    """
    figure = open_figure(11, 7)
    flat, slopes, ratios, dead = figure.subplots(2, 2).flat
    _bars(flat, "saturated share of each bounded activation", (p.saturated for p in points))
    _bars(dead, "dead share of each activation", (p.dead for p in points))
    _curve(slopes, [p.length for p in points if p.site is not None])
    inked(slopes, "squared length of the gradient behind each weight")
    _curve(ratios, [u.ratio if u.step is None else u.step for u in updates])
    stepped = any(update.step is not None for update in updates)
    if stepped:
        ratios.axhline(1e-3, linestyle=":", color="gray")
    inked(ratios, f"{'first step' if stepped else 'gradient'} over values, of each parameter")
    return figure


def _bars(axes: "Axes", title: str, shares: Iterable[float | None]) -> None:
    known = [share for share in shares if share is not None]
    axes.bar(range(len(known)), known)
    axes.set_ylim(0, 1)
    inked(axes, title)
