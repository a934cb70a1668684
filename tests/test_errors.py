"""Warnings point at the user's line; lists of cases stay short."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torch_initpolicy
from torch_initpolicy import (
    InitPolicy,
    Rule,
    apply_policy,
    initializers,
    match,
    plan_policy,
    presets,
)
from torch_initpolicy.errors import (
    SHOWN,
    InitPolicyWarning,
    SymmetricInitWarning,
    UnknownOperatorWarning,
    UnusedRuleWarning,
    counted,
    listing,
    nearest,
)


class Strange(nn.Module):
    """An operator that nobody knows stands behind a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(self.linear(x))


def deep() -> nn.Module:
    """Return a network with a hidden layer."""
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


WARNING = {
    "unused rule": (
        UnusedRuleWarning,
        lambda: plan_policy(
            deep(),
            InitPolicy([Rule(match.name("neck.*"), initializers.Zeros())]).otherwise(presets.he()),
            strict=False,
        ),
    ),
    "unknown operator": (
        UnknownOperatorWarning,
        lambda: plan_policy(Strange(), example_inputs=torch.zeros(4, 4)),
    ),
    "symmetry": (SymmetricInitWarning, lambda: apply_policy(deep(), "zeros", seed=0)),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNING)
def test_a_warning_points_at_the_line_that_called_the_package(name):
    """Whoever reads a warning finds their own call beside it, not one of the package's."""
    category, call = WARNING[name]
    with pytest.warns(category) as caught:
        call()

    package = Path(torch_initpolicy.__file__).parent

    assert issubclass(category, InitPolicyWarning)
    assert not [w for w in caught if package in Path(w.filename).parents]


def test_long_lists_are_cut_and_counted():
    """The first cases are shown, the others counted."""
    lines = listing([str(i) for i in range(SHOWN + 3)]).splitlines()

    assert (len(lines), lines[0], lines[-1]) == (SHOWN + 1, "  - 0", "  ... and 3 more")


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 tensors"), (1, "1 tensor"), (2, "2 tensors"), (1024, "1,024 tensors")],
    ids=["none", "one", "two", "many"],
)
def test_counts_are_written_as_one_would_say_them(count, expected):
    """One is singular; thousands are separated."""
    assert counted(count, "tensor") == expected


@pytest.mark.parametrize(
    ("word", "expected"),
    [("reul", "; did you mean 'relu'?"), ("zzz", "")],
    ids=["near", "far"],
)
def test_what_was_probably_meant(word, expected):
    """A near name is suggested, a far one is not."""
    assert nearest(word, ["relu", "tanh"]) == expected
