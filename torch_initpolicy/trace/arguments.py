"""What arguments of a forward pass may be, by their names and annotations.

Libraries say what theirs mean (`torch_initpolicy.integrations`); here are the words that all use.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_initpolicy.trace.documented import BATCH, SEQUENCE, documented
from torch_initpolicy.trace.trees import Call, tensors_in

_LIBRARIES = ("timm", "transformers", "diffusers")
"""Libraries for which `torch_initpolicy.integrations` knows what their models take."""


def libraries() -> Iterator[Any]:
    """Import what is known of each library that the program itself has imported."""
    for name in _LIBRARIES:
        if name in sys.modules:
            yield importlib.import_module(f"torch_initpolicy.integrations.{name}")


def required_arguments(model: nn.Module) -> list[str]:
    """Return the names of the arguments without a default."""
    taken = inspect.signature(model.forward).parameters.items()
    return [name for name, p in taken if p.default is p.empty and p.kind in _BY_KEYWORD]


def implied_arguments(model: nn.Module) -> list[str]:
    """Return the names of the arguments that are None by default, and declared as tensors alone."""
    taken = inspect.signature(model.forward).parameters.items()
    return [name for name, p in taken if p.default is None and _is_tensor(p.annotation)]


def _is_tensor(annotation: Any) -> bool:
    return bool(re.fullmatch(r"'?(\w+\.)*\w*Tensor'?", inspect.formatannotation(annotation)))


def given_arguments(model: nn.Module, call: Call) -> dict[str, Any]:
    """Return what a call gives to each argument; nothing where the signature refuses the call."""
    try:
        return inspect.signature(model.forward).bind_partial(*call.args, **call.kwargs).arguments
    except TypeError:
        return {}


def free_arguments(model: nn.Module, call: Call) -> list[str]:
    """Return the names of the arguments that a call leaves out, and that hold nothing by default.

    Those that it must not leave out come first, switches and caches never.
    """
    taken = given_arguments(model, call)
    free = {
        name: parameter.default is None
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if name not in taken
        and parameter.kind in _BY_KEYWORD
        and parameter.default in (None, parameter.empty)
        and not re.search(_NEVER, name)
    }
    return sorted(free, key=free.__getitem__)


def takes_any(model: nn.Module) -> bool:
    """Say whether a forward pass hands further arguments on to what it calls."""
    parameters = inspect.signature(model.forward).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


_BY_KEYWORD = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

_NEVER = r"cache|past_key|_outputs$|^output_|^return_|^use_|^labels$|(?<!class)_labels$|head_mask"
"""Arguments through which no parameter is reached."""

ASKED_FOR = r"mask$|position_ids|token_type|inputs_embeds"
"""Arguments that are given only where an error asks for them: each has a plain default."""


def values(model: nn.Module, name: str, call: Call) -> Iterator[Any]:
    """Yield what an argument may be, the likeliest first."""
    known = [*known_values(model, name, call), *documented(model, name)]
    if known:
        yield from known
        return
    parameter = inspect.signature(model.forward).parameters.get(name)
    if parameter is not None and parameter.annotation in _SCALARS:
        yield _SCALARS[parameter.annotation]
        return
    shape = next((tuple(t.shape) for t in tensors_in((call.args, dict(call.kwargs))) if t.ndim), ())
    for pattern, make in _BY_WORD.items():
        if re.search(pattern, name):
            yield make(shape or (BATCH, SEQUENCE))
            return


def known_values(model: nn.Module, name: str, call: Call, said: str = "") -> Iterator[Any]:
    """Yield what an argument may be in the library of a model, after what a call has raised."""
    for library in libraries():
        yield from library.known_arguments(model, call, said).get(name, ())


_SCALARS: Mapping[Any, Any] = {int: SEQUENCE, float: 1.0, bool: True, "int": SEQUENCE,
                               "float": 1.0, "bool": True}  # fmt: skip
"""Plain numbers, by what they are declared as."""


def floats(*shape: int) -> Tensor:
    """Return features without memory."""
    return torch.empty(shape, device="meta")


def integers(*shape: int) -> Tensor:
    """Return integers without memory; a recording counts them up along the last axis."""
    return torch.empty(shape, dtype=torch.int64, device="meta")


def _mask(shape: Sequence[int]) -> Tensor:
    kept = shape if len(shape) < 4 else (shape[0], *shape[2:])
    return torch.ones(kept[:3] if len(kept) > 3 else kept[:2], dtype=torch.bool)


_BY_WORD: Mapping[str, Callable[[Sequence[int]], Tensor]] = {
    r"mask": _mask,
    r"timestep|^t$|^time$|^step$": lambda shape: integers(shape[0]),
    r"edge_index": lambda _: torch.tensor([[0, 1], [1, 0]]),
    r"position_ids|pos_ids": lambda shape: integers(*shape[:2]),
    r"_ids?$|tokens?$|index|codes$|integers": lambda shape: integers(shape[0], SEQUENCE),
    r"lengths?$": lambda shape: torch.full(shape[:1], shape[-1]),
    r"sizes?$|shapes?$|_thw$|hw$": lambda shape: torch.tensor([[4, 4]] * shape[0]),
    r"embed|states|features|query|latent|hidden|context": lambda shape: floats(*shape[:2], 16)
}  # fmt: skip
"""Shapes and dtypes, by the words in a name; of the shape of the first tensor that is given."""
