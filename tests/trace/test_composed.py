"""Weights in use that are made of several parameters: their variance is shared out once."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_initpolicy import apply_policy, plan_policy
from torch_initpolicy.policy import presets

OUT, IN, RANK = 96, 64, 24


class Composed(nn.Module):
    """A layer whose weight is an expression of raw parameters, before a ReLU."""

    def __init__(self, make: Callable[..., Tensor], **shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.make = make
        self.raw = nn.ParameterDict({name: torch.randn(shape) for name, shape in shapes.items()})
        self.register_buffer("mask", torch.ones(OUT, IN))

    @property
    def weight(self) -> Tensor:
        """The weight in use."""
        return self.make(self.mask, **dict(self.raw.items()))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight).relu()


CASES: dict[str, tuple[Callable[..., Tensor], dict[str, tuple[int, ...]]]] = {
    "constant": (lambda mask, w: 0.003 * w, {"w": (OUT, IN)}),
    "constant, buffer": (lambda mask, w: w * mask * 7.0, {"w": (OUT, IN)}),
    "equalised": (lambda mask, w: w / math.sqrt(IN), {"w": (OUT, IN)}),
    "transposed": (lambda mask, w: (w * 5).T, {"w": (IN, OUT)}),
    "low rank": (lambda mask, u, v: u @ v, {"u": (OUT, RANK), "v": (RANK, IN)}),
    "low rank, scaled": (lambda mask, u, v: 9 * u @ v, {"u": (OUT, RANK), "v": (RANK, IN)}),
    "low rank by einsum": (
        lambda mask, u, v: torch.einsum("or,ri->oi", u, v) / 3,
        {"u": (OUT, RANK), "v": (RANK, IN)},
    ),
    "three factors": (
        lambda mask, u, m, v: u @ m @ v,
        {"u": (OUT, RANK), "m": (RANK, RANK), "v": (RANK, IN)},
    ),
    "Hadamard": (lambda mask, a, b: a * b, {"a": (OUT, IN), "b": (OUT, IN)}),
    "Hadamard of low ranks": (
        lambda mask, a, b, c, d: (a @ b) * (c @ d),
        {"a": (OUT, 8), "b": (8, IN), "c": (OUT, 8), "d": (8, IN)},
    ),
    "bases": (
        lambda mask, mix, bases: torch.einsum("b,boi->oi", mix, bases),
        {"mix": (12,), "bases": (12, OUT, IN)},
    ),
    "sum": (lambda mask, a, b: a + b, {"a": (OUT, IN), "b": (OUT, IN)}),
    "sum of products": (
        lambda mask, a, b, c, d: a @ b + c @ d,
        {"a": (OUT, 8), "b": (8, IN), "c": (OUT, 8), "d": (8, IN)},
    ),
    "Kronecker": (lambda mask, a, b: torch.kron(a, b), {"a": (12, 8), "b": (8, 8)}),
    "centred": (lambda mask, w: 4 * (w - w.mean(1, keepdim=True)), {"w": (OUT, IN)}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_weight_in_use_has_the_textbooks_variance(case):
    """However many parameters make it, and whatever multiplies them, He's variance comes out."""
    make, shapes = CASES[case]
    x = torch.randn(4, IN)
    stds = []
    for seed in range(4):
        model = nn.Sequential(Composed(make, **shapes), nn.Linear(OUT, 2))
        apply_policy(model, seed=seed, example_inputs=x)
        stds.append(model[0].weight.square().mean().item())

    assert math.sqrt(sum(stds) / 4) == pytest.approx(math.sqrt(2 / IN), rel=0.12)


def test_factors_are_alike():
    """No factor starts larger than another: all have the same standard deviation."""
    make, shapes = CASES["three factors"]
    plan = plan_policy(Composed(make, **shapes), example_inputs=torch.randn(4, IN))

    assert len({round(step.std, 9) for step in plan.steps}) == 1
    assert (
        plan["raw.u"].reason
        == "meets relu: He normal, fan_in 64, gain 1.41421, shared by 3 factors"
    )


def test_orthogonal_factors_share_the_gain():
    """The gain of the activation is counted once, not once for each factor."""
    make, shapes = CASES["low rank"]
    model = nn.Sequential(Composed(make, **shapes), nn.Linear(OUT, 2))
    apply_policy(model, presets.orthogonal(), seed=0, example_inputs=torch.randn(4, IN))

    assert torch.linalg.matrix_norm(model[0].weight, 2).item() == pytest.approx(2**0.5, rel=1e-3)


def test_a_standardised_weight_is_not_scaled():
    """What its operator standardises is as large as that makes it; constants do not matter."""

    class Standardised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            w = self.first.weight
            return self.last((3 * F.linear(x, 5 * w / w.norm(dim=1, keepdim=True))).relu())

    plan = plan_policy(Standardised(), example_inputs=torch.randn(4, 16))

    assert plan["first.weight"].std == pytest.approx(math.sqrt(2 / 16))
