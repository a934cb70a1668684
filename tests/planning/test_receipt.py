"""Receipts: they survive JSON, and writing again from one gives the same bits."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.writing.helpers import pairs, same, state, usual
from torch_initpolicy import apply_policy
from torch_initpolicy.errors import ApplyError, InitPolicyWarning, PlanError, PolicyError
from torch_initpolicy.planning.plan import Plan, Receipt
from torch_initpolicy.tensors.initializers import From, Keep, Normal, Orthogonal
from torch_initpolicy.writing.apply import apply_steps
from torch_initpolicy.writing.drawing import Drawing


def network():
    """A small model."""
    return nn.Sequential(nn.Linear(300, 400), nn.LayerNorm(400), nn.Linear(400, 5))


def planned(model, choose=usual):
    """A plan for a model without a policy."""
    steps = tuple(step for _, step in pairs(model, choose))
    return Plan(steps, policy="test", policy_hash="0123", model=model)


def written(model, choose=usual, seed=5, **options):
    """The receipt of having written a model."""
    plan = planned(model, choose)
    return Receipt.of(plan, apply_steps(plan.pairs(), Drawing(seed, **options)))


class TestJSON:
    """The JSON of a receipt says everything and can be read back."""

    def test_round_trip(self):
        """Reading what was written gives an equal receipt."""
        receipt = written(network())

        assert receipt == Receipt.from_json(receipt.to_json())

    @pytest.mark.parametrize("seed", [0, -1, 2**64 - 1])
    def test_seeds(self, seed):
        """Seeds of 64 bits survive, signed or not."""
        receipt = written(network(), seed=seed)

        assert Receipt.from_json(receipt.to_json()).seed == seed

    def test_content(self):
        """Seed, policy, plan, versions and device type stand at the top, in plain words."""
        data = json.loads(written(network()).to_json())

        assert data["seed"] == 5
        assert data["policy_hash"] == "0123"
        assert data["devices"] == ["cpu"]
        assert data["versions"]["torch"] == torch.__version__
        assert data["versions"]["streams"] == 1
        assert [step["name"] for step in data["plan"]["steps"]] == [
            name for name, _ in network().named_parameters()
        ]
        assert (data["written"], data["kept"]) == (6, 0)

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            pytest.param({"format": 3}, "no receipt of format = 1 or 2", id="format"),
            pytest.param({"plan": None}, "no plan", id="no plan"),
            pytest.param({"seed": "five"}, "receipt.seed must be", id="seed"),
            pytest.param({"devices": [1]}, "receipt.devices must be", id="devices"),
            pytest.param({"versions": None}, "receipt.versions must be", id="no versions"),
            pytest.param({"versions": {"class": "Plan"}}, "no class is called", id="class"),
        ],
    )
    def test_malformed(self, change, words):
        """What is no receipt is refused in words, before anything is done with it."""
        data = json.loads(written(network()).to_json())

        with pytest.raises(PolicyError, match=words):
            Receipt.from_json(json.dumps({**data, **change}))

    def test_no_json(self):
        """Any other text is refused too."""
        with pytest.raises(PolicyError, match="no JSON"):
            Receipt.from_json("seed 5")


class TestCounts:
    """A receipt counts."""

    def test_counts(self):
        """What was written and what was kept add up to all."""
        receipt = written(network(), lambda site: Keep() if "1." in site.name else Normal(0.1))

        assert (receipt.written, receipt.kept) == (4, 2)
        assert str(receipt).startswith("4 tensors written, 2 kept: policy 'test', seed 5, drawn on")

    def test_seconds(self):
        """Time passes."""
        assert 0 < written(network()).seconds < 60


class TestReproduce:
    """Writing again gives the same bits."""

    @pytest.mark.parametrize(
        "choose",
        [
            pytest.param(usual, id="elementwise"),
            pytest.param(
                lambda site: Orthogonal() if len(site.shape) > 1 else Normal(1.0), id="structured"
            ),
            pytest.param(
                lambda site: From(nn.init.normal_, std=0.1), id="function of torch.nn.init"
            ),
        ],
    )
    def test_same_bits(self, choose):
        """From JSON, to another model, with another number of threads."""
        model, other = network(), network()
        text = written(model, choose).to_json()
        again = Receipt.from_json(text).reproduce(other, threads=3)

        assert same(state(model), state(other))
        assert again.plan == Receipt.from_json(text).plan
        assert again.seed == 5

    def test_none(self):
        """A seed that nobody gave is in the receipt."""
        model, other = network(), network()
        written(model, seed=None).reproduce(other)

        assert same(state(model), state(other))

    def test_many_kept(self):
        """Repeated layers are listed in one line."""
        deep = nn.Sequential(*(nn.Linear(3, 3) for _ in range(40)))
        receipt = written(deep, lambda site: Keep())
        with pytest.warns(InitPolicyWarning, match=r"  - \{0-39\}\.weight: "):
            receipt.reproduce(deep)

    def test_kept(self):
        """What was kept is kept, and listed: it is another model's own."""
        model, other = network(), network()
        kept = state(other)["1.weight"]
        receipt = written(model, lambda site: Keep() if "1." in site.name else Normal(0.1))
        with pytest.warns(InitPolicyWarning, match="not reproduced") as caught:
            receipt.reproduce(other)

        (text,) = (str(warning.message) for warning in caught)
        assert "  - 1.weight: because a test says so\n" in text
        assert "  - 1.bias: because a test says so\n" in text
        assert "0.weight" not in text
        assert torch.equal(kept, other[1].weight)
        assert torch.equal(model[0].weight, other[0].weight)

    def test_other_model(self):
        """A model with other parameters is refused and stays as it is."""
        other = nn.Sequential(nn.Linear(3, 4))
        before = state(other)

        with pytest.raises(PlanError, match="not for this model"):
            written(network()).reproduce(other)

        assert same(before, state(other))

    def test_function_of_the_user(self):
        """A function that JSON cannot hold is named."""
        model = network()
        receipt = written(model, lambda site: From(lambda tensor: tensor.fill_(1.0)))
        restored = Receipt.from_json(receipt.to_json())

        with pytest.raises(ApplyError, match="by name only; make the plan anew"):
            restored.reproduce(network())

    def test_other_streams(self):
        """Another contract gives other bits, so it is refused."""
        receipt = written(network())
        older = replace(receipt, versions=replace(receipt.versions, streams=0))

        with pytest.raises(ApplyError, match="random streams v0"):
            older.reproduce(network())

    @pytest.mark.parametrize(
        "change", [{"torch": "2.0.0"}, {"capability": "NO AVX"}], ids=["torch", "instructions"]
    )
    def test_other_kernels(self, change):
        """Another torch may give other bits, so it warns."""
        receipt = written(network())
        older = replace(receipt, versions=replace(receipt.versions, **change))

        with pytest.warns(InitPolicyWarning, match="the bits may differ"):
            older.reproduce(network())


def test_other_ties():
    """A model whose parameters are tied otherwise is not reproduced, even where the names agree."""

    def model(*ties):
        made = nn.ModuleList(nn.Linear(3, 3, bias=False) for _ in range(4))
        for first, second in ties:
            made[second].weight = made[first].weight
        return made

    receipt = apply_policy(model((0, 2), (1, 3)), "he", seed=0)
    receipt.reproduce(model((0, 2), (1, 3)))
    other = model((0, 3), (1, 2))
    before = [parameter.clone() for parameter in other.parameters()]
    with pytest.raises(PlanError, match=r"'0\.weight' is tied as"):
        receipt.reproduce(other)

    assert all(map(torch.equal, before, other.parameters()))
