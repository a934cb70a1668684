"""Findings and reports as values, as text and as JSON."""

import json

import pytest

from torch_initpolicy.symmetry.findings import VERDICTS, Finding, Report, describe, sort

TIED = Finding("a.weight", ((0, 1, 2),), "tied", "equal for ever", "outputs", 3, "mend(a)")
DEAD = Finding("b.weight", ((4,),), "dead", "never moves", "outputs", 3)
HARMLESS = Finding("c.weight", ((0, 1),), "harmless", "parts at step 1", "outputs", 1)


@pytest.mark.parametrize(
    ("verdict", "ok"),
    [("tied", False), ("dead", False), ("diverged", False), ("suspect", True), ("harmless", True)],
)
def test_ok(verdict, ok):
    """What training would not mend is not ok; what is only suspected is."""
    assert Report((Finding("a", ((0,),), verdict, ""),)).ok is ok


def test_all_verdicts_are_judged():
    """The test above speaks of every verdict there is."""
    assert len(VERDICTS) == 5


def test_of_and_without_share_the_findings():
    """Each finding is in one of the two."""
    report = Report((TIED, DEAD, HARMLESS))

    assert report.of("tied", "dead") == (TIED, DEAD)
    assert report.without("tied", "dead").findings == (HARMLESS,)


def test_gravest_first():
    """Sorting is by verdict, and keeps the order within one."""
    second = Finding("d", ((0,),), "tied", "")

    assert sort((HARMLESS, TIED, DEAD, second)) == (TIED, second, DEAD, HARMLESS)


def test_text_is_a_table():
    """A headline, then each finding with its units, reason and remedy."""
    text = str(Report((TIED, HARMLESS), note="3 steps")).splitlines()

    assert text == [
        "1 tied, 1 harmless (probed: 3 steps)",
        "tied      a.weight  outputs 0-2",
        "          equal for ever",
        "          -> mend(a)",
        "harmless  c.weight  outputs 0-1",
        "          parts at step 1",
    ]


def test_empty_report():
    """Nothing found is one line."""
    assert (
        str(Report((), "scanned", "no inputs")) == "no symmetric start found (scanned: no inputs)"
    )


def test_json_holds_everything():
    """Every field of every finding is there."""
    read = json.loads(Report((TIED, DEAD)).to_json())

    assert read["ok"] is False
    assert read["method"] == "probed"
    assert read["findings"][0] == {
        "name": "a.weight",
        "units": [[0, 1, 2]],
        "verdict": "tied",
        "reason": "equal for ever",
        "along": "outputs",
        "step": 3,
        "remedy": "mend(a)",
    }


@pytest.mark.parametrize(
    ("units", "text"),
    [
        (((0,),), "outputs 0"),
        (((0, 1, 2, 7, 9, 10),), "outputs 0-2, 7, 9-10"),
        (((0, 2), (1, 3)), "outputs 0, 2 | 1, 3"),
        (
            tuple((n, n + 10) for n in range(6)),
            "outputs 0, 10 | 1, 11 | 2, 12 | 3, 13 | ... 2 more groups",
        ),
        ((tuple(range(0, 40, 2)),), "outputs 0, 2, 4, 6, 8, 10, ... 14 more"),
    ],
)
def test_units_in_words(units, text):
    """Neighbours are folded, and long lists cut."""
    assert describe(units, "outputs") == text
