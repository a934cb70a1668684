"""`presets.constructor()` draws what the authors' own code draws: Kolmogorov-Smirnov tests."""

import warnings

import pytest
import torch
from scipy.stats import ks_2samp

from tests.zoo.reading import silenced
from torch_initpolicy import apply_policy
from torch_initpolicy.integrations.models import build

pytestmark = pytest.mark.zoo

ALARMS = 1e-6
"""Probability that a model is blamed although all its parameters are drawn alike."""

MOST = 4000
"""Elements of a parameter that are compared; enough to tell standard deviations 6 % apart."""


def test_distributions(constructed):
    """Each parameter is drawn as the constructor draws it for real, or has what it sets."""
    with silenced(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference, model = build(constructed), build(constructed)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        apply_policy(model, "constructor", seed=0)
    held = dict(model.named_parameters())
    wanted = dict(reference.named_parameters())
    assert held.keys() == wanted.keys()
    chances = {name: chance(held[name], wanted[name]) for name in held}

    assert {n: p for n, p in chances.items() if p < ALARMS / len(held)} == {}
    assert not all(map(torch.equal, before, held.values()))


def chance(mine: torch.Tensor, reference: torch.Tensor) -> float:
    """Return how likely two tensors are to differ so much if they are drawn alike."""
    first, second = (spread(tensor) for tensor in (mine, reference))
    method = "exact" if len(first) < 50 else "asymp"
    return float(ks_2samp(first, second, method=method).pvalue)


def spread(tensor: torch.Tensor) -> torch.Tensor:
    """Return elements from all over a tensor."""
    flat = tensor.detach().flatten()
    return flat[torch.linspace(0, flat.numel() - 1, min(flat.numel(), MOST)).long()].double()
