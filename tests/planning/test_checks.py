"""Checks: what could fail when a step is carried out is found in planning."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from tests.planning.hand import cases, plan
from torch_initpolicy import plan_policy, skip_init
from torch_initpolicy.errors import PlanError
from torch_initpolicy.policy import match
from torch_initpolicy.policy.rules import Rule
from torch_initpolicy.tensors.initializers import (
    Normal,
    Orthogonal,
    Uniform,
    Zeros,
)


class TestMemory:
    """Sites that cannot be written."""

    def test_lazy(self):
        """A lazy module says what to do (D28)."""
        found = cases(nn.LazyLinear(4), Rule(match.role("weight", "bias"), Zeros()))

        assert len(found) == 2
        assert "'weight' (LazyLinear, weight, ())" in found[0]
        assert "run one forward pass first" in found[0]

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool], ids=str)
    def test_integers(self, dtype):
        """No numbers are drawn for integers, and the error says how to leave them out."""
        model = nn.Module()
        model.codes = nn.Parameter(torch.zeros(3, dtype=dtype), requires_grad=False)
        (found,) = cases(model, Rule(match.name("codes"), Uniform(0, 1)), frozen=True)

        assert str(dtype) in found
        assert "skip=['codes']" in found

    def test_inference_mode(self):
        """A tensor made under inference_mode can never be written."""
        with torch.inference_mode():
            model = nn.Linear(2, 2)
        found = cases(model, Rule(match.anything(), Zeros()))

        assert len(found) == 2
        assert all("inference_mode" in case for case in found)


class Doubled(nn.Module):
    """A parametrisation without a way back."""

    def forward(self, x):
        """Double."""
        return 2 * x


class TestParametrised:
    """Weights behind a parametrisation (D26)."""

    @pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.* is deprecated")
    @pytest.mark.parametrize(
        "wrap",
        [parametrizations.weight_norm, nn.utils.weight_norm, parametrizations.orthogonal],
        ids=["weight_norm", "legacy weight_norm", "orthogonal"],
    )
    def test_reachable(self, wrap):
        """What can be inverted is planned like any weight."""
        step = plan(wrap(nn.Linear(6, 6)), Rule(match.role("weight"), Orthogonal()))["weight"]

        assert step.initializer == Orthogonal()
        assert step.shape == (6, 6)

    @pytest.mark.parametrize(
        ("wrap", "words"),
        [
            (parametrizations.spectral_norm, "read back with an error"),
            (nn.utils.spectral_norm, "read back with an error"),
            (parametrizations.orthogonal, "orthogonal|read back"),
            (
                lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
                "no right_inverse",
            ),
        ],
        ids=["spectral_norm", "legacy spectral_norm", "orthogonal", "no way back"],
    )
    def test_out_of_reach(self, wrap, words):
        """What cannot take the values is told in planning, with what to write."""
        (found,) = cases(wrap(nn.Linear(6, 6)), Rule(match.role("weight"), Normal(1.0)))

        assert found.count("'weight'") == 2  # where it fails, and what to write
        assert any(word in found for word in words.split("|"))
        assert found.endswith(
            "initialise the model before applying the parametrisation, "
            "or leave it out with skip=['weight']"
        )

    def test_kept(self):
        """What is kept need not be reached."""
        assert plan(parametrizations.spectral_norm(nn.Linear(6, 6)))["weight"].keeps

    def test_functions_are_left_to_apply(self):
        """Code of the user's is not run in planning."""
        layer = parametrizations.weight_norm(nn.Linear(6, 6))

        def never(tensor):
            raise AssertionError

        assert plan(layer, Rule(match.role("weight"), never))["weight"].std is None


@pytest.mark.parametrize(
    ("value", "what"), [(math.nan, "NaN"), (3e35, "memory that was never filled")]
)
def test_what_nobody_has_written_is_not_kept(value, what):
    """A table of NaN, as `torch.empty` may leave it, is an error that names it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Parameter(torch.full((3, 4), value))
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x + self.scores)

    with pytest.raises(PlanError, match=f"'scores'.*12 of its 12 elements are {what}"):
        plan_policy(Net(), example_inputs=torch.zeros(3, 4))


def test_skipped_draws_are_kept():
    """What fills the memory of a skipped draw is never read, so it is nothing to refuse."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Parameter(torch.full((3, 4), math.nan))
            nn.init.trunc_normal_(self.scores, std=0.02)
            self.head = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x + self.scores)

    with skip_init():
        model = Net()

    step = plan_policy(model, example_inputs=torch.zeros(3, 4))["scores"]

    assert "what the constructor would have drawn" in step.reason


def test_masks_of_minus_infinity_are_kept():
    """What is infinite on purpose is a mask."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Parameter(torch.full((4, 4), -math.inf).triu(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x + self.scores, -1)

    assert plan_policy(Net(), example_inputs=torch.zeros(4, 4))["scores"].keeps
