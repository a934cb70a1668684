"""Slopes against width, and the words for what they mean."""

import json
import math
import sys

import pytest

from torch_initpolicy.scaling.slopes import ScalingCheck, layer, slope

WIDTHS = (64, 128, 256)


@pytest.mark.parametrize("power", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_slope(power):
    """A power of the width has its exponent for a slope."""
    assert slope(WIDTHS, [3.0 * w**power for w in WIDTHS]) == pytest.approx(power)


@pytest.mark.parametrize(
    ("start", "change", "words"),
    [
        (0.0, 0.0, None),
        (-0.5, 0.1, None),
        (-0.5, -0.25, None),
        (-0.5, -0.4, r"changes less in wider models, as width\^-0.40"),
        (0.5, 0.0, r"starts larger in wider models, as width\^0.50"),
        (0.0, 1.0, r"changes more in wider models, as width\^1.00"),
        (0.0, -0.5, r"changes less in wider models, as width\^-0.50"),
    ],
)
def test_verdict(start, change, words):
    """An output may start smaller in wider models, as muP's does; nothing else may go with it."""
    sizes = [tuple(w**power for w in WIDTHS) for power in (start, change)]
    found = layer("fc", WIDTHS, *sizes, 0.2).verdict

    assert found is None if words is None else pytest.importorskip("re").match(words, found)


def test_not_finite():
    """A training that has gone out of bounds says nothing of slopes."""
    found = layer("fc", WIDTHS, (1.0, 1.0, 1.0), (1.0, math.inf, math.nan), 0.2)

    assert "not finite" in found.verdict


def test_check():
    """A check is a table, a verdict, JSON and a picture."""
    layers = (
        layer("fc", WIDTHS, (1.0, 1.0, 1.0), (0.1, 0.1, 0.1), 0.2),
        layer("head", WIDTHS, (1.0, 0.5, 0.25), (1.0, 2.0, 4.0), 0.2),
    )
    check = ScalingCheck(layers, WIDTHS, 5, "auto, adamw")

    assert [found.name for found in check.findings] == ["head"]
    assert not check.ok
    assert "head changes more in wider models, as width^1.00" in str(check)
    assert json.loads(check.to_json())["layers"][1]["change_slope"] == pytest.approx(1.0)
    assert check["fc"].verdict is None
    pytest.importorskip("matplotlib")
    left, right = check.plot().axes
    assert len(left.lines) == len(right.lines) == 2


def test_in_a_notebook(monkeypatch):
    """A notebook shows the picture and the table; without matplotlib the table alone."""
    check = ScalingCheck((layer("fc<1>", WIDTHS, (1, 1, 1), (0, 1, 2), 0.2),), WIDTHS, 5, "auto")

    shown = check._repr_html_()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)

    assert "<svg" in shown
    assert "fc&lt;1&gt; changes" in shown
    assert len(shown) < 200_000
    assert "<svg" not in check._repr_html_()
    assert "fc&lt;1&gt;" in check._repr_html_()
