"""Processes that agree, as one alone sees it; several of them: `tests/writing/sharded.py`."""

import pytest
from torch import nn

from torch_initpolicy.errors import ApplyError, MissingExtraError, PlanError
from torch_initpolicy.writing import ranks
from torch_initpolicy.writing.ranks import process_groups, together


def test_a_process_alone():
    """Where nothing is distributed there are no groups, and errors pass as they are."""
    assert process_groups(nn.Linear(2, 2)) == ()
    with pytest.raises(KeyError), together(()):
        raise KeyError


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("PlanError", PlanError),
        ("ZeroDivisionError", ApplyError),
        (MissingExtraError.__name__, ApplyError),
        ("listing", ApplyError),
    ],
)
def test_what_others_raised(monkeypatch, name, kind):
    """What other processes raised is raised here as the same kind, with their ranks."""
    monkeypatch.setattr(ranks, "_failures", lambda groups, own: {3: (name, "why"), 5: (name, "so")})
    with (
        pytest.raises(kind, match=r"(?s)rank 3: \w+: why.*rank 5: \w+: so") as error,
        together([1]),
    ):
        pass

    assert type(error.value) is kind
