"""What a forward pass raises says what to call it with instead."""

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.answers import answers
from torch_initpolicy.trace.read import read
from torch_initpolicy.trace.trees import Call


class Listening(nn.Module):
    """A layer of 12 features, and something to complain about before it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class NeedsLengths(Listening):
    """An argument that has a default, and is needed all the same."""

    def forward(self, x: Tensor, *, cache=None, lengths: Tensor | None = None) -> Tensor:
        return self.linear(x) * lengths.view(-1, 1)


class NeedsWhatItHandsOn(Listening):
    """An argument that only an inner function names."""

    def forward(self, x: Tensor, **others: Tensor) -> Tensor:
        return self.scaled(x, **others)

    def scaled(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Scale by something that a call leaves out."""
        return self.linear(x) * lengths.view(-1, 1)


class Framed(Listening):
    """Five axes, of which an error tells the number."""

    def forward(self, x: Tensor) -> Tensor:
        batch, frames, channels, height, width = x.shape
        return self.linear(x.reshape(batch * frames, channels * height * width)[:, :12])


class Exact(Listening):
    """A length that is a multiple of a number, which an error tells."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 36:
            raise ValueError(f"the length {x.shape[-1]} is not a multiple of 36")
        return self.linear(x.reshape(-1, 12))


class Refuses(Listening):
    """Takes one of two arguments, and not both."""

    def forward(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        if (x is None) == (y is None):
            raise ValueError("give exactly one of x and y")
        return self.linear(x if y is None else y)


class Deep(Listening):
    """A layer that takes other features than the first layer's come out as."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.linear(y) + self.first(x).sum()


class RawKernel(nn.Module):
    """An image for a kernel that no layer owns."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(4, 5, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.kernel)


class Chosen(Listening):
    """Indices, by which rows are taken."""

    def forward(self, x: Tensor, rows: Tensor) -> Tensor:
        return self.linear(x[rows])


class Real(nn.Module):
    """A signal that is real, for a filter that is complex."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.zeros(5, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.filter)


class Longer(nn.Module):
    """A matrix for what is made of the features: three times as many, or five more."""

    def __init__(self, times: int, more: int) -> None:
        super().__init__()
        self.times, self.more = times, more
        self.matrix = nn.Parameter(torch.zeros(21, 4))

    def forward(self, x: Tensor) -> Tensor:
        more = x.new_zeros(*x.shape[:-1], self.more)
        return torch.cat([x] * self.times + [more], -1) @ self.matrix


def times():
    """Repeat the features."""
    return Longer(3, 0)


def more():
    """Add to the features."""
    return Longer(1, 5)


@pytest.mark.parametrize(
    "kind",
    [
        *(NeedsLengths, NeedsWhatItHandsOn, Framed, Exact, Refuses, Deep),
        *(RawKernel, Chosen, Real, times, more),
    ],
)
def test_complaints_are_answered(kind):
    """No first guess runs; what was raised leads to one that does, on meta."""
    model = kind()
    found = read(model, sites(model))

    assert (found.evidence, found.unused) == ("traced", set())


def test_what_is_hopeless_gets_few_answers():
    """An error that speaks of nothing is not answered by trying everything."""
    model, call = Listening(), Call((torch.zeros(2, 12),))

    assert list(answers(model, call, RuntimeError("no"))) == []
