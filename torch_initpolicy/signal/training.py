"""What a model is to be trained with, as far as it is known: the loss and the first step."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_initpolicy.errors import UnknownNameError
from torch_initpolicy.signal.statistics import as_real, second_moment
from torch_initpolicy.symmetry.replica import Loss, scalar
from torch_initpolicy.tensors.base import dtype_name
from torch_initpolicy.trace.trees import map_tensors, tensors_in

_SIGNED = frozenset({"adam", "adamw", "nadam", "radam", "adamax", "lion", "rmsprop", "adagrad"})
"""Optimizers whose first step has the length of the learning rate in every element."""


class Training(NamedTuple):
    """The loss and the optimizer.

    Attributes:
        loss_fn: Makes a scalar of what the model returns.
        signed: Whether the first step is the learning rate in every element, not times a gradient.
        lr: The learning rate; None where it is not known.
    """

    loss_fn: Loss | None = None
    signed: bool = False
    lr: float | None = None

    @classmethod
    def of(cls, loss_fn: Loss | None, optimizer: str | None, lr: float | None) -> "Training":
        """Return what the arguments of a verb say."""
        if optimizer is None:
            return cls(loss_fn)
        known = _SIGNED | {"sgd"}
        if str(optimizer).lower() not in known:
            raise UnknownNameError(
                f"the first step of optimizer {optimizer!r} is not known, only that of "
                f"{', '.join(sorted(known))}"
            )
        return cls(loss_fn, optimizer.lower() in _SIGNED, lr)

    def loss(self, results: Any, inputs: int) -> Tensor | None:
        """Return the loss; without a function for it the outputs in a fixed random direction."""
        if self.loss_fn is not None:
            return scalar(self.loss_fn(results))
        outputs = [as_real(t) for t in tensors_in(results) if t.requires_grad]
        directed = [_in_random_direction(output, inputs) for output in outputs]
        return torch.stack(directed).sum() if directed else None

    def loss_of_zeros(self, results: Any) -> float | None:
        """Return the loss of outputs that are all zero; None where it is not defined."""
        if self.loss_fn is None:
            return None
        flat = map_tensors(lambda t: torch.zeros_like(t) if has_gradient(t) else t, results)
        try:
            return scalar(self.loss_fn(flat)).item()
        except Exception:  # noqa: BLE001 - a loss may refuse zeros, as those of probabilities do
            return None

    def no_gradient(self, results: Any) -> str:
        """Say why no gradient could be taken."""
        tensors = tensors_in(results)
        what = "the loss" if self.loss_fn is not None else "what the model returns"
        why = f"{what} depends on no parameter that requires a gradient"
        if self.loss_fn is None and not any(map(has_gradient, tensors)):
            dtypes = dict.fromkeys(dtype_name(t.dtype) for t in tensors)
            why = f"the model returns {' and '.join(dtypes) or 'no tensors'}, which have none"
        return f"no gradients were followed: {why}"

    def step_(self, values: Tensor, gradient: Tensor) -> Tensor:
        """Take the first step of the optimizer in place."""
        step = gradient.sgn() if self.signed else gradient
        return values.detach().sub_(step, alpha=self.lr or 0.0)

    def step(self, values: Tensor, gradient: float | None) -> float | None:
        """Return the first step's length over that of a parameter's values, where it is known.

        Values smaller than torch starts such a weight with are to grow, as a head of 0.01 is; they
        count for as large as that.
        """
        second = second_moment(values).item()
        if self.lr is None or not gradient or not second or not (self.signed or self.loss_fn):
            return None
        length = self.lr if self.signed else self.lr * math.sqrt(gradient)
        return length / math.sqrt(max(second, _usual(values.shape)))


def _usual(shape: Sequence[int]) -> float:
    """Return the second moment that torch starts a weight with, or a factor."""
    return 1.0 if len(shape) < 2 else 1 / (3 * math.prod(shape[1:]))


def has_gradient(tensor: Tensor) -> bool:
    """Say whether a tensor is of a dtype that can have a gradient."""
    return tensor.is_floating_point() or tensor.is_complex()


def _in_random_direction(output: Tensor, inputs: int) -> Tensor:
    generator = torch.Generator(output.device).manual_seed(0)
    direction = torch.randn(output.shape, generator=generator, device=output.device)
    length: float = (inputs / max(output.numel(), 1)) ** 0.5
    return (output.float() * direction.float()).sum() * length
