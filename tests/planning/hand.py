"""Models and facts made by hand, and plans for them."""

import dataclasses

import pytest
from torch import nn

from torch_initpolicy.errors import PlanError
from torch_initpolicy.planning.decide import make_plan
from torch_initpolicy.planning.selection import Selection
from torch_initpolicy.policy.rules import InitPolicy
from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.tensors.initializers import (
    Keep,
)
from torch_initpolicy.trace.facts import Facts


def network():
    """Three layers of known sizes."""
    return nn.Sequential(nn.Linear(8, 50), nn.ReLU(), nn.BatchNorm1d(50), nn.Linear(50, 4))


def facts(model, **changes):
    """Say about each site of a model what its type says, and more of the sites that are named."""
    known = {
        site.name: Facts(site.role, site.axes, used=True, evidence="traced")
        for site in sites(model)
    }
    named = {name.replace("__", "."): change for name, change in changes.items()}
    return {
        name: dataclasses.replace(fact, **named.get(name.replace(".", "_"), {}))
        for name, fact in known.items()
    }


RELU = {"meets": Activation("relu")}


def plan(model, *rules, known=None, **options):
    """Plan for a model by rules; what they do not match is kept."""
    policy = InitPolicy(rules).otherwise(Keep())
    known = facts(model) if known is None else known
    return make_plan(model, known, policy, Selection.of(**options))


def cases(model, *rules, **options):
    """Return what planning has to complain about, one line for each case."""
    with pytest.raises(PlanError) as caught:
        plan(model, *rules, **options)
    return [line for line in str(caught.value).splitlines() if line.startswith("  ")]
