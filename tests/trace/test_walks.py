"""Walks from a value to the activation that it meets, and back to the one it comes from."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.trace.recording import used
from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.trace.read import read
from torch_initpolicy.trace.walks import behind, hidden


class Strange(nn.Module):
    """An operator that nobody knows stands between a weight and a relu."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(torch.linalg.matrix_exp(self.first(x)[:4])))


class TestUnknownOperators:
    def test_stop_the_walk_and_are_counted(self):
        """What lies behind an operator without a role is not taken for met."""
        model = Strange()
        found = read(model, sites(model), torch.zeros(4, 4))

        assert dict(found.unknown_operators) == {"linalg_matrix_exp": 1}
        assert found.facts["first.weight"].meets is None
        assert found.facts["first.weight"].stopped_by == "linalg_matrix_exp"
        assert found.facts["second.weight"].fed_by == Activation("relu")


class Paths(nn.Module):
    """One weight whose output takes two paths, the tanh nearer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.weight(x)
        return torch.tanh(x) + F.relu(F.layer_norm(x, (4,)))


def test_the_nearest_activation_is_met_and_the_others_are_kept():
    """Where paths differ the nearest counts; what the others meet stays in the facts."""
    model = Paths()
    found = read(model, sites(model), torch.zeros(2, 4)).facts["weight.weight"]

    assert found.meets == Activation("tanh")


def test_values_before_a_weight_are_hidden():
    """Behind the input of a weight there is another weight; behind its output there is none."""
    found = used(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(1, 4))
    first, relu, last = (node.outputs[0] for node in found.graph.nodes)

    assert {first, relu} <= hidden(found)
    assert last not in hidden(found)


def test_back_to_the_last_weight():
    """What feeds a value is the activation since the last weight, at a distance, or the input."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(F.gelu(self.first(x * 2)).reshape(4)) + 1

    found = used(Net(), torch.zeros(1, 4))
    walks = behind(found, {})
    doubled, first, _, flat, second, _ = (node.outputs[0] for node in found.graph.nodes)

    assert walks[doubled].at_border
    assert (walks[flat].nearest, walks[flat].distance) == (Activation("gelu"), 1)
    assert not {first, second} & walks.keys()
