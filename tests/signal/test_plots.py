"""Pictures of signals: every number is drawn, on a logarithmic scale."""

import sys

import pytest
import torch
from torch import nn

from torch_initpolicy.errors import MissingExtraError
from torch_initpolicy.report.charts import Mark, chart
from torch_initpolicy.signal.points import Point
from torch_initpolicy.signal.profiles import Profile, backward, forward
from torch_initpolicy.signal.run import audit_signal


def point(site: str | None, second: float, gradient: float | None = 1.0) -> Point:
    """Make a point of which little matters."""
    return Point(0, "", "linear", site, False, (2, 3), 0.0, 1.0, second, 0.0, gradient=gradient)


POINTS = [point("a", 1.0), point(None, 7.0), point("b", 1e-3, None), point("c", float("inf"), 0.0)]


def test_profiles():
    """A profile has one number for each weight, None where it cannot be drawn."""
    assert forward(POINTS) == Profile(("a", "b", "c"), (1.0, 1e-3, None))
    assert backward(POINTS) == Profile(("a", "b", "c"), (6.0, None, None))


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


def test_without_matplotlib(monkeypatch):
    """The error names the extra."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    model = nn.Linear(2, 2)
    with pytest.raises(MissingExtraError, match="the extra 'plots'"):
        audit_signal(model, torch.eye(2)).plot()


def test_a_chart_marks_a_place_and_names_its_dots():
    """Each dot tells its weight and number; the marked weight has a line of its own."""
    text = chart("moments", {"now": forward(POINTS)}, mark=Mark("b", "dies at <b>"))
    assert text.count("<circle") == 2
    assert "<title>b: 0.001</title>" in text
    assert text.count('class="mark"') == 1
    assert "dies at &lt;b&gt;</text>" in text
    unknown = Mark("z", "dies at z")
    assert 'class="mark"' not in chart("moments", {"now": forward(POINTS)}, mark=unknown)


def test_a_chart_of_nothing():
    """Where no number can be drawn, words are."""
    assert "nothing was measured" in chart("moments", {"now": Profile(("a",), (None,))})
