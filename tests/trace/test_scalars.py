"""Known numbers: which values are numbers, and what operators multiply by, against real tensors."""

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.read import read
from torch_initpolicy.trace.scalars import Scalars, numbers


class Net(nn.Module):
    """A layer and one expression of its output."""

    def __init__(self, expression):
        super().__init__()
        self.layer, self.expression = nn.Linear(4, 4), expression
        self.register_buffer("constant", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return self.expression(self, self.layer(x))


def flow_of(expression) -> Uses:
    """Return the data flow of a net."""
    model = Net(expression)
    return read(model, sites(model), torch.zeros(2, 4)).flow.uses


KNOWN = {
    "plain": (lambda net, x: x + torch.tensor(3.0), 3.0),
    "buffer": (lambda net, x: x + net.constant, 0.5),
    "computed": (lambda net, x: x + torch.sqrt(net.constant + 1.75) * 2, 3.0),
    "filled": (lambda net, x: x + torch.full((4,), 3.0), 3.0),
    "filled by keyword": (lambda net, x: x + torch.full((4,), fill_value=3.0), 3.0),
    "like": (lambda net, x: x + torch.full_like(x, 3.0), 3.0),
    "ones": (lambda net, x: x + torch.ones_like(x), 1.0),
    "zeros": (lambda net, x: x + torch.zeros(4), 0.0),
    "moved": (lambda net, x: x + torch.full((1, 4), 3.0).expand(2, 4).double().float(), 3.0),
}


@pytest.mark.parametrize("name", KNOWN)
def test_numbers(name):
    """What the last addition adds is known, be it written, filled, computed or moved."""
    expression, number = KNOWN[name]
    graph = flow_of(expression).graph
    added = graph.nodes[-1].inputs[-1]

    assert numbers(graph)[added] == pytest.approx(number)


@pytest.mark.parametrize(
    "expression",
    [
        lambda net, x: x + x.mean(),
        lambda net, x: x + torch.rand(4),
        lambda net, x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]),
        lambda net, x: x + net.layer.bias * 2,
    ],
    ids=["statistic", "random", "several", "parameter"],
)
def test_no_numbers(expression):
    """What depends on inputs, chance or parameters, or differs by place, is none."""
    graph = flow_of(expression).graph

    assert graph.nodes[-1].inputs[-1] not in numbers(graph)


FACTORS = {
    "product": lambda net, x: 3 * x,
    "reflected": lambda net, x: x * -3,
    "quotient": lambda net, x: x / 4,
    "negated": lambda net, x: -x,
    "by keyword": lambda net, x: torch.mul(x, other=5),
    "by a tensor": lambda net, x: x * net.constant,
    "over a tensor": lambda net, x: x / net.constant,
    "alpha of a sum": lambda net, x: torch.add(torch.zeros(4), x, alpha=7),
    "alpha of the other": lambda net, x: torch.add(x, torch.zeros(4), alpha=7),
    "alpha of a product": lambda net, x: torch.addmm(torch.zeros(4), x, torch.eye(4), alpha=7),
    "moved": lambda net, x: x.flip(0),
    "over nothing": lambda net, x: 4 / (x + 9),
}
FACTORS["denominator"] = lambda net, x: torch.div(torch.full((4,), 4.0), x)
LEFT_ALONE = {"over nothing", "denominator"}


@pytest.mark.parametrize("name", FACTORS)
def test_factor(name):
    """The last operator multiplies by what the ratio of its output to its operand says."""
    graph_uses = flow_of(FACTORS[name])
    node = graph_uses.graph.nodes[-1]
    (operand,) = graph_uses.carried(node)
    net, x = Net(FACTORS[name]), torch.full((2, 4), 2.0)
    ratio = (FACTORS[name](net, x) / x).abs().mean().item()

    found = Scalars(graph_uses, numbers(graph_uses.graph)).factor(node, operand)
    assert found == pytest.approx(1.0 if name in LEFT_ALONE else ratio)
