"""The table of operators, and operators of the user's own, known by what they compute."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from tests.versions import needs_recorded_flex_attention
from torch_initpolicy import audit_signal, lsuv_, operators, plan_policy
from torch_initpolicy.errors import ArgumentError, UnknownOperatorWarning
from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.gains import Activation, gain
from torch_initpolicy.trace.operators import OPS, OpRole, activation_of, attention_scale, slots_of
from torch_initpolicy.trace.read import Reading, read
from torch_initpolicy.trace.record import Call, capture

OPAQUE = torch.library.Library("opaque", "DEF")
"""Operators that a trace sees by name alone, and that have no kernel for meta tensors."""


def clamp_(x: Tensor) -> None:
    """Change a tensor in place."""
    x.clamp_min_(0.0)


COMPUTED = {
    "relu(Tensor x) -> Tensor": lambda x: x.clamp_min(0.0),
    "ramp(Tensor x) -> Tensor": lambda x: x.clamp_min(0.0),
    "wave(Tensor x) -> Tensor": lambda x: x + x.sin().square(),
    "stamp(Tensor x, int key) -> Tensor": lambda x, key: x.clone(),
    "project(Tensor w, Tensor x) -> Tensor": lambda w, x: x @ w,
    "experts(Tensor x, Tensor w) -> Tensor": torch.bmm,
    "ramp_(Tensor(a!) x) -> ()": clamp_,
}
for schema, kernel in COMPUTED.items():
    OPAQUE.define(schema)
    OPAQUE.impl(schema.partition("(")[0], kernel, "CPU")
CALLS = torch.ops.opaque


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr("torch_initpolicy.trace.operators._REFERENCES", {})


class Around(nn.Module):
    """Two layers with something between them."""

    def __init__(self, function, width: int = 4) -> None:
        super().__init__()
        self.function = function
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.function(self.first(x)))


class Weighed(nn.Module):
    """A raw weight that an operator of the user's applies, and a relu behind it."""

    def __init__(self, function, *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.function(x, self.weight))


def reading(model: nn.Module, *shape: int) -> Reading:
    """Read a model that takes one tensor."""
    return read(model, sites(model), torch.zeros(shape))


class TestActivations:
    """An operator that is an activation."""

    def test_by_the_name_that_torch_has(self):
        """The layer before meets what the function is, and the layer behind is fed by it."""
        operators.register("opaque::ramp", like=F.relu)
        found = reading(Around(CALLS.ramp), 2, 4)

        assert dict(found.unknown_operators) == {}
        assert found.evidence == "traced"
        assert found.facts["first.weight"].meets == Activation("relu")
        assert found.facts["second.weight"].fed_by == Activation("relu")

    def test_of_which_torch_has_none(self):
        """Its gain is integrated: E (z + sin^2 z)^2 by a sum over a fine grid."""
        operators.register("opaque::wave", like=lambda x: x + x.sin() ** 2)
        step = plan_policy(Around(CALLS.wave, 256))["first.weight"]

        z = torch.arange(-10, 10, 1e-4, dtype=torch.float64)
        density = torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        power = ((z + z.sin().square()).square() * density).sum().item() * 1e-4
        assert step.std == pytest.approx((256 * power) ** -0.5, rel=1e-5)
        assert step.std != pytest.approx(256**-0.5, rel=1e-2)

    @pytest.mark.parametrize(
        "call", [CALLS.ramp, CALLS.ramp.default], ids=["every overload", "one overload"]
    )
    def test_whichever_way_it_is_called(self, call):
        """An overload goes by the name of its operator."""
        operators.register("opaque::ramp", like=torch.relu)

        assert reading(Around(call), 2, 4).facts["first.weight"].meets == Activation("relu")


class TestOthers:
    """Operators that carry the signal, weigh it, or change it in place."""

    def test_that_carries(self):
        """What lies behind it is met."""
        operators.register("opaque::stamp", like=lambda x, key: x)
        model = Around(lambda x: F.gelu(CALLS.stamp(x, 3)))

        assert reading(model, 2, 4).facts["first.weight"].meets == Activation("gelu")

    def test_that_weighs(self):
        """A weight in an unusual place, laid out as inputs by outputs, has its axes and fans."""
        operators.register("opaque::project", like=lambda w, x: F.linear(x, w.T))
        model = Weighed(lambda x, w: CALLS.project(w, x), 3, 5)
        found = reading(model, 2, 3).facts["weight"]

        assert (found.role, found.op, found.meets) == ("weight", "linear", Activation("relu"))
        assert (found.axes.inputs, found.axes.outputs) == ((0,), (1,))
        assert plan_policy(model, example_inputs=torch.zeros(2, 3))["weight"].fan_in == 3

    def test_that_weighs_by_group(self):
        """Stacked matrices are copies, not connections."""
        operators.register("opaque::experts", like=lambda x, w: torch.einsum("gni,gio->gno", x, w))
        found = reading(Weighed(CALLS.experts, 6, 3, 5), 6, 2, 3).facts["weight"]

        assert found.role == "weight"
        assert (found.axes.copies, found.axes.inputs, found.axes.outputs) == ((0,), (1,), (2,))

    def test_that_changes_its_input(self):
        """What it changes in place is changed for all that read it."""

        def forward(x: Tensor) -> Tensor:
            CALLS.ramp_(x)
            return torch.tanh(x)

        operators.register("opaque::ramp_", like=torch.relu_)

        assert reading(Around(forward), 2, 4).facts["first.weight"].meets == Activation("relu")

    def test_of_a_module_that_torch_does_not_see(self):
        """A module whose kernel is no operator at all goes by the name of its class."""

        class Foreign(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                with torch._C.DisableTorchFunction():
                    return x.clamp_min(0.0)

        assert dict(reading(Around(Foreign()), 2, 4).unknown_operators) == {"Foreign": 1}
        operators.register("Foreign", like=torch.relu)
        found = reading(Around(Foreign()), 2, 4)
        assert dict(found.unknown_operators) == {}
        assert found.facts["first.weight"].meets == Activation("relu")


class TestUnknown:
    """What nobody has registered."""

    def test_is_not_taken_for_torchs_own_of_the_same_name(self):
        """A library's `relu` may be anything."""
        found = reading(Around(CALLS.relu), 2, 4)

        assert dict(found.unknown_operators) == {"opaque::relu": 1}
        assert found.facts["first.weight"].meets is None

    def test_is_warned_of_with_what_helps(self):
        """The call that the warning and the heading name works as it stands."""
        model = Around(CALLS.ramp)
        call = "operators.register('opaque::ramp', like=function)"
        with pytest.warns(UnknownOperatorWarning) as warned:
            plan = plan_policy(model)

        assert call in str(warned[0].message)
        assert call in str(plan)
        eval(call, {"operators": operators, "function": F.relu})
        assert plan_policy(model)["first.weight"].meets == "relu"


class TestRegister:
    """What may be registered."""

    def test_twice_is_refused(self):
        """Two answers for one operator: the first stays."""
        operators.register("opaque::ramp", like=F.relu)
        with pytest.raises(ArgumentError, match=r"'opaque::ramp' is registered already, as <"):
            operators.register("opaque::ramp", like=F.gelu)

        assert reading(Around(CALLS.ramp), 2, 4).facts["first.weight"].meets == Activation("relu")

    def test_torchs_own_is_refused(self):
        """What `relu` means is not for one model to say."""
        with pytest.raises(ArgumentError, match=r"'relu' is torch's own.*library::name"):
            operators.register("relu", like=F.gelu)

    def test_what_is_no_name_is_refused(self):
        """An operator goes by its name, which is the same in every process."""
        with pytest.raises(ArgumentError, match=r"operator is a name, 'library::name', got <"):
            operators.register(CALLS.ramp, like=F.relu)

    def test_what_cannot_be_called_is_refused(self):
        """A name is no function."""
        with pytest.raises(ArgumentError, match=r"like is a function.*got 'relu'"):
            operators.register("opaque::ramp", like="relu")


class TestRuns:
    """Passes that run for real read the same."""

    def test_audit(self):
        """The points of an audit are those of the function."""
        operators.register("opaque::ramp", like=F.relu)
        own, torchs = (
            audit_signal(model, torch.randn(16, 4)) for model in map(Around, (CALLS.ramp, F.relu))
        )

        assert [point.op for point in own.points] == [point.op for point in torchs.points]

    def test_lsuv(self):
        """A weight that an operator of the user's applies is scaled to standard deviation one."""
        operators.register("opaque::project", like=lambda w, x: x @ w)
        model = Weighed(lambda x, w: CALLS.project(w, x), 8, 8)
        batch = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        lsuv_(model, batch)

        assert (batch @ model.weight).std(correction=0).item() == pytest.approx(1.0, rel=1e-3)


def test_exported_programs_are_read():
    """Operators of aten go by torch's names."""
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    program = torch.export.export(net, (torch.zeros(2, 4),)).module()
    found = read(program, sites(program), torch.zeros(2, 4))

    assert dict(found.unknown_operators) == {}
    assert found.facts["0.weight"].meets == Activation("relu")


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


@needs_recorded_flex_attention
@pytest.mark.parametrize("scale", [None, 0.5])
def test_flex_attention_is_attention(scale):
    """Queries and keys meet its softmax, values go on; its scale is read where it stands."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(64, 192)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
            return flex_attention(q, k, v, scale=scale)

    found = reading(Block(), 2, 128, 64)
    nodes = found.flow.uses.graph.nodes
    scales = {attention_scale(node) for node in nodes if node.op == "flex_attention"}
    facts = found.facts["qkv.weight"]

    assert facts.axes.blocks == (64, 64, 64)
    assert [block.meets and block.meets.name for block in facts.blocks] == ["softmax"] * 2 + [None]
    assert scales == {scale or 0.25}
