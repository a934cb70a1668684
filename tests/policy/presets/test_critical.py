"""Mean field presets: networks of a hundred layers neither forget their inputs nor scatter them."""

import pytest
import torch
from torch import nn

from torch_initpolicy import apply_policy, plan_policy, presets
from torch_initpolicy.errors import PolicyError


def tower(depth, width=128):
    """Return layers of tanh in a row."""
    rows = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*rows)


def test_critical_brings_the_signal_to_the_edge():
    """Behind tanh the gain is that of the critical line, biases have its variance, too."""
    layers = [layer for _ in range(3) for layer in (nn.Linear(32, 32), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(32, 4))
    plan = plan_policy(model, "critical", example_inputs=torch.randn(2, 32))
    assert plan["0.weight"].initializer.gain == pytest.approx(1 / 8)
    assert plan["2.weight"].initializer.gain == pytest.approx(1.030558**0.5, rel=1e-6)
    assert plan["2.bias"].std == pytest.approx(4.6513e-6**0.5, rel=1e-4)
    assert plan["6.weight"].std == pytest.approx((2 / 36) ** 0.5)


@pytest.mark.parametrize("weights", ["normal", "orthogonal"])
def test_depth(weights):
    """A hundred layers on, the signal is near `q`, and two inputs are still apart."""
    q, model = 1 / 64, tower(100)
    inputs = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    apply_policy(model, presets.critical(q=q, weights=weights), seed=0, example_inputs=inputs[:2])
    outputs = model(inputs).detach()

    assert q / 2 < outputs.square().mean() < 2 * q
    assert outputs.std(0).square().mean() > q / 20


def test_delta_orthogonal():
    """It is `critical` with such kernels."""
    given = presets.critical(weights="delta_orthogonal")

    assert presets.delta_orthogonal().rules == given.rules


@pytest.mark.parametrize(("options", "words"), [({"q": 0.0}, "q is"), ({"weights": "x"}, "one of")])
def test_refused(options, words):
    """A mean square of nothing, and weights of an unknown kind, are refused."""
    with pytest.raises(PolicyError, match=words):
        presets.critical(**options)
