"""`init_cfg` dictionaries: models start from the distributions that MMEngine itself draws."""

import warnings

import pytest
import torch
from torch import nn

from torch_initpolicy import apply_policy, compare_inits
from torch_initpolicy.errors import PlanError, PolicyError, UnknownNameError
from torch_initpolicy.integrations.mmengine import policy_of


def network():
    """A convolution, a norm, and a head of two layers."""
    model = nn.Sequential()
    model.add_module("conv", nn.Conv2d(8, 64, 3))
    model.add_module("norm", nn.BatchNorm2d(64))
    model.add_module("act", nn.ReLU())
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flat", nn.Flatten())
    model.add_module("head", nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)))
    return model


CONFIGS = {
    "constant": {"type": "Constant", "val": 0.5, "bias": 0.25, "layer": "Conv2d"},
    "xavier": {"type": "Xavier", "layer": ["Conv2d", "Linear"], "distribution": "uniform"},
    "normal": {"type": "Normal", "std": 0.02, "layer": "Linear", "bias_prob": 0.01},
    "truncated": {"type": "TruncNormal", "std": 0.5, "a": -0.6, "b": 0.6, "layer": "Conv2d"},
    "uniform": {"type": "Uniform", "a": -0.1, "b": 0.3, "layer": "Linear"},
    "kaiming": {"type": "Kaiming", "layer": "Conv2d"},
    "leaky": {
        "type": "Kaiming",
        "a": 0.3,
        "mode": "fan_in",
        "nonlinearity": "leaky_relu",
        "distribution": "uniform",
        "layer": "Linear",
    },
    "caffe": {"type": "Caffe2Xavier", "layer": "Conv2d"},
    "base class": {"type": "Constant", "val": 2.0, "layer": "_BatchNorm"},
    "the last word": [
        {"type": "Constant", "val": 1.0, "layer": ["Conv2d", "Linear"]},
        {"type": "Normal", "std": 0.3, "layer": "Linear"},
    ],
    "override": {
        "type": "Normal",
        "std": 0.01,
        "layer": "Conv2d",
        "override": {"type": "Xavier", "name": "head", "bias": 1.0},
    },
    "override by its own": {"type": "Normal", "std": 0.2, "override": [{"name": "head"}]},
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_as_mmengine(config):
    """Every tensor has the distribution that MMEngine's own `initialize` gives it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        initialize = pytest.importorskip("mmengine.model").initialize
    theirs, ours = network(), network()
    torch.manual_seed(0)
    initialize(theirs, config)

    apply_policy(ours, policy_of(config), seed=0)

    comparison = compare_inits(ours, theirs)
    assert comparison.ok, str(comparison)


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"type": "Kaimng", "layer": "Linear"}, UnknownNameError, "did you mean 'Kaiming'"),
        ({"type": "Normal", "sdt": 1, "layer": "Linear"}, PolicyError, "unexpected keyword"),
        ({"type": "Constant", "layer": "Linear"}, PolicyError, "val"),
        ({"type": "Pretrained", "layer": "Linear"}, PolicyError, "initialize_missing"),
        ({"type": "Normal", "override": {"type": "Normal"}}, PolicyError, "needs a name"),
    ],
    ids=["type", "argument", "value", "checkpoint", "override"],
)
def test_what_is_wrong(config, error, words):
    """The error says what is wrong with a dictionary."""
    with pytest.raises(error, match=words):
        policy_of(config)


def test_a_layer_that_is_not_there():
    """What MMEngine passes over in silence is an error of planning."""
    with pytest.raises(PlanError, match="matches nothing"):
        apply_policy(network(), policy_of({"type": "Normal", "layer": "Conv3d"}))
