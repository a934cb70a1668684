"""What a model needs to be run: values, and inputs: the user's own, or random ones that fit.

Knows shapes and dtypes; what the inputs mean is beyond it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torch_initpolicy.errors import TraceError, counted, listing
from torch_initpolicy.sites import Site
from torch_initpolicy.trace.inputs import as_call, vocabulary
from torch_initpolicy.trace.read import read
from torch_initpolicy.trace.recorder import is_index
from torch_initpolicy.trace.trees import Call, tensors_in

BATCH = 16
"""How many inputs are drawn."""

VECTORS = 64
"""How many where each is a vector: cheap, and a unit has no other positions to be seen at."""


def require_values(sites: Sequence[Site]) -> None:
    """Refuse parameters in which there is nothing to see.

    Raises:
        TraceError: Some are on the meta device or lazy; lists them, with the remedy.
    """
    lazy = [site.name for site in sites if site.lazy]
    on_meta = [site.name for site in sites if site.device.type == "meta"]
    for names, why in (lazy, _LAZY), (on_meta, _ON_META):
        if names:
            raise TraceError(f"{why}, for {counted(len(names), 'parameter')}:\n{listing(names)}")


_LAZY = "lazy layers have no weights before their first forward; run the model on one batch first"
_ON_META = "the meta device holds no values; call materialize(model) first"


def real_inputs(model: nn.Module, sites: Sequence[Site], inputs: Any = None) -> Iterator[Call]:
    """Yield inputs to try, the best first.

    Args:
        model: The model, without wrappers.
        sites: Its parameters.
        inputs: The user's own, which are then the only ones; None to look for some and draw them:
            standard normals for floating-point arguments, random indices for integers.

    Raises:
        TraceError: No inputs were given and none can be found.
    """
    if inputs is not None:
        yield as_call(inputs)
        return
    found = read(model, sites).call
    if found is None:
        raise TraceError(
            f"no inputs were found with which the forward pass of {type(model).__name__} runs; "
            "give some: a tensor, a tuple of arguments or a dict of keyword arguments"
        )
    yield _drawn(model, found, _batch(found))
    yield _drawn(model, found, None)


def _batch(call: Call) -> int:
    vectors = (t.ndim <= 2 and t.is_floating_point() for t in tensors_in((call.args, call.kwargs)))
    return VECTORS if all(vectors) else BATCH


def batch_size(call: Call) -> int:
    """Return how many inputs a call holds: the length of its first tensor's first axis."""
    first = next((t for t in tensors_in((call.args, dict(call.kwargs))) if t.ndim), None)
    return max(first.shape[0], 1) if first is not None else 1


def _drawn(model: nn.Module, call: Call, batch: int | None) -> Call:
    """Return random arguments like those of `call`, `batch` in place of its number of inputs."""
    generator = torch.Generator().manual_seed(0)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    before, rows = batch_size(call), vocabulary(model)

    def draw(like: Tensor) -> Tensor:
        if is_index(like):
            return like.to(device)
        shape = list(like.shape)
        if batch is not None and shape and shape[0] == before:
            shape[0] = batch
        if like.is_floating_point() or like.is_complex():
            drawn = torch.randn(shape, generator=generator)
        elif like.dtype == torch.bool:
            drawn = torch.ones(shape)
        else:
            drawn = torch.randint(rows, shape, generator=generator)
        return drawn.to(device, like.dtype)

    return call.mapped(draw)
