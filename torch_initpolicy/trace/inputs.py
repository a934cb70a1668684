"""Finds inputs for a model's forward pass: what it declares, then what its first layers take.

Everything here is shapes on the meta device; nothing is allocated or run.
"""

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_initpolicy.trace.trees import Call

BATCH = 2
"""Batch normalisation in training mode needs more than one sample."""

_IMAGE_SIZES = (224, 32, 28, 64, 96, 128, 256, 299, 384, 512, 16, 8)
"""Edge lengths to try, in pixels; a fully connected layer behind the convolutions takes one."""

_SEQUENCE = 8
"""Length of sequences of features or of indices."""

_CLIPS = ((16, 112), (16, 224), (8, 224), (32, 224))
"""Frames and edge lengths of video to try."""

_MOST = 48
"""Inputs that are tried before giving up."""


def as_call(example_inputs: Any) -> Call:
    """Understand what a user gave as example: a tensor, a tuple, or a mapping of keywords.

    Examples:
        >>> as_call(torch.zeros(2, 3)).args[0].shape
        torch.Size([2, 3])
        >>> sorted(as_call({"x": torch.zeros(2), "y": torch.zeros(2)}).kwargs)
        ['x', 'y']
    """
    if isinstance(example_inputs, Call):
        return example_inputs
    if isinstance(example_inputs, Mapping):
        return Call((), dict(example_inputs))
    if isinstance(example_inputs, (tuple, list)):
        return Call(tuple(example_inputs))
    return Call((example_inputs,))


def candidates(model: nn.Module) -> Iterator[Call]:
    """Yield inputs that the forward pass of `model` may take, the likeliest first.

    What the model declares (`pretrained_cfg`, `dummy_inputs`, `config`, `example_input_array`)
    comes before what its first layer, or its first raw parameter, has the shape for. Features have
    the dtype of the model's first weight: one in half precision refuses float32.
    """
    dtype = _dtype(model)

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    for call in itertools.islice(_all_candidates(model), _MOST):
        yield call.mapped(cast)


def _dtype(model: nn.Module) -> torch.dtype:
    """Return the dtype a model computes in; eight bits only store."""
    dtypes = (parameter.dtype for parameter in model.parameters())
    computing = (d for d in dtypes if d.itemsize > 1 and (d.is_floating_point or d.is_complex))
    return next(computing, torch.get_default_dtype())


def _all_candidates(model: nn.Module) -> Iterator[Call]:
    yield from _declared(model)
    required = _required(model)
    if required == 0:
        yield Call()
    for arguments in _guessed(model):
        yield Call(tuple(itertools.islice(itertools.cycle(arguments), max(required, 1))))


def _required(model: nn.Module) -> int:
    """Count the positional arguments without a default."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.signature(model.forward)
    return sum(
        parameter.kind in positional and parameter.default is inspect.Parameter.empty
        for parameter in signature.parameters.values()
    )


def _declared(model: nn.Module) -> Iterator[Call]:
    """Yield what the model itself says it takes."""
    declared = getattr(model, "example_input_array", None)  # Lightning
    if declared is not None:
        yield as_call(declared)
    for attribute in ("pretrained_cfg", "default_cfg"):  # timm
        size = _item(getattr(model, attribute, None), "input_size")
        if size is not None:
            yield Call((_floats(BATCH, *size),))
    yield from _declared_by_transformers(model)


def _item(mapping: Any, key: str) -> Any:
    return mapping.get(key) if isinstance(mapping, Mapping) else getattr(mapping, key, None)


def _declared_by_transformers(model: nn.Module) -> Iterator[Call]:
    """Yield the main input of a model of transformers, then all that its forward knows."""
    main, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    if not isinstance(main, str) or config is None:
        return
    shaped = dict(_named_inputs(config))
    taken = inspect.signature(model.forward).parameters
    known = {name: tensor for name, tensor in shaped.items() if name in taken}
    for names in ((main,), (main, "decoder_input_ids"), tuple(known)):
        if names and known.keys() >= set(names):
            yield Call((), {name: known[name] for name in names})
    dummies = getattr(model, "dummy_inputs", None)
    if isinstance(dummies, Mapping):
        yield Call((), dict(dummies))


def _named_inputs(config: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield inputs by the names that transformers gives them, shaped as a configuration says."""
    vision = getattr(config, "vision_config", config)
    edge = getattr(vision, "image_size", None) or 224
    edges = tuple(edge) if isinstance(edge, (tuple, list)) else (edge, edge)
    yield "input_ids", _indices(BATCH, _SEQUENCE)
    yield "pixel_values", _floats(BATCH, getattr(vision, "num_channels", 3), *edges)
    yield "input_values", _floats(BATCH, 16000)
    frames = 2 * getattr(config, "max_source_positions", 64)
    yield "input_features", _floats(BATCH, getattr(config, "num_mel_bins", 80), frames)
    yield "decoder_input_ids", _indices(BATCH, _SEQUENCE)


def _guessed(model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Yield what the first layers have the shape for.

    These are the arguments of a layer. A forward that takes more of them gets them over again.
    """
    for module in model.modules():
        found = False
        for arguments in _for_layer(module, model):
            found = True
            yield arguments
        if found:
            break
    for parameter in itertools.islice(model.parameters(), 2):
        for size in sorted(dict.fromkeys(parameter.shape), key=_broadcasts):
            yield (_floats(BATCH, size),)


def _broadcasts(size: int) -> bool:
    """Whether features of a size pass for any other size, and so say nothing."""
    return size == 1


def _for_layer(module: nn.Module, model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Yield arguments for a layer that is first in its model."""
    if isinstance(module, nn.RNNBase):
        yield from _with_states(module)
    elif isinstance(module, nn.RNNCellBase):
        yield from _with_cell_states(module)
    elif isinstance(module, nn.MultiheadAttention):
        sizes = (module.embed_dim, module.kdim, module.vdim)
        yield tuple(_floats(_SEQUENCE, BATCH, size) for size in sizes)
    elif isinstance(module, nn.Bilinear):
        yield _floats(BATCH, module.in1_features), _floats(BATCH, module.in2_features)
    else:
        for tensor in _for_layer_of_one(module, model):
            yield (tensor,)


def _with_states(module: nn.RNNBase) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of a recurrent layer, or several sequences for it.

    Its state is one tensor, or a pair for an LSTM, which a forward may take one by one.
    """
    x = _floats(_SEQUENCE, BATCH, module.input_size)
    batch = _SEQUENCE if module.batch_first else BATCH
    layers = module.num_layers * (1 + module.bidirectional)
    state = _floats(layers, batch, module.proj_size or module.hidden_size)
    if isinstance(module, nn.LSTM):
        cell = _floats(layers, batch, module.hidden_size)
        yield x, (state, cell)
        yield x, state, cell
    else:
        yield x, state
    yield (x,)


def _with_cell_states(module: nn.RNNCellBase) -> Iterator[tuple[Any, ...]]:
    """Yield the arguments of one step of a recurrent layer, or the inputs of several."""
    x, state = _floats(BATCH, module.input_size), _floats(BATCH, module.hidden_size)
    if isinstance(module, nn.LSTMCell):
        yield x, (state, state)
    yield x, state, state
    yield (x,)


def _for_layer_of_one(module: nn.Module, model: nn.Module) -> Iterator[Tensor]:
    """Yield inputs for a layer that takes a single one."""
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        yield _indices(BATCH, _SEQUENCE)
        yield _indices(BATCH)
    elif isinstance(module, nn.Linear):
        yield from _features(module.in_features)
    elif isinstance(module, nn.modules.conv._ConvNd):  # noqa: SLF001 - torch names no public base
        yield from _grids(module, model)
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        yield _floats(BATCH, *module.normalized_shape)
        yield _floats(BATCH, _SEQUENCE, *module.normalized_shape)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - likewise
        yield _floats(BATCH, module.num_features)
        yield _floats(BATCH, module.num_features, 32, 32)


def _features(size: int) -> Iterator[Tensor]:
    yield _floats(BATCH, size)
    yield _floats(BATCH, _SEQUENCE, size)
    yield _floats(BATCH, 1, 28, 28)
    yield _floats(BATCH, 3, 32, 32)


def _grids(module: nn.modules.conv._ConvNd, model: nn.Module) -> Iterator[Tensor]:
    channels, dimensions = module.in_channels, len(module.kernel_size)
    if dimensions == 1:
        for length in (128, 1024, 16000, _SEQUENCE):
            yield _floats(BATCH, channels, length)
    elif dimensions == 2:
        for edges in (*_declared_edges(model), *((edge, edge) for edge in _IMAGE_SIZES)):
            yield _floats(BATCH, channels, *edges)
    else:
        for frames, edge in _CLIPS:
            yield _floats(BATCH, channels, frames, edge, edge)
        yield _floats(BATCH, channels, 16, 16, 16)


def _declared_edges(model: nn.Module) -> Sequence[tuple[int, int]]:
    edge = getattr(model, "image_size", getattr(model, "img_size", None))
    if isinstance(edge, int):
        return ((edge, edge),)
    return (tuple(edge),) if isinstance(edge, (tuple, list)) and len(edge) == 2 else ()


def _floats(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _indices(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64, device="meta")


def small_and_real(call: Call, *, edge: int) -> Call:
    """Return real inputs like those of `call`: one sample, images at most `edge` pixels wide."""

    def real(argument: Tensor) -> Tensor:
        spatial = argument.dim() == 4 and argument.shape[1] <= 4
        shape = [1, *argument.shape[1:]]
        shape = shape[:2] + [min(edge, n) for n in shape[2:]] if spatial else shape
        if not argument.is_floating_point():
            return torch.zeros(shape, dtype=argument.dtype)
        return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(argument.dtype)

    return call.mapped(real)
