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
    floats,
    free_arguments,
    implied_arguments,
    libraries,
    required_arguments,
    values,
)
from torch_initpolicy.trace.documented import BATCH, documented
from torch_initpolicy.trace.layer_inputs import layer_inputs
from torch_initpolicy.trace.trees import Call

_MOST_CALLS = 48
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

    for call in itertools.islice(_all_candidates(model), _MOST_CALLS):
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
    asked = required, [*required, *implied_arguments(model)]
    if any(True for name in required[:1] for _ in documented(model, name)):
        yield from _naming(model, (), asked)
    for guessed in _guessed(model):
        others = [names[len(guessed) :] for names in asked]
        yield from _naming(model, guessed, others) or [_repeated(guessed, len(required))]


def _naming(
    model: nn.Module, guessed: tuple[Any, ...], others: Sequence[Sequence[str]]
) -> list[Call]:
    """Return calls with more arguments by name, where something is known of each."""
    given = [{n: next(values(model, n, Call(guessed)), None) for n in names} for names in others]
    return [Call(guessed, known) for known in given if known and None not in known.values()]


def _repeated(guessed: tuple[Any, ...], times: int) -> Call:
    return Call(tuple(itertools.islice(itertools.cycle(guessed), max(times, 1))))


def _declared(model: nn.Module) -> Iterator[Call]:
    """Yield what the model itself, or the library it comes from, says it takes."""
    declared = getattr(model, "example_input_array", None)  # Lightning's name
    if declared is not None:
        yield as_call(declared)
    for library in libraries():
        yield from library.declared_inputs(model)


def extensions(model: nn.Module, call: Call, unused: Sequence[Site]) -> Iterator[list[Call]]:
    """Yield longer texts, then calls with one more argument, for each that may reach more."""
    yield [call.mapped(_longer)]
    free = [n for n in free_arguments(model, call) if not re.search(ASKED_FOR, n)]
    branches = {site.name.partition(".")[0]: site.owner for site in reversed(unused)}
    for name in free:
        known = list(itertools.islice(values(model, name, call), _SHAPES))
        for owner in () if known else itertools.islice(branches.values(), _BRANCHES):
            known += (made[0] for made in itertools.islice(layer_inputs(owner, model), _SHAPES))
        yield [call._replace(kwargs={**call.kwargs, name: value}) for value in known]


def _longer(tensor: Tensor) -> Tensor:
    """Return more indices in a row: what reads one of many is reached by long texts alone."""
    if tensor.is_floating_point() or tensor.dim() != 2 or not tensor.is_meta:
        return tensor
    return tensor.new_empty(tensor.shape[0], _LONG)


_LONG = 256
"""Length of a long text."""


def _guessed(model: nn.Module) -> Iterator[tuple[Any, ...]]:
    """Yield what the first layers have the shape for.

    These are the arguments of a layer. A forward that takes more of them gets them over again.
    """
    first = next((m for m in model.modules() if any(True for _ in layer_inputs(m, model))), None)
    if first is not None:
        yield from layer_inputs(first, model)
    for parameter in itertools.islice(model.parameters(), 2):
        # Features of size 1 pass for those of any other, and so say nothing.
        for size in sorted(dict.fromkeys(parameter.shape), key=(1).__eq__):
            yield (floats(BATCH, size),)
