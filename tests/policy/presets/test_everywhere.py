"""Presets that fill every weight alike, whatever the layer."""

import pytest
import torch
from torch import nn

from torch_initpolicy import apply_policy, presets


def network():
    """Return layers of several kinds."""
    return nn.ModuleList([
        nn.Linear(40, 50), nn.Conv2d(6, 50, 3), nn.LSTM(40, 20), nn.LayerNorm(9),
    ])  # fmt: skip


def matrices(model):
    """Return all parameters of two axes or more."""
    return [parameter.detach() for parameter in model.parameters() if parameter.ndim > 1]


@pytest.mark.filterwarnings("ignore:policy .* leaves hidden units")
@pytest.mark.parametrize(
    ("policy", "value"),
    [(presets.zeros(), 0.0), (presets.ones(), 1.0), (presets.constant(0.25), 0.25)],
    ids=["zeros", "ones", "constant"],
)
def test_constants(policy, value):
    """One number stands in every weight; norms stay the identity, biases zero."""
    model = network()
    apply_policy(model, policy, seed=0)

    assert all(bool((matrix == value).all()) for matrix in matrices(model))
    assert bool((model[3].weight == 1).all())
    assert not model[0].bias.any()


@pytest.mark.parametrize(
    ("policy", "std"),
    [(presets.normal(0.3), 0.3), (presets.uniform(-0.6, 0.6), 0.6 / 3**0.5)],
    ids=["normal", "uniform"],
)
def test_draws(policy, std):
    """One distribution fills every weight, whatever its fans."""
    model = network()
    apply_policy(model, policy, seed=0)

    assert all(m.std().item() == pytest.approx(std, rel=0.1) for m in matrices(model))


@pytest.mark.parametrize("policy", [presets.constructor(), presets.torch_default()])
def test_as_torch(policy):
    """What torch's constructors would draw is drawn, over what stands there, from a seed."""
    first, second = network(), network()
    for model in (first, second):
        apply_policy(model, policy, seed=3)

    assert all(map(torch.equal, matrices(first), matrices(second)))
    assert first[0].weight.abs().max().item() == pytest.approx(40**-0.5, rel=0.02)
