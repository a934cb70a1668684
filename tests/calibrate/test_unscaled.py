"""Every weight that was not scaled is named, with a reason that is true."""

import pytest
import torch
from torch import nn

from tests.calibrate.measuring import Dense, batch
from torch_initpolicy.calibrate.lsuv import lsuv_


class Beside(nn.Module):
    """Weights that something other than they themselves decides about."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Parameter(torch.randn(12, 8)), nn.Parameter(torch.ones(1, 8))
        self.rounded = nn.Parameter(torch.randn(8, 8))
        self.read = nn.Linear(8, 8, bias=False)

    def forward(self, x):
        a = x @ (self.large * self.small)
        return a * self.read.weight.sum(), a.int() @ self.rounded.int()


def test_every_weight_is_accounted_for():
    """What a product applies is scaled or left, whatever its type says; the reasons are true."""
    report = lsuv_(Beside(), batch(16, 12), orthogonal=False)
    left = {left.site: left.reason for left in report.left}
    assert [scaled.site for scaled in report.scaled] == ["large"]
    assert left.keys() == {"small", "rounded", "read.weight"}
    assert left["small"] == "its operator, matmul, is scaled by large"
    assert left["rounded"] == "its operator's output is of int32, not to be scaled"
    assert left["read.weight"] == "no product applied it: it was read by mul"
    kept = lsuv_(Beside(), batch(16, 12), orthogonal=False, skip=["large", "rounded"])
    assert [scaled.site for scaled in kept.scaled] == ["small"]


class Moved(nn.Module):
    """Parameters that are only added, by operators that apply weights too."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(16, 8))
        self.attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)

    def forward(self, x):
        h = torch.addmm(self.bias, x, 9 * self.weight)[:, None]
        return self.attention(h, h, h)


@pytest.mark.parametrize("skip", [[], ["weight", "attention*"]], ids=["scaled", "skipped"])
def test_what_is_added_is_no_weight(skip):
    """Biases are neither scaled nor left, whatever their shape."""
    report = lsuv_(Moved(), batch(16, 8), orthogonal=False, skip=skip)
    named = {each.site for each in (*report.scaled, *report.left)}
    assert named == {"weight", "attention.in_proj_weight", "attention.out_proj.weight"}
    assert len(report.left) == (3 if skip else 0)


def test_what_waits_for_another_weight_is_left_with_it():
    """A factor beside a weight that could not be scaled is said to have waited for that."""
    model = Beside()
    with torch.no_grad():
        model.large.zero_()
    left = {
        entry.site: entry.reason for entry in lsuv_(model, batch(16, 12), orthogonal=False).left
    }
    assert left["large"] == "its operator's output is the same for all units and inputs"
    assert left["small"] == "its operator, matmul, was to be scaled by large, and is not"


def test_what_the_forward_pass_does_not_use_is_left():
    """A layer that is never called is named among the left."""
    model = Dense()
    model.spare = nn.Linear(3, 3)
    report = lsuv_(model, batch(64, 12), orthogonal=False)
    assert [left.site for left in report.left] == ["spare.weight"]


def test_a_model_without_operators():
    """Where no operator runs at all, every weight is left."""

    class Idle(nn.Linear):
        def forward(self, x):
            return x

    report = lsuv_(Idle(3, 3), batch(2, 3), orthogonal=False)
    assert [str(left.reason) for left in report.left] == [
        "no operator applied it in this forward pass"
    ]
