"""Recurrent layers: what goes into their gates has the wanted standard deviation."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.calibrate.measuring import TOLERANCE, batch, deviation, joint
from torch_initpolicy.calibrate.lsuv import lsuv_


class Gated(nn.Module):
    """A recurrent layer, its outputs alone."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.layer = kind(6, 10, **options)

    def forward(self, x):
        return self.layer(x)[0]


RECURRENT = {
    "lstm": (nn.LSTM, {}),
    "gru": (nn.GRU, {}),
    "tanh": (nn.RNN, {}),
    "relu": (nn.RNN, {"nonlinearity": "relu"}),
    "batch first": (nn.LSTM, {"batch_first": True}),
    "no bias": (nn.GRU, {"bias": False}),
    "projected": (nn.LSTM, {"proj_size": 4}),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", RECURRENT)
def test_the_gates_of_a_recurrent_layer_get_unit_deviation(name):
    """What the weights of a layer bring to its gates has the wanted standard deviation."""
    kind, options = RECURRENT[name]
    model = Gated(kind, **options)
    x = batch(12, 16, 6)
    report = lsuv_(model, x, orthogonal=False)
    with torch.no_grad():
        out = model(x)
        if options.get("batch_first"):
            out, x = out.transpose(0, 1), x.transpose(0, 1)
        before = torch.cat((torch.zeros_like(out[:1]), out[:-1]))
        gates = x @ model.layer.weight_ih_l0.mT + before @ model.layer.weight_hh_l0.mT
    assert deviation(gates) < TOLERANCE
    assert [s.site for s in report.scaled] == ["layer.weight_ih_l0", "layer.weight_hh_l0"]
    assert report.scaled[0].before != pytest.approx(1, abs=0.05)


def test_a_deep_bidirectional_layer_is_scaled_throughout():
    """All layers and directions are scaled, in one pass."""
    model = Gated(nn.LSTM, num_layers=2, bidirectional=True)
    report = lsuv_(model, batch(12, 16, 6), orthogonal=False)
    names = {n for n, p in model.named_parameters() if p.ndim == 2}
    assert {scaled.site for scaled in report.scaled} == names
    assert report.worst < TOLERANCE
    assert report.passes == 1


class Tagger(nn.Module):
    """A recurrent layer that reads packed sequences of several lengths, and a layer on top."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.layer = kind(6, 10, **options)
        self.tags = nn.Linear(20 if options.get("bidirectional") else 10, 3)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        return self.tags(pad_packed_sequence(self.layer(packed)[0])[0])


def gates_of(layer: nn.RNNBase, x: torch.Tensor, suffix: str) -> torch.Tensor:
    """Return what goes into the gates of one direction, which reads `x` from its start."""
    alone = type(layer)(layer.input_size, layer.hidden_size)
    for name, parameter in alone.named_parameters():
        parameter.data = getattr(layer, name + suffix).data
    out = alone(x)[0]
    before = torch.cat((torch.zeros_like(out[:1]), out[:-1]))
    return x @ alone.weight_ih_l0.mT + before @ alone.weight_hh_l0.mT


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("orthogonal", [True, False], ids=["orthogonal", "as they are"])
def test_packed_sequences_are_scaled_over_the_steps_they_have(kind, orthogonal):
    """The gates have unit deviation over all steps of all sequences, run one by one."""
    model = Tagger(kind, bidirectional=True)
    x, lengths = batch(12, 16, 6), torch.arange(16) * 7 % 12 + 1
    report = lsuv_(model, (x, lengths), orthogonal=orthogonal)
    sequences = [x[:length, n] for n, length in enumerate(lengths)]
    with torch.no_grad():
        ahead = [gates_of(model.layer, each, "") for each in sequences]
        back = [gates_of(model.layer, each.flip(0), "_reverse") for each in sequences]
    assert deviation(torch.cat(ahead)) < TOLERANCE
    assert deviation(torch.cat(back)) < TOLERANCE
    names = {n for n, p in model.named_parameters() if p.ndim == 2}
    assert {scaled.site for scaled in report.scaled} == names
    assert report.worst < TOLERANCE


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU], ids=lambda kind: kind.__name__)
def test_what_follows_packed_sequences_sees_the_scaled_layer(kind):
    """The layer on top has unit deviation in a model run anew, two layers deep."""
    model = Tagger(kind, num_layers=2)
    x, lengths = batch(12, 16, 6), torch.full((16,), 12)
    lsuv_(model, (x, lengths), orthogonal=False)
    with torch.no_grad():
        made = model(x, lengths) - model.tags.bias
    report = lsuv_(model, (x, lengths), orthogonal=False)
    assert made.std() == pytest.approx(1, abs=0.2)
    assert all(scaled.factor == pytest.approx(1, abs=1e-3) for scaled in report.scaled)


class Steps(nn.Module):
    """A cell, stepped by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 10)

    def forward(self, x):
        state = x.new_zeros(x.shape[1], 10)
        for step in x:
            state = self.cell(step, state)
        return state


def test_a_cell_is_scaled_over_all_its_steps():
    """The steps share the cell's weights: the deviation is one over all of them together."""
    model, made = Steps(), []
    report = lsuv_(model, batch(8, 32, 6), orthogonal=False)
    assert [scaled.site for scaled in report.scaled] == ["cell.weight_ih", "cell.weight_hh"]

    def gates(cell, args):
        made.append(args[0] @ cell.weight_ih.mT + args[1] @ cell.weight_hh.mT)

    model.cell.register_forward_pre_hook(gates)
    with torch.no_grad():
        model(batch(8, 32, 6))
    assert deviation(joint(made)) < TOLERANCE


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRUCell])
def test_half_of_a_recurrence_is_left_with_the_other(kind):
    """Where one of two weights that are scaled as one may not be, the other is said to be left."""
    model = nn.Sequential(kind(6, 5))
    report = lsuv_(model, batch(7, 6), skip="*weight_hh*", orthogonal=False)
    left = {left.site.split("_l0")[0]: left.reason for left in report.left}
    assert report.scaled == ()
    assert "the other weight of its recurrence is left" in left["0.weight_ih"]
    assert "skip" in left["0.weight_hh"]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN], ids=lambda kind: kind.__name__)
def test_batch_first_and_time_first_get_the_same_scales(kind):
    """How a batch is laid out in memory does not matter."""
    torch.manual_seed(0)
    one = kind(6, 10, num_layers=2, bidirectional=True)
    other = kind(6, 10, num_layers=2, bidirectional=True, batch_first=True)
    other.load_state_dict(one.state_dict())
    x = batch(9, 16, 6)
    factors = [
        lsuv_(model, inputs, orthogonal=False).factors
        for model, inputs in ((one, x), (other, x.transpose(0, 1)))
    ]

    assert factors[0].keys() == factors[1].keys()
    for name, factor in factors[0].items():
        assert factor == pytest.approx(factors[1][name], rel=1e-4)
