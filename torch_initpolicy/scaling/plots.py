"""Pictures of a coordinate check, drawn by matplotlib.

Needs the extra `torch-initpolicy[plots]`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from torch_initpolicy.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib import figure as matplotlib_figure

Figure: TypeAlias = "matplotlib_figure.Figure"
"""A matplotlib figure."""


class Course(NamedTuple):
    """What one layer puts out, at each width.

    Attributes:
        name: What it is called.
        start: Size of its output before the first step.
        change: Size of what the steps have changed it by.
        is_well: Whether neither goes with width.
    """

    name: str
    start: Sequence[float]
    change: Sequence[float]
    is_well: bool


_NAMED = 12
"""Layers up to which a legend is of help."""


def plot_check(layers: Sequence[Course], widths: Sequence[int], steps: int) -> Figure:
    """Draw how large outputs start, and what steps change them by, against width.

    Args:
        layers: The layers.
        widths: The widths.
        steps: How many steps were taken.

    Returns:
        The figure; a layer that is well is a flat line on the right.

    Raises:
        MissingExtraError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure as Canvas  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError("plot()", "plots") from error
    figure = Canvas(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for layer in layers:
        style = "-" if layer.is_well else "--"
        left.plot(widths, layer.start, style, marker=".", label=layer.name)
        right.plot(widths, layer.change, style, marker=".", label=layer.name)
    titles = ("output at the start", f"change of it after {steps} steps")
    for axes, title in zip((left, right), titles, strict=True):
        axes.set_title(f"root mean square of the {title}", loc="left", fontsize="medium")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("width")
        axes.grid(visible=True, alpha=0.3)
    if len(layers) <= _NAMED:
        right.legend(frameon=False, fontsize="small")
    return figure
