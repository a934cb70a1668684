"""Facts that follow from a forward pass, against networks that carry their own answers."""

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import ANSWERING, Answering
from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.trace.read import Reading, read


@functools.cache
def reading(network: type[Answering]) -> Reading:
    """Read a network once for all tests."""
    model = network()
    return read(model, sites(model), model.example())


def fact(found: Facts, path: str) -> object:
    """Follow a dotted path; activations are compared by name."""
    value = functools.reduce(getattr, path.split("."), found)
    return value.name if isinstance(value, Activation) else value


@pytest.mark.parametrize(
    ("network", "name"),
    [(network, name) for network in ANSWERING for name in network.answers],
    ids=lambda item: item if isinstance(item, str) else item.__name__,
)
def test_facts_are_those_written_by_hand(network, name):
    """Every fact that a network writes down about a parameter must be found."""
    found = reading(network).facts[name]

    assert network.answers[name] == {path: fact(found, path) for path in network.answers[name]}


@pytest.mark.parametrize("network", ANSWERING, ids=lambda network: network.__name__)
def test_every_parameter_is_seen_and_no_operator_unknown(network):
    """A forward pass that runs on meta leaves nothing unused, unknown or guessed."""
    found = reading(network)

    assert dict(found.unknown_operators) == {}
    assert {("traced", True)} == {(f.evidence, f.used) for f in found.facts.values()}
    assert "unknown" not in {f.role for f in found.facts.values()}


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


class Tagger(nn.Module):
    """Sentences of several lengths are packed for a recurrent layer and padded again."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first = nn.Embedding(9, 4), nn.Linear(4, 4)
        self.states, self.tags = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        x = F.gelu(self.first(self.table(ids)))
        packed = nn.utils.rnn.pack_padded_sequence(
            x, lengths, batch_first=True, enforce_sorted=False
        )
        states, _ = self.states(packed)
        return self.tags(F.relu(nn.utils.rnn.pad_packed_sequence(states, batch_first=True)[0]))


def test_packing_carries_the_signal_and_not_the_lengths():
    """What is packed or padded is followed; the sizes of the steps lead nowhere."""
    model = Tagger()
    inputs = (torch.randint(9, (3, 5)), torch.tensor([2, 5, 3]))
    found = read(model, sites(model), inputs)

    assert dict(found.unknown_operators) == {}
    assert found.facts["first.weight"].meets == Activation("gelu")
    assert found.facts["states.weight_ih_l0"].fed_by == Activation("gelu")
    assert found.facts["tags.weight"].fed_by == Activation("relu")
    assert found.facts["tags.weight"].meets is None


class Slopes(nn.Module):
    """Activations with a parameter of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.leaky, self.learnt, self.elu = (nn.Linear(4, 4) for _ in range(3))
        self.prelu = nn.PReLU(init=0.3)
        self.beta = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.leaky(x), 0.2)
        x = self.prelu(self.learnt(x))
        return F.elu(self.elu(x), alpha=0.5)


def test_slopes_are_read_from_the_call_or_the_parameter():
    """The slope in the facts is the call's own, or the value a learnt one starts from."""
    model = Slopes()
    found = read(model, sites(model), torch.zeros(2, 4)).facts

    assert found["leaky.weight"].meets == Activation("leaky_relu", 0.2)
    assert found["elu.weight"].meets == Activation("elu", 0.5)
    met = found["learnt.weight"].meets
    assert met is not None
    assert met.parameter == pytest.approx(0.3)


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


class Multiplied(nn.Module):
    """A parameter multiplied to something; `how` says how."""

    def __init__(self, how: Callable[["Multiplied", Tensor], Tensor], size: int) -> None:
        super().__init__()
        self.how = how
        self.norm = nn.LayerNorm(4, elementwise_affine=False)
        self.linear, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.p = nn.Parameter(torch.full((size,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def unit(x: Tensor) -> Tensor:
    """Divide by the length."""
    return x / x.norm(dim=-1, keepdim=True)


MULTIPLIED = {
    "a norm's weight": (lambda m, x: m.p * F.layer_norm(m.linear(x), (4,)), 4, "norm_weight"),
    "written out": (
        lambda m, x: m.p * (x * x.square().mean(-1, keepdim=True).rsqrt()), 4, "norm_weight",
    ),
    "logit scale": (lambda m, x: m.p.exp() * unit(m.linear(x)) @ unit(m.other(x)).t(), 1, "scale"),
    "logit scale behind": (
        lambda m, x: unit(m.linear(x)) @ unit(m.other(x)).t() * m.p.exp(), 1, "scale",
    ),
    "cosine scale": (lambda m, x: m.p * F.normalize(m.linear(x)), 1, "scale"),
    "temperature per feature": (lambda m, x: m.p.exp() * F.normalize(m.linear(x)), 4, "scale"),
    "branch behind a norm": (lambda m, x: x + m.p * m.norm(m.linear(x)), 4, "scale"),
    "zero branch behind a norm": (lambda m, x: x + m.p * m.norm(m.linear(x)), 1, "scale"),
}  # fmt: skip


@pytest.mark.parametrize("name", MULTIPLIED)
def test_norm_weight_or_scale(name):
    """Only what a module multiplies to its own normalised signal, unit by unit, is its weight."""
    how, size, role = MULTIPLIED[name]
    model = Multiplied(how, size)

    assert read(model, sites(model), torch.ones(2, 4)).facts["p"].role == role


def test_gate_of_a_weight():
    """A parameter that gates a weight through an activation is no weight itself."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.logits = (nn.Parameter(torch.ones(4, 4)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return F.relu(F.linear(x, self.weight * self.logits.sigmoid()))

    model = Gated()
    facts = read(model, sites(model), torch.ones(2, 4)).facts

    assert {name: of.role for name, of in facts.items()} == {"weight": "weight", "logits": "gate"}
