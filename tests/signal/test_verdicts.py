"""Verdicts in words: a clause for a headline, and a sentence with the numbers."""

from typing import get_args

from torch_initpolicy.signal.verdicts import SENTENCES, Pathology, Verdict, as_in, changed


def test_every_kind_has_its_words():
    """Nothing can go wrong for which there is no sentence."""
    assert set(SENTENCES) == set(get_args(Pathology))


def test_words():
    """What and where; then the line of code and the numbers; then what to write."""
    verdict = Verdict("dies", "3:relu", "all are zero", "write this", line="net.py:7")
    assert verdict.headline == "units are dead at '3:relu'"
    assert verdict.finding == "units are dead at '3:relu' (net.py:7): all are zero"
    assert str(verdict) == f"{verdict.finding}; write this"


def test_changes_are_powers_of_ten():
    """A factor where there is one; nothing for what is zero or not finite."""
    assert changed(2.0, 2e5) == ", by 10^5.0"
    assert changed(0.0, 1.0) == changed(1.0, float("inf")) == ""


def test_other_places_are_counted():
    """Nothing where it goes wrong once."""
    assert as_in([]) == ""
    assert as_in([1, 2]) == ", as in 2 later activations"
