"""What was tried is judged by its signal, in words with numbers, and put in order."""

import dataclasses
import math

import pytest

from torch_initpolicy.report.repairs import (
    Repair,
    judged,
    ranked,
    refused,
    span_ahead,
    span_back,
)
from torch_initpolicy.signal.points import Point
from torch_initpolicy.signal.signal import Signal
from torch_initpolicy.signal.verdicts import Pathology, Verdict


def point(second: float, gradient: float | None = 1.0, site: str | None = "w") -> Point:
    """Make a point of which little matters; its output has six elements."""
    return Point(
        0, "m", "linear", site, False, (2, 3), 0.0, second**0.5, second, 0.0, gradient=gradient,
        source="w",
    )  # fmt: skip


def headed(points: list[Point]) -> list[Point]:
    """Let the last of some points be a head: no weight reads what it makes."""
    return [*points[:-1], dataclasses.replace(points[-1], leads_on=False)]


def signal(*kinds: Pathology, seconds: tuple[float, ...] = ()) -> Signal:
    """Make a signal with verdicts and second moments; that it wanders is mild."""
    said = tuple(Verdict(kind, "4.weight", "", "", mild=kind == "wanders") for kind in kinds)
    return Signal(tuple(headed(list(map(point, seconds)))) if seconds else (), verdicts=said)


class TestSpans:
    """Factors are those between the first weight, the largest and what arrives."""

    @pytest.mark.parametrize(
        ("seconds", "factor"),
        [
            ((1.0, 2.0, 4.0, 99.0), 4.0),
            ((1.0, 0.5, 0.25, 99.0), 4.0),
            ((1.0, 8.0, 0.5, 99.0), 16.0),
            ((1.0, 0.01, 1.0, 99.0), 1.0),
            ((1.0, 0.5, 0.0, 99.0), math.inf),
            ((1.0, 2.0), None),
        ],
        ids=["grows", "falls", "both", "dips", "lost", "shallow"],
    )
    def test_ahead(self, seconds, factor):
        """The head is left out, and so is a branch that starts small."""
        assert span_ahead(headed([point(second) for second in seconds])) == factor

    def test_what_arrives_beside_a_small_branch(self):
        """A sum behind the last weight carries the signal that its branch does not."""
        body = [point(1.0), point(1.0), point(0.0), point(1.5, site=None)]
        assert span_ahead(headed([*body, point(9.0)])) == 1.5

    @pytest.mark.parametrize(
        ("gradients", "factor"),
        [
            ((8.0, 2.0, 1.0, 99.0), 8.0),
            ((1.0, 0.0, 5.0, 99.0), 5.0),
            ((None, None, None, 99.0), None),
        ],
        ids=["grows on its way back", "closed branch", "none"],
    )
    def test_back(self, gradients, factor):
        """Gradients that a closed branch keeps away do not count."""
        assert span_back(headed([point(1.0, gradient) for gradient in gradients])) == factor

    def test_back_is_of_lengths(self):
        """A mean square over many more elements is no larger gradient."""
        wide = dataclasses.replace(point(1.0, 0.5), shape=(4, 3))
        assert span_back([point(1.0), wide, point(1.0), point(1.0)]) == 1.0


WORDS = {
    "repaired": (("vanishes",), (), "repairs", "repairs it"),
    "mildly": (
        ("vanishes",),
        ("wanders",),
        "nearly",
        "repairs it, though now the signal wanders at '4.weight', which may slow training",
    ),
    "a warning from before": (
        ("explodes", "wanders"),
        ("wanders",),
        "repairs",
        "repairs it, though still the signal wanders at '4.weight', which may slow training",
    ),
    "still": (
        ("vanishes",),
        ("vanishes",),
        "fails",
        "does not repair it: still the signal vanishes at '4.weight'",
    ),
    "other": (
        ("vanishes", "gradient vanishes"),
        ("explodes", "gradient vanishes"),
        "fails",
        (
            "does not repair it: now the signal explodes at '4.weight', "
            "still the gradient vanishes at '4.weight'"
        ),
    ),
    "mild before": (
        ("wanders",),
        ("wanders",),
        "fails",
        "does not repair it: still the signal wanders at '4.weight'",
    ),
    "well": ((), (), "repairs", "keeps the signal well"),
    "harm": ((), ("dies",), "fails", "would do harm: now units are dead at '4.weight'"),
}


@pytest.mark.parametrize(("before", "after", "outcome", "reason"), WORDS.values(), ids=WORDS)
def test_words(before, after, outcome, reason):
    """What is left of what was wrong is called 'still', what was not there before 'now'."""
    repair = judged("he", "call", signal(*before), signal(*after))

    assert (repair.outcome, repair.reason) == (outcome, reason)
    assert repair.works is (outcome in ("repairs", "nearly"))


def test_the_factors_are_told():
    """What repairs it says within which factors the signal stays, what does not says nothing."""
    seconds = (1.0, 3.0, 2.0, 9.0)

    well = judged("he", "call", signal("dies"), signal(seconds=seconds))
    ill = judged("he", "call", signal("dies"), signal("dies", seconds=seconds))

    assert str(well) == (
        "call repairs it: second moments stay within a factor 3.0, squared gradients within 1.0, "
        "up to the head"
    )
    assert "factor" not in str(ill)


def test_identical_units_are_no_repair():
    """A start that leaves units alike is none, however large its signal."""
    repair = judged("ones", "call", signal("dies"), signal(), same=("0.weight", "2.weight"))

    assert repair.outcome == "fails"
    assert "leaves units identical or dead in '0.weight', '2.weight'" in repair.reason
    many = judged("ones", "call", signal("dies"), signal(), same=[f"{i}.weight" for i in range(9)])
    assert many.reason.endswith("'2.weight' and 6 more")


def test_order():
    """What repairs comes first; equals stay as they were given; a hundredfold is no equal."""
    sick = signal("vanishes")

    def tried(name: str, *kinds: Pathology, last: float = 1.0) -> Repair:
        return judged(name, name, sick, signal(*kinds, seconds=(1.0, 1.0, last, 1.0)))

    found = ranked([
        refused("refused", "refused", "why"),
        tried("fails", "dies"),
        tried("nearly", "wanders"),
        tried("far", last=500.0),
        tried("simple", last=9.0),
        tried("closest"),
        tried("fails too", "vanishes"),
    ])  # fmt: skip

    assert [repair.name for repair in found] == [
        "simple", "closest", "far", "nearly", "fails", "fails too", "refused",
    ]  # fmt: skip
