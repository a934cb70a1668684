"""Planning: one step for each site, and everything that is wrong raised once."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.planning.hand import RELU, cases, facts, network, plan
from torch_initpolicy.errors import PlanError, PolicyError
from torch_initpolicy.planning.decide import make_plan
from torch_initpolicy.planning.selection import Selection
from torch_initpolicy.policy import match, presets
from torch_initpolicy.policy.rules import InitPolicy, Rule
from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.gains import Activation, gain
from torch_initpolicy.tensors.initializers import (
    Blocks,
    BranchScaled,
    DeltaOrthogonal,
    Dirac,
    From,
    Keep,
    Normal,
    Ones,
    Orthogonal,
    Uniform,
    VarianceScaling,
    Zeros,
    he_normal,
    xavier_normal,
)
from torch_initpolicy.testing import assert_untouched

BY_MEETING = (
    Rule(match.meets("relu"), he_normal("meets")),
    Rule(match.role("weight"), xavier_normal()),
)


def gated():
    """Say that the first layer packs 30 units that meet a ReLU and 20 that meet nothing."""
    axes = Axes(inputs=(1,), outputs=(0,), blocks=(30, 20))
    known = facts(network(), **{"0_weight": {**RELU, "op": "linear", "axes": axes}})
    first = known["0.weight"]
    blocks = first, dataclasses.replace(first, meets=None)
    return known | {"0.weight": dataclasses.replace(first, blocks=blocks)}


class TestSteps:
    """What a step says."""

    def test_every_field(self):
        """The fields of a hidden layer's weight, worked out by hand."""
        known = facts(network(), **{"0_weight": {**RELU, "op": "linear", "used": True}})
        step = make_plan(network(), known, presets.auto())["0.weight"]

        assert step.name == "0.weight"
        assert step.names == ("0.weight",)
        assert step.shape == (50, 8)
        assert step.dtype == torch.float32
        assert step.owner == "Linear"
        assert step.role == "weight"
        assert step.op == "linear"
        assert step.meets == "relu"
        assert step.fed_by is None
        assert (step.fan_in, step.fan_out) == (8, 50)
        assert step.initializer.gain == pytest.approx(2**0.5)
        assert step.std == pytest.approx(0.5)
        assert step.rule == "role('weight') & meets('rectifier')"
        assert step.evidence == "traced"
        assert step.reason == "meets relu: He normal, fan_in 8, gain 1.41421"

    def test_one_step_for_each_site_in_order(self):
        """As many as `named_parameters`, under the same names."""
        model = network()

        assert [step.name for step in plan(model)] == [name for name, _ in model.named_parameters()]

    def test_ties(self):
        """A tied tensor is one step with all its names, and any of them finds it (D25)."""
        model = nn.ModuleDict({"wte": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
        model["head"].weight = model["wte"].weight
        made = plan(model, Rule(match.name("head.weight"), Normal(0.1)))

        assert [step.names for step in made] == [("wte.weight", "head.weight")]
        assert made["head.weight"] is made["wte.weight"]
        assert made["wte.weight"].std == 0.1

    def test_facts_may_be_missing(self):
        """A site of which nothing is known is planned by its type, and says so."""
        step = make_plan(network(), {}, presets.auto())["0.weight"]

        assert step.evidence == "type"
        assert step.reason == "meets nothing: Xavier normal, fans 8 + 50"

    def test_axes_of_the_trace_win(self):
        """What the data flow says of the axes is what fans are counted from."""
        transposed = Axes(inputs=(0,), outputs=(1,))
        known = facts(network(), **{"0_weight": {"axes": transposed}})
        step = plan(network(), Rule(match.name("0.weight"), he_normal()), known=known)["0.weight"]

        assert (step.axes, step.fan_in, step.fan_out) == (transposed, 50, 8)

    def test_packed_blocks(self):
        """Blocks of unequal size have fans and deviations of their own; equal ones share."""
        unequal = Axes(inputs=(1,), outputs=(0,), blocks=(30, 10, 10))
        known = facts(network(), **{"0_weight": {"axes": unequal}})
        step = plan(network(), Rule(match.name("0.weight"), xavier_normal()), known=known)[
            "0.weight"
        ]

        assert step.fan_in == 8
        assert step.fan_out == (30, 10, 10)
        assert step.std == pytest.approx([(2 / 38) ** 0.5, (2 / 18) ** 0.5, (2 / 18) ** 0.5])
        assert step.reason.endswith("fans 8 + 30/10/10, each of 3 blocks")

    def test_blocks_that_meet_different_things(self):
        """Each block has the initializer of its own rule, with the numbers of what it meets."""
        step = plan(network(), *BY_MEETING, known=gated())["0.weight"]

        relu = VarianceScaling(gain=gain(Activation("relu")))
        assert step.initializer == Blocks((relu, xavier_normal()))
        assert step.std == pytest.approx([(2 / 8) ** 0.5, (2 / (8 + 20)) ** 0.5])
        assert (step.meets, step.fan_out) == ("relu", (30, 20))
        assert step.rule == "meets('relu'); role('weight')"
        assert step.reason == (
            "block 0 meets relu: He normal, fan_in 8, gain 1.41421; "
            "block 1 meets nothing: Xavier normal, fans 8 + 20"
        )

    def test_blocks_that_come_to_the_same(self):
        """Where every block has the same initializer, the step is that of a single rule."""
        rule = Rule(match.name("0.weight"), xavier_normal())
        step = plan(network(), rule, known=gated())["0.weight"]

        assert (step.initializer, step.rule) == (xavier_normal(), "name('0.weight')")
        assert step.reason == "meets relu: Xavier normal, fans 8 + 30/20, each of 2 blocks"

    def test_one_rule_with_the_gain_of_each_block(self):
        """A rule by name that asks for the gain gets that of each block."""
        rule = Rule(match.name("0.weight"), he_normal("meets"))
        step = plan(network(), rule, known=gated())["0.weight"]

        assert step.std == pytest.approx([(2 / 8) ** 0.5, (1 / 8) ** 0.5])
        assert step.rule == "name('0.weight')"

    @pytest.mark.parametrize(
        ("blocks", "expected"),
        [
            (Blocks((Ones(), Zeros())), Blocks((Ones(), Zeros()))),
            (
                Blocks((Orthogonal("meets"), Orthogonal("meets"))),
                Blocks((Orthogonal(gain(Activation("relu"))), Orthogonal(1.0))),
            ),
        ],
        ids=["numbers", "gains"],
    )
    def test_rules_that_fill_each_block(self, blocks, expected):
        """A rule may name the initializer of each block; each has the gain of its own."""
        step = plan(network(), Rule(match.name("0.weight"), blocks), known=gated())["0.weight"]

        assert step.initializer == expected

    @pytest.mark.parametrize(
        "whole",
        [Keep(), nn.init.xavier_normal_, Blocks((Ones(), Ones(), Ones()))],
        ids=["keep", "function", "other blocks"],
    )
    def test_what_cannot_fill_a_block(self, whole):
        """Where one block's rule speaks of whole tensors alone, the rule of the site decides."""
        rules = Rule(match.meets("relu"), Ones()), Rule(match.name("0.weight"), whole)
        step = plan(network(), *rules, known=gated())["0.weight"]

        assert (step.initializer, step.rule) == (Ones(), "meets('relu')")

    def test_blocks_without_a_rule(self):
        """Where no rule matches a block, the rule of the site decides about it too."""
        rules = Rule(match.meets("relu"), Ones()), Rule(match.name("2.*", "3.*", "*.bias"), Zeros())

        assert make_plan(network(), gated(), InitPolicy(rules))["0.weight"].initializer == Ones()

    def test_rules_that_decide_about_a_block_are_not_idle(self):
        """A rule that one block of one site needs has been used."""
        rules = (Rule(match.role("weight") & match.meets("nothing") & match.op("linear"), Zeros()),
                 Rule(match.role("weight"), Ones()))  # fmt: skip
        step = plan(network(), *rules, known=gated())["0.weight"]

        assert step.initializer == Blocks((Ones(), Zeros()))

    def test_symbols_become_numbers(self):
        """Gains and the number of branches come from the facts of the site."""
        known = facts(
            network(),
            **{
                "0_weight": {"meets": Activation("leaky_relu", 0.2), "fed_by": Activation("gelu")},
                "3_weight": {"ends_residual": True, "residual_branches": 16},
            },
        )
        made = plan(
            network(),
            Rule(match.ends_residual(), BranchScaled(Normal(0.02))),
            Rule(match.meets("leaky_relu"), VarianceScaling(gain="fed_by")),
            known=known,
        )

        assert made["0.weight"].initializer.gain == pytest.approx(1.53353, abs=1e-5)
        assert made["0.weight"].reason == "fed by gelu: He normal, fan_in 8, gain 1.53353"
        assert made["3.weight"].initializer == Normal(0.005)
        assert made["3.weight"].reason.endswith("scaled for 16 residual branches")

    def test_padding(self):
        """The padding row is in the step and in the reason (D27)."""
        step = make_plan(nn.Embedding(9, 4, padding_idx=-1), {}, presets.auto())["weight"]

        assert step.padding == 8
        assert step.reason == "embedding: normal, std 0.02, row 8 zero"

    def test_no_gain(self):
        """An activation of which nobody knows the gain gets 1, and no error."""
        known = facts(network(), **{"0_weight": {"meets": Activation("softmin")}})

        assert make_plan(network(), known, presets.auto())["0.weight"].initializer.gain == 1

    def test_function(self):
        """A function of the user's has no deviation, and its name is in the reason."""
        step = plan(network(), Rule(match.name("0.weight"), nn.init.dirac_))["0.weight"]

        assert step.std is None
        assert step.initializer == From(nn.init.dirac_)
        assert "torch.nn.init.dirac_" in step.reason

    def test_recipe_of_the_users(self):
        """A recipe sees the site and its facts, and may answer with a function."""

        @dataclasses.dataclass(frozen=True)
        class Deeper:
            def for_site(self, site, facts):
                return Normal(0.1) if "3" in site.name else nn.init.zeros_

        made = plan(network(), Rule(match.role("weight"), Deeper()))

        assert made["3.weight"].std == 0.1
        assert made["0.weight"].initializer == From(nn.init.zeros_)


class TestKept:
    """What is left alone, and why."""

    def test_frozen(self):
        """A parameter that requires no gradient is kept, unless asked for."""
        model = network()
        model[0].requires_grad_(False)
        kept = make_plan(model, {}, presets.he())
        written = make_plan(model, {}, presets.he(), Selection.of(frozen=True))

        assert kept["0.weight"].initializer == Keep()
        assert kept["0.weight"].rule == "frozen"
        assert "frozen (requires_grad=False)" in kept["0.weight"].reason
        assert written["0.weight"].std == 0.5

    def test_skip_and_only(self):
        """Skipped sites and those that are not asked for are kept, with the reason."""
        model = network()
        skipped = make_plan(model, {}, presets.he(), Selection.of(skip=["0.*", "*.bias"]))
        chosen = make_plan(model, {}, presets.he(), Selection.of(only=["0.*"], skip="*.bias"))

        assert [step.name for step in skipped if not step.keeps] == ["2.weight", "3.weight"]
        assert [step.name for step in chosen if not step.keeps] == ["0.weight"]
        assert skipped["0.bias"].reason == "kept: skip='0.*'"
        assert chosen["3.weight"].reason == "kept: not among only=..."
        assert (skipped["0.bias"].rule, chosen["3.weight"].rule) == ("skip", "only")

    def test_ties_are_skipped_by_any_name(self):
        """A tied tensor is skipped under each of its names."""
        model = nn.ModuleDict({"wte": nn.Embedding(9, 4), "head": nn.Linear(4, 9, bias=False)})
        model["head"].weight = model["wte"].weight

        made = make_plan(model, {}, presets.auto(), Selection.of(skip=["head.*"]))

        assert made["wte.weight"].keeps

    def test_raw_parameters(self):
        """Tables are kept by `auto`, and the plan says so."""
        known = facts(network(), **{"0_weight": {"role": "position"}})
        step = make_plan(network(), known, presets.auto())["0.weight"]

        assert step.keeps
        assert step.reason == "position: the constructor's value stays"
        assert step.std is None

    def test_integers(self):
        """Integers require no gradient and are kept like anything frozen."""
        model = nn.Module()
        model.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)

        assert make_plan(model, {}, InitPolicy().otherwise(Normal(1.0)))["codes"].keeps

    def test_lazy_and_left_alone(self):
        """A lazy parameter that is skipped hinders nobody."""
        model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 2))
        made = make_plan(model, {}, presets.auto(), Selection.of(skip=["0.*"]))

        assert made["0.weight"].keeps
        assert made["0.weight"].shape == ()
        assert not made["1.weight"].keeps


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
class TestEdges:
    """Sizes at the edge."""

    @pytest.mark.parametrize("name", ["auto", "he", "xavier", "orthogonal", "torch_default"])
    @pytest.mark.parametrize("size", [(0, 3), (3, 0), (0, 0), (1, 1)], ids=str)
    def test_zero_elements(self, name, size):
        """Tensors without elements have a step like any other."""
        made = make_plan(nn.Linear(*size), {}, presets.policy(name))

        assert [step.name for step in made] == ["weight", "bias"]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.cfloat])
    def test_dtypes(self, dtype):
        """Every dtype that numbers can be drawn for can be planned for."""
        made = make_plan(nn.Linear(8, 4, dtype=dtype), {}, presets.he())

        assert made["weight"].dtype == dtype
        assert made["weight"].std == 0.5

    def test_meta(self):
        """A model without memory can be planned for."""
        with torch.device("meta"):
            model = network()

        assert len(make_plan(model, {}, presets.auto())) == 6

    def test_sites_alone(self):
        """Sites will do; the plan then belongs to no model."""
        assert plan(sites(network()), known={}).model is None


class TestErrors:
    """Everything that is wrong, once."""

    def test_no_parameters(self):
        """A model without parameters is told so, not that its rules are idle."""
        assert cases(nn.ReLU()) == ["  - the model has no parameters"]

    def test_unmatched(self):
        """Each site without a rule is listed with its layer, role and shape."""
        with pytest.raises(PlanError) as caught:
            make_plan(network(), {}, InitPolicy([Rule(match.role("bias"), Zeros())]))

        assert "no rule matches '0.weight' (Linear, weight, (50, 8))" in str(caught.value)
        assert str(caught.value).count("no rule matches") == 4
        assert str(caught.value).endswith(
            "add a Rule for these, or end the policy with .otherwise(presets.auto())"
        )

    def test_an_initializer_for_weights_given_everything(self):
        """One that biases have no fans for is told how to get weights alone, once."""
        with pytest.raises(PlanError) as caught:
            make_plan(network(), {}, InitPolicy().otherwise(he_normal()))

        assert "'0.bias' (Linear, bias, (50,))" in str(caught.value)
        assert str(caught.value).count("Rule(match.role('weight'), ...)") == 1

    @pytest.mark.parametrize(
        "rule",
        [
            Rule(match.anything(), Uniform(-1e39, 1e39)),
            Rule(match.name("*"), he_normal()),
        ],
        ids=["too large", "by name"],
    )
    def test_other_failures_have_other_remedies(self, rule):
        """What fails at weights too, or was meant for these sites, is not taken for the same."""
        with pytest.raises(PlanError) as caught:
            make_plan(network(), {}, InitPolicy([rule]))

        assert "match.role" not in str(caught.value)

    def test_unmatched_but_left_alone(self):
        """A site that is kept anyway needs no rule."""
        policy = InitPolicy([Rule(match.role("bias"), Zeros())])
        made = make_plan(network(), {}, policy, Selection.of(only=["*.bias"], skip=["2.bias"]))

        assert made["0.weight"].keeps

    @pytest.mark.parametrize("argument", ["only", "skip"])
    def test_globs_that_match_nothing(self, argument):
        """They are listed, with the module that was probably meant."""
        model = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
        found = cases(model, **{argument: ["head.*", "encodr.*"]})

        assert len(found) == 1
        assert found[0].startswith(
            f"  - {argument}='encodr.*' matches nothing; did you mean 'encoder.*'"
        )

    def test_a_name_with_brackets(self):
        """A name means itself before it means a pattern: what the error suggests is accepted."""
        model = nn.Module()
        model.add_module("a[0]", nn.Linear(2, 2))
        made = plan(model, Rule(match.anything(), Zeros()), only=["a[0].weight"])

        assert [step.name for step in made if not step.keeps] == ["a[0].weight"]

    def test_malformed_globs(self):
        """A glob that cannot mean anything is an error of its own."""
        with pytest.raises(PolicyError, match="never closed"):
            plan(network(), only=["head["])

    @pytest.mark.parametrize(
        ("initializer", "words"),
        [
            (Orthogonal(), "does not fit"),
            (he_normal(), "does not fit"),
            (Dirac(), "does not fit"),
            (Blocks((Zeros(), Ones())), "2 initializers for 0 packed blocks"),
        ],
        ids=repr,
    )
    def test_shapes_that_do_not_fit(self, initializer, words):
        """A vector has no inputs and outputs, and nothing is packed in it."""
        found = cases(network(), Rule(match.role("bias"), initializer))

        assert len(found) == 2
        assert all(words in case for case in found)

    @pytest.mark.parametrize(
        ("layer", "words"),
        [(nn.Conv2d(3, 8, 2), "odd"), (nn.Conv2d(8, 3, 3), "as many outputs")],
        ids=["even kernel", "too few outputs"],
    )
    def test_delta_orthogonal(self, layer, words):
        """Kernels without a middle, or with more inputs than outputs, are refused in time."""
        (found,) = cases(layer, Rule(match.role("weight"), DeltaOrthogonal()))

        assert words in found

    def test_axes_that_do_not_fit(self):
        """Facts that contradict the shape are an error, not nonsense."""
        known = facts(network(), **{"0_weight": {"axes": Axes(inputs=(5,), outputs=(0,))}})
        found = cases(network(), Rule(match.role("weight"), he_normal()), known=known)

        assert len(found) == 1
        assert "names an axis" in found[0]

    def test_a_predicate_that_raises(self):
        """What the user's own function raises names the function and the site."""
        rule = Rule(match.predicate(lambda site, facts: site.shape[7] > 0), Zeros())

        with pytest.raises(PolicyError, match=r"IndexError.*at '0\.weight'"):
            plan(network(), rule)

    def test_all_at_once(self):
        """Mistakes of every kind are in one message, each in a line."""
        found = cases(
            network(),
            Rule(match.name("hat.*"), Zeros()),
            Rule(match.role("bias"), Orthogonal()),
            skip=["tail.*"],
        )

        assert len(found) == 4

    def test_many(self):
        """Of forty cases ten are shown and the others counted."""
        model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(40)))
        found = cases(model, Rule(match.role("bias"), Orthogonal()))

        assert len(found) == 11
        assert found[-1] == "  ... and 30 more"

    def test_nothing_is_touched(self):
        """Planning, in vain or not, leaves the model and all random states alone."""
        model = parametrizations.weight_norm(nn.Linear(3, 3))
        with assert_untouched(model):
            make_plan(model, {}, presets.auto())
            cases(model, Rule(match.role("bias"), Orthogonal()))
