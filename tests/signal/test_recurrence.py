"""Fused recurrent layers are judged by their gates, and by what they remember."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import rnn

from tests.signal.nets import batch
from torch_initpolicy import apply_policy
from torch_initpolicy.signal.points import Point
from torch_initpolicy.signal.run import audit_signal
from torch_initpolicy.signal.signal import Signal

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch's own, of oneDNN


class Last(nn.Module):
    """A recurrent layer of which the last output counts."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        self._directions = 2 if layer.bidirectional else 1
        self.head = nn.Linear((layer.proj_size or layer.hidden_size) * self._directions, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Classify a sequence."""
        return self.head(self.layer(x)[0][:, -1])


class Packed(Last):
    """The same, of sequences of several lengths."""

    def forward(self, x: Tensor) -> Tensor:
        """Pack, run, and read the last state."""
        lengths = torch.arange(x.shape[1], x.shape[1] - len(x), -1)
        _, state = self.layer(rnn.pack_padded_sequence(x, lengths, batch_first=True))
        states = state[0] if isinstance(state, tuple) else state
        return self.head(torch.cat([*states[-self._directions :]], -1))


def started(layer: type[nn.RNNBase], factor: float = 1.0, **options: object) -> nn.RNNBase:
    """Build a layer as torch starts it, its recurrent weights times a factor."""
    torch.manual_seed(0)
    made = layer(8, 32, batch_first=True, **options)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if "weight_hh" in name:
                weight.mul_(factor)
    return made


def layer_of(signal: Signal) -> Point:
    """Return the point of the recurrent layer."""
    (point,) = [point for point in signal.points if point.early is not None]
    return point


LAYERS = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "two layers": (nn.LSTM, {"num_layers": 2}),
    "both directions": (nn.LSTM, {"bidirectional": True}),
    "projected": (nn.LSTM, {"proj_size": 24}),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("net", [Last, Packed])
def test_what_a_layer_remembers_is_its_gradient(name, net):
    """It is that of one last output by the first step and the last, by a batch of its own."""
    kind, options = LAYERS[name]
    model, x = net(started(kind, **options)), batch(4, 7, 8).requires_grad_()
    out = model.layer(x[:1])[0][0, -1]
    rows = torch.stack([torch.autograd.grad(o, x, retain_graph=True)[0][0] for o in out])
    first, last = rows[:, 0].square().sum(), rows[:, -1].square().sum()

    found = layer_of(audit_signal(model, x.detach())).early

    assert 0.1 < found / (first / last) < 10


@pytest.mark.parametrize("name", ["lstm", "gru", "tanh", "two layers", "both directions"])
@pytest.mark.parametrize(("steps", "forgets"), [(6, False), (60, True)])
def test_a_layer_that_forgets(name, steps, forgets):
    """As torch starts them they recall 6 steps, and none learns to recall 60: that is a warning."""
    kind, options = LAYERS[name]

    signal = audit_signal(Last(started(kind, **options)), batch(8, steps, 8))

    assert signal.ok
    assert ([v.kind for v in signal.verdicts] == ["gradient vanishes"]) is forgets


def test_an_open_forget_gate_remembers():
    """What the policy for forget gates writes is what the warning asks for."""
    model, x = Last(started(nn.LSTM)), batch(8, 24, 8)
    before = audit_signal(model, x).verdicts

    apply_policy(model, seed=0, example_inputs=x)

    assert [verdict.kind for verdict in before] == ["gradient vanishes"]
    assert not audit_signal(model, x).verdicts


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_a_layer_whose_gradient_explodes(name):
    """Recurrent weights that multiply from step to step are no start to learn from."""
    kind, options = LAYERS[name]

    verdicts = audit_signal(Last(started(kind, 6.0, **options)), batch(8, 40, 8)).verdicts

    (found,) = [verdict for verdict in verdicts if verdict.kind == "gradient explodes"]
    assert not found.mild
    assert found.where.startswith("layer.weight")


@pytest.mark.parametrize("net", [Last, Packed])
@pytest.mark.parametrize("name", ["lstm", "gru", "tanh", "projected"])
def test_gates_of_a_layer_that_is_too_large(name, net):
    """Few gates are flat as torch starts a layer; nearly all where its inputs are 100 times so."""
    kind, options = LAYERS[name]
    shares = [
        layer_of(audit_signal(net(started(kind, **options)), factor * batch(6, 9, 8))).saturated
        for factor in (1.0, 100.0)
    ]

    assert shares[0] < 0.05
    assert shares[1] > 0.8


def test_a_rectified_layer_has_no_gates():
    """There is nothing in it that could be flat on both sides."""
    model = Last(started(nn.RNN, nonlinearity="relu"))
    assert layer_of(audit_signal(model, batch(4, 5, 8))).saturated is None
