"""What was recorded can be run again, node by node."""

import torch
from torch import Tensor, nn

from tests.trace.recording import record
from torch_initpolicy.trace.graph import rerun
from torch_initpolicy.trace.trees import Call


class Net(nn.Module):
    """Operators with lists, keywords, devices and writes in place."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x, x * 2], dim=-1)
        x = x + torch.zeros(4, device=x.device)
        x[:, 0] = 7
        return x.sum(-1, keepdim=True)


def test_a_graph_runs_again_to_the_same_numbers():
    """Each node, run on what the nodes before have made, makes what the forward pass returns."""
    x = torch.randn(3, 2)
    graph = record(Net(), Call((x,)))
    made = {value.index: x for value in graph.values if value.is_input}
    for node in graph.nodes:
        results = rerun(node, lambda index: made[index].clone())
        made.update(zip(node.outputs, results, strict=True))

    assert torch.equal(made[graph.results[0]], Net()(x))
    assert {tensor.device.type for tensor in made.values()} == {"cpu"}


def test_consumers_are_the_nodes_that_read_a_value():
    """Of every value it is known who reads it, once each, in order of execution."""
    graph = record(Net(), Call((torch.zeros(3, 2),)))

    for value in graph.values:
        readers = [node.index for node in graph.nodes if value.index in node.inputs]
        assert graph.consumers[value.index] == tuple(readers)


def test_arguments_stand_for_values():
    """Tensors among the arguments are values, also within lists; all else is as it was."""
    graph = record(Net(), Call((torch.zeros(3, 2),)))
    (join,) = (node for node in graph.nodes if node.op == "cat")

    assert join.args == ([graph.values[value] for value in join.inputs],)
    assert join.kwargs == {"dim": -1}
