"""Activations that are written out: what is met, and with which gain.

The gain's oracle is the function itself, run on a million normal numbers.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.gains import gain, moments
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.trace.read import read

Function = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """A function between two weights."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the first weight, the function and the second weight."""
        return self.second(self.function(self.first(x)))


def between(function: Function) -> tuple[Facts, Facts]:
    """What is known about the weight before a function, and about the one behind it."""
    model = Between(function)
    facts = read(model, sites(model), torch.zeros(2, 16)).facts
    return facts["first.weight"], facts["second.weight"]


def assigned(h: Tensor) -> Tensor:
    """Overwrite what is negative."""
    h = h.clone()
    h[h < 0] = 0
    return h


def assigned_in_place(h: Tensor) -> Tensor:
    """The same on the output of the weight."""
    h[h < 0] = 0.0
    return h


def assigned_a_part(h: Tensor) -> Tensor:
    """Scale what is negative."""
    mask = h < 0
    h[mask] = 0.1 * h[mask]
    return h


def multiplied_a_part(h: Tensor) -> Tensor:
    """The same in one statement."""
    h[h < 0] *= 0.1
    return h


def squared(h: Tensor) -> Tensor:
    """Multiply a relu with itself."""
    r = F.relu(h)
    return r * r


def cubed(h: Tensor) -> Tensor:
    """Multiply it twice."""
    r = F.relu(h)
    return r * r * r


RELUS = {
    "where": lambda h: torch.where(h > 0, h, 0),
    "where zeros": lambda h: torch.where(h > 0, h, torch.zeros_like(h)),
    "times a mask": lambda h: h * (h > 0),
    "times a float mask": lambda h: h * (h > 0).float(),
    "clamp": lambda h: h.clamp(min=0),
    "clamp in place": lambda h: h.clamp_(min=0),
    "clamp_min": lambda h: h.clamp_min(0.0),
    "maximum of zeros_like": lambda h: torch.maximum(h, torch.zeros_like(h)),
    "maximum of zeros": lambda h: torch.maximum(h, torch.zeros(h.shape)),
    "maximum of new zeros": lambda h: torch.maximum(h, h.new_zeros(())),
    "maximum of a number": lambda h: torch.maximum(h, torch.tensor(0.0)),
    "half of a sum": lambda h: (h + h.abs()) / 2,
    "sign": lambda h: h * (1 + torch.sign(h)) / 2,
    "masked_fill": lambda h: h.masked_fill(h < 0, 0.0),
    "masked_fill in place": lambda h: h.masked_fill_(h < 0, 0.0),
    "assigned": assigned,
    "assigned in place": assigned_in_place,
}


LEAKY = {
    "where": lambda h: torch.where(h > 0, h, 0.1 * h),
    "method where": lambda h: h.where(h > 0, 0.1 * h),
    "two masks": lambda h: h * (h > 0) + 0.1 * h * (h <= 0),
    "one mask": lambda h: h * ((h > 0) * 0.9 + 0.1),
    "clamps": lambda h: h.clamp(min=0) + 0.1 * h.clamp(max=0),
    "maximum": lambda h: torch.maximum(h, 0.1 * h),
    "max": lambda h: torch.max(h, 0.1 * h),
    "half of a sum": lambda h: 0.55 * h + 0.45 * h.abs(),
    "assigned": assigned_a_part,
    "multiplied": multiplied_a_part,
}


POWERS = {
    "relu squared": (lambda h: F.relu(h) ** 2, "relu2"),
    "square of relu": (lambda h: F.relu(h).square(), "relu2"),
    "relu times relu": (squared, "relu2"),
    "relu cubed": (lambda h: F.relu(h) ** 3, "custom"),
    "relu cubed in place": (lambda h: F.relu(h).pow_(3), "custom"),
    "relu times relu times relu": (cubed, "custom"),
    "a root of relu cubed": (lambda h: F.relu(h).pow(1.5), "custom"),
    "clamped cubed": (lambda h: h.clamp(min=0) ** 3, "custom"),
    "gelu squared": (lambda h: F.gelu(h) ** 2, "custom"),
    "dropout between": (lambda h: F.dropout(F.relu(h), 0.5, training=False) ** 3, "custom"),
    "tanh cubed": (lambda h: torch.tanh(h) ** 3, "tanh"),
}


def measured(function: Function) -> float:
    """Inverse root of the second moment of a function of normal numbers, to 0.6 %."""
    z = torch.randn(1_000_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return function(z).square().mean().rsqrt().item()


@pytest.mark.parametrize("name", RELUS)
def test_relu(name):
    """Every way of writing a relu is met as one, and feeds the next weight as one."""
    before, behind = between(RELUS[name])

    assert (before.meets.name, before.meets.parameter) == ("relu", None)
    assert behind.fed_by == before.meets


@pytest.mark.parametrize("name", LEAKY)
def test_leaky(name):
    """So is every way of writing a leaky one, with its slope."""
    before, behind = between(LEAKY[name])

    assert before.meets.name == "leaky_relu"
    assert before.meets.parameter == pytest.approx(0.1)
    assert behind.fed_by == before.meets


@pytest.mark.parametrize("name", POWERS)
def test_powers(name):
    """An activation raised to a power has the gain of the whole, not that of the activation."""
    function, called = POWERS[name]
    before, behind = between(function)

    assert before.meets.name == called
    assert behind.fed_by == before.meets
    assert gain(before.meets) == pytest.approx(measured(function), rel=0.02)
    assert gain(before.meets) != pytest.approx(gain("relu"), rel=0.05)


@pytest.mark.parametrize(
    ("function", "called"),
    [
        pytest.param(lambda h: (F.relu(h) ** 3).mean(-1, keepdim=True) * h, "relu", id="mean"),
        pytest.param(
            lambda h: F.avg_pool1d(F.relu(h)[:, None] ** 3, 1)[:, 0] ** (1 / 3), "relu", id="pool"
        ),
        pytest.param(lambda h: 1.7 * F.relu(h), "relu", id="scaled"),
    ],
)
def test_no_powers(function, called):
    """What is averaged afterwards or merely scaled is no power."""
    before, _ = between(function)

    assert before.meets.name == called


WRITTEN = {
    "silu": (lambda x: x / (1 + torch.exp(-x)), "silu"),
    "silu by inverse": (lambda x: x * (1 / (1 + (-x).exp())), "silu"),
    "sigmoid": (lambda x: 1 / (1 + torch.exp(-x)), "sigmoid"),
    "sigmoid by reciprocal": (lambda x: (1 + (-x).exp()).reciprocal(), "sigmoid"),
    "tanh": (lambda x: (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()), "tanh"),
    "bell by product": (lambda x: torch.exp(-x * x), "custom"),
    "bell by power": (lambda x: torch.exp(-(x**2)), "custom"),
    "bell by square": (lambda x: x.square().neg().exp(), "custom"),
    "bell times x": (lambda x: x * torch.exp(-x * x), "custom"),
    "squareplus": (lambda x: (x + torch.sqrt(x * x + 4)) / 2, "custom"),
    "exponential less one": (lambda x: torch.exp(x) - 1, "exp"),
}
"""Smooth activations written out, by minus signs, powers and roots; what each is called."""


@pytest.mark.parametrize("name", WRITTEN)
def test_written_out(name):
    """All of what is written out counts, not the first exponential or square in it."""
    function, called = WRITTEN[name]
    before, _ = between(function)

    assert before.meets.name == called
    assert root_mean_square(before.meets) == pytest.approx(1 / measured(function), rel=0.02)


def root_mean_square(activation):
    """Return the root of an activation's second moment under a standard normal."""
    return moments(activation).second ** 0.5


def test_masks_from_elsewhere():
    """What a mask of padding overwrites is carried on, and no activation."""
    padding = torch.arange(16).expand(2, 16) > 12

    def masked(h: Tensor) -> Tensor:
        h[padding] = 0.0
        return F.gelu(h)

    before, _ = between(masked)

    assert before.meets.name == "gelu"
