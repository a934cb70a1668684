"""What is scaled at each kind of operator, its bias included, by a plain pass over the result."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.calibrate.measuring import TOLERANCE, batch, deviation
from torch_initpolicy.calibrate.handlers import HANDLERS
from torch_initpolicy.calibrate.lsuv import lsuv_
from torch_initpolicy.trace.operators import OpRole


def test_every_operator_that_applies_weights_has_a_handler():
    """What can apply a weight of the model is scaled, or says why not."""
    applies = {OpRole.WEIGHS, OpRole.CONTRACTS, OpRole.RECURS, OpRole.LOOKS_UP}

    assert HANDLERS.keys() == applies | {OpRole.PROJECTS_AND_ATTENDS}


class Biased(nn.Module):
    """One operator with a large bias of its own shape."""

    def __init__(self, bias, weight, apply):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(weight, generator=generator))
        self.bias = nn.Parameter(0.8 * torch.randn(bias, generator=generator))
        self.apply_weight = apply

    def forward(self, x):
        """Apply it."""
        return self.apply_weight(x, self.weight, self.bias)


OPERATORS = {
    "linear": ((8,), (8, 6), F.linear, (32, 6)),
    "conv1d": ((8,), (8, 6, 3), F.conv1d, (4, 6, 9)),
    "conv2d": ((8,), (8, 6, 3, 3), F.conv2d, (4, 6, 9, 9)),
    "conv_transpose2d": ((8,), (6, 8, 3, 3), F.conv_transpose2d, (4, 6, 5, 5)),
    "addmm": ((8,), (6, 8), lambda x, w, b: torch.addmm(b, x, w), (32, 6)),
    "addmm, half": ((8,), (6, 8), lambda x, w, b: torch.addmm(b, x, w, beta=0.5), (32, 6)),
    "addmm, none": ((8,), (6, 8), lambda x, w, b: torch.addmm(b, x, w, beta=0), (32, 6)),
    "baddbmm": ((2, 1, 8), (2, 6, 8), lambda x, w, b: torch.baddbmm(b, x, w), (2, 9, 6)),
}


def largest_mean(output, name):
    """Return the largest mean of a unit; those of each matrix in a stack are its own."""
    dims = {"conv1d": (0, 2), "baddbmm": (1,)}.get(name, (0, 2, 3) if "conv" in name else (0,))
    return output.mean(dims).abs().max()


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_the_bias_counts(name, per_channel):
    """The output has the wanted deviation with its bias, which the scale does not touch."""
    bias, weight, apply, shape = OPERATORS[name]
    model, x = Biased(bias, weight, apply), batch(*shape)
    before = model.bias.detach().clone()

    lsuv_(model, x, orthogonal=False, per_channel=per_channel)

    assert deviation(model(x)) < TOLERANCE
    centres = per_channel and name != "addmm, none"
    assert torch.equal(before, model.bias) != centres
    assert not centres or largest_mean(model(x), name) < 1e-5


def test_projections_of_attention():
    """Queries, keys, values and the output have unit deviation, each with a factor of its own."""
    layer, x = nn.MultiheadAttention(8, 2), batch(5, 4, 8)
    nn.init.normal_(layer.in_proj_bias, std=0.3)
    report = lsuv_(layer, {"query": x, "key": x, "value": x, "need_weights": False})

    packed = x @ layer.in_proj_weight.mT + layer.in_proj_bias
    assert all(deviation(part) < TOLERANCE for part in packed.chunk(3, -1))
    assert deviation(layer(x, x, x)[0]) < TOLERANCE
    assert [scaled.op for scaled in report.scaled] == ["query", "key", "value", "output"]


def test_integers_are_left():
    """An operator whose output holds no fractions has no deviation to give."""

    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4))

        def forward(self, x):
            return x.long() @ self.weight.long()

    report = lsuv_(Counts(), batch(3, 6), orthogonal=False)

    assert report.scaled == ()
    assert [left.site for left in report.left] == ["weight"]
