"""Steps, and whether a dtype can hold what they draw."""

import math

import pytest
import torch
from torch import nn

from torch_initpolicy import apply_policy
from torch_initpolicy.errors import PlanError
from torch_initpolicy.steps import merged, misfit
from torch_initpolicy.tensors.base import Spread
from torch_initpolicy.tensors.initializers import Constant, Normal, Orthogonal, Uniform, Zeros

LOST = {
    "far below float16": (Spread(0.0, 1e-12), torch.float16),
    "below float16": (Spread(0.0, 2.9e-8), torch.float16),
    "below float8": (Spread(0.0, 9e-4), torch.float8_e4m3fn),
    "a constant": (Spread(1e-9, 0.0, 1e-9, 1e-9), torch.float16),
    "above float16": (Spread(0.0, 2e4), torch.float16),
    "above float8": (Spread(0.0, 1.0, -449.0, 449.0), torch.float8_e4m3fn),
    "complex": (Spread(0.0, 1e-9), torch.complex32),
}
HELD = {
    "normal": (Spread(0.0, 1e-7), torch.float16),
    "zeros": (Spread(0.0, 0.0, 0.0, 0.0), torch.float8_e5m2),
    "about a mean": (Spread(1.0, 1e-9), torch.float16),
    "bfloat16": (Spread(0.0, 1e-12), torch.bfloat16),
    "float32": (Spread(0.0, 1e-12), torch.float32),
}


@pytest.mark.parametrize(("spread", "dtype"), LOST.values(), ids=LOST)
def test_lost(spread, dtype):
    """Values beyond the largest number, and those that become zero, are named with the dtype."""
    assert str(dtype).removeprefix("torch.") in misfit([Spread(0.0, 0.1), spread], dtype)


@pytest.mark.parametrize(("spread", "dtype"), HELD.values(), ids=HELD)
def test_held(spread, dtype):
    """What a dtype can hold is no matter; zeros are meant to be zeros."""
    assert misfit([spread], dtype) is None


@pytest.mark.parametrize("exponent", range(-6, 7))
def test_threshold_is_where_most_values_become_zero(exponent):
    """About the threshold two thirds of the values are zero: counted, not computed."""
    std = 2.0**-25 * 1.3**exponent  # half of the least step of float16 is 2^-25
    zeros = (torch.randn(20_000, generator=torch.Generator().manual_seed(0)) * std).half() == 0

    assert (misfit([Spread(0.0, std)], torch.float16) is None) == (
        zeros.float().mean().item() < math.erf(math.sqrt(0.5)) + 0.01
    )


@pytest.mark.parametrize(
    "initializer",
    [Normal(1e-9), Uniform(-1e-9, 1e-9), Orthogonal(1e-9), Constant(1e-9)],
    ids=lambda initializer: type(initializer).__name__,
)
def test_underflow_is_refused(initializer):
    """A draw that would leave nothing but zeros is an error, and the model is as it was."""
    model = nn.Linear(64, 64, bias=False).half()
    before = model.weight.clone()
    with pytest.raises(PlanError, match="become zero in float16"):
        apply_policy(model, initializer, seed=0)

    assert torch.equal(before, model.weight)
    apply_policy(model, Zeros(), seed=0)


@pytest.mark.parametrize(
    ("numbers", "expected"), [((), None), ((2, 2.0), 2), ((2, 3), (2, 3))], ids=str
)
def test_merged(numbers, expected):
    """Equal numbers of blocks are one number."""
    assert merged(numbers) == expected
