"""Receipts of parts make up the receipt of the whole, or say why they do not."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from torch_initpolicy import Plan, plan_policy
from torch_initpolicy.errors import PlanError, VerifyError
from torch_initpolicy.planning.parts import joined


def whole():
    """Build a model of three layers."""
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def halves(seeds=(0, 0)):
    """Write the first layer and the two others apart; return the receipts."""
    plan = Plan.from_json(plan_policy(whole()).to_json())
    first, second = (
        nn.Sequential(nn.Linear(6, 8)),
        nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 2)]),
    )
    return [
        plan.on(first, {"0": "0"}).apply(seed=seeds[0]),
        plan.on(second, {"0": "2", "1": "4"}).apply(seed=seeds[1]),
    ]


def test_joined():
    """Parts have the bits of the whole, and their receipts its fingerprint and its steps."""
    model = whole()
    expected = plan_policy(model).apply(seed=0)
    found = joined(halves())

    assert found.fingerprint == expected.fingerprint
    assert {step.name for step in found.plan} == {step.name for step in expected.plan}
    found.check_bits(model)
    found.verify(model)
    assert found.reproduce(whole()).fingerprint == expected.fingerprint


def test_other_seeds():
    """Parts of different seeds are no model."""
    with pytest.raises(PlanError, match="have one seed"):
        joined(halves(seeds=(0, 1)))
    with pytest.raises(PlanError, match="have one seed"):
        joined([])


def test_other_bits():
    """A tensor that two parts hold has the same bits in both."""
    plan = plan_policy(nn.Sequential(nn.Linear(4, 4)))
    first, second = (plan.on(nn.Linear(4, 4), "0").apply(seed=0) for _ in range(2))
    prints = dict(second.fingerprints) | {"0.bias": "0" * 16}
    changed = replace(second, fingerprints=tuple(prints.items()))

    assert joined([first, second]).fingerprint == first.fingerprint
    with pytest.raises(VerifyError, match=r"0\.bias"):
        joined([first, changed])


class Tied(nn.Module):
    """An embedding and a head, with one matrix or with two."""

    def __init__(self, *, tied):
        super().__init__()
        self.embedding, self.head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        if tied:
            self.head.weight = self.embedding.weight


@pytest.mark.parametrize(
    ("part", "names", "words"),
    [
        (nn.Linear(6, 8), "9", "no step for '9.weight', 'weight' here"),
        (nn.Linear(6, 7), "0", r"'0.weight' has shape \(7, 6\) here"),
        (nn.ModuleList([nn.Linear(6, 8), nn.Linear(6, 8)]), {"0": "0", "1": "0"}, "2 tensors here"),
    ],
)
def test_what_is_no_part(part, names, words):
    """A name that the plan has not, another shape, and one tensor twice are said in one error."""
    with pytest.raises(PlanError, match=words):
        plan_policy(whole()).on(part, names)


@pytest.mark.parametrize("names", [["0"], 3, lambda name: None], ids=["list", "number", "None"])
def test_what_names_nothing(names):
    """Names of no kind that is known are refused in words."""
    with pytest.raises(PlanError, match=r"got \['0'\]|got 3|no step for 'None'"):
        plan_policy(whole()).on(nn.Linear(6, 8), names)


def test_a_tie_that_is_cut():
    """Each part has the bits of a tied tensor under whichever of its names it is there."""
    plan = plan_policy(Tied(tied=True), "normal")
    embedding, head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
    plan.on(embedding, "embedding").apply(seed=3)
    plan.on(head, "head").apply(seed=3)

    assert torch.equal(embedding.weight, head.weight)
    with pytest.raises(PlanError, match="is 2 tensors here; tie them"):
        plan.on(Tied(tied=False), "")


def test_a_seed_is_asked_for():
    """Processes that do not talk cannot agree on a fresh seed."""
    plan = plan_policy(whole()).on(nn.Linear(6, 8), lambda name: f"0.{name}")
    with pytest.raises(PlanError, match="say which: seed=0"):
        plan.apply()
