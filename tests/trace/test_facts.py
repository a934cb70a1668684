"""Facts are values: equal where nothing differs, and complete without a forward pass."""

from dataclasses import replace

from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.trace.facts import Facts, ForwardMultiplier


def test_what_is_known_of_a_type_alone():
    """Where nothing has been read nothing is claimed: no activation, no border, no neighbour."""
    facts = Facts("weight")

    assert facts.evidence == "type"
    assert (facts.meets, facts.fed_by, facts.op, facts.neighbours) == (None, None, None, None)
    assert {facts.used, facts.reads_input, facts.feeds_output, facts.ends_residual} == {False}


def test_equal_facts_are_one():
    """They are hashable, so that steps of equal blocks can be folded."""
    one = Facts("weight", meets=Activation("relu"), blocks=(Facts("weight"),))

    assert len({one, replace(one), replace(one, used=True)}) == 2


def test_multipliers_multiply():
    """The total is what the output grows by: before, at and behind the operator."""
    assert ForwardMultiplier(2.0, 3.0, 5.0).total == 30
    assert ForwardMultiplier().total == 1
