"""The recorder writes down which operator read which tensor."""

import pytest
import torch
from torch import Tensor, nn

from tests.trace.recording import record
from tests.trace.test_trees import Output
from torch_initpolicy.trace.recorder import Budget, OutOfBudgetError, Recorder, running_at
from torch_initpolicy.trace.trees import Call


class TestGraph:
    def test_records_that_a_model_returns_are_looked_into(self):
        """The tensors in the fields of a dataclass are results like any others."""

        class Net(nn.Module):
            def forward(self, x: Tensor) -> Output:
                return Output(None, [x + 1, x * 2])

        graph = record(Net(), Call((torch.zeros(2),)))

        assert graph.results == tuple(node.outputs[0] for node in graph.nodes)

    def test_nodes_name_operators_and_modules(self):
        """Operators come in order, each with the innermost module that was running."""
        graph = record(nn.Sequential(nn.Linear(4, 3), nn.Tanh()), Call((torch.zeros(2, 4),)))

        assert [(node.op, node.module) for node in graph.nodes] == [("linear", "0"), ("tanh", "1")]

    def test_in_place_operators_make_new_values(self):
        """A tensor changed in place is another value from there on."""

        class Net(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                y = x * 1
                z = y.add_(1)
                return y * z

        graph = record(Net(), Call((torch.zeros(2),)))
        mul, add, product = graph.nodes

        assert add.inputs == mul.outputs
        assert product.inputs == add.outputs * 2

    def test_writing_into_a_view_changes_its_base(self):
        """What is written through a view is read through the whole tensor."""

        class Net(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                y = x * 1
                y[:, 0].zero_()
                return y + 1

        graph = record(Net(), Call((torch.zeros(2, 2),)))

        assert [node.op for node in graph.nodes] == ["mul", "getitem", "zero", "setitem", "add"]
        assert graph.nodes[-1].inputs == graph.nodes[-2].outputs

    def test_tied_parameters_are_one_value(self):
        """A tensor under two names is one value of the graph."""
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        graph = record(model, Call((torch.zeros(1, 3),)))

        assert sorted(v.parameter for v in graph.values if v.parameter) == [
            "0.bias", "0.weight", "1.bias",
        ]  # fmt: skip

    def test_recurrent_layers_are_recorded_through_their_second_list(self):
        """The flat list of weights inside an LSTM leads to the same parameters."""
        model = nn.LSTM(3, 4)
        graph = record(model, Call((torch.zeros(5, 2, 3),)))
        lstm = next(node for node in graph.nodes if node.op == "lstm")

        read = {graph.values[v].parameter for v in lstm.inputs}

        assert read >= set(dict(model.named_parameters()))

    def test_real_constants_meet_meta_tensors(self):
        """A tensor that is no buffer, made in the constructor, does not stop a recording."""

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(3))
                self.scale = torch.tensor([1.0, 2.0, 3.0])

            def forward(self, x: Tensor) -> Tensor:
                return x * self.weight * self.scale * torch.tensor(2.0)

        graph = record(Net(), Call((torch.zeros(2, 3),)))

        assert [node.op for node in graph.nodes if node.outputs][-1] == "mul"
        assert 2.0 in {value.constant for value in graph.values}


def test_what_dies_leaves_its_number_to_nobody():
    """In a real run, memory is used again; tensors that never met in it are no views of another."""
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(32)))
    graph = record(model, Call((torch.zeros(16, 64),)), on_meta=False)
    made = [graph.values[output].storage for node in graph.nodes for output in node.outputs]

    assert len(made) == 32
    assert len(set(made)) == 32


def test_a_recording_ends_with_its_budget():
    """Each operator costs one; the one too many does not run on."""
    model = nn.Sequential(*(nn.ReLU() for _ in range(5)))
    budget = Budget(3)

    with pytest.raises(OutOfBudgetError):
        record(model, Call((torch.zeros(2),)), budget=budget)
    assert budget.left == -1


def test_what_is_seen_runs_beside_the_recording():
    """Each operator is shown with its tensors, and what is done to look at them leaves no node."""
    seen = []
    recorder = Recorder(
        {}, on_meta=False, see=lambda ran: seen.append((ran.node.op, ran.outputs[0] * 2))
    )
    with recorder:
        torch.ones(2).add(1)

    assert [(op, doubled.tolist()) for op, doubled in seen] == [("ones", [2, 2]), ("add", [4, 4])]
    assert [node.op for node in recorder.nodes] == ["ones", "add"]


def test_where_a_forward_pass_raised():
    """The operator that raised is named, with the module that called it."""
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 2))

    with pytest.raises(RuntimeError) as caught:
        record(model, Call((torch.zeros(1, 4),)))
    assert running_at(caught.value) == "operator 'linear' of '1': "
    assert running_at(RuntimeError("elsewhere")) == ""
