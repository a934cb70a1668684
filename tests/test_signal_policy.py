"""The policy `signal` against the audit: second moments of real outputs, not of the theory's.

Medians are over five seeds of weights and inputs. A plain net of width 1024 has a relative
standard deviation of about sqrt(5 / 1024) = 7 % in each layer's second moment, and the median of
five of 4 %; a gain 15 % off would be 30 % off in the second moment, and twice that two layers on.
"""

import statistics

import pytest
import torch
from torch import nn

from torch_initpolicy.api import plan_policy
from torch_initpolicy.signal.run import audit_signal

SEEDS = range(5)
LOW, HIGH = 0.8, 1.25

MODELS = {
    "timm:resnet10t": 96,
    "tv:mnasnet0_5": 96,
    "tv:shufflenet_v2_x0_5": 96,
    "tv:resnet18": 96,
    "timm:resnet14t": 96,
    "tv:mobilenet_v2": 96,
    "tv:vgg11_bn": 96,
    "tv:regnet_x_400mf": 96,
    "timm:convnext_atto": 96,
    "tv:resnet50": 96,
    "timm:mixer_s32_224": 224,
    "timm:poolformer_s12": 96,
    "tv:densenet121": 96,
    "timm:vit_tiny_patch16_224": 224,
}
"""Models with the edge of their images; the first three are tested always."""

FEW = 3


def medians(model: nn.Module, *shape: int) -> dict[str, float]:
    """Return the median second moment of what each weight makes under `signal`."""
    plan = plan_policy(model, "signal", example_inputs=torch.empty(shape, device="meta"))
    found: dict[str, list[float]] = {}
    for seed in SEEDS:
        plan.apply(seed=seed)
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for point in audit_signal(model, inputs).weighted:
            found.setdefault(f"{point.index} {point.name}", []).append(point.second)
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def outside(found: dict[str, float]) -> dict[str, float]:
    """Return what lies outside the promised interval."""
    return {name: second for name, second in found.items() if not LOW <= second <= HIGH}


@pytest.mark.zoo
@pytest.mark.parametrize("name", MODELS)
def test_real_models(request, name):
    """Every weighted layer of a real model makes a second moment of 1, as in training."""
    if request.config.getoption("--zoo") == "sample" and name not in list(MODELS)[:FEW]:
        pytest.skip("with --zoo=all")
    library, _, model_name = name.partition(":")
    if library == "timm":
        model = pytest.importorskip("timm").create_model(model_name)
    else:
        model = pytest.importorskip("torchvision").models.get_model(model_name, weights=None)
    found = medians(model, 6, 3, MODELS[name], MODELS[name])
    assert len(found) > 5
    assert outside(found) == {}


ACTIVATIONS = {
    "relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.2), "gelu": nn.GELU, "silu": nn.SiLU,
    "mish": nn.Mish, "elu": nn.ELU, "selu": nn.SELU, "hardswish": nn.Hardswish, "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid, "softplus": nn.Softplus, "softsign": nn.Softsign,
}  # fmt: skip


def plain(activation, depth=8, width=1024):
    """Build a plain net."""
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), activation())]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_plain_nets(name):
    """Eight layers of width 1024, for a dozen activations."""
    assert outside(medians(plain(ACTIVATIONS[name]), 16, 1024)) == {}


def test_the_gain_of_what_feeds_a_layer_is_what_counts():
    """Under `auto`, which looks at what a layer meets, the same tanh net is far outside."""
    model = plain(nn.Tanh)
    plan_policy(model, "auto", example_inputs=torch.empty(16, 1024, device="meta")).apply(seed=0)
    inputs = torch.randn(16, 1024, generator=torch.Generator().manual_seed(0))
    assert audit_signal(model, inputs).weighted[-1].second < LOW / 2


def test_what_cannot_be_followed_is_said():
    """Behind a recurrent layer the plan says why it does not know, and falls back."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.LSTM(8, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.head(torch.relu(self.layer(x)[0]))

    plan = plan_policy(Net(), "signal", example_inputs=torch.empty(5, 2, 8, device="meta"))
    assert "the state of a recurrent layer" in plan["head.weight"].reason
    assert plan["head.weight"].std == pytest.approx((2 / 16) ** 0.5)


def test_deep_silu_nets_are_told_to_calibrate():
    """The second-moment map of silu is expansive: far down the audit says so and what to write."""
    torch.manual_seed(0)
    model = plain(nn.SiLU, depth=60, width=64)
    plan_policy(model, "signal", example_inputs=torch.empty(16, 64, device="meta")).apply(seed=3)
    verdicts = audit_signal(model, torch.randn(16, 64)).verdicts
    assert any("calibrate=batch" in verdict.advice for verdict in verdicts)
