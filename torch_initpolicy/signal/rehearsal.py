"""Runs a model once more with other numbers in some of its parameters, for the loss alone."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_initpolicy.signal.judges import LOUD
from torch_initpolicy.signal.signal import Signal
from torch_initpolicy.symmetry.replica import Loss, scalar
from torch_initpolicy.trace.recorder import Ran
from torch_initpolicy.trace.stand_ins import copied
from torch_initpolicy.writing.shards import full

ByName = Mapping[str, Tensor]
Losses = Callable[[ByName], float]
"""Returns the loss with other values of some parameters, nan where it cannot be told."""


@dataclass(slots=True)
class Rehearsal:
    """An observer that takes the loss with other values in the place of some parameters'."""

    loss_fn: Loss
    values: ByName
    loss: float = math.nan

    def stand_in(self, name: str, parameter: Tensor) -> Tensor:
        """Return the other values, or a copy."""
        return self.values[name] if name in self.values else copied(full(parameter))

    def see(self, ran: Ran) -> None:
        """Look at nothing on the way."""

    def end(self, results: Any) -> None:
        """Take the loss."""
        self.loss = scalar(self.loss_fn(results)).item()


def with_losses(
    signal: Signal, heads: Sequence[ByName], stepped: ByName, loss_with: Losses
) -> Signal:
    """Return a signal that knows the loss of silent heads, who is at fault, and the next loss.

    Args:
        signal: What was measured.
        heads: The last weights before the outputs, each with its bias.
        stepped: Parameters after one step; empty where that is not known.
        loss_with: Takes the loss with other values.
    """
    zeros = signal.loss_of_zeros
    if heads and not all(output.classes for output in signal.outputs):
        zeros = loss_with(_silenced(*heads))
    loud: tuple[str, ...] = ()
    if zeros is not None and signal.loss is not None and signal.loss > LOUD * zeros > 0:
        losses = ((tuple(part), loss_with(_silenced(part))) for part in _suspected(heads))
        loud = next((names for names, loss in losses if loss <= LOUD * zeros), ())
    after = loss_with(stepped) if stepped else None
    return dataclasses.replace(signal, loss_of_zeros=zeros, loud=loud, loss_after_step=after)


def _silenced(*heads: ByName) -> dict[str, Tensor]:
    return {name: torch.zeros_like(value) for head in heads for name, value in head.items()}


def _suspected(heads: Sequence[ByName]) -> Iterator[ByName]:
    """Yield what may be at fault: a bias, a weight, a head."""
    singles = itertools.chain.from_iterable(head.items() for head in heads)
    yield from ({name: value} for name, value in sorted(singles, key=lambda pair: pair[1].ndim))
    yield from heads
