"""Finds inputs for a model's forward pass: what it declares, then what its first layers take.

Everything here is shapes on the meta device; nothing is allocated or run.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_initpolicy.sites import Site
from torch_initpolicy.trace.arguments import (
    ASKED_FOR,
    BATCH,
    floats,
    free_arguments,
    libraries,
    required_arguments,
    values,
)
from torch_initpolicy.trace.layer_inputs import layer_inputs
from torch_initpolicy.trace.trees import Call

_MOST = 48
"""Inputs that are tried before giving up."""

_BRANCHES, _SHAPES = 3, 4
"""How many parts of a model, and shapes for an argument are tried."""


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
    required = required_arguments(model)
    if not required:
        yield Call()
    for guessed in _guessed(model):
        named = _by_name(model, required, guessed)
        if named is not None:
            yield named
        yield Call(tuple(itertools.islice(itertools.cycle(guessed), max(len(required), 1))))


def _by_name(model: nn.Module, required: Sequence[str], guessed: tuple[Any, ...]) -> Call | None:
    """Return a call in which names say what all arguments but those of the first layer are."""
    others = required[len(guessed) :]
    call = Call(guessed)
    known = {name: next(values(model, name, call), None) for name in others}
    return Call(guessed, known) if others and None not in known.values() else None


def _declared(model: nn.Module) -> Iterator[Call]:
    """Yield what the model itself, or the library it comes from, says it takes."""
    declared = getattr(model, "example_input_array", None)  # Lightning's name
    if declared is not None:
        yield as_call(declared)
    for library in libraries():
        yield from library.declared_inputs(model)


def extensions(model: nn.Module, call: Call, unused: Sequence[Site]) -> Iterator[list[Call]]:
    """Yield calls with one more argument, for each argument that may reach what is unused.

    Args:
        model: The model.
        call: A call that its forward pass takes.
        unused: Parameters that this call does not use.
    """
    free = [n for n in free_arguments(model, call) if not re.search(ASKED_FOR, n)]
    branches = {site.name.partition(".")[0]: site.owner for site in reversed(unused)}
    for name in free:
        known = list(itertools.islice(values(model, name, call), _SHAPES))
        for owner in () if known else itertools.islice(branches.values(), _BRANCHES):
            known += (made[0] for made in itertools.islice(layer_inputs(owner, model), _SHAPES))
        yield [call._replace(kwargs={**call.kwargs, name: value}) for value in known]


def _guessed(model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Yield what the first layers have the shape for.

    These are the arguments of a layer. A forward that takes more of them gets them over again.
    """
    first = next((m for m in model.modules() if any(True for _ in layer_inputs(m, model))), None)
    if first is not None:
        yield from layer_inputs(first, model)
    for parameter in itertools.islice(model.parameters(), 2):
        for size in sorted(dict.fromkeys(parameter.shape), key=_broadcasts):
            yield (floats(BATCH, size),)


def _broadcasts(size: int) -> bool:
    """Whether features of a size pass for any other size, and so say nothing."""
    return size == 1


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
