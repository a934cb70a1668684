"""The result as text, as JSON and as logged numbers."""

import json

import pytest
import torch
from torch import nn

from tests.signal.nets import HE, Contrasted, batch, fill, plain
from torch_initpolicy.signal.run import audit_signal

pytestmark = pytest.mark.usefixtures("one_thread")


def test_json_and_text():
    """JSON holds every point, also where a number is not finite; the text has one line a weight."""
    signal = audit_signal(fill(plain(30), 1e3), batch(8, 128))
    data = json.loads(signal.to_json())
    assert len(data["points"]) == len(signal.points)
    assert data["points"][-1]["second"] is None
    assert str(signal).count("linear") >= 31


class Writer:
    """Takes scalars as TensorBoard's writer does."""

    def __init__(self):
        self.logged = {}

    def add_scalar(self, tag, scalar_value, global_step):
        self.logged[tag, global_step] = scalar_value


class Run:
    """Takes numbers as a run of Weights & Biases does."""

    def __init__(self):
        self.logged = {}

    def log(self, data, *, step):
        self.logged.update({(name, step): value for name, value in data.items()})


@pytest.mark.parametrize("writer", [Writer, Run])
def test_scalars_are_logged(writer):
    """Each weighted operator's moments and each parameter's ratio go to the writer."""
    written = writer()
    signal = audit_signal(fill(plain(2, 16), HE), batch(4, 16))
    signal.log_to(written, 7)
    assert written.logged["signal/second/0.weight", 7] == signal.points[0].second
    assert written.logged["signal/gradient/4.weight", 7] == signal.points[-1].gradient
    assert ("signal/ratio/2.weight", 7) in written.logged


def test_weights_and_biases(tmp_path):
    """A run that is offline holds the numbers."""
    wandb = pytest.importorskip("wandb")
    signal = audit_signal(fill(plain(2, 16), HE), batch(4, 16))
    with wandb.init(mode="offline", dir=tmp_path, settings={"silent": True}) as run:
        signal.log_to(run, 7)
        run.log({}, step=8)  # completes step 7
        assert run.summary["signal/second/0.weight"] == signal.points[0].second


def test_where_nothing_can_be_measured_nothing_is_praised():
    """A model of integers has no signal, and no size that it could keep."""

    class Counting(nn.Module):
        def forward(self, x):
            return x * 2

    signal = audit_signal(Counting(), torch.arange(8))
    assert signal.points == ()
    assert "keeps its size" not in str(signal)
    assert "there is no signal to follow" in str(signal)


def test_what_no_weight_makes_has_a_line_in_the_table():
    """Outputs are shown, also those that are products of two signals."""
    signal = audit_signal(Contrasted(10.0), (batch(32, 16), batch(32, 16)))
    assert signal.outputs[0].name in str(signal).splitlines()[4]
