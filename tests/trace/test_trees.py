"""Tensors in containers are found and replaced, whatever holds them."""

import collections
import dataclasses
import types
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tests.trace.recording import record
from torch_initpolicy.trace.trees import Call, map_tensors, tensors_in


@dataclasses.dataclass
class Output:
    """What a model may return: a plain record, no mapping."""

    loss: Tensor | None
    hidden: list[Tensor]


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

    def test_a_call_maps_its_tensors(self):
        """Positional and keyword arguments are mapped, and the call itself stays."""
        call = Call((torch.zeros(2), "text"), {"mask": [torch.ones(1)]})
        doubled = call.mapped(lambda tensor: tensor + 1)

        assert [t.tolist() for t in tensors_in(tuple(doubled))] == [[1, 1], [2]]
        assert doubled.args[1] == "text"
        assert call.args[0].tolist() == [0, 0]
