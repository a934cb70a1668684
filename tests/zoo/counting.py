"""Connections counted from what a layer's own attributes say: the second opinion on fans.

Written for the tests, without a look at the package's axes: one line per kind of layer.
"""

import math

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Connections = tuple[float, float]
"""Connections into one output unit, and out of one input unit."""


def _transposed(layer, name):
    taps = math.prod(layer.kernel_size)
    into = layer.in_channels / layer.groups * taps / math.prod(layer.stride)
    return into, layer.out_channels / layer.groups * taps


def _convolution(layer, name):
    taps = math.prod(layer.kernel_size)
    out = layer.out_channels / layer.groups * taps / math.prod(layer.stride)
    return layer.in_channels / layer.groups * taps, out


def _attention(layer, name):
    width = layer.embed_dim
    inputs = {"k_proj_weight": layer.kdim, "v_proj_weight": layer.vdim}
    return inputs.get(name, width), 3 * width if name == "in_proj_weight" else width


def _recurrent(layer, name):
    size = layer.proj_size or layer.hidden_size
    directions = 2 if layer.bidirectional else 1
    if name.startswith("weight_hr"):
        return layer.hidden_size, layer.proj_size
    if name.startswith("weight_hh"):
        return size, layer.hidden_size
    below = layer.input_size if "_l0" in name else size * directions
    return below, layer.hidden_size


RULES = (
    (_ConvTransposeNd, ("weight",), _transposed),
    (_ConvNd, ("weight",), _convolution),
    (nn.Linear, ("weight",), lambda layer, name: (layer.in_features, layer.out_features)),
    (
        nn.MultiheadAttention,
        ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"),
        _attention,
    ),
    (nn.RNNBase, ("weight_",), _recurrent),
)
"""Kind of layer, beginnings of its parameters' names, and how to count."""


def connections(layer: nn.Module, name: str) -> Connections | None:
    """Count the connections of a layer's weight, or None where its attributes do not say."""
    return next(
        (
            count(layer, name)
            for kind, beginnings, count in RULES
            if isinstance(layer, kind) and name.startswith(beginnings)
        ),
        None,
    )
