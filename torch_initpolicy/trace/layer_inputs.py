"""What a layer takes that is first in its model: arguments of the shapes that it declares.

Everything here is shapes on the meta device; nothing is allocated or run.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

from torch import nn

from torch_initpolicy.trace.arguments import floats, integers
from torch_initpolicy.trace.documented import BATCH, SEQUENCE

_IMAGE_SIZES = (224, 32, 28, 64, 84, 96, 128, 256, 299, 384, 512, 16, 8)
"""Edge lengths to try, in pixels; a fully connected layer behind the convolutions takes one."""

_LINES = ((128,), (1024,), (16000,), (SEQUENCE,))
"""Lengths of signals to try."""

_CLIPS = ((16, 112, 112), (16, 224, 224), (8, 224, 224), (32, 224, 224), (16, 16, 16))
"""Frames and edge lengths of video to try."""

_LENGTHS = 4
"""Raw parameters that may say how long a sequence is."""


@functools.singledispatch
def layer_inputs(layer: nn.Module, model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Yield arguments for a layer that is first in its model, the likeliest first.

    Examples:
        >>> [tuple(x.shape) for x, *_ in layer_inputs(nn.Linear(3, 5), nn.Identity())][:2]
        [(2, 3), (2, 8, 3)]
    """
    del layer, model
    yield from ()


@layer_inputs.register
def _(layer: nn.RNNBase, model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Yield a sequence and a state: a pair for an LSTM, which a forward may take one by one."""
    del model
    x = floats(SEQUENCE, BATCH, layer.input_size)
    batch = SEQUENCE if layer.batch_first else BATCH
    layers = layer.num_layers * (1 + layer.bidirectional)
    state = floats(layers, batch, layer.proj_size or layer.hidden_size)
    cell = floats(layers, batch, layer.hidden_size)
    yield from (
        ((x, (state, cell)), (x, state, cell)) if isinstance(layer, nn.LSTM) else [(x, state)]
    )
    yield (x,)


@layer_inputs.register
def _(layer: nn.RNNCellBase, model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Yield one step of a sequence and a state."""
    del model
    x, state = floats(BATCH, layer.input_size), floats(BATCH, layer.hidden_size)
    if isinstance(layer, nn.LSTMCell):
        yield x, (state, state)
    yield x, state, state
    yield (x,)


@layer_inputs.register
def _(layer: nn.MultiheadAttention, model: nn.Module) -> Iterator[tuple[Any, ...]]:
    del model
    yield tuple(floats(SEQUENCE, BATCH, n) for n in (layer.embed_dim, layer.kdim, layer.vdim))


@layer_inputs.register
def _(layer: nn.Bilinear, model: nn.Module) -> Iterator[tuple[Any, ...]]:
    del model
    yield floats(BATCH, layer.in1_features), floats(BATCH, layer.in2_features)


@layer_inputs.register(nn.Embedding)
@layer_inputs.register(nn.EmbeddingBag)
def _(layer: nn.Module, model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Yield integers; raw parameters `(1, length, width)` that are added say how many."""
    del layer
    yield (integers(BATCH, SEQUENCE),)
    yield (integers(BATCH),)
    shapes = dict.fromkeys(tuple(p.shape) for p in model.parameters() if p.dim() == 3)
    for first, length, _ in itertools.islice(shapes, _LENGTHS):
        if first == 1:
            yield (integers(BATCH, length),)


@layer_inputs.register
def _(layer: nn.Linear, model: nn.Module) -> Iterator[tuple[Any, ...]]:
    del model
    yield (floats(BATCH, layer.in_features),)
    yield (floats(BATCH, SEQUENCE, layer.in_features),)
    yield (floats(BATCH, 1, 28, 28),)
    yield (floats(BATCH, 3, 32, 32),)


@layer_inputs.register(nn.LayerNorm)
@layer_inputs.register(nn.RMSNorm)
def _(layer: Any, model: nn.Module) -> Iterator[tuple[Any, ...]]:
    del model
    yield (floats(BATCH, *layer.normalized_shape),)
    yield (floats(BATCH, SEQUENCE, *layer.normalized_shape),)


@layer_inputs.register
def _(layer: nn.modules.batchnorm._BatchNorm, model: nn.Module) -> Iterator[tuple[Any, ...]]:
    del model
    yield (floats(BATCH, layer.num_features),)
    yield (floats(BATCH, layer.num_features, 32, 32),)


@layer_inputs.register
def _(layer: nn.modules.conv._ConvNd, model: nn.Module) -> Iterator[tuple[Any, ...]]:
    grids = (_LINES, _edges(model), _CLIPS)[len(layer.kernel_size) - 1]
    for grid in grids:
        yield (floats(BATCH, layer.in_channels, *grid),)


def _edges(model: nn.Module) -> Iterator[tuple[int, ...]]:
    edge = getattr(model, "image_size", getattr(model, "img_size", None))
    if isinstance(edge, int):
        yield edge, edge
    elif isinstance(edge, (tuple, list)) and len(edge) == 2:
        yield tuple(edge)
    yield from ((edge, edge) for edge in _IMAGE_SIZES)
