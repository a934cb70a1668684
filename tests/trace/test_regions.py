"""Regions of one variable: what belongs to them, where their paths meet, and what they compute."""

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read
from torch_initpolicy.trace.regions import Elementwise
from torch_initpolicy.trace.scalars import numbers


class Net(nn.Module):
    """A layer and some function of its output."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return self.function(self.layer(x))


def elementwise(function) -> Elementwise:
    """Return a net's graph, ready to be looked through."""
    model = Net(function)
    uses = read(model, sites(model), torch.zeros(2, 4)).flow.uses
    roles = {node.index: uses.role(node) for node in uses.graph.nodes}
    return Elementwise(uses.graph, roles, numbers(uses.graph))


def masked(x):
    """Write where a mask says."""
    x = x.clone()
    x[x < 0] = 0
    return x


WHOLE = {
    "one": torch.relu,
    "chain": lambda x: 3 * torch.tanh(x / 3),
    "two paths": lambda x: x * torch.sigmoid(1.7 * x),
    "chosen": lambda x: torch.where(x > 0, x, 0.1 * x),
    "masked": masked,
    "larger": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "cast": lambda x: torch.exp(x.double()).float(),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_function_of_one_variable_is_one_region(name):
    """All nodes belong to it, its paths meet at the end, and replayed it computes the same."""
    found = elementwise(WHOLE[name])
    ((start, nodes),) = found.regions().items()
    *_, last = found.meetings(start, nodes)
    z = torch.linspace(-3, 3, 11, dtype=torch.float64)

    assert last == nodes
    assert nodes[-1].outputs[0] in found.graph.results
    torch.testing.assert_close(found.replayed(start, nodes)(z), WHOLE[name](z).double())


@pytest.mark.parametrize(
    "function",
    [lambda x: x.softmax(-1), lambda x: x - x.mean(-1, keepdim=True), lambda x: x.sum(-1)],
    ids=["softmax", "centred", "sum"],
)
def test_what_mixes_places_is_in_no_region(function):
    """A number of the output depends on several of the input."""
    found = elementwise(function)
    layer = found.graph.nodes[0].outputs[0]

    assert layer not in found.regions()


def test_meetings_end_where_others_read():
    """Behind a value that something outside the region reads there is no meeting."""
    found = elementwise(lambda x: (y := torch.tanh(x), y.cumsum(-1), y.abs()))
    ((start, nodes),) = found.regions().items()

    assert [len(each) for each in found.meetings(start, nodes)] == [1]


def test_paths_meet_twice():
    """`tanh(x * sigmoid(x))` is a function at its product and at its end, not in between."""
    found = elementwise(lambda x: torch.tanh(x * torch.sigmoid(x)))
    ((start, nodes),) = found.regions().items()

    assert [each[-1].op for each in found.meetings(start, nodes)] == ["mul", "tanh"]


def test_signatures_tell_functions_from_each_other():
    """Equal functions are evaluated once; another number, operator or wiring is another one."""
    functions = (
        lambda x: x * torch.sigmoid(2 * x),
        lambda x: x * torch.sigmoid(2 * x),
        lambda x: x * torch.sigmoid(3 * x),
        lambda x: x * torch.tanh(2 * x),
        lambda x: torch.sigmoid(2 * x) * torch.sigmoid(2 * x),
    )
    signatures = []
    for function in functions:
        found = elementwise(function)
        ((start, nodes),) = found.regions().items()
        signatures.append(found.signature(start, nodes))

    assert signatures[0] == signatures[1]
    assert len(set(signatures)) == 4
