"""The report of a calibration: its figures and its text."""

import pytest

from torch_initpolicy.calibrate.calibration import Calibration, LeftWeight, ScaledWeight, factors_of


def scaled(site="a", factor=2.0, block=None, after=1.0):
    """Return an entry."""
    return ScaledWeight(site, "linear", 0.5, after, factor, block)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], {}),
        ([scaled()], {"a": (2.0,)}),
        ([scaled(), scaled(factor=3.0)], {"a": (6.0,)}),
        ([scaled(block=1), scaled(block=2, factor=3.0)], {"a": (1.0, 2.0, 3.0)}),
        ([scaled(), scaled(block=0, factor=5.0)], {"a": (10.0, 2.0, 2.0)}),
        ([scaled(), scaled("b", 7.0)], {"a": (2.0,), "b": (7.0,)}),
    ],
)
def test_factors(entries, expected):
    """Factors of one weight multiply; a block's factor is its own."""
    assert factors_of(entries) == expected
    assert Calibration(1.0, tuple(entries), ()).factors == expected


def test_worst():
    """The largest deviation counts, in either direction, relative to what was wanted."""
    assert Calibration(1.0, (), ()).worst == 0.0
    entries = scaled(after=1.9), scaled(after=2.04), scaled(after=2.0)
    assert Calibration(2.0, entries, ()).worst == pytest.approx(0.05)


def test_text():
    """Every weight has a line: what it was scaled from and to, or why it was left."""
    text = str(Calibration(1.0, (scaled("layer.weight"),), (LeftWeight("b", "frozen"),)))
    head, one, other = text.splitlines()

    assert head == "1 weight scaled to std 1, 1 left"
    assert one.split() == ["layer.weight", "linear", "std", "0.5", "->", "1", "x", "2"]
    assert other.split() == ["b", "left:", "frozen"]
