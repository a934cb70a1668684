"""The recorder writes down what ran, and leaves the model as it was."""

import collections
import copy
import dataclasses
import random
import subprocess
import sys
import types
import warnings
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.graph import Graph
from torch_initpolicy.trace.names import op_name
from torch_initpolicy.trace.record import capture
from torch_initpolicy.trace.trees import Call, map_tensors, tensors_in


class Meddling(nn.Module):
    """A forward that leaves traces wherever it can, and then may raise."""

    def __init__(self, *, raises: bool) -> None:
        super().__init__()
        self.raises = raises
        self.linear = nn.Linear(4, 4)
        self.frozen_norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)
        self.cache: dict[str, Tensor] = {}
        self.seen: list[Tensor] = []
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.frozen_norm(self.linear(x)))
        self.steps += 1
        self.cache["x"] = x
        self.seen.append(x)
        self.last = x
        torch.rand(1)
        random.random()
        if self.raises:
            raise ValueError("half-way")
        return x


def snapshot(model: nn.Module) -> dict[str, object]:
    """Describe everything about a model that a recording could change."""
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "versions": [p._version for p in model.parameters()],
        "objects": [id(p) for p in (*model.parameters(), *model.buffers())],
        "flags": [module.training for module in model.modules()],
        "hooks": [
            (list(m._forward_pre_hooks), list(m._forward_hooks), list(m._backward_hooks))
            for m in model.modules()
        ],
        "attributes": [sorted(vars(module)) for module in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "random": (torch.get_rng_state().tolist(), random.getstate()),
    }


def same(a: object, b: object) -> bool:
    """Compare two snapshots, tensors bit by bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


def record(model: nn.Module, call: Call, **options: bool) -> Graph:
    """Record a forward pass."""
    names = {id(p): site.name for site in sites(model) for p in site.parameters}
    return capture(model, call, names=names, **options)


class TestUntouched:
    @pytest.mark.parametrize("on_meta", [True, False], ids=["meta", "real"])
    @pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
    @pytest.mark.parametrize("raises", [True, False], ids=["raises", "returns"])
    def test_model_and_random_states_are_as_they_were(self, raises, training, on_meta):
        """A recording changes no tensor, flag, hook, attribute, cache or random state."""
        model = Meddling(raises=raises)
        model.frozen_norm.eval()
        before = snapshot(model)
        call = Call((torch.zeros(3, 4),))
        if raises:
            with pytest.raises(ValueError, match="half-way"):
                record(model, call, on_meta=on_meta, training=training)
        else:
            record(model, call, on_meta=on_meta, training=training)

        assert same(before, snapshot(model))
        assert (model.cache, model.seen) == ({}, [])

    def test_a_snapshot_tells_a_flag_and_a_number_apart(self):
        """The comparison above can fail: one flag or one number makes a difference."""
        model = Meddling(raises=False)
        before, other = snapshot(model), copy.deepcopy(model)
        other.frozen_norm.running_mean[0] = 1
        model.frozen_norm.eval()

        assert not same(before["state"], snapshot(other)["state"])
        assert not same(before["flags"], snapshot(model)["flags"])

    def test_hooks_that_look_on_do_not_run_and_stay(self):
        """A hook that only notes what passes is not called, and is still there afterwards."""
        model = nn.Sequential(nn.Linear(2, 2))
        calls = []
        handle = model[0].register_forward_hook(lambda *_: calls.append(1))
        record(model, Call((torch.zeros(1, 2),)))

        assert (calls, list(model[0]._forward_hooks)) == ([], [handle.id])

    def test_hooks_that_compute_are_recorded(self):
        """A hook that returns another output takes part in the data flow."""
        model = nn.Sequential(nn.Linear(2, 2))
        model[0].register_forward_hook(lambda module, args, output: torch.tanh(output))
        graph = record(model, Call((torch.zeros(1, 2),)))

        assert [node.op for node in graph.nodes] == ["linear", "tanh"]

    def test_warnings_of_the_model_neither_show_nor_stop_a_recording(self):
        """What a forward warns of is for who runs it, also where warnings are errors."""

        class Net(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                warnings.warn("mind the gap", UserWarning, stacklevel=2)
                return x + 1

        assert [node.op for node in record(Net(), Call((torch.zeros(2),))).nodes] == ["add"]


@dataclasses.dataclass
class Output:
    """What a model may return: a plain record, no mapping."""

    loss: Tensor | None
    hidden: list[Tensor]


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


class Pair(NamedTuple):
    """A tuple with names."""

    first: Tensor
    second: object


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """A record that neither its constructor nor its attributes can be written through."""

    first: Tensor
    second: object
    length: int = dataclasses.field(init=False, default=0)


CONTAINERS = {
    "tuple": lambda x, y: (x, [y], 1),
    "list": lambda x, y: [x, (y,), None],
    "dict": lambda x, y: {"a": x, "b": [y]},
    "ordered": lambda x, y: collections.OrderedDict(a=x, b=y),
    "default": lambda x, y: collections.defaultdict(list, a=x, b=y),
    "user": lambda x, y: collections.UserDict(a=x, b=y, c="text"),
    "read-only": lambda x, y: types.MappingProxyType({"a": x, "b": y}),
    "named": lambda x, y: Pair(x, {"b": y}),
    "record": lambda x, y: Output(x, [y]),
    "frozen": lambda x, y: Record(x, Output(y, [])),
    "nested": lambda x, y: [collections.UserDict(a=Output(x, [y]))],
}


class TestContainers:
    @pytest.mark.parametrize("name", CONTAINERS)
    def test_tensors_are_found_and_mapped_in_the_same_places(self, name):
        """Whatever is looked into can be mapped: order, type and the original are kept."""
        x, y = torch.zeros(2), torch.ones(3)
        tree = CONTAINERS[name](x, y)
        mapped = map_tensors(lambda tensor: tensor + 5, tree)

        assert [tensor.tolist() for tensor in tensors_in(mapped)] == [[5, 5], [6, 6, 6]]
        assert all(a is b for a, b in zip(tensors_in(tree), (x, y), strict=True))
        assert type(mapped) is (dict if name == "read-only" else type(tree))

    def test_lists_inside_records_are_made_anew(self):
        """What a forward appends to its stand-in does not reach the caller's own."""
        tree = {"seen": [torch.zeros(1)]}
        map_tensors(lambda tensor: tensor, tree)["seen"].append(None)

        assert len(tree["seen"]) == 1

    @pytest.mark.parametrize("tree", [Record(None, 1), collections.UserDict(a=1)], ids=repr)
    def test_objects_without_tensors_are_passed_on(self, tree):
        """A configuration, which may be anything, is not copied."""
        assert map_tensors(torch.neg, (tree,))[0] is tree

    @pytest.mark.parametrize("name", CONTAINERS)
    def test_inputs_in_containers_are_inputs(self, name):
        """A forward that takes a container is recorded from the tensors in it."""

        class Net(nn.Module):
            def forward(self, batch: object) -> list[Tensor]:
                return [tensor * 2 for tensor in tensors_in(batch)]

        graph = record(Net(), Call((CONTAINERS[name](torch.zeros(2), torch.ones(3)),)))
        read = [graph.values[node.inputs[0]] for node in graph.nodes]

        assert [(value.shape, value.is_input) for value in read] == [((2,), True), ((3,), True)]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.Tensor.add_, "add"),
        (torch.Tensor.__radd__, "add"),
        (torch.Tensor.__itruediv__, "div"),
        (torch.relu_, "relu"),
        (torch.nn.functional.gelu, "gelu"),
        (torch.Tensor.T.__get__, "T"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_spellings_of_an_operator_are_one_name(function, name):
    """In-place, reflected and property spellings fold into one name."""
    assert op_name(function) == name


def test_the_first_plan_of_a_process_imports_no_compiler():
    """`torch._dynamo` takes seconds to import, and nothing is compiled where it is not there."""
    code = """
import sys
from torch import nn
from torch_initpolicy import plan_policy
plan_policy(nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Softmax(-1)))
print("torch._dynamo" in sys.modules)
"""
    command = [sys.executable, "-c", code]

    assert subprocess.check_output(command, text=True) == "False\n"
