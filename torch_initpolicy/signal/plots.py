"""Pictures of signals over the depth of a model, drawn by matplotlib.

Needs the extra `torch-initpolicy[plots]`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeAlias

from torch_initpolicy.errors import MissingExtraError
from torch_initpolicy.signal.points import Point
from torch_initpolicy.signal.profiles import Profile, backward, forward

if TYPE_CHECKING:
    from matplotlib import figure as matplotlib_figure
    from matplotlib.axes import Axes

Figure: TypeAlias = "matplotlib_figure.Figure"
"""A matplotlib figure."""


class Writer(Protocol):
    """What takes scalars: a `torch.utils.tensorboard.SummaryWriter`, for one."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> object:
        """Write one number."""


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
    try:
        from matplotlib.figure import Figure as Canvas  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise MissingExtraError("plot()", "plots") from error
    figure = Canvas(figsize=(10, 6), layout="constrained")
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
