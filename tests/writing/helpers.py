"""Steps without a plan: each test says what is drawn and takes nothing else from the policy."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from torch_initpolicy.sites import Site, sites
from torch_initpolicy.steps import Step
from torch_initpolicy.tensors.initializers import (
    From,
    Identity,
    Initializer,
    Keep,
    Normal,
    Orthogonal,
    Sparse,
    TruncatedNormal,
    Uniform,
    Zeros,
    he_normal,
)
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.writing.apply import Written, apply_steps
from torch_initpolicy.writing.drawing import Drawing


def step_for(site: Site, initializer: Initializer) -> Step:
    """A step that fills a site and knows nothing of the data flow."""
    return Step(
        name=site.name,
        names=site.names,
        shape=site.shape,
        dtype=site.dtype,
        owner=site.kind,
        facts=Facts(site.role, site.axes, padding=site.padding),
        initializer=initializer,
        std=None,
        rule="test",
        reason="because a test says so",
    )


def pairs(model: nn.Module, choose: Callable[[Site], Initializer]) -> list[tuple[Site, Step]]:
    """Each site of a model with a step for what `choose` gives it."""
    return [(site, step_for(site, choose(site))) for site in sites(model)]


def fill(model: nn.Module, initializer: Initializer, /, *names: str, **options: object) -> Written:
    """Fill the named sites of a model, or all of them, and keep the others."""
    chosen = pairs(model, lambda site: initializer if not names or site.name in names else Keep())
    within = options.pop("model", None)
    return apply_steps(chosen, Drawing(**{"seed": 0, **options}), model=within)


def usual(site: Site) -> Initializer:
    """Normal weights and zero biases."""
    return Normal(0.02) if len(site.shape) > 1 else Zeros()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of everything a model holds."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether two states hold the same bits."""
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def layer(rows: int = 300, columns: int = 400, **options: object) -> nn.Linear:
    """A matrix of two blocks, the second of them not full."""
    return nn.Linear(columns, rows, bias=False, **options)


INITIALIZERS = [
    Normal(0.02),
    Uniform(-1.0, 2.0),
    TruncatedNormal(0.5),
    TruncatedNormal(0.5, cut=4.0),
    he_normal(),
    Orthogonal(),
    Sparse(0.5),
    Identity(),
    From(nn.init.xavier_uniform_),
    From(nn.init.orthogonal_),
]
EACH = pytest.mark.parametrize("initializer", INITIALIZERS, ids=repr)
