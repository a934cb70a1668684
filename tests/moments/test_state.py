"""What is known of values before any operator runs: inputs, parameters, constants."""

import pytest
import torch
from torch import nn

from tests.moments.probing import Probe, reads_of
from torch_initpolicy.moments.gaussian import Size
from torch_initpolicy.moments.state import Unknown, WrittenMoments, held
from torch_initpolicy.sites import sites


def parameter(values):
    """Return the site of a parameter that holds some values."""
    module = nn.Module()
    module.own = nn.Parameter(torch.as_tensor(values))
    return sites(module)[0]


def test_a_vector_is_shared_by_all_positions():
    """Each position sees the same numbers."""
    assert held(parameter([1.0, 3.0])) == Size(2.0, 5.0, 5.0, 5.0)


def test_a_table_differs_between_positions():
    """Rows of a table of positions share no more than their mean."""
    assert held(parameter([[1.0, 3.0], [1.0, 3.0]])) == Size(2.0, 5.0, 4.0, 4.0)


@pytest.mark.parametrize(
    ("values", "reason"),
    [(torch.empty(3, device="meta"), "not there yet"), ([1.0, float("nan")], "not finite")],
)
def test_values_that_say_nothing(values, reason):
    """Memory that is missing or not finite has no size."""
    assert reason in held(parameter(values)).reason


class Added(nn.Module):
    """A parameter that is added to a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.own = nn.Parameter(torch.full((8,), 3.0))

    def forward(self, x):
        """Add it."""
        return self.last(self.first(x) + self.own)


@pytest.mark.parametrize(
    ("written", "second"),
    [
        ({}, 10.0),
        ({"own": WrittenMoments(2.0, 5.0)}, 6.0),
        ({"first.weight": WrittenMoments(0.0, 1.0, output=4.0)}, 13.0),
    ],
    ids=["held", "written", "normalising"],
)
def test_what_the_policy_writes_comes_before_what_is_held(written, second):
    """Mean squares of independent signals add up."""
    found = reads_of(Added(), torch.empty(4, 8, device="meta"), **written)
    assert found["last.weight"].second == pytest.approx(second)


def test_a_reason_is_handed_on():
    """What the policy does not know is said by every weight that reads what comes of it."""
    found = reads_of(Added(), torch.empty(4, 8, device="meta"), own=Unknown("drawn by hand"))
    assert found["last.weight"].reason == "drawn by hand"
    assert found["first.weight"].second == 1.0


def test_unknown_operators_are_named():
    """A size that is lost says at which operator."""
    probe = Probe(lambda x: x.cumsum(-1))
    found = reads_of(probe, torch.empty(probe.shape, device="meta"))
    assert "`cumsum`" in found["last.weight"].reason
