"""Pictures of signals: every number is drawn, on a logarithmic scale."""

import dataclasses
import sys

import pytest
import torch
from torch import nn

from torch_initpolicy.errors import MissingExtraError
from torch_initpolicy.signal.plots import INK, as_svg, plot_picture, plot_signals
from torch_initpolicy.signal.points import Point
from torch_initpolicy.signal.run import audit_signal


def point(site: str | None, second: float, gradient: float | None = 1.0) -> Point:
    """Make a point of which little matters."""
    return Point(0, "", "linear", site, False, (2, 3), 0.0, 1.0, second, 0.0, gradient=gradient)


POINTS = [point("a", 1.0), point(None, 7.0), point("b", 1e-3, None), point("c", float("inf"), 0.0)]


def test_every_number_that_has_a_place_is_drawn():
    """One for each weight, at its depth; what is zero, missing or not finite has no place."""
    pytest.importorskip("matplotlib")
    above, below = plot_signals({"now": POINTS}).axes
    assert [list(line) for line in above.get_lines()[0].get_data()] == [[0, 1], [1.0, 1e-3]]
    assert [list(line) for line in below.get_lines()[0].get_data()] == [[0], [6.0]]


def test_a_mark_stands_at_its_weight():
    """The line is where the named weight is; a name that is not there has none."""
    pytest.importorskip("matplotlib")
    above, below = plot_signals({"now": POINTS}, ("b", "z")).axes
    assert list(above.get_lines()[1].get_xdata()) == [1, 1]
    assert len(below.get_lines()) == 1


def test_svg():
    """An element to put into a page, with words for whoever cannot see it, in the page's colour."""
    pytest.importorskip("matplotlib")
    text = as_svg(plot_signals({"now": POINTS}), "how <it> goes")
    assert text.startswith('<svg role="img" aria-label="how &lt;it&gt; goes"')
    assert INK not in text
    assert "currentColor" in text
    assert "<metadata>" not in text


def test_several_signals_over_one_another():
    """One line for each signal in each direction, the depth along the axis, a legend of labels."""
    pytest.importorskip("matplotlib")
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    first = audit_signal(model, torch.eye(8))
    figure = first.plot(first, labels=("one", "other"))
    above, below = figure.axes
    assert above.get_yscale() == below.get_yscale() == "log"
    assert [list(line.get_xdata()) for line in above.get_lines()] == [[0, 1], [0, 1]]
    assert list(above.get_lines()[0].get_ydata()) == [p.second for p in first.weighted]
    assert [text.get_text() for text in above.get_legend().get_texts()] == ["one", "other"]


@pytest.mark.parametrize("gradient", [1.0, 4.8e-3, 9.9e30])
def test_numbers_beside_a_picture(gradient):
    """Some power of ten stands beside gradients however close, and columns have whole numbers."""
    pytest.importorskip("matplotlib")
    columns = [point("a", 1.0, gradient), point("b", 1.0, 1.04 * gradient)]
    columns = [dataclasses.replace(p, histogram=(1.0,) * 24) for p in columns]
    figure = plot_picture("what", {"now": columns, "then": columns})
    figure.canvas.draw()
    above, strip = figure.axes[0], figure.axes[-2]
    assert [tick.get_text() for tick in above.get_yticklabels() if tick.get_text()]
    low, high = above.get_ylim()
    assert [tick for tick in above.get_yticks() if low <= tick <= high]
    assert {float(tick) for tick in strip.get_xticks()} <= set(range(-1, 3))


def test_without_matplotlib(monkeypatch):
    """The error names the extra."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    model = nn.Linear(2, 2)
    with pytest.raises(MissingExtraError, match="the extra 'plots'"):
        audit_signal(model, torch.eye(2)).plot()
