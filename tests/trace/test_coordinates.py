"""Connections are those that autograd counts, in models that are written at random."""

import pytest
import torch
from torch import nn

from tests.trace.random_expressions import STEPS, USES, Expression, counted
from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.axes import block_fans
from torch_initpolicy.trace.read import read

SEEDS = range(100_000, 100_240)
"""Other seeds than those that the code was written with."""


def planned(model: nn.Module, x: torch.Tensor) -> dict[str, tuple[str, tuple[float, float] | None]]:
    """Return role and fans of every parameter, as they are read from the data flow."""
    found = sites(model)
    facts = read(model, found, x).facts
    fans = {site.name: block_fans(site.shape, facts[site.name].axes) for site in found}
    return {
        name: (facts[name].role, tuple(each[0]) if each else None) for name, each in fans.items()
    }


@pytest.mark.parametrize("start", SEEDS[::10])
def test_fans_are_the_connections_that_autograd_counts(start):
    """Whatever has been done to parameters on the way to a linear map, both fans are counted."""
    for seed in range(start, start + 10):
        model = Expression(seed)
        x = torch.rand(model.use.x, dtype=torch.float64)
        found = planned(model, x)
        for name, fans in counted(model, x).items():
            if fans is not None:
                told = f"{seed}: {model!r}, {name}"
                assert found[name] == ("weight", pytest.approx(fans, rel=1e-9)), told


def test_the_writer_writes_everything():
    """The seeds of this file try every way to apply a weight, and every way to make one."""
    models = [Expression(seed) for seed in SEEDS]
    written = {step for model in models for step in model.steps}

    assert {model.name for model in models} == set(USES)
    assert {step.__name__ for step in STEPS} - written == set()
