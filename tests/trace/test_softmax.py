"""Softmax that is written out is met as torch's own is, and nothing that resembles it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read

Function = Callable[[Tensor], Tensor]


class Attention(nn.Module):
    """Attention with one head, whose weights a function makes of its scores."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.query, self.key, self.value, self.output = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Attend and project."""
        scores = self.query(x) @ self.key(x).mT / 4
        return self.output(self.function(scores) @ self.value(x))


def shifted(s: Tensor) -> Tensor:
    """Softmax as a textbook has it."""
    e = (s - s.max(-1, keepdim=True).values).exp()
    return e / e.sum(-1, keepdim=True)


def in_place(s: Tensor) -> Tensor:
    """The same without new memory."""
    e = torch.exp(s - torch.amax(s, -1, keepdim=True))
    e /= e.sum(-1, keepdim=True)
    return e


def guarded(s: Tensor) -> Tensor:
    """Never divide by zero; the sum lacks an axis."""
    e = torch.exp(s)
    return torch.div(e, (e.sum(dim=-1) + 1e-9).clamp(min=1e-6).unsqueeze(-1))


def inverted(s: Tensor) -> Tensor:
    """Multiply by the reciprocal."""
    e = torch.exp(s)
    return e.sum(-1, keepdim=True).reciprocal() * e


def multiplied(s: Tensor) -> Tensor:
    """Multiply by the sum, which is no softmax."""
    e = torch.exp(s)
    return e * e.sum(-1, keepdim=True)


def upside_down(s: Tensor) -> Tensor:
    """Divide the sum, which is none either."""
    e = torch.exp(s)
    return e.sum(-1, keepdim=True) / e


def by_length(s: Tensor) -> Tensor:
    """Divide by another function of the sum."""
    e = torch.exp(s)
    return e / e.sum(-1, keepdim=True).sqrt()


def attention(function: Function) -> dict[str, str | None]:
    """What each of four weights meets."""
    model = Attention(function)
    facts = read(model, sites(model), torch.zeros(2, 5, 16)).facts
    names = ("query", "key", "value", "output")
    met = [facts[f"{name}.weight"].meets for name in names]
    return {name: each and each.name for name, each in zip(names, met, strict=True)}


@pytest.mark.parametrize(
    "function", [shifted, in_place, guarded, inverted], ids=lambda function: function.__name__
)
def test_softmax(function):
    """A softmax that is written out is met by queries and keys, as torch's own is."""
    s = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(function(s), s.softmax(-1))
    assert attention(function) == attention(lambda s: s.softmax(-1))
    assert attention(function)["query"] == "softmax"


@pytest.mark.parametrize(
    "function", [multiplied, upside_down, by_length], ids=lambda function: function.__name__
)
def test_no_softmax(function):
    """What resembles one, and is none, meets the exponential."""
    assert attention(function)["query"] == "exp"
