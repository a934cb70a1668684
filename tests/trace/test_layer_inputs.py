"""A layer that is first in its model says what it takes: it runs with one of the first tries."""

import itertools

import pytest
import torch
from torch import nn

from torch_initpolicy.trace.layer_inputs import layer_inputs

LAYERS = {
    "linear": nn.Linear(5, 3),
    "bilinear": nn.Bilinear(5, 4, 3),
    "embedding": nn.Embedding(7, 3),
    "bag": nn.EmbeddingBag(7, 3),
    "conv1d": nn.Conv1d(4, 2, 3),
    "conv2d": nn.Conv2d(3, 2, 3),
    "conv3d": nn.Conv3d(3, 2, 3),
    "transposed": nn.ConvTranspose2d(3, 2, 3),
    "layer norm": nn.LayerNorm((4, 6)),
    "rms norm": nn.RMSNorm(6),
    "batch norm": nn.BatchNorm1d(6),
    "batch norm of images": nn.BatchNorm2d(6),
    "lstm": nn.LSTM(5, 4, num_layers=2, bidirectional=True, batch_first=True),
    "projected lstm": nn.LSTM(5, 4, proj_size=2),
    "gru": nn.GRU(5, 4),
    "lstm cell": nn.LSTMCell(5, 4),
    "gru cell": nn.GRUCell(5, 4),
    "attention": nn.MultiheadAttention(8, 2, kdim=5, vdim=3),
}


@pytest.mark.parametrize("name", LAYERS)
def test_one_of_the_first_tries_runs(name):
    """Within three tries there is one that the layer's own forward pass takes, on meta."""
    layer = LAYERS[name].to("meta")

    def runs(args: tuple) -> bool:
        try:
            layer(*args)
        except (RuntimeError, ValueError, TypeError):
            return False
        return True

    assert any(map(runs, itertools.islice(layer_inputs(layer, layer), 3)))


def test_nothing_is_allocated():
    """All tries are shapes alone, or small integers."""
    for layer in LAYERS.values():
        for args in layer_inputs(layer, layer):
            for x in args:
                assert isinstance(x, tuple) or x.is_meta or x.numel() < 100


def test_an_edge_that_a_model_names_comes_first():
    """An attribute `image_size`, a number or a pair, is tried before all usual edges."""
    model = nn.Module()
    model.image_size = (40, 56)

    assert next(layer_inputs(nn.Conv2d(3, 2, 3), model))[0].shape == (2, 3, 40, 56)


def test_other_layers_say_nothing():
    """A class that nobody has registered declares no arguments."""
    assert list(layer_inputs(nn.Module(), nn.Module())) == []
    assert torch.is_tensor(next(layer_inputs(nn.Linear(2, 2), nn.Module()))[0])
