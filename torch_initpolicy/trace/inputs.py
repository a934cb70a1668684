"""Finds inputs for a model's forward pass: what it declares, then what its first layers take.

Everything here is shapes on the meta device; nothing is allocated or run.
"""

import importlib
import inspect
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_initpolicy.sites import Site
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
    """Yield what the model itself, or the library it comes from, says it takes."""
    declared = getattr(model, "example_input_array", None)  # Lightning's name
    if declared is not None:
        yield as_call(declared)
    for library in _libraries():
        yield from library.declared_inputs(model)


_LIBRARIES = ("timm", "transformers")
"""Libraries for which `torch_initpolicy.integrations` knows what their models take."""


def _libraries() -> Iterator[Any]:
    """Import what is known of each library that the program itself has imported."""
    for name in _LIBRARIES:
        if name in sys.modules:
            yield importlib.import_module(f"torch_initpolicy.integrations.{name}")


def extensions(model: nn.Module, call: Call, unused: Sequence[Site]) -> Iterator[Call]:
    """Yield a call with one more argument each, for parameters that it leaves unused.

    Args:
        model: The model.
        call: A call that its forward pass takes.
        unused: Parameters that this call does not use.
    """
    free = list(_free_arguments(model, call))
    known = {name: x for lib in _libraries() for name, x in lib.known_arguments(model).items()}
    pairs = ((name, tensor) for name in free for tensor in known.get(name, ()))
    for argument, tensor in pairs:
        yield call._replace(kwargs={**call.kwargs, argument: tensor})
    branches = {site.name.partition(".")[0]: site for site in reversed(unused)}
    for site in list(branches.values())[:_BRANCHES]:
        for (tensor, *_), name in itertools.product(_shapes_for(site, model), free[:_NAMES]):
            yield call._replace(kwargs={**call.kwargs, name: tensor})


_BRANCHES, _NAMES, _SHAPES = 3, 4, 4
"""How many parts of a model, arguments, and shapes for an argument are tried."""


def _shapes_for(site: Site, model: nn.Module) -> Iterator[tuple[Any, ...]]:
    return itertools.islice(_for_layer(site.owner, model), _SHAPES)


def _free_arguments(model: nn.Module, call: Call) -> Iterator[str]:
    """Yield the arguments that a call leaves at their default None."""
    signature = inspect.signature(model.forward)
    taken = signature.bind_partial(*call.args, **call.kwargs).arguments
    for name, parameter in signature.parameters.items():
        if parameter.default is None and name not in taken:
            yield name


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
        yield from (_indices(BATCH, length) for length in _lengths(model))
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


def _lengths(model: nn.Module) -> Iterator[int]:
    """Yield how long sequences may have to be: raw parameters `(1, length, width)` are added."""
    shapes = dict.fromkeys(tuple(p.shape) for p in model.parameters() if p.dim() == 3)
    yield from (shape[1] for shape in itertools.islice(shapes, _SHAPES) if shape[0] == 1)


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


def small_and_real(call: Call, *, edge: int, indices: int, seed: int = 0, times: int = 1) -> Call:
    """Return real inputs like those of `call`: images at most `edge` pixels wide.

    Args:
        call: Inputs; those on meta say a shape only, and what is no floating-point number and has
            a value keeps it.
        edge: The most pixels of an image.
        indices: How many indices are valid.
        seed: Which numbers to draw.
        times: How many times as many samples to draw.
    """
    generator = torch.Generator().manual_seed(seed)

    def real(argument: Tensor) -> Tensor:
        spatial = argument.dim() == 4 and argument.shape[1] <= 4
        shape = [n * times for n in argument.shape[:1]] + list(argument.shape[1:])
        shape = shape[:2] + [min(edge, n) for n in shape[2:]] if spatial else shape
        if argument.is_floating_point() or argument.is_complex():
            return torch.randn(shape, generator=generator).to(argument.dtype)
        if not argument.is_meta:
            return argument.clone()
        if argument.dtype == torch.bool:
            return torch.ones(shape, dtype=torch.bool)
        return torch.randint(indices, shape, generator=generator).to(argument.dtype)

    return call.mapped(real)


def vocabulary(model: nn.Module) -> int:
    """Return how many indices every table of the model holds; tables of types are too small."""
    rows = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    return min((n for n in rows if n >= _TYPES), default=min(rows, default=2))


_TYPES = 16
"""Rows of a table up to which it is one of types: of sentences, of tokens."""
