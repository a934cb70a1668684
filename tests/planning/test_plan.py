"""Plans: values that can be looked into, compared, saved, bound to models and carried out."""

import dataclasses
import json
import pickle

import pytest
import torch
from torch import nn

from torch_initpolicy.api import apply_policy
from torch_initpolicy.errors import PlanError, PolicyError, UnknownNameError, VerifyError
from torch_initpolicy.planning.decide import make_plan
from torch_initpolicy.planning.plan import Plan, Receipt
from torch_initpolicy.policy import match, presets
from torch_initpolicy.policy.rules import InitPolicy, Rule
from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.tensors.initializers import (
    ICNR,
    Blocks,
    BranchScaled,
    Constant,
    From,
    Keep,
    Normal,
    Ones,
    Orthogonal,
    TruncatedNormal,
    Uniform,
    Zeros,
    he_normal,
    xavier_normal,
)
from torch_initpolicy.trace.facts import Facts


def network(width=50):
    """Three hidden layers and a head."""
    return nn.Sequential(
        nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
    )


def facts(model, **changes):
    """Facts as a trace of the network above gives them."""
    known = {
        site.name: Facts(site.role, site.axes, used=True, evidence="traced")
        for site in sites(model)
    }
    relu = Activation("relu")
    for name, change in {
        "0.weight": {"meets": relu, "reads_input": True},
        "2.weight": {"meets": relu, "fed_by": relu},
        "4.weight": {"fed_by": relu, "feeds_output": True},
    }.items():
        known[name] = dataclasses.replace(known[name], **{**change, **changes.get(name, {})})
    return known


def plan(policy="auto", model=None, **options):
    """Plan for the network above."""
    model = network() if model is None else model
    made = make_plan(model, facts(model), presets.policy(policy))
    return dataclasses.replace(made, **options)


class TestLooking:
    """A plan can be looked into."""

    def test_by_name_and_in_order(self):
        """Steps are found by name, and iterated over in the model's order."""
        made = plan()

        assert made["2.weight"].shape == (50, 50)
        assert [step.name for step in made] == [name for name, _ in network().named_parameters()]
        assert len(made) == len(made.steps) == 6

    def test_unknown_name(self):
        """A name that is not there is an error with a suggestion."""
        with pytest.raises(UnknownNameError, match=r"did you mean '2\.weight'"):
            plan()["2.wieght"]

    def test_print(self):
        """Printing gives the header, an empty line and the table."""
        made = plan(unknown_operators=(("my_op", 3),))
        text = str(made)

        assert text.startswith("policy auto: 6 parameters, 3,204 elements; 0 kept\n")
        assert "my_op 3" in text
        assert "meets relu: He normal, fan_in 8, gain 1.41421" in text
        assert "\n\nparameter" in text

    def test_untraced(self):
        """What kept the forward pass from being read is printed, and survives the file."""
        made = plan(untraced="ValueError: two of them")

        assert "(ValueError: two of them)" in str(made)
        assert Plan.from_json(made.to_json()).untraced == "ValueError: two of them"

    def test_traced(self):
        """A plan that misses nothing says nothing of it, in print or in a file."""
        assert "no inputs" not in str(plan())
        assert "untraced" not in plan().to_json()
        assert Plan.from_json(plan().to_json()).untraced is None

    def test_policy(self):
        """The plan knows the policy's name and hash."""
        assert plan("he").policy == "he"
        assert plan("he").policy_hash == presets.he().hash

    def test_policy_with_code(self):
        """A policy with functions of the user's has no hash, and a plan all the same."""
        made = plan(InitPolicy().otherwise(lambda tensor: tensor.zero_()))

        assert made.policy == "custom"
        assert made.policy_hash is None


class TestComparing:
    """Plans are compared by their outcome."""

    def test_no_difference(self):
        """The same policy comes to the same, on another model too."""
        difference = plan().diff(plan())

        assert not difference
        assert str(difference) == "no difference"
        assert plan().hash == plan().hash

    def test_reasons_do_not_count(self):
        """Two ways to the same numbers differ in nothing."""
        he, habit = plan("he"), InitPolicy([Rule(match.name("*.bias"), Zeros(), "habit")])
        other = plan(habit.otherwise(presets.he()))

        assert other["0.bias"] != he["0.bias"]
        assert not other.diff(he)
        assert other.hash == he.hash

    def test_changed(self):
        """What is filled differently is listed, repeated rows in one line."""
        text = str(plan("xavier").diff(plan("zeros")))

        assert text.splitlines() == [
            "~ 0.weight  50x8 float32: Xavier normal, fans 8 + 50 -> 50x8 float32: zeros",
            "~ 2.weight  50x50 float32: Xavier normal, fans 50 + 50 -> 50x50 float32: zeros",
            "~ 4.weight  4x50 float32: Xavier normal, fans 50 + 4 -> 4x50 float32: zeros",
        ]

    def test_added_and_removed(self):
        """Sites that only one plan has are listed as well."""
        small = make_plan(nn.Sequential(nn.Linear(8, 50)), {}, presets.he())
        difference = plan("he").diff(small)

        assert [step.name for step in difference.removed] == [
            "2.weight",
            "2.bias",
            "4.weight",
            "4.bias",
        ]
        assert difference.added == ()
        assert [step.name for step in small.diff(plan("he")).added] == [
            step.name for step in difference.removed
        ]
        assert "- 4.bias  4 float32: zeros" in str(difference)
        assert "+ 4.bias  4 float32: zeros" in str(small.diff(plan("he")))

    @pytest.mark.parametrize(
        "change",
        [
            {"shape": (50, 9)},
            {"dtype": torch.float64},
            {"initializer": Normal(0.1)},
            {"facts": Facts("weight", Axes(inputs=(0,), outputs=(1,)))},
            {"facts": Facts("weight", Axes((1,), (0,)), padding=0)},
        ],
        ids=str,
    )
    def test_what_counts(self, change):
        """Everything that decides about a number makes another plan."""
        made = plan()
        other = dataclasses.replace(
            made, steps=(dataclasses.replace(made.steps[0], **change), *made.steps[1:])
        )

        assert len(made.diff(other).changed) == 1
        assert made.hash != other.hash


FILLINGS = [
    Zeros(),
    Ones(),
    Constant(1 / 3),
    Normal(0.1, 0.2),
    TruncatedNormal(0.02, cut=float("inf")),
    Uniform(-1, 1),
    xavier_normal(),
    Orthogonal(2.0),
    BranchScaled(Normal(0.02)),
    Keep(),
    From(nn.init.kaiming_normal_, a=0.1),
]


class TestSaving:
    """JSON."""

    @pytest.mark.parametrize("filling", FILLINGS, ids=repr)
    def test_round_trip(self, filling):
        """A plan that is read is equal to the one that was written, and has its hash."""
        policy = InitPolicy([Rule(match.role("weight"), filling)]).otherwise(Zeros())
        made = plan(policy, unknown_operators=(("my_op", 3),))
        again = Plan.from_json(made.to_json())

        assert again == made
        assert again.hash == made.hash
        assert again.model is None

    def test_packed(self):
        """Tuples of fans and deviations, axes, padding and ties survive."""
        model = nn.ModuleDict(
            {
                "lstm": nn.LSTM(3, 4),
                "wte": nn.Embedding(9, 4, padding_idx=2),
                "head": nn.Linear(4, 9, bias=False),
                "up": nn.Conv2d(3, 8, 3),
            }
        )
        model["head"].weight = model["wte"].weight
        gqa = Axes(inputs=(1,), outputs=(0,), blocks=(6, 1, 1))
        known = {"up.weight": Facts("weight", gqa)}
        policy = InitPolicy([Rule(match.name("up.weight"), xavier_normal())])
        made = make_plan(model, known, policy.otherwise(presets.auto()))

        assert isinstance(made["up.weight"].std, tuple)
        assert isinstance(made["lstm.bias_ih_l0"].initializer, Blocks)
        assert Plan.from_json(made.to_json()) == made

    def test_nested(self):
        """Initializers within initializers survive."""
        model = nn.Conv2d(3, 8, 3)
        policy = InitPolicy([Rule(match.role("weight"), ICNR(he_normal()))]).otherwise(Zeros())
        made = make_plan(model, {}, policy)

        assert Plan.from_json(made.to_json()) == made

    def test_plain_words(self):
        """Other programs read numbers, words and null."""
        data = json.loads(plan(unknown_operators=(("my_op", 3),)).to_json())
        step = data["steps"][0]

        assert data["format"] == 2
        assert data["policy"] == "auto"
        assert data["unknown_operators"] == {"my_op": 3}
        assert step["dtype"] == "float32"
        assert step["shape"] == [50, 8]
        assert step["meets"] == "relu"
        assert step["fed_by"] is None
        assert (step["fan_in"], step["fan_out"]) == (8, 50)
        assert step["std"] == 0.5
        assert step["initializer"]["class"] == "VarianceScaling"

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"format": 3}, PolicyError, "no plan of format = 1 or 2"),
            ({"steps": {}}, PolicyError, "steps is an array"),
            ({"steps": [3]}, PolicyError, r"plan\.steps\[0\]: a step is an object"),
            ({"steps": [{"nmae": "x"}]}, UnknownNameError, "did you mean 'name'"),
            ({"policy": 3}, PolicyError, "plan.policy must be"),
            ({"unknown_operators": []}, PolicyError, "unknown_operators"),
            ({"unknown_operators": {"x": "y"}}, PolicyError, "unknown_operators.x must be"),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_refused(self, change, error, words):
        """What is no plan is refused, at its place."""
        data = json.loads(plan().to_json()) | change

        with pytest.raises(error, match=words):
            Plan.from_json(json.dumps(data))

    def test_pickle(self):
        """A plan goes to other processes, its model with it."""
        made = plan()
        again = pickle.loads(pickle.dumps(made))

        assert again == made
        assert [name for name, _ in again.model.named_parameters()] == [step.name for step in made]


class TestBinding:
    """A plan is for a model, or for another one of the same sites."""

    def test_other_model(self):
        """The same architecture takes it, in another dtype too."""
        other = network().double()
        bound = Plan.from_json(plan().to_json()).on(other)

        assert bound.model is other
        assert {site.dtype for site, _ in bound.pairs()} == {torch.float64}

    def test_other_sites(self):
        """Every parameter that is missing, too many, or of another shape is listed."""
        other = nn.Sequential(nn.Linear(8, 50), nn.ReLU(), nn.Linear(50, 51), nn.PReLU())

        with pytest.raises(PlanError) as caught:
            plan().on(other)
        text = str(caught.value)

        assert text.count("\n  - ") == 5
        assert "the model has no parameter '4.weight'" in text
        assert "the plan has no step for '3.weight'" in text
        assert "'2.bias' has shape (51,) here, its step is for (50,)" in text

    def test_other_ties(self):
        """A tie that has been loosened, or made, is another model."""
        tied = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        made = make_plan(tied, {}, presets.he())
        tied[1].weight = tied[0].weight

        with pytest.raises(PlanError, match=r"the model has no parameter '1\.weight'"):
            made.pairs()

    def test_parameters_as_they_are_now(self):
        """Parameters that were replaced since planning are found anew."""
        model = network()
        made = plan(model=model)
        model[0].weight = nn.Parameter(torch.zeros(50, 8))
        made.apply(seed=0)

        assert model[0].weight.std() > 0.4

    def test_no_model(self):
        """A plan from a file asks for a model."""
        read = Plan.from_json(plan().to_json())

        with pytest.raises(PlanError, match=r"plan\.apply\(model\)"):
            read.apply(seed=0)
        with pytest.raises(PlanError, match=r"plan\.on\(model\)"):
            read.verify()


class TestCarryingOut:
    """Apply and verify."""

    def test_apply_and_verify(self):
        """What is written is what the plan says, and can be measured."""
        made = plan()
        receipt = made.apply(seed=3)

        assert isinstance(receipt, Receipt)
        assert (receipt.seed, receipt.plan) == (3, made)
        assert made.verify().ok
        assert made.verify(made.model).ok

    def test_verify_finds(self):
        """A tensor that is not what its step says is named."""
        made = plan()
        made.apply(seed=3)
        with torch.no_grad():
            made.model[2].weight.mul_(1.5)

        with pytest.raises(VerifyError, match=r"2\.weight"):
            made.verify()

    def test_other_model_same_bits(self):
        """A plan from a file writes the same bits to another model."""
        made = plan()
        made.apply(seed=3)
        other = network()
        Plan.from_json(made.to_json()).apply(other, seed=3)

        assert all(map(torch.equal, made.model.parameters(), other.parameters()))


def symmetric(policy, **changes):
    """Return the names of the steps that a plan warns of."""
    model = network()
    made = make_plan(model, facts(model, **changes), presets.policy(policy))
    return [step.name for step in made.symmetric]


class TestSymmetric:
    """Plans that would make hidden units alike."""

    @pytest.mark.parametrize("policy", ["zeros", "ones", presets.constant(0.1)], ids=str)
    def test_constants(self, policy):
        """A constant on every layer makes all hidden units alike; the head is none."""
        assert symmetric(policy) == ["0.weight", "2.weight"]

    @pytest.mark.parametrize(
        "policy", sorted(set(presets.__all__) - {"zeros", "ones", "constant", "mup", "complete_p"})
    )
    def test_the_other_presets(self, policy):
        """No other preset does that."""
        assert symmetric(policy) == []

    def test_one_layer(self):
        """A constant layer before a random one comes apart at once; a dead one never does."""
        ones = InitPolicy([Rule(match.name("0.weight"), Ones())]).otherwise(presets.he())
        zeros = InitPolicy([Rule(match.name("0.weight"), Zeros())]).otherwise(presets.he())

        assert symmetric(ones) == []
        assert symmetric(zeros) == ["0.weight"]

    @pytest.mark.parametrize("activation", ["tanh", "gelu", "sigmoid"])
    def test_open_at_zero(self, activation):
        """Zeros before an activation that lets a gradient through come apart."""
        zeros = InitPolicy([Rule(match.name("0.weight"), Zeros())]).otherwise(presets.he())

        assert symmetric(zeros, **{"0.weight": {"meets": Activation(activation)}}) == []

    def test_ends_of_branches(self):
        """The last weight of a residual branch may be zero."""
        ends = {name: {"ends_residual": True} for name in ("0.weight", "2.weight")}

        assert symmetric("zeros", **ends) == []

    @pytest.mark.parametrize(
        ("neighbours", "expected"),
        [
            (("4.weight",), ["0.weight"]),
            (("2.weight",), []),
            (("2.weight", "4.weight"), []),
            ((), []),
            (("0.bias",), []),
            (None, []),
        ],
        ids=str,
    )
    def test_by_the_data_flow(self, neighbours, expected):
        """All that is next in the data flow must be constant, whatever is registered next."""
        model = network()
        ends = InitPolicy([Rule(match.name("0.weight", "4.weight"), Ones())])
        known = facts(model, **{"0.weight": {"neighbours": neighbours}})
        made = make_plan(model, known, ends.otherwise(presets.he()))

        assert [step.name for step in made.symmetric] == expected
        assert Plan.from_json(made.to_json()) == made

    def test_a_file_of_before(self):
        """A plan whose steps know of no data flow is judged by the order of registration."""
        data = json.loads(plan("ones").to_json())

        assert all("neighbours" not in step for step in data["steps"])
        assert [step.name for step in Plan.from_json(json.dumps(data)).symmetric] == [
            "0.weight",
            "2.weight",
        ]

    def test_one_unit(self):
        """A layer of a single unit has nothing to be like."""
        model = network(width=1)
        made = make_plan(model, facts(model), presets.ones())

        assert made.symmetric == ()

    def test_said_when_printed(self):
        """The table says so at its head."""
        assert "hidden units left identical, so that they learn as one: {0,2}.weight" in str(
            plan("zeros")
        )
        assert "identical" not in str(plan("he"))


def test_a_prompt_is_not_flooded():
    """What a Python prompt echoes of a plan or a receipt fits a line, however large the model."""
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(30)))
    receipt = apply_policy(model, seed=0)

    assert repr(receipt.plan) == "<Plan of 60 parameters by 'auto': print it>"
    assert repr(receipt) == f"<Receipt: {receipt}>"
