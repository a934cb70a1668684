"""Looks into fused recurrent layers: whether their gates are flat, and how long they remember.

Knows the arguments of torch's functions; runs them once more on a few inputs of the batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from torch import Tensor

from torch_initpolicy.trace.functorch import is_wrapped
from torch_initpolicy.trace.shapes import is_packed
from torch_initpolicy.trace.trees import map_tensors

_BOUNDS: Mapping[str, tuple[float, ...]] = MappingProxyType({
    "lstm": (3.64, 3.64, 1.82, 3.64), "gru": (3.64, 3.64, math.inf), "rnn_tanh": (1.82,),
    "rnn_relu": (math.inf,),
})  # fmt: skip
"""Beyond these a gate's slope is below a tenth of the largest: of a sigmoid, and of a tanh.

One for each gate, by operator; the last gate of a GRU is left out.
"""

LOOKED_AT = 4
"""Inputs of a batch that are run once more; of packed sequences it is the longest alone."""


class Recurrence(NamedTuple):
    """What goes on inside a recurrent layer.

    Attributes:
        flat: Fraction of the gates of the first layer that are flat; the state counts where that is
            the only layer. None without gates.
        early: Squared gradient of the last output by the first step that is read, over that by the
            last step: how much of the beginning is remembered. None where neither arrives.
    """

    flat: float | None
    early: float | None


@torch.enable_grad()
def look_into(op: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Recurrence | None:
    """Run a recurrent layer on the first inputs once more; None for other operators."""
    if op not in _BOUNDS or is_wrapped(args[0]):
        return None
    rows = _by_step(args).detach().requires_grad_()
    hx, flat_weights, biased, layers, _, _, both = args[1 + is_packed(args) :][:7]
    states = map_tensors(lambda state: state[:, : rows.shape[1]].detach(), hx)
    weights = [weight.detach() for weight in flat_weights]
    train, batch_first = True, False  # cuDNN takes gradients in training mode alone
    made = function(rows, states, weights, biased, layers, 0.0, train, both, batch_first)[0]
    return Recurrence(
        flat=_flat_gates(_BOUNDS[op], rows, weights, made if layers == 1 else None, biased=biased),
        early=_early(made[-1], rows),
    )


def _by_step(args: tuple[Any, ...]) -> Tensor:
    """Return what the first inputs of a layer are, `(steps, inputs, features)`."""
    data: Tensor = args[0]
    if is_packed(args):
        running = args[1]
        return data[running.cumsum(0) - running][:, None]
    return (data.transpose(0, 1) if args[8] else data)[:, :LOOKED_AT]


def _early(last: Tensor, rows: Tensor) -> float | None:
    direction = torch.randn(last.shape, generator=torch.Generator().manual_seed(0)).to(last)
    (gradient,) = torch.autograd.grad((last * direction).sum(), rows)
    by_step = gradient.double().square().sum((1, 2))
    return float(by_step[0] / by_step[-1]) if by_step[-1] else None


def _flat_gates(
    bounds: Sequence[float],
    rows: Tensor,
    weights: Sequence[Tensor],
    states: Tensor | None,
    *,
    biased: bool,
) -> float | None:
    """Return the fraction of gates that are flat; with the states before them where known."""
    limits = torch.tensor(bounds, device=rows.device)[:, None]
    gates = F.linear(rows, weights[0], weights[2] + weights[3] if biased else None)
    if states is not None and states.shape[-1] == weights[1].shape[1]:
        gates = gates + F.pad(F.linear(states[:-1], weights[1]), (0, 0, 0, 0, 1, 0))
    parts = gates.unflatten(-1, (len(bounds), -1)).abs()  # type: ignore[no-untyped-call]
    bounded = (parts > limits)[..., limits.isfinite().flatten(), :]
    return float(bounded.double().mean()) if bounded.numel() else None
