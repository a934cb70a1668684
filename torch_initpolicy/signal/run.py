"""Follows the signal through a model: one forward pass, one backward pass, and what they say.

Looks, never writes: parameters, buffers, gradients, flags and random states are as they were.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from torch_initpolicy.errors import TraceError
from torch_initpolicy.signal.judges import judge
from torch_initpolicy.signal.observe import SignalObserver
from torch_initpolicy.signal.rehearsal import ByName, Rehearsal, with_losses
from torch_initpolicy.signal.signal import Signal
from torch_initpolicy.signal.training import Training
from torch_initpolicy.sites import require_module, sites, unwrapped
from torch_initpolicy.symmetry.replica import Loss
from torch_initpolicy.trace.failures import refusal
from torch_initpolicy.trace.real_inputs import real_inputs, require_values
from torch_initpolicy.trace.record import observe
from torch_initpolicy.trace.trees import Call


def audit_signal(
    model: nn.Module,
    inputs: Any = None,
    *,
    loss_fn: Loss | None = None,
    optimizer: str | None = None,
    lr: float | None = None,
) -> Signal:
    """Follow the signal through a model, forward and back.

    The model runs once in the mode it is in, on copies of its buffers, and is left untouched.
    Gradients are taken of `loss_fn`, or of a random direction of the outputs with about one unit of
    length for each input; without a `loss_fn` only their course over the depth means something.

    Args:
        model: The model, its weights initialised; wrappers are looked through.
        inputs: What its forward takes: a tensor, a tuple of arguments, or a mapping of keyword
            arguments; a batch of some ten different inputs says most. None draws random ones for a
            forward pass that can be found.
        loss_fn: Makes a real scalar of what the model returns. The loss of outputs that are all
            zero is taken too, for comparison.
        optimizer: Name of the optimizer that will train the model: `"sgd"`, `"adam"`, `"adamw"`,
            `"lion"`, ... With `lr` its first step is compared with the values of each parameter;
            that of plain gradient descent needs a `loss_fn`.
        lr: Its learning rate.

    Returns:
        The points in order of execution and the verdicts. Where no gradient can be taken, as of
        indices, its `note` says why.

    Raises:
        NotAModuleError: `model` is no module.
        UnknownNameError: There is no rule for the first step of `optimizer`.
        TraceError: The forward pass raises with these inputs, or none could be found; the loss is
            no scalar; or parameters have no values: on the meta device, or lazy before their first
            batch.

    Examples:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> signal = audit_signal(model, torch.eye(16, 64))
        >>> [point.name for point in signal.points]
        ['0.weight', '1:relu', '2.weight']
        >>> signal.ok
        True
    """
    return follow_signal(model, inputs, Training.of(loss_fn, optimizer, lr))[1]


def follow_signal(model: nn.Module, inputs: Any, training: Training) -> tuple[Call, Signal]:
    """Follow the signal as `audit_signal` does, and return with which inputs."""
    inner = unwrapped(require_module(model))
    found = sites(model)
    require_values(found)
    names = {id(p): site.name for site in found for p in site.parameters}
    failed: list[tuple[Call, Exception]] = []
    for call in real_inputs(inner, found, inputs):
        observer = SignalObserver(call, training)
        try:
            observe(inner, call, observer, names=names, with_grad=True)
        except TraceError:
            raise
        except Exception as error:  # noqa: BLE001 - a forward may raise anything
            failed.append((call, error))
        else:
            signal = observer.signal
            if training.loss_fn is not None:
                losses = partial(_loss_with, inner, call, training.loss_fn, names)
                signal = with_losses(signal, observer.heads(), observer.stepped(), losses)
            return call, dataclasses.replace(signal, verdicts=judge(signal, signed=training.signed))
    call, failure = failed[0]
    raise refusal(inner, call, failure) from failure


def _loss_with(
    model: nn.Module, call: Call, loss_fn: Loss, names: Mapping[int, str], values: ByName
) -> float:
    """Return the loss with other values of some parameters; nan where the forward then raises."""
    rehearsal = Rehearsal(loss_fn, values)
    try:
        observe(model, call, rehearsal, names=names)
    except Exception:  # noqa: BLE001 - a loss may refuse what is not finite
        return math.nan
    return rehearsal.loss
