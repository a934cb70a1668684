"""Facts that follow from a forward pass, against networks that carry their own answers."""

import functools

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
