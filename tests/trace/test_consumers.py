"""Where parameters meet the signal, and what has happened to them before."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trace.recording import used
from torch_initpolicy.trace.consumers import Use


class Expression(nn.Module):
    """Two parameters in an expression that meets the input."""

    def __init__(self, use) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.rand(4, 4)), nn.Parameter(torch.rand(4))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.w, self.v)


def uses_of(use) -> dict[str, Use]:
    """Return the use of each parameter, by name."""
    return {each.source.site: each for each in used(Expression(use), torch.zeros(3, 4)).found}


MARKS = {
    "contracted": (lambda x, w, v: x @ (w @ w.t()), {"w"}),
    "gated": (lambda x, w, v: x @ (w * v.sigmoid()), {"v"}),
    "bent": (lambda x, w, v: x * v.exp() @ w, {"v"}),
    "indexed": (lambda x, w, v: x + v[torch.tensor([0, 1, 1, 2])], {"v"}),
    "routed": (lambda x, w, v: x @ w.view(2, 2, 4)[x[0, :1].long()][0].mT, {"w"}),
    "scales": (lambda x, w, v: x @ (w * v), {"v"}),
    "noisy": (lambda x, w, v: x @ (w + v * torch.randn(4)), {"v"}),
}  # fmt: skip
"""What may happen to a parameter before it is used, and to which of the two it does here."""


@pytest.mark.parametrize("mark", MARKS)
def test_what_has_happened_before(mark):
    """An expression of parameters says of each what was done to it on the way, and nothing else."""
    use, names = MARKS[mark]

    assert {name for name, use in uses_of(use).items() if getattr(use.source, mark)} == names


def test_where_they_meet_the_signal():
    """A use names the operator, the argument, the whole expression and the signal it meets."""
    found = uses_of(lambda x, w, v: F.linear(x * 2, (1 + w).t(), v))
    weight, bias = found["w"], found["v"]

    assert (weight.node.op, weight.slot, bias.slot) == ("linear", "weight", "bias")
    assert (weight.source.shift, weight.source.size, weight.value.shape) == (1.0, 16, (4, 4))
    assert weight.partner == bias.partner == weight.node.inputs[0]


def test_what_is_a_signal():
    """Values that depend on the input are signals; expressions of parameters alone are none."""
    found = used(Expression(lambda x, w, v: (x + 1) @ (w * 2) + torch.ones(4)), torch.zeros(3, 4))
    by_op = {node.op: node for node in found.graph.nodes}

    assert found.signals.issuperset(by_op["matmul"].outputs)
    assert found.signals.isdisjoint((*by_op["mul"].outputs, *by_op["ones"].outputs))
    assert found.weighers == {by_op["matmul"].index}


NORMS = {
    "rms": lambda x, w, v: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * v,
    "standard": lambda x, w, v: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True) * v,
    "by its length": lambda x, w, v: x / x.norm(dim=-1, keepdim=True) * v,
    "by torch": lambda x, w, v: F.layer_norm(x, (4,), v),
}


@pytest.mark.parametrize("name", NORMS)
def test_normalisations_written_out(name):
    """However it is written, what has been divided by its own size and scaled is known as such."""
    found = used(Expression(NORMS[name]), torch.rand(3, 4))

    assert found.kinds[found.graph.results[0]] == "scaled"
