"""From what a forward pass raised to calls that may run: the names, numbers and ranks it speaks of.

Knows how Python and torch complain; no model's own words.
"""

import dis
import itertools
import math
import re
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from torch_initpolicy.trace.arguments import (
    ASKED_FOR,
    free_arguments,
    given_arguments,
    known_values,
    takes_any,
    values,
)
from torch_initpolicy.trace.documented import SEQUENCE
from torch_initpolicy.trace.layer_inputs import layer_inputs
from torch_initpolicy.trace.trees import Call

_VALUES = 3
"""Values of an argument, and shapes for a layer, that are tried."""

_LARGEST, _ELEMENTS = 2**13, 2**22
"""Lengths of one axis, and elements of one argument, up to which an input is tried."""


def answers(model: nn.Module, call: Call, error: Exception) -> Iterator[Call]:
    """Yield calls that answer an error, the likeliest first."""
    frames = list(_frames(error))
    message = str(error)
    missing = _missing(model, call, message, frames)
    yield from _with(model, call, missing)
    for name in missing if len(missing) > 1 else ():
        yield from _with(model, call, [name])
    yield from _without_refused(call, message)
    yield from _as_known(model, call, message)
    for key in _involved(model, call, frames):
        tensor = call.args[key] if isinstance(key, int) else call.kwargs[key]
        for other in _of_other_shape(tensor, message, _failing(frames)):
            yield _with_tensor(call, key, other)


class _Place(NamedTuple):
    """Where an error came through: a frame, and the lines of the expression that it was at."""

    frame: types.FrameType
    lines: range


def _frames(error: Exception) -> Iterator[_Place]:
    """Yield the frames that an error came through, the innermost first."""
    found = []
    traceback = error.__traceback__
    while traceback is not None:
        found.append(_Place(traceback.tb_frame, _lines(traceback)))
        traceback = traceback.tb_next
    return reversed(found)


def _lines(traceback: types.TracebackType) -> range:
    """Return the lines of an expression; Python 3.10 knows its first alone."""
    first = last = traceback.tb_lineno
    if sys.version_info >= (3, 11):
        positions = traceback.tb_frame.f_code.co_positions()
        at = next(itertools.islice(positions, traceback.tb_lasti // 2, None))
        first, last = at[0] or first, at[1] or last
    return range(first, last + 1)


def _failing(places: Sequence[_Place]) -> nn.Module | None:
    owners = (place.frame.f_locals.get("self") for place in places)
    return next((owner for owner in owners if isinstance(owner, nn.Module)), None)


# Names


def _missing(model: nn.Module, call: Call, message: str, places: Sequence[_Place]) -> list[str]:
    """Return the arguments that an error asks for: in words, or as variables that hold nothing."""
    free, empty = free_arguments(model, call), list(dict.fromkeys(_unset(places)))
    words = re.findall(r"[^\W\d]\w*", message)
    asked = [name for word in words for name in free if f"_{name}".endswith(f"_{word}")]
    asked = asked or [name for name in empty if name in free]
    if not asked and takes_any(model):
        asked = [name for name in empty if name not in call.kwargs]
    return list(dict.fromkeys(asked))


def _unset(places: Sequence[_Place]) -> Iterator[str]:
    """Yield the arguments that hold nothing on the lines that an error came through."""
    for frame, lines in places:
        code = frame.f_code
        taken = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        for name in _names_at(code, lines):
            if name in taken and frame.f_locals.get(name, frame) is None:
                yield name


def _involved(model: nn.Module, call: Call, places: Sequence[_Place]) -> list[int | str]:
    """Return the places of the tensors on the line of a forward pass that raised, else of all."""
    bound = given_arguments(model, call)
    keys = {name: name if name in call.kwargs else i for i, name in enumerate(bound)}
    keys = {n: key for n, key in keys.items() if isinstance(bound[n], Tensor) and bound[n].ndim}
    own = [place for place in places if place.frame.f_locals.get("self") is model]
    names = {n for frame, lines in own for n in _names_at(frame.f_code, lines)}
    return [key for name, key in keys.items() if name in names] or list(keys.values())


def _names_at(code: types.CodeType, lines: range) -> Iterator[str]:
    """Yield the local names that some lines of code read."""
    spans = [range(start, end) for start, end, line in code.co_lines() if line in lines]
    for step in dis.get_instructions(code):
        if step.opname.startswith("LOAD_") and any(step.offset in span for span in spans):
            yield from (step.argval,) if isinstance(step.argval, str) else ()


def _with(model: nn.Module, call: Call, names: Sequence[str]) -> Iterator[Call]:
    """Yield a call with some more arguments, in several shapes."""
    known = {name: list(itertools.islice(values(model, name, call), _VALUES)) for name in names}
    if all(known.values()):
        for i in range(max(map(len, known.values()), default=0)):
            chosen = {name: each[min(i, len(each) - 1)] for name, each in known.items()}
            yield call._replace(kwargs={**call.kwargs, **chosen})


_REFUSALS = ("not expected", "unexpected", "both", "not supported", "exactly one", "should not")


def _without_refused(call: Call, message: str) -> Iterator[Call]:
    """Yield a call without an argument that is refused."""
    if any(words in message for words in _REFUSALS):
        for refused in call.kwargs:
            if refused in message:
                yield call._replace(kwargs={n: v for n, v in call.kwargs.items() if n != refused})


def _as_known(model: nn.Module, call: Call, message: str) -> Iterator[Call]:
    """Yield calls with other values of an argument that a library knows.

    What had the length of a text that is exchanged is left out, to be asked for again.
    """
    for place, (name, given) in enumerate(given_arguments(model, call).items()):
        others = {n: v for n, v in call.kwargs.items() if not _goes_with(n, v, given) or n == name}
        for value in known_values(model, name, call, message):
            key = name if name in call.kwargs else place
            yield _with_tensor(call._replace(kwargs=others), key, value)


def _goes_with(name: str, value: Any, given: Any) -> bool:
    both = isinstance(value, Tensor) and isinstance(given, Tensor)
    return both and value.shape == given.shape and bool(re.search(ASKED_FOR, name))


# Numbers


def spoken_numbers(message: str) -> list[int]:
    """Return the whole numbers in a message, each once."""
    found = map(int, re.findall(r"(?<![\w.])\d{1,9}(?!\.\d|\w)", message))
    return [n for n in dict.fromkeys(found) if n]


def _of_other_shape(tensor: Tensor, message: str, failing: nn.Module | None) -> Iterator[Tensor]:
    """Yield tensors of other shapes: of the rank or the length that an error or a layer names."""
    shape, numbers = tuple(tensor.shape), spoken_numbers(message)
    own = [] if failing is None else [n for p in failing.parameters(recurse=False) for n in p.shape]
    ranks = _of_other_rank(shape, numbers) if re.search(_RANKS, message) else ()
    shapes = [*_of_spoken_rank(shape, message, failing), *ranks, *_unflattened(shape, failing)]
    if tensor.is_floating_point() and "unpack" not in message:
        shapes += _stretched(shape, [*numbers, *own])
        shapes += _corrected(shape, numbers[:_VALUES])
    if tensor.is_meta:
        yield from _of_other_kind(tensor, message)
    for other in dict.fromkeys(shapes) if tensor.is_meta else ():
        if math.prod(other) <= _ELEMENTS and max(other) <= _LARGEST:
            yield tensor.new_empty(other)
    for made, *_ in itertools.islice(_inputs(failing), _VALUES):
        if isinstance(made, Tensor) and made.dtype == tensor.dtype:
            yield made


_RANKS = r"unpack|dim|\dD|shape"
"""What errors that speak of a rank say."""


def _inputs(layer: nn.Module | None) -> Iterator[tuple[Any, ...]]:
    return iter(()) if layer is None else layer_inputs(layer, layer)


def _stretched(shape: tuple[int, ...], lengths: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield shapes with an axis of another length; that of the samples stays."""
    axes = sorted(range(1, len(shape)), key=lambda axis: (shape[axis] not in lengths, -axis))
    wanted = [n for n in dict.fromkeys(lengths) if n not in shape]
    for n, axis in itertools.product(wanted, axes):
        yield _with_length(shape, axis, n)
    for n, axis in itertools.product(wanted, axes[:1]):
        yield _with_length(shape, axis, 4 * n)


def _corrected(shape: tuple[int, ...], numbers: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield shapes whose last axis is as much longer, or as many times, as a number misses another.

    What a forward pass makes of a length is often that length and some more, or a multiple of it.
    """
    length = shape[-1] if len(shape) > 1 else 0
    for got, wanted in itertools.permutations(numbers, 2):
        times, rest = divmod(length * wanted, got)
        yield from (
            (*shape[:-1], n) for n in (length + wanted - got, 0 if rest else times) if n > 0
        )


def _of_other_kind(tensor: Tensor, message: str) -> Iterator[Tensor]:
    """Yield integers where an error speaks of indices, and reals of complex numbers."""
    few = max(tensor.shape, default=0) <= _MOST_INDICES
    if few and tensor.is_floating_point() and re.search(_SAID_OF_INDICES, message):
        yield tensor.new_empty(tensor.shape, dtype=torch.int64)
    if tensor.is_complex() and "real" in message:
        yield tensor.new_empty(tensor.shape, dtype=tensor.dtype.to_real())


_MOST_INDICES = 128
"""Length of an axis up to which floats are tried as indices: no vocabulary becomes a text."""

_SAID_OF_INDICES = r"used as ind|Long, Int"
"""What torch says of floats in place of indices."""


def _with_length(shape: tuple[int, ...], axis: int, length: int) -> tuple[int, ...]:
    """Return a shape with one axis of another length, or both edges of an image."""
    edges = range(2, len(shape)) if axis >= 2 and len(shape) >= 4 else ()
    same = [other for other in edges if shape[other] == shape[axis]]
    return tuple(length if i == axis or i in same else n for i, n in enumerate(shape))


def _of_other_rank(shape: tuple[int, ...], numbers: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Yield shapes with an axis more or fewer, where an error speaks of as many."""
    if len(shape) + 1 in numbers:
        yield from ((*shape[:axis], 1, *shape[axis:]) for axis in range(len(shape) + 1))
    if len(shape) - 1 in numbers and len(shape) > 2:
        yield from (shape[:axis] + shape[axis + 1 :] for axis in range(len(shape)))
    yield from ((*shape, n) for n in numbers if n not in shape)


def _of_spoken_rank(
    shape: tuple[int, ...], message: str, failing: nn.Module | None
) -> Iterator[tuple[int, ...]]:
    """Yield shapes of a rank that an error names as `4D`, with the channels of a kernel."""
    kernels = [p.shape for p in failing.parameters(recurse=False)] if failing is not None else []
    for rank in sorted(map(int, re.findall(r"\b([3-5])D", message)), reverse=True):
        if rank > len(shape):
            channels = [n for kernel in kernels if len(kernel) == rank for n in kernel[1::-1]]
            for n in dict.fromkeys((*channels, *shape[1:2], *(1, 3))):
                yield (*shape[:1], n, *(SEQUENCE,) * (rank - 2))


def _unflattened(shape: tuple[int, ...], failing: nn.Module | None) -> Iterator[tuple[int, ...]]:
    """Yield a shape whose last axis is a patch, of the shape that a kernel takes."""
    for parameter in failing.parameters() if failing is not None else ():
        kernel = tuple(parameter.shape[1:])
        if len(kernel) > 1 and math.prod(kernel) == shape[-1]:
            yield (*shape[:-1], *kernel)


def _with_tensor(call: Call, key: int | str, tensor: Any) -> Call:
    if isinstance(key, str):
        return call._replace(kwargs={**call.kwargs, key: tensor})
    return call._replace(args=(*call.args[:key], tensor, *call.args[key + 1 :]))
