"""Combinations of matchers say what logic says, and are written as one would write them."""

import itertools

import pytest
from torch import nn

from tests.policy.hand import facts, site
from torch_initpolicy.errors import PolicyError
from torch_initpolicy.policy import match
from torch_initpolicy.policy.matchers import AllOf, AnyOf, Not

WHERE = site(nn.Linear(2, 3), prefix="fc")
YES, NO = match.name("fc.*"), match.name("other")


def holds(matcher):
    """Ask a matcher about one site."""
    return matcher.matches(WHERE, facts(WHERE))


@pytest.mark.parametrize(("one", "other"), list(itertools.product((YES, NO), repeat=2)), ids=str)
def test_logic(one, other):
    """`&`, `|` and `~` are and, or and not; both laws of De Morgan hold."""
    assert holds(one & other) is (holds(one) and holds(other))
    assert holds(one | other) is (holds(one) or holds(other))
    assert holds(~one) is not holds(one)
    assert holds(~(one & other)) is holds(~one | ~other)
    assert holds(~(one | other)) is holds(~one & ~other)


def test_associative():
    """Combinations of one sort are flat, and a double negation is none."""
    assert (YES & NO) & YES == YES & (NO & YES) == AllOf((YES, NO, YES))
    assert AnyOf((YES, NO, YES)) == (YES | NO) | YES
    assert ~~YES == YES


@pytest.mark.parametrize(
    "matcher", [YES & (NO | ~YES), (YES & NO) | ~(YES & NO), ~(YES | NO) & YES], ids=repr
)
def test_repr_is_what_makes_it(matcher):
    """The repr, read with the words of `match`, is the matcher."""
    assert eval(repr(matcher), {word: getattr(match, word) for word in match.__all__}) == matcher


@pytest.mark.parametrize("make", [lambda: AllOf(()), lambda: AnyOf((YES, 3)), lambda: Not("x")])
def test_only_matchers(make):
    """Nothing, or what is no matcher, cannot be combined."""
    with pytest.raises(PolicyError, match="expected one matcher or more"):
        make()


def test_no_truth_value():
    """`and`, `or` and `not` would drop one side in silence."""
    with pytest.raises(TypeError, match="combine matchers with &"):
        bool(YES)
