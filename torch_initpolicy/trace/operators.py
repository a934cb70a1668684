"""Operators of your own, told to the package by what they compute.

A trace reads torch's operators. One that it does not know (a custom kernel, mostly) hides what lies
behind it. Whoever registers an operator says what it computes, in operators of torch, and these are
what is read: activations and their gains, weights and their axes, whatever is in it.
"""

from collections.abc import Callable
from typing import Any

from torch_initpolicy.errors import ArgumentError
from torch_initpolicy.trace.operator_table import OPS

__all__ = ["register"]

Reference = Callable[..., Any]
"""Computes what an operator does, from the same arguments, by operators of torch."""

_REFERENCES: dict[str, Reference] = {}


def register(operator: str, *, like: Reference) -> None:
    """Say what an operator of your own computes, in operators of torch.

    From then on `like` runs in place of the operator wherever a forward pass is read, audited or
    calibrated: also on meta tensors, for which the operator then needs no kernel. Training, and a
    search for symmetric starts, run the operator itself. Register an operator beside its
    definition, so that every process that has the one has the other, the command line's included.

    Args:
        operator: Its name, as warnings and plans write it: `"my_library::my_relu"`. A later call
            for the same name replaces the earlier.
        like: A function of the same arguments that returns the same, and changes the same in place.

    Raises:
        ArgumentError: `operator` is no name, or that of an operator of torch's own whose role is
            known; or `like` is no function.

    Examples:
        >>> import torch
        >>> from torch import Tensor, nn
        >>> from torch_initpolicy import operators, plan_policy
        >>> @torch.library.custom_op("docs::fast_silu", mutates_args=())
        ... def fast_silu(x: Tensor) -> Tensor:
        ...     return x / (1 + torch.exp(-x))  # or a kernel in Triton, CUDA or C++
        >>> operators.register("docs::fast_silu", like=nn.functional.silu)
        >>> class Net(nn.Sequential):
        ...     def forward(self, x: Tensor) -> Tensor:
        ...         return self[1](fast_silu(self[0](x)))
        >>> plan_policy(Net(nn.Linear(8, 8), nn.Linear(8, 8)))["0.weight"].meets
        'silu'
    """
    if not isinstance(operator, str):
        raise ArgumentError(f"operator is a name, 'library::name', got {operator!r}")
    if operator in OPS:
        raise ArgumentError(f"{operator!r} is torch's own, and known; yours is 'library::name'")
    if not callable(like):
        raise ArgumentError(f"like is a function that computes what {operator} does, got {like!r}")
    _REFERENCES[operator] = like


def reference(operator: str) -> Reference | None:
    """Return what to run in place of an operator, or None where nothing is registered."""
    return _REFERENCES.get(operator)


def remedy(operator: str) -> str:
    """Return the call that makes an unknown operator known, with `function` to be filled in.

    Examples:
        >>> remedy("docs::fast_relu")
        "torch_initpolicy.operators.register('docs::fast_relu', like=function)"
    """
    return f"torch_initpolicy.operators.register({operator!r}, like=function)"
