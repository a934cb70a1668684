"""Where the units of a weight go, and what that says of what is added to them."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read
from torch_initpolicy.trace.units import bits, varying


class Summed(nn.Module):
    """A raw weight, a raw summand, and what lies between them."""

    def __init__(self, weight: tuple[int, ...], summand: tuple[int, ...], make) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.ones(weight)), nn.Parameter(torch.ones(summand))
        self.child = nn.Linear(6, 4)
        self.make = make

    def forward(self, x: Tensor) -> Tensor:
        return self.make(self, x)


def by_expert(m, x):
    """Apply the matrix and the bias of the expert that the signal picks for each token."""
    tokens = x.flatten(0, 1)
    experts = tokens[:, :2].argmax(-1)
    return torch.einsum("ni,nio->no", tokens, m.w[experts]) + m.b[experts]


EDGES = torch.tensor([0, 0, 1, 2, 4])

CASES = {
    "of each unit": ((6, 4), (4,), "bias", lambda m, x: x @ m.w + m.b),
    "behind an aggregation": (
        (6, 4), (4,), "bias", lambda m, x: torch.eye(5) @ (x @ m.w) + m.b,
    ),
    "behind an aggregation by the signal": (
        (6, 4), (4,), "bias", lambda m, x: (x @ x.mT).softmax(-1) @ (x @ m.w) + m.b,
    ),
    "behind a sum over edges": (
        (6, 4), (4,), "bias",
        lambda m, x: torch.zeros(5, 4).index_add(0, EDGES, (x @ m.w)[0]) + m.b,
    ),
    "behind a mean over places": ((6, 4), (4,), "bias", lambda m, x: (x @ m.w).mean(1) + m.b),
    "beside a child": ((1,), (4,), "bias", lambda m, x: m.child(x) * m.w + m.b),
    "of each expert": ((2, 6, 4), (2, 1, 4), "bias", lambda m, x: torch.bmm(x, m.w) + m.b),
    "of each picked expert": ((2, 6, 4), (2, 4), "bias", by_expert),
    "of each head": ((6, 4), (2, 2), "bias", lambda m, x: (x @ m.w).unflatten(-1, (2, 2)) + m.b),
    "of each channel": (
        (4, 5, 3), (4, 1), "bias", lambda m, x: torch.conv1d(x, m.w) + m.b,
    ),
    "of each place": ((6, 4), (5, 4), "position", lambda m, x: x @ m.w + m.b),
    "of each pair of places": (
        (6, 4), (5, 5), "table",
        lambda m, x: torch.softmax((x @ m.w) @ (x @ m.w).mT + m.b, -1),
    ),
    "of the input": ((6, 4), (6,), "position", lambda m, x: (x + m.b) @ m.w),
}  # fmt: skip
"""Shape of the weight and of the summand, its role, and the model."""


@pytest.mark.parametrize("name", CASES)
def test_a_bias_varies_along_units_alone(name):
    """What is added to units is a bias; what is added to places is a position, or a table."""
    weight, summand, role, make = CASES[name]
    model = Summed(weight, summand, make)

    assert read(model, sites(model), torch.zeros(2, 5, 6)).facts["b"].role == role


def test_dimensions_of_one_element_do_not_vary():
    """They are counted from the last one, whatever a tensor is broadcast to."""
    assert varying((1, 3, 1)) == {-2}


UNITS = 12


class Numbered(nn.Module):
    """A layer whose outputs are the numbers of its units, and what becomes of them."""

    def __init__(self, layer: nn.Module, move) -> None:
        super().__init__()
        self.layer, self.move = layer, move
        nn.init.zeros_(layer.weight)
        layer.bias.data = torch.arange(1.0, UNITS + 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.move(self.layer(x))


def shown_and_held(model, x):
    """Return the numbers that are said to lie in a model's output, and those that it holds."""
    reading = read(model, sites(model), x)
    (result,) = reading.flow.uses.graph.results
    shown = reading.flow.units.shown.get(result)
    with torch.no_grad():
        return shown and next(iter(shown.values())), model(x)


@st.composite
def movements(draw):
    """Draw steps that reshape, permute, copy and slice a tensor of a known shape."""
    steps, x = [], torch.zeros(2, 3, 4, UNITS)
    for _ in range(draw(st.integers(1, 6))):
        steps.append(draw(st.sampled_from(STEPS))(draw, x))
        x = steps[-1](x)
    return steps


def reshaped(draw, x):
    """Split a dimension, or join two: a view where that can be, else a copy."""
    shape, at = list(x.shape), draw(st.integers(0, x.dim() - 1))
    if draw(st.booleans()) and at + 1 < x.dim():
        shape[at : at + 2] = [shape[at] * shape[at + 1]]
    else:
        inner = draw(st.sampled_from([d for d in range(1, shape[at] + 1) if shape[at] % d == 0]))
        shape[at : at + 1] = [shape[at] // inner, inner]
    return lambda y: y.reshape(shape)


def permuted(draw, x):
    """Put the dimensions into another order."""
    order = draw(st.permutations(range(x.dim())))
    return lambda y: y.permute(order)


def copied(draw, x):
    """Copy into memory of its own."""
    del draw, x
    return lambda y: y.clone(memory_format=torch.contiguous_format)


def sliced(draw, x):
    """Take some positions of one dimension, evenly apart."""
    dim = draw(st.integers(0, x.dim() - 1))
    part = slice(draw(st.integers(0, x.shape[dim] - 1)), None, draw(st.integers(1, 3)))
    return lambda y: y[(*(slice(None),) * dim, part)]


def rolled(draw, x):
    """Move all positions of one dimension on."""
    dim = draw(st.integers(0, x.dim() - 1))
    return lambda y: y.roll(1, dim)


STEPS = (reshaped, permuted, copied, sliced, rolled)


@settings(max_examples=40)
@given(movements())
def test_units_are_those_held(steps):
    """Along any way, each element belongs to the unit whose number it holds."""

    def move(x):
        for step in steps:
            x = step(x)
        return x

    shown, held = shown_and_held(Numbered(nn.Linear(5, UNITS), move), torch.zeros(2, 3, 4, 5))

    assert shown.ids.equal(held)
    assert shown.units == sum(1 << int(number) - 1 for number in held.unique())


EXACT = {
    "padded and pooled": lambda x: F.max_pool2d(F.pad(x, (1, 1)), 2),
    "a mean over places": lambda x: x.mean((2, 3)),
    "scaled and bent": lambda x: (x * 1.0).relu().clamp(0),
    "broadcast": lambda x: x[:, :, :1, 0] + torch.zeros(2, UNITS, 3),
    "in place": lambda x: x[:, ::2].transpose_(0, 1).squeeze_(),
    "shuffled": lambda x: F.channel_shuffle(F.pixel_shuffle(x, 2), 3),
    "picked": lambda x: x[:, [3, 0, 3]],
}
"""Ways of the output of a convolution on which every element stays its unit's."""

LOST = {
    "a sum over units": lambda x: x.sum(1),
    "joined": lambda x: torch.cat([x, x], 1),
    "pieces added up": lambda x: x[:, :6] + x[:, 6:],
    "folded": lambda x: F.fold(x.flatten(2), (3, 3), (2, 2)),
}
"""Ways on which no element belongs to one unit any more, or nobody follows it."""


@pytest.mark.parametrize("name", EXACT)
def test_each_element_keeps_its_unit(name):
    """Operators run on numbers of units say where each is; zeros belong to none."""
    model = Numbered(nn.Conv2d(3, UNITS, 1), EXACT[name])
    shown, held = shown_and_held(model, torch.zeros(2, 3, 4, 4))

    assert shown.ids.shape == held.shape
    assert shown.ids.equal(held) or not held.all()
    assert shown.ids.unique().equal(held[held > 0].unique())


@pytest.mark.parametrize("name", LOST)
def test_mixed_units_are_lost(name):
    """Where units are mixed nothing is said."""
    model = Numbered(nn.Conv2d(3, UNITS, 1), LOST[name])

    assert shown_and_held(model, torch.zeros(2, 3, 2, 2))[0] is None


def test_halves():
    """The halves of the axis of units show its lower and its upper units; others show all."""
    shown, _ = shown_and_held(Numbered(nn.Linear(5, UNITS), nn.Identity()), torch.zeros(2, 5))

    assert shown.halves(-1) == (0b111111, 0b111111 << 6)
    assert shown.halves(0) == ((1 << UNITS) - 1,) * 2


def test_bits_leave_zero_out():
    """Zero is no unit."""
    assert bits(torch.tensor([0.0, 2.0, 2.0])) == 0b10
