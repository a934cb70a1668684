"""Regular expressions: what `re` says, also where `re` would not come to an end."""

import random
import re

import pytest

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.policy import regex
from torch_initpolicy.policy.regex import check, fullmatch

ATOMS = ["a", "b", ".", r"\w", r"\d", "[ab]", "[^a]", "^", "$", r"\b", "(?=a)", "(?!b)", "(?<=a)"]
REPEATS = ["", "", "*", "+", "?", "{2}", "{1,3}", "*?", "+?", "{0,2}?"]


def expression(rng, depth=2):
    """A random expression of a few characters."""
    if depth == 0 or rng.random() < 0.3:
        atom = rng.choice(ATOMS)
        return atom + (rng.choice(REPEATS) if atom[0] in r"ab.\[" and atom != r"\b" else "")
    parts = [expression(rng, depth - 1) for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.4:
        return f"({'|'.join(parts)}){rng.choice(REPEATS)}"
    return "".join(parts)


@pytest.mark.parametrize("flags", ["", "(?i)", "(?s)", "(?m)"])
def test_both_ways_agree(monkeypatch, flags):
    """All ways at once find what one way after another finds, over random expressions."""
    monkeypatch.setattr(regex, "_CHOICES", -1)
    rng = random.Random(flags)
    for _ in range(250):
        pattern = flags + expression(rng)
        for _ in range(6):
            text = "".join(rng.choices("abA1.\n", k=rng.randint(0, 5)))

            assert fullmatch(pattern, text) == bool(re.fullmatch(pattern, text)), (pattern, text)
    regex._compiled.cache_clear()


@pytest.mark.parametrize(
    ("pattern", "text", "found"),
    [
        ("(a+)+$", "a" * 40 + "b", False),
        ("(a|aa)+$", "a" * 40 + "b", False),
        ("(.*a){20}$", "a" * 40 + "b", False),
        ("(x+x+)+y", "x" * 60, False),
        (r"(\w+\s?)*", "a" * 60 + "!", False),
        ("a?" * 40 + "a" * 40, "a" * 40, True),
        ("(a|a)" * 40 + "c", "a" * 40 + "b", False),
        (".*.*.*.*.*.*.*.*=.*", "a" * 200, False),
        ("(?=(a+)+$)a*b", "a" * 40 + "b", False),
        ("((a*)*)*b", "a" * 60, False),
        ("(?:(?:a|b)*a(?:a|b){12})*c", "ab" * 60, False),
    ],
)
def test_catastrophic_expressions_end(pattern, text, found):
    """What takes `re` exponential time, or time to a high power, is answered."""
    assert fullmatch(pattern, text) == found


@pytest.mark.parametrize(
    "pattern",
    [
        "(",
        "[",
        "*a",
        "a" * 2000,
        ".*a" * 4 + r"(x)\1",
        "((a{900}){900})*",
        "(" * 900 + ")" * 900,
    ],
    ids=lambda pattern: pattern[:12],
)
def test_refused(pattern):
    """What is no expression, or cannot be matched in bounded time, is an error of ours."""
    with pytest.raises(PolicyError):
        check(pattern)


def test_references_back_are_allowed_where_there_are_few_choices():
    """What `re` does quickly stays as it is."""
    assert fullmatch(r"(\w+)\.\1", "fc.fc")
