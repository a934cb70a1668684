"""Choices: which rules decide, and which ones should have."""

import warnings

import pytest

from tests.planning.hand import cases, network, plan
from torch_initpolicy.errors import UnusedRuleWarning
from torch_initpolicy.planning.decide import make_plan
from torch_initpolicy.planning.selection import Selection
from torch_initpolicy.policy import match, presets
from torch_initpolicy.policy.rules import Rule
from torch_initpolicy.tensors.initializers import (
    Ones,
    Zeros,
)


class TestIdle:
    """Rules that decide about no site."""

    def test_idle_rules(self):
        """A rule that matches nothing is listed, with the name that was probably meant."""
        found = cases(network(), Rule(match.name("0.wieght"), Zeros()))

        assert len(found) == 1
        assert found[0].startswith(
            "  - rule 0, name('0.wieght'), matches nothing; did you mean '0.weight'"
        )

    def test_late_rules(self):
        """A rule behind one that takes all its sites is told from one that matches nothing."""
        found = cases(
            network(),
            Rule(match.role("weight"), Zeros()),
            Rule(match.name("0.weight"), Ones()),
        )

        assert found == [
            "  - rule 1, name('0.weight'), comes too late, earlier rules match all of its sites"
        ]

    def test_a_rule_for_what_is_left_alone(self):
        """A rule that decides about kept sites alone is in order."""
        made = plan(network(), Rule(match.name("0.weight"), Zeros()), skip=["0.*"])

        assert made["0.weight"].keeps

    def test_presets_may_idle(self):
        """Nobody wants to know that a preset's rule for embeddings has no embedding."""
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            made = make_plan(network(), {}, presets.auto(), Selection.of(strict=False))

        assert not any(step.role == "embedding" for step in made)

    def test_not_strict(self):
        """Without `strict` an idle rule is one warning, and the plan is made."""
        with pytest.warns(UnusedRuleWarning, match=r"rule 0, name\('hat'\), matches nothing"):
            made = plan(network(), Rule(match.name("hat"), Zeros()), strict=False)

        assert len(made) == 6
