"""What outputs are added to or multiplied by, against networks that say so."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_initpolicy import plan_policy

X = torch.zeros(4, 8)


class Net(nn.Module):
    """Three layers of which a function makes one output."""

    def __init__(self, combine):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.combine = combine

    def forward(self, x):
        return self.combine(self.a, self.b, self.c, x)


CASES = {
    "alone": (lambda a, b, c, x: c(b(a(x))), False, None),
    "sum": (lambda a, b, c, x: a(x) + b(x), True, None),
    "its own image is no other": (lambda a, b, c, x: (h := a(x)) + b(h), False, None),
    "product": (lambda a, b, c, x: a(x) * b(x), False, ("b.weight",)),
    "through a gate": (lambda a, b, c, x: torch.sigmoid(a(x)) * b(x), False, ("b.weight",)),
    "dead behind a rectifier": (lambda a, b, c, x: torch.relu(a(x)) * b(x), False, None),
    "not beyond a norm": (lambda a, b, c, x: F.layer_norm(a(x), (8,)) + b(x), False, None),
    "not beyond a weight": (lambda a, b, c, x: c(a(x)) + b(x), False, None),
    "times the input": (lambda a, b, c, x: a(x) * x, False, ()),
    "contraction": (lambda a, b, c, x: a(x) @ b(x).T, False, ("b.weight",)),
    "both": (lambda a, b, c, x: a(x) * b(x) + c(x), True, ("b.weight",)),
}


@pytest.mark.parametrize(("combine", "is_summand", "factors"), CASES.values(), ids=CASES)
def test_joins(combine, is_summand, factors):
    """The facts of `a` say what its output is joined with before the next weight."""
    facts = plan_policy(Net(combine), example_inputs=X)["a.weight"].facts
    assert (facts.is_summand, facts.multiplied_by) == (is_summand, factors)
