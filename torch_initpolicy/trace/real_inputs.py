"""What a model needs to be run: values, and inputs: the user's own, or random ones that fit.

Knows shapes and dtypes; what the inputs mean is beyond it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from torch_initpolicy.errors import TraceError, counted, listing
from torch_initpolicy.sites import Site
from torch_initpolicy.trace.inputs import as_call
from torch_initpolicy.trace.read import read
from torch_initpolicy.trace.stand_ins import random_call, vocabulary_size
from torch_initpolicy.trace.trees import Call, tensors_in

_SAMPLES = 16
"""How many inputs are drawn."""

_VECTORS = 64
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

    The user's own are then the only ones. Others are drawn: standard normals for floating-point
    arguments, random indices for integers.

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
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for batch in _batch(found), None:
        drawn = random_call(found, vocabulary_size(model), batch=batch)
        yield drawn.mapped(lambda tensor: tensor.to(device))


def _batch(call: Call) -> int:
    vectors = (t.ndim <= 2 and t.is_floating_point() for t in tensors_in((call.args, call.kwargs)))
    return _VECTORS if all(vectors) else _SAMPLES
