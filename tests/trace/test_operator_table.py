"""The table of operators and how their arguments are named."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.gains import Activation, gain
from torch_initpolicy.trace.operator_table import OPS, OpRole, activation_of, slots_of
from torch_initpolicy.trace.record import Call, capture


def only_node(function, *args):
    """Record a single call."""

    class Net(nn.Module):
        def forward(self, *given):
            return function(*given)

    return capture(Net(), Call(args), names={}).nodes[-1]


ACTIVATIONS = {
    "relu": (F.relu, Activation("relu")),
    "leaky": (lambda x: F.leaky_relu(x, 0.3), Activation("leaky_relu", 0.3)),
    "leaky_default": (F.leaky_relu, Activation("leaky_relu", 0.01)),
    "gelu": (F.gelu, Activation("gelu")),
    "gelu_tanh": (lambda x: F.gelu(x, approximate="tanh"), Activation("gelu_tanh")),
    "elu": (lambda x: F.elu(x, alpha=0.7), Activation("elu", 0.7)),
    "hardtanh": (lambda x: F.hardtanh(x, 0.0, 4.0), Activation("hardtanh", (0.0, 4.0))),
    "hardtanh_default": (F.hardtanh, Activation("hardtanh")),
    "expit": (torch.special.expit, Activation("sigmoid")),
    "softmax": (lambda x: x.softmax(-1), Activation("softmax")),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_carry_the_parameter_of_their_call(name):
    """An activation's slope or bounds are those it was called with."""
    function, expected = ACTIVATIONS[name]

    assert activation_of(only_node(function, torch.zeros(2, 3))) == expected


MODULES = (
    "CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax Mish "
    "RReLU ReLU ReLU6 SELU SiLU Sigmoid Softmax Softmin Softplus Softshrink Softsign Tanh "
    "Tanhshrink"
).split()
"""Torch's activation modules that need no arguments and hold no parameter."""


@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
@pytest.mark.parametrize("name", MODULES)
def test_every_module_activates(name):
    """What torch records for its own module is in the table, and has a gain."""
    node = only_node(getattr(nn, name)(), torch.zeros(2, 3))

    assert OPS[node.op].role is OpRole.ACTIVATES
    assert gain(activation_of(node)) > 0


def test_slots_are_named_by_position_and_by_keyword():
    """Whichever way an argument is passed, it stands in the slot of its name."""
    x, w, b = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4)
    by_position = only_node(F.linear, x, w, b)
    by_keyword = only_node(lambda x, w, b: F.linear(x, bias=b, weight=w), x, w, b)

    assert dict(slots_of(by_position, OPS["linear"])) == dict(slots_of(by_keyword, OPS["linear"]))


def test_lists_of_tensors_are_read_one_by_one():
    """The members of a list are inputs each."""
    node = only_node(lambda a, b: torch.cat([a, b]), torch.zeros(1), torch.zeros(1))

    assert [slot for slot, _ in slots_of(node, OPS["cat"])] == ["input", "input"]


def test_the_same_table_serves_every_site_of_a_model():
    """The table is read-only: extending it makes another one."""
    with pytest.raises(TypeError):
        OPS["relu"] = OPS["add"]

    assert sites(nn.ReLU()) == ()


def test_signatures_name_the_table():
    """The table is a default argument of public functions, whose help has to stay readable."""
    assert "OPS" in repr(OPS)
    assert len(repr(OPS)) < 30
