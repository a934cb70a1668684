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
    audit_signal,
    find_symmetry,
    init_policy,
    initializers,
    lsuv_,
    match,
    materialize,
    plan_policy,
    presets,
    warn_on_symmetry,
)
from torch_initpolicy.errors import (
    SHOWN,
    ArgumentError,
    InitPolicyError,
    InitPolicyWarning,
    NotAModuleError,
    PolicyError,
    SymmetricInitWarning,
    UnknownOperatorWarning,
    UnusedRuleWarning,
    counted,
    listing,
    nearest,
)
from torch_initpolicy.testing import assert_initialized, assert_no_symmetry, assert_untouched


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


VERBS = {
    "plan_policy": plan_policy,
    "apply_policy": apply_policy,
    "materialize": materialize,
    "find_symmetry": find_symmetry,
    "audit_signal": audit_signal,
    "lsuv_": lambda model: lsuv_(model, torch.zeros(1)),
    "warn_on_symmetry": warn_on_symmetry,
    "Plan.apply": plan_policy(nn.Linear(1, 1)).apply,
    "Plan.verify": plan_policy(nn.Linear(1, 1)).verify,
    "assert_initialized": assert_initialized,
    "assert_no_symmetry": assert_no_symmetry,
    "assert_untouched": lambda model: assert_untouched(model).__enter__(),
}  # fmt: skip


@pytest.mark.parametrize("given", [nn.Linear, 3, {}], ids=["class", "number", "dict"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_refuses_what_is_no_module(verb, given):
    """One error says what was expected, whichever verb is asked."""
    with pytest.raises(NotAModuleError, match=r"must be an nn\.Module.*an object of your class"):
        VERBS[verb](given)


MISTAKES = {
    "std": (ArgumentError, lambda: lsuv_(deep(), torch.zeros(2, 4), std=-1)),
    "on_symmetry": (ArgumentError, lambda: warn_on_symmetry(deep(), on_symmetry="explode")),
    "decorated": (NotAModuleError, lambda: init_policy("he")(print)),
    "a module as a policy": (PolicyError, lambda: init_policy(nn.ReLU())),
    "a module as a function": (PolicyError, lambda: initializers.From(nn.ReLU())),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_wrong_arguments_are_errors_of_the_package(name):
    """They can be caught as what they are, as the builtin they specialise, and with all others."""
    expected, call = MISTAKES[name]
    with pytest.raises(expected) as caught:
        call()

    assert isinstance(caught.value, InitPolicyError)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError) == (expected is NotAModuleError)


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
