"""What reads an output next and in the end, against networks that say so."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_initpolicy import plan_policy

X = torch.zeros(4, 8)


class Net(nn.Module):
    """Three layers and a recurrent one, of which a function makes one output."""

    def __init__(self, combine):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.memory, self.norm = nn.GRU(8, 8), nn.BatchNorm1d(8)
        self.combine = combine

    def forward(self, x):
        return self.combine(self, self.a(x))


def norm(x):
    """Normalise as a layer norm does."""
    return F.layer_norm(x, (8,))


CASES = {
    "nothing": (lambda net, x: x, None, False),
    "a norm": (lambda net, x: norm(torch.relu(x)), "norm", True),
    "a norm written out": (
        lambda net, x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6), "norm", True,
    ),
    "behind a weight": (lambda net, x: norm(net.b(x)), None, True),
    "a recurrent layer": (lambda net, x: net.memory(x)[0], "recurrent", False),
    "a stream without a last norm": (
        lambda net, x: net.c(x + net.b(norm(x))), "norm", False,
    ),
    "a stream with a last norm": (lambda net, x: net.c(norm(x + net.b(norm(x)))), "norm", True),
    "norms behind additions": (lambda net, x: norm(x + net.b(x)), "norm", True),
}  # fmt: skip


@pytest.mark.parametrize(("combine", "reader", "ends"), CASES.values(), ids=CASES)
def test_destinations(combine, reader, ends):
    """The facts of `a` name its reader, and tell whether a norm comes before the output."""
    facts = plan_policy(Net(combine), example_inputs=X)["a.weight"].facts
    assert (facts.reader, facts.ends_in_norm) == (reader, ends)


@pytest.mark.parametrize(
    ("combine", "inside"),
    [
        (lambda net, x: x + net.norm(net.b(x)), {"b.weight", "norm.weight", "norm.bias"}),
        (lambda net, x: net.norm(x + net.b(x)), set()),
        (lambda net, x: net.norm(net.b(x)), set()),
    ],
    ids=["inside", "behind", "no branch"],
)
def test_batch_normalised(combine, inside):
    """A branch is batch-normalised by the norms inside it."""
    plan = plan_policy(Net(combine), example_inputs=X)
    assert {step.name for step in plan if step.facts.in_batch_norm} == inside
