"""Which parameter is scaled where an operator applies an expression of several."""

import pytest
import torch
from torch import nn

from tests.calibrate.measuring import TOLERANCE, batch, deviation
from torch_initpolicy.calibrate.lsuv import lsuv_


class Expression(nn.Module):
    """A layer whose weight is an expression of two parameters."""

    def __init__(self, make):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.large = nn.Parameter(torch.randn(8, 6, generator=generator))
        self.small = nn.Parameter(1 + torch.rand(8, 1, generator=generator))
        self.bias = nn.Parameter(torch.zeros(8))
        self.make = make

    def forward(self, x):
        """Apply it."""
        return nn.functional.linear(x, self.make(self.large, self.small), self.bias)


EXPRESSIONS = {
    "one alone": (lambda w, s: 3 * w, "large"),
    "the larger of two": (lambda w, s: s * w, "large"),
    "what standardising leaves": (lambda w, s: s * w / w.norm(), "small"),
    "transposed": (lambda w, s: w.mT.mT, "large"),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_one_parameter_is_scaled(name):
    """The largest to which the weight in use is proportional; others keep every bit."""
    make, expected = EXPRESSIONS[name]
    model, x = Expression(make), batch(32, 6)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    report = lsuv_(model, x, orthogonal=False)

    assert [scaled.site for scaled in report.scaled] == [expected]
    assert {n for n, p in model.named_parameters() if not torch.equal(p, before[n])} == {expected}
    assert deviation(model(x)) < TOLERANCE


def test_what_does_not_grow_is_left():
    """A weight in use that no parameter scales is said to be one."""
    model = Expression(lambda w, s: w.tanh())
    report = lsuv_(model, batch(32, 6), orthogonal=False)

    reasons = {left.site: left.reason for left in report.left}
    assert report.scaled == ()
    assert "does not grow with it" in reasons["large"]


@pytest.mark.parametrize("skip", [None, "bias"])
def test_a_bias_takes_up_the_means_where_it_may(skip):
    """With `per_channel` units are centred by the bias, unless that is to be left alone."""
    model, x = Expression(lambda w, s: w), batch(64, 6)
    lsuv_(model, x, orthogonal=False, per_channel=True, skip=skip)

    centred = model(x).mean(0).abs().max() < 1e-5
    assert centred == (skip is None)
    assert bool(model.bias.any()) == (skip is None)
