"""One model, whatever it is spread over: equal bits, equal fingerprints, also on a laptop."""

import functools

import pytest
import torch
from torch import nn

pytest.importorskip("torch.distributed.tensor")

from tests.attacks import layouts
from torch_initpolicy.planning.parts import joined


@functools.cache
def alone():
    """Return the receipt of the model in this one process."""
    return layouts.plan().apply(layouts.Net(), seed=layouts.SEED)


@functools.cache
def left(world):
    """Return the fingerprints that all layouts leave on some processes."""
    return layouts.on(world)


@pytest.mark.distributed
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
@pytest.mark.parametrize("world", [4, 8])
def test_fingerprint(world, layout, request):
    """Every process of every layout has the fingerprint of the model in one process."""
    if world > 4 and request.config.getoption("--attacks") < 2:
        pytest.skip("eight processes run with --attacks=2")

    assert {found[layout] for found in left(world)} == {alone().fingerprint}


def test_stages_of_torch():
    """Stages that torch itself cuts a model into hold its parameters under their full names."""
    pipelining = pytest.importorskip("torch.distributed.pipelining")
    model = nn.Sequential(*(layouts.Block() for _ in range(4)))
    spec = {"2": pipelining.SplitPoint.BEGINNING}
    pipe = pipelining.pipeline(model, mb_args=(torch.zeros(2, layouts.WIDTH),), split_spec=spec)
    stages = [pipe.get_stage_module(number) for number in range(pipe.num_stages)]
    plan = layouts.plan_policy(model, "depth_scaled")
    whole = plan.apply(model, seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = [plan.on(stage, "").apply(seed=1) for stage in stages]

    assert len(stages) == 2
    assert joined(parts).fingerprint == whole.fingerprint
    for stage in stages:
        assert all(torch.equal(before[name], value) for name, value in stage.state_dict().items())
