"""The audit of a model as one page: what its signal does, what starts alike, what would repair it.

Composes the checks with the policies that they suggest, which are tried on a copy of the model.
"""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from torch_initpolicy.api import plan_policy
from torch_initpolicy.checks.signal import Signal, audit_signal
from torch_initpolicy.checks.symmetry import find_symmetry
from torch_initpolicy.checks.trial import Loss
from torch_initpolicy.report.html import Page

NOW = "as it is"


def audit_model(
    model: nn.Module,
    inputs: Any = None,
    *,
    suggest: Sequence[str] | None = None,
    loss_fn: Loss | None = None,
    title: str | None = None,
) -> Page:
    """Audit a model, and show beside it what it would be under a policy that repairs it.

    The model is left untouched; policies are tried on a copy of it.

    Args:
        model: The model, its weights initialised.
        inputs: As for `audit_signal`.
        suggest: Names of policies to show beside it; None for those that the verdicts ask for,
            `signal` where there are none.
        loss_fn: As for `audit_signal`.
        title: Title of the page.

    Returns:
        The page: `page.write("report.html")`, or `str(page)`.

    Raises:
        TraceError: As for `audit_signal`.

    Examples:
        >>> import torch
        >>> page = audit_model(nn.Sequential(nn.Linear(8, 8), nn.ReLU()), torch.eye(8))
        >>> list(page.signals)
        ['as it is', 'signal']
    """
    found = audit_signal(model, inputs, loss_fn=loss_fn)
    names = list(suggest) if suggest is not None else _suggested(found)
    tried = {name: _under(model, name, inputs, loss_fn) for name in names}
    return Page(
        title=title or f"Audit of {type(model).__name__}",
        signals={NOW: found, **tried},
        plan=plan_policy(model, names[0] if names else "auto", example_inputs=inputs),
        findings=find_symmetry(model, example_inputs=inputs).findings,
    )


def _suggested(signal: Signal) -> list[str]:
    """Name the policies that a signal's verdicts ask for."""
    kinds = {verdict.kind for verdict in signal.verdicts}
    critical = kinds & {"collapses", "gradient explodes"}
    return ["signal", "critical"] if critical else ["signal"]


def _under(model: nn.Module, policy: str, inputs: Any, loss_fn: Loss | None) -> Signal:
    """Return the signal of a copy of a model under a policy."""
    other = copy.deepcopy(model)
    plan_policy(other, policy, example_inputs=inputs).apply(seed=0)
    return audit_signal(other, inputs, loss_fn=loss_fn)
