"""The verbs, end to end: what a user is promised of planning, applying and materialising."""

import copy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import torch_initpolicy
from torch_initpolicy import (
    InitPolicy,
    Rule,
    apply_policy,
    initializers,
    match,
    plan_policy,
    presets,
)
from torch_initpolicy.errors import (
    ApplyError,
    OverwrittenWarning,
    PlanError,
    PolicyError,
    SymmetricInitWarning,
    TraceError,
    UnknownNameError,
    UnknownOperatorWarning,
    UnusedRuleWarning,
    VerifyError,
)
from torch_initpolicy.testing import assert_untouched


def small() -> nn.Sequential:
    """Return a network with a convolution, a norm, a linear layer and an embedding-free head."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    )


def trained(model: nn.Module) -> nn.Module:
    """Take a few steps of training."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    return model


def bits(model: nn.Module) -> dict[str, Tensor]:
    """Copy a model's state."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Compare two states bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


X = torch.zeros(2, 3, 8, 8)


class TestSameSeedSameWeights:
    """Values depend on seed, name, shape and initializer, and on nothing else."""

    def test_threads(self):
        """One thread or three draw the same bits."""
        models = [small() for _ in range(2)]
        for model, threads in zip(models, (1, 3), strict=True):
            apply_policy(model, seed=1, example_inputs=X, threads=threads)

        assert equal(*map(bits, models))

    def test_order_of_modules(self):
        """Registering the same layers in another order changes nothing."""

        class Net(nn.Module):
            def __init__(self, names: tuple[str, ...]) -> None:
                super().__init__()
                for name in names:
                    self.add_module(name, nn.Linear(4, 4))

            def forward(self, x: Tensor) -> Tensor:
                return self.get_submodule("b")(torch.relu(self.get_submodule("a")(x)))

        first, second = Net(("a", "b")), Net(("b", "a"))
        for model in (first, second):
            apply_policy(model, seed=1, example_inputs=torch.zeros(1, 4))

        assert equal(bits(first), {name: bits(second)[name] for name in bits(first)})

    def test_a_part_is_like_the_whole(self):
        """A site gets the same values whether or not others are written."""
        whole, part = small(), small()
        before = bits(part)
        apply_policy(whole, seed=1, example_inputs=X)
        apply_policy(part, seed=1, example_inputs=X, only=["4.*"])

        assert torch.equal(whole[4].weight, part[4].weight)
        assert torch.equal(part[0].weight, before["0.weight"])

    def test_half_precision_is_the_rounded_single(self):
        """bfloat16 weights are the float32 weights, rounded."""
        single, half = small(), small().to(torch.bfloat16)
        for model in (single, half):
            apply_policy(model, seed=1)

        for name, tensor in single.state_dict().items():
            assert torch.equal(tensor.to(half.state_dict()[name].dtype), half.state_dict()[name])

    def test_memory_format(self):
        """channels_last holds the same logical tensor."""
        plain, last = small(), small().to(memory_format=torch.channels_last)
        for model in (plain, last):
            apply_policy(model, seed=1, example_inputs=X)

        assert equal(bits(plain), bits(last))

    def test_another_process(self):
        """Another process draws the same bits."""
        code = (
            "import torch; from torch import nn; from torch_initpolicy import apply_policy;"
            "m = nn.Sequential(nn.Linear(7, 5), nn.ReLU()); apply_policy(m, seed=2**63 + 11);"
            "print(m[0].weight.view(torch.int32).flatten().tolist())"
        )
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        model = nn.Sequential(nn.Linear(7, 5), nn.ReLU())
        apply_policy(model, seed=2**63 + 11)

        assert run.stdout.strip() == str(model[0].weight.view(torch.int32).flatten().tolist())

    def test_other_seeds_give_other_weights(self):
        """The comparison above can fail; also for seeds that differ above 32 bits only."""
        models = [small() for _ in range(3)]
        for model, seed in zip(models, (1, 2, 1 + 2**32), strict=True):
            apply_policy(model, seed=seed, example_inputs=X)

        assert not torch.equal(models[0][0].weight, models[1][0].weight)
        assert not torch.equal(models[0][0].weight, models[2][0].weight)

    def test_without_a_seed_torch_governs(self):
        """`torch.manual_seed` decides where no seed is given; the receipt tells which it was."""
        receipts = []
        for _ in range(2):
            torch.manual_seed(5)
            receipts.append(apply_policy(small(), example_inputs=X))
        receipts.append(apply_policy(small(), example_inputs=X))

        assert receipts[0].seed == receipts[1].seed != receipts[2].seed


class TestWhatIsWritten:
    def test_norms_and_their_buffers_are_reset(self):
        """Running statistics start anew together with the weights."""
        model = small()
        with torch.no_grad():
            model[1].running_mean.fill_(3)
            model[1].num_batches_tracked.fill_(7)
            model[1].weight.copy_(torch.linspace(0.5, 1.5, 8))
        apply_policy(model, seed=0, example_inputs=X, keep="nothing")

        assert model[1].running_mean.eq(0).all()
        assert model[1].num_batches_tracked.item() == 0
        assert model[1].weight.eq(1).all()

    @pytest.mark.parametrize("policy", ["auto", "he"])
    def test_what_looks_trained(self, policy):
        """Who initialises a model whose norms were trained is warned; as an error, beforehand."""
        model = trained(small())
        before = {name: value.clone() for name, value in model.state_dict().items()}

        with pytest.raises(OverwrittenWarning, match=r"looks trained(.|\n)*1\.weight"):
            apply_policy(model, policy, seed=0, example_inputs=X)
        assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())

        with pytest.warns(OverwrittenWarning, match="initialize_missing"):
            apply_policy(model, policy, seed=0, example_inputs=X)
        assert model[1].weight.eq(1).all()

    @pytest.mark.parametrize("norm", [nn.GroupNorm(2, 8), nn.InstanceNorm2d(8, affine=True)])
    def test_what_looks_trained_by_any_norm(self, norm):
        """So it is with norms that have a bias and no running statistics."""
        model = small()
        model[1] = norm

        with pytest.warns(OverwrittenWarning, match=r"1\.weight"):
            apply_policy(trained(model), "he", seed=0, example_inputs=X)

    @pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), nn.GroupNorm(2, 8)])
    @pytest.mark.parametrize("runs", [0, 1])
    def test_norms_drawn_on_purpose(self, norm, runs):
        """No warning where only weights of norms were drawn (DCGAN's), before or after a run."""
        model = small()
        model[1] = norm
        nn.init.normal_(norm.weight, 1.0, 0.02)
        for _ in range(runs):
            model(torch.randn(2, 3, 8, 8))
        apply_policy(model, "he", seed=0, example_inputs=X)

        assert norm.weight.eq(1).all()

    def test_biases_of_norms_drawn_too(self):
        """No warning where weights and biases of a norm differ, and its statistics are new."""
        model = small()
        for values in (model[1].weight, model[1].bias):
            nn.init.normal_(values, 1.0, 0.02)
        apply_policy(model, "he", seed=0, example_inputs=X, skip="1.bias")

        assert model[1].weight.eq(1).all()

    @pytest.mark.parametrize("options", [{"skip": "1.*"}, {"keep": "nothing"}, {"only": "4.*"}])
    def test_what_looks_trained_and_may_go_or_stays(self, options):
        """No warning where norms stay, or where the caller has said that all may go."""
        model = trained(small())
        apply_policy(model, "he", seed=0, example_inputs=X, **options)

        assert bool(model[1].weight.eq(1).all()) == ("keep" in options)

    def test_ties_are_written_once_and_stay(self):
        """A tied tensor is written by the rule of its first name."""
        model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 50, bias=False))
        model[1].weight = model[0].weight
        receipt = apply_policy(model, seed=0)

        assert model[1].weight is model[0].weight
        assert receipt.plan["1.weight"].name == "0.weight"
        assert model[0].weight.std().item() == pytest.approx(0.25, rel=0.1)

    def test_padding_rows_are_zero(self):
        """The padding row of an embedding is zero, the others are not."""
        model = nn.Embedding(10, 4, padding_idx=2)
        apply_policy(model, seed=0)

        assert model.weight.abs().sum(1).eq(0).nonzero().flatten().tolist() == [2]

    def test_frozen_parameters_are_kept_unless_asked_for(self):
        """`requires_grad=False` is respected, and stays."""
        model = nn.Linear(4, 4)
        model.weight.requires_grad_(requires_grad=False)
        before = model.weight.clone()
        apply_policy(model, seed=0)
        assert torch.equal(model.weight, before)

        apply_policy(model, seed=0, frozen=True)

        assert not torch.equal(model.weight, before)
        assert not model.weight.requires_grad

    def test_parametrised_weights_come_out_as_drawn(self):
        """Behind weight norm stands what a plain layer would have got."""
        plain, normed = nn.Linear(6, 5), parametrizations.weight_norm(nn.Linear(6, 5))
        for model in (plain, normed):
            apply_policy(model, seed=0)

        assert torch.allclose(plain.weight, normed.weight, atol=1e-6)

    def test_what_is_kept_is_said(self):
        """Raw parameters keep the constructor's value, and the plan says so."""

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.token = nn.Parameter(torch.full((1, 1, 4), 0.3))
                self.linear = nn.Linear(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                return self.linear(torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1))

        model = Net()
        receipt = apply_policy(model, seed=0, example_inputs=torch.zeros(2, 3, 4))

        assert model.token.eq(0.3).all()
        assert receipt.plan["token"].keeps
        assert receipt.plan["token"].role == "token"

    def test_only_and_skip(self):
        """`only` and `skip` are globs; what they leave out stays."""
        model = small()
        before = bits(model)
        apply_policy(model, "zeros", seed=0, only=["0.*", "4.*"], skip="0.weight", example_inputs=X)

        changed = {
            name for name, tensor in bits(model).items() if not torch.equal(tensor, before[name])
        }

        assert changed == {"0.bias", "4.weight", "4.bias"}


class TestBadInput:
    """One clear error, and the model is as it was."""

    @pytest.mark.parametrize(
        ("make", "options", "error", "says"),
        [
            (nn.ReLU, {}, PlanError, "no parameters"),
            (small, {"policy": "hee"}, UnknownNameError, "he"),
            (small, {"policy": "he", "only": ["nope.*"]}, PlanError, "nope"),
            (small, {"example_inputs": torch.zeros(2, 4, 8, 8)}, TraceError, "example_inputs"),
            (lambda: nn.LazyLinear(3), {}, PlanError, "forward"),
            (small, {"policy": InitPolicy([Rule(match.role("bias"), initializers.Zeros())])},
             PlanError, "0.weight"),
            (small, {"policy": InitPolicy([Rule(match.name("9.*"), initializers.Zeros())])
                     .otherwise(initializers.Zeros())}, PlanError, "9"),
        ],
        ids=["no parameters", "preset", "only", "inputs", "lazy", "incomplete", "unused"],
    )  # fmt: skip
    def test_one_error_and_nothing_changed(self, make, options, error, says):
        """Each mistake is one error of the package that names what is wrong."""
        model = make()
        before = [] if isinstance(model, nn.LazyLinear) else bits(model)
        with pytest.raises(error, match=says):
            apply_policy(model, seed=0, **options)

        assert isinstance(before, list) or equal(before, bits(model))

    @pytest.mark.parametrize(
        "build",
        [
            lambda: initializers.Normal(-1.0),
            lambda: initializers.Normal(float("nan")),
            lambda: initializers.Uniform(1.0, 0.0),
            lambda: match.name("[unclosed"),
            lambda: match.name(regex="("),
            lambda: match.role("wait"),
        ],
        ids=["negative", "nan", "bounds", "glob", "regex", "role"],
    )
    def test_mistakes_are_found_where_they_are_written(self, build):
        """A value that cannot be is refused by its constructor, before any model is seen."""
        with pytest.raises(PolicyError):
            build()

    @pytest.mark.parametrize("seed", [1.5, "0", 2**64, True], ids=str)
    def test_seeds_that_are_none(self, seed):
        """A seed is an integer of 64 bits and no truth; anything else changes nothing."""
        model = small()
        before = bits(model)
        with pytest.raises(ApplyError, match="seed"):
            apply_policy(model, seed=seed, example_inputs=X)

        assert equal(before, bits(model))

    def test_every_unmatched_site_is_listed(self):
        """The error lists all sites, not the first."""
        with pytest.raises(PlanError) as caught:
            plan_policy(small(), InitPolicy([Rule(match.role("bias"), initializers.Zeros())]))

        assert all(name in str(caught.value) for name in ("0.weight", "1.weight", "4.weight"))

    def test_integer_parameters(self):
        """A rule that would draw integers is an error; frozen ones are kept."""
        model = nn.Linear(2, 2)
        model.index = nn.Parameter(torch.zeros(3, dtype=torch.int64), requires_grad=False)
        assert plan_policy(model)["index"].keeps

        with pytest.raises(PlanError, match=r"index.*int64"):
            plan_policy(model, initializers.Normal(1.0), frozen=True)

    def test_inference_mode(self):
        """Parameters made in inference mode cannot be written, and the error says so."""
        with torch.inference_mode():
            model = nn.Linear(2, 2)

        with pytest.raises(PlanError, match="inference"):
            apply_policy(model, seed=0)

    @pytest.mark.parametrize("only", [[], ()], ids=["list", "tuple"])
    def test_nothing_asked_for(self, only):
        """An empty `only=` writes nothing, where None writes everything."""
        model = small()
        before = bits(model)
        receipt = apply_policy(model, seed=0, example_inputs=X, only=only)

        assert (receipt.written, receipt.kept) == (0, 6)
        assert equal(before, bits(model))
        assert apply_policy(model, seed=0, example_inputs=X, only=None).written == 6

    def test_a_weight_that_is_a_view_of_another(self):
        """Two parameters in one memory are refused with all else, unless one is left out."""
        model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
        model[2].weight = nn.Parameter(model[0].weight.detach().t())
        before = bits(model)
        with pytest.raises(PlanError, match=r"(?s)skip='9'.*'0\.weight' and '2\.weight' share"):
            apply_policy(model, seed=0, skip=["9"])

        assert equal(before, bits(model))
        apply_policy(model, seed=0, skip=["2.weight"]).verify()

    def test_a_view_made_after_planning(self):
        """A plan from before is refused in time too."""
        model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
        plan = plan_policy(model)
        model[2].weight = nn.Parameter(model[0].weight.detach().t())
        before = bits(model)
        with pytest.raises(ApplyError, match=r"'0\.weight' and '2\.weight' share memory"):
            plan.apply(seed=0)

        assert equal(before, bits(model))

    @pytest.mark.parametrize(
        ("dtype", "initializer"),
        [(torch.float16, initializers.Constant(1e5)), (torch.float32, initializers.Normal(1e38))],
        ids=["constant", "tails"],
    )
    def test_beyond_the_dtype(self, dtype, initializer):
        """What a parameter's dtype cannot hold is found in planning."""
        with pytest.raises(PlanError, match=r"weight.*do not fit into float"):
            plan_policy(nn.Linear(2, 2, dtype=dtype), initializer)

    def test_a_callable_that_gives_nan(self):
        """Every site whose function gives what is not finite is listed, and nothing has changed."""
        model = small()
        before = bits(model)

        def spoils(tensor: Tensor) -> None:
            tensor.div_(0)

        with pytest.raises(ApplyError, match="not finite") as caught:
            apply_policy(model, spoils, seed=0)

        assert str(caught.value).count("spoils) gives") == 6
        assert equal(before, bits(model))

    def test_a_callable_that_raises(self):
        """A user's function runs before the first write: when it raises nothing has changed."""
        model = small()
        before = bits(model)

        def fails(tensor: Tensor) -> None:
            raise RuntimeError("no idea")

        policy = InitPolicy([Rule(match.name("4.weight"), fails)]).otherwise(initializers.Ones())
        with pytest.raises(ApplyError, match=r"4\.weight.*no idea"):
            apply_policy(model, policy, seed=0)

        assert equal(before, bits(model))


class Nested(nn.Module):
    """Takes what nobody would guess."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, state):
        if not isinstance(state, dict):
            raise TypeError("a state is a dict of parts")
        return self.layer(state["parts"]["first"])


class TestUntraced:
    """Plans from the order of registration alone say so."""

    def test_plan_says_why(self):
        """The forward pass that raises is quoted, with what helps."""
        text = str(plan_policy(Nested()))
        reason = "TypeError: a state is a dict of parts with state float32"
        assert f"known from: order 2 (no inputs found: {reason}" in text
        assert "give example_inputs=" in text.replace("\n ", "")

    def test_given_inputs(self):
        """With inputs that fit there is nothing to say."""
        state = {"parts": {"first": torch.zeros(2, 8)}}
        plan = plan_policy(Nested(), example_inputs=(state,))
        assert plan.untraced is None
        assert "known from: traced 2\n" in str(plan)


class TestInitializersForWeights:
    """What needs inputs and outputs cannot fill biases; the error says what to write."""

    @pytest.mark.parametrize(
        ("filler", "error"),
        [
            (initializers.xavier_uniform(), PlanError),
            (nn.init.xavier_uniform_, ApplyError),
        ],
        ids=["own", "torch"],
    )
    def test_given_everything(self, filler, error):
        """The remedy works as it stands."""
        model = small()
        with pytest.raises(error, match=r"only weights: InitPolicy\(\[Rule\(match\.role"):
            apply_policy(model, filler)
        policy = InitPolicy([Rule(match.role("weight"), filler)]).otherwise(presets.auto())
        assert apply_policy(model, policy).kept == 0

    @pytest.mark.parametrize(
        "matcher", [match.name("*.bias"), match.anything()], ids=["biases", "everything"]
    )
    def test_a_function_that_fails_for_other_reasons(self, matcher):
        """A bug of the user's, at weights too, is not taken for a question of fans."""

        def fails(tensor):
            raise RuntimeError("out of luck")

        rest = Rule(match.anything(), initializers.Zeros(), optional=True)
        with pytest.raises(ApplyError, match="out of luck") as caught:
            apply_policy(small(), InitPolicy([Rule(matcher, fails), rest]))
        assert "match.role" not in str(caught.value)


class Raw(nn.Module):
    """Holds a parameter of which nothing is known."""

    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(2, 5))

    def forward(self, x):
        return x.cos()


class TestNothingWritten:
    """A policy that would write but does not is no silent success."""

    @pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
    @pytest.mark.parametrize("verb", [plan_policy, apply_policy])
    def test_torchscript(self, verb):
        """A scripted module names its parameters, and what to do instead."""
        scripted = torch.jit.script(nn.Linear(3, 3))
        before = bits(scripted)
        with pytest.warns(UnusedRuleWarning, match="before torch.jit compiles it") as caught:
            verb(scripted)
        assert "does not write to these" in str(caught[0].message)
        assert "'weight' (RecursiveScriptModule, (3, 3))" in str(caught[0].message)
        assert equal(bits(scripted), before)

    def test_unknown_parameters(self):
        """A model of raw parameters alone is told how to name them."""
        with pytest.warns(UnusedRuleWarning, match=r"fill them by name: Rule\(match\.name"):
            receipt = apply_policy(Raw())
        assert receipt.written == 0

    @pytest.mark.parametrize(
        ("policy", "options", "written"),
        [
            (initializers.Keep(), {}, 0),
            (InitPolicy([Rule(match.anything(), initializers.Keep(), "loaded")]), {}, 0),
            ("auto", {"skip": "raw"}, 0),
            (initializers.Zeros(), {}, 1),
        ],
        ids=["keep", "rule", "skip", "written"],
    )
    def test_what_was_asked_for(self, policy, options, written):
        """Whoever wants parameters kept, or gets them written, is not warned."""
        assert apply_policy(Raw(), policy, **options).written == written

    def test_frozen(self):
        """A parameter that is kept because it is frozen is no surprise."""
        assert apply_policy(Raw().requires_grad_(requires_grad=False)).written == 0

    def test_only_a_part(self):
        """As long as something is written, the plan's heading names what is unknown."""
        receipt = apply_policy(nn.Sequential(nn.Linear(5, 5), Raw()))
        assert (receipt.written, receipt.kept) == (2, 1)


WRITERS = {
    "apply_policy": lambda model: apply_policy(model, "zeros", seed=0),
    "Plan.apply": lambda model: plan_policy(model, "zeros").apply(seed=0),
    "materialize": lambda model: torch_initpolicy.materialize(model.to("meta"), "zeros", seed=0),
}


class TestWarnings:
    @pytest.mark.parametrize("writer", WRITERS)
    def test_constants_on_hidden_weights(self, writer):
        """The zeros preset says what it does to a hidden layer, once, whichever verb writes it."""
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

        with pytest.warns(SymmetricInitWarning, match=r"0\.weight") as caught:
            WRITERS[writer](model)

        assert len(caught) == 1

    def test_unknown_operators(self):
        """An operator without a role is named, with the plan still complete."""

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                return torch.linalg.matrix_exp(self.linear(x))

        with pytest.warns(UnknownOperatorWarning, match="linalg_matrix_exp"):
            plan = plan_policy(Net(), example_inputs=torch.zeros(4, 4))

        assert "linalg_matrix_exp" in str(plan)

    def test_unused_rules_warn_when_not_strict(self):
        """`strict=False` makes a rule that matches nothing a warning."""
        policy = InitPolicy([Rule(match.name("9.*"), initializers.Zeros())]).otherwise(
            initializers.Ones()
        )
        with pytest.warns(UnusedRuleWarning, match="9"):
            plan_policy(small(), policy, strict=False)


def test_a_rule_for_what_layers_meet_is_a_rule_for_their_weights():
    """`kind & meets` leaves a bias to the rules that follow, unless biases are asked for."""
    he = initializers.he_normal()
    policy = InitPolicy([Rule(match.kind(nn.Conv2d) & match.meets("relu"), he)]).otherwise(
        presets.auto()
    )
    plan = plan_policy(small(), policy, example_inputs=X)
    biased = Rule(match.meets("relu", biases=True) & match.role("bias"), initializers.Constant(0.1))
    with_bias = plan_policy(
        small(), InitPolicy([biased]).otherwise(presets.auto()), example_inputs=X
    )

    assert plan["0.weight"].initializer == he
    assert plan["0.bias"].initializer == initializers.Zeros()
    assert with_bias["0.bias"].initializer == initializers.Constant(0.1)
    assert with_bias["4.bias"].initializer == initializers.Zeros()


class TestThreads:
    """Threads may read one model at once: it is lent to one of them at a time."""

    def test_one_model_planned_by_several_threads(self):
        """All plans are equal, and flags, hooks and parameters are what they were."""
        block = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 8))
        model = nn.Sequential(*(copy.deepcopy(block) for _ in range(6)))
        expected = plan_policy(model).to_json()
        with assert_untouched(model), ThreadPoolExecutor(4) as pool:
            plans = list(pool.map(lambda _: plan_policy(model).to_json(), range(24)))

        assert set(plans) == {expected}
        assert all(module.training for module in model.modules())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    def test_models_that_share_a_module(self):
        """What two models have in common is lent to one of them at a time."""
        shared = nn.Linear(8, 8)
        models = [nn.Sequential(shared, act, nn.Linear(8, 2)) for act in (nn.ReLU(), nn.Tanh())]
        with assert_untouched(nn.ModuleList(models)), ThreadPoolExecutor(4) as pool:
            plans = list(pool.map(lambda n: plan_policy(models[n % 2]), range(24)))

        assert [plan["0.weight"].meets for plan in plans] == ["relu", "tanh"] * 12

    def test_a_forward_may_plan(self):
        """A thread that has borrowed a model may read others, and the same one, meanwhile."""

        class Planning(nn.Sequential):
            def forward(self, x):
                return super().forward(x) * len(plan_policy(self[0], "xavier").steps)

        plan = plan_policy(Planning(nn.Linear(4, 4)), example_inputs=torch.zeros(2, 4))

        assert plan["0.weight"].evidence == "traced"


class TestReceipt:
    def test_reproduces_the_same_bits(self):
        """A receipt that went through JSON writes the same weights to another model."""
        first, second = small(), small()
        receipt = apply_policy(first, seed=3, example_inputs=X)
        torch_initpolicy.Receipt.from_json(receipt.to_json()).reproduce(second)

        assert equal(bits(first), bits(second))


class Calibrated(nn.Module):
    """Weights of every kind that is scaled in its own way: packed, shared, recurrent, behind."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.shared = nn.Linear(64, 64)
        self.recurrent = nn.LSTM(64, 64, batch_first=True)
        self.behind = parametrizations.weight_norm(nn.Linear(64, 64))

    def forward(self, x):
        """Attend, go twice through the shared layer, and on."""
        x, _ = self.attention(x, x, x)
        x, _ = self.recurrent(self.shared(self.shared(x).relu()))
        return self.behind(x)


SEQUENCES = torch.randn(4, 6, 64, generator=torch.Generator().manual_seed(0)) * 3


class TestCalibrate:
    """A calibration is part of the receipt."""

    def test_the_receipt_names_the_factors(self):
        """Each weight's quotient with the weights before calibration is what the receipt says."""
        plain, model = Calibrated(), Calibrated()
        apply_policy(plain, seed=0, example_inputs=SEQUENCES)
        receipt = apply_policy(model, seed=0, calibrate=SEQUENCES)
        quotients = (model.attention.in_proj_weight / plain.attention.in_proj_weight).chunk(3)

        assert set(receipt.calibrated) == {
            "attention.in_proj_weight",
            "attention.out_proj.weight",
            "shared.weight",
            "recurrent.weight_ih_l0",
            "recurrent.weight_hh_l0",
            "behind.weight",
        }
        assert [part.mean().item() for part in quotients] == pytest.approx(
            receipt.calibrated["attention.in_proj_weight"]
        )
        assert (model.shared.weight / plain.shared.weight).mean().item() == pytest.approx(
            receipt.calibrated["shared.weight"][0]
        )
        assert "6 calibrated" in str(receipt)
        assert "to calibrate" in receipt.plan["shared.weight"].reason

    def test_verified(self):
        """The factors are reckoned with, and the plan without them finds the difference."""
        model = Calibrated()
        receipt = apply_policy(model, seed=0, calibrate=SEQUENCES)

        assert receipt.verify().ok
        assert receipt.plan.verify(model).ok
        with pytest.raises(VerifyError, match=r"attention\.out_proj\.weight"):
            plan_policy(model, example_inputs=SEQUENCES).verify()

    def test_reproduced(self):
        """From JSON, the same bits, although no inputs are at hand."""
        first, second = Calibrated(), Calibrated()
        receipt = apply_policy(first, seed=0, calibrate=SEQUENCES)
        restored = torch_initpolicy.Receipt.from_json(receipt.to_json())
        restored.reproduce(second)

        assert restored == receipt
        assert equal(bits(first), bits(second))

    def test_inputs_that_do_not_fit(self):
        """A calibration that raises leaves the model as it was before the policy was applied."""
        model = small()
        before = bits(model)

        with pytest.raises(TraceError, match="raises with these inputs"):
            apply_policy(model, seed=0, example_inputs=X, calibrate=torch.ones(2, 3))
        assert equal(before, bits(model))


class TestMaterialize:
    def test_a_meta_built_model_becomes_the_real_one(self):
        """State and output are those of a model that was built for real."""
        real = small()
        apply_policy(real, seed=4, example_inputs=X)
        with torch.device("meta"):
            built = small()
        torch_initpolicy.materialize(built, seed=4, example_inputs=X)
        x = torch.linspace(-1, 1, X.numel()).view_as(X)

        assert equal(bits(real), bits(built))
        assert torch.equal(real.eval()(x), built.eval()(x))


def in_halves(join):
    """Let a function of two halves read both of them side by side."""
    return lambda both: join(*both.chunk(2, -1))


class Gated(nn.Module):
    """A gated layer: `way` joins what two layers make, or reads what one makes in their place."""

    def __init__(self, way, names) -> None:
        super().__init__()
        self.way = way
        self.layers = nn.ModuleDict({name: nn.Linear(32, 128 // len(names)) for name in names})
        self.down = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.way(*(layer(x) for layer in self.layers.values())))


class Stacked(nn.Module):
    """Experts whose gates and values are packed into one tensor `(experts, in, out)`, or not."""

    def __init__(self, *, packed: bool) -> None:
        super().__init__()
        shapes = ((3, 32, 128),) if packed else ((3, 32, 64),) * 2
        self.layers = nn.ParameterList([torch.zeros(shape) for shape in shapes])
        self.down = nn.Parameter(torch.zeros(3, 64, 32))

    def forward(self, x: Tensor) -> Tensor:
        made = [x.expand(3, -1, -1) @ weight for weight in self.layers]
        gate, value = made[0].chunk(2, -1) if len(made) == 1 else made
        return (nn.functional.silu(gate) * value) @ self.down


def gated(join, whole=None):
    """Return how to make a gated layer of one packed weight (True) or of two (False)."""
    ways = (join, ("first", "second")), (whole or in_halves(join), ("both",))
    return lambda packed: Gated(*ways[packed])


GATED = {
    "swiglu": gated(lambda a, b: nn.functional.silu(a) * b),
    "geglu": gated(lambda a, b: a * nn.functional.gelu(b)),
    "reglu then tanh": gated(lambda a, b: (a * b.relu()).tanh()),
    "glu": gated(lambda a, b: a * b.sigmoid(), nn.functional.glu),
    "glu then relu": gated(
        lambda a, b: (a * b.sigmoid()).relu(), lambda both: nn.functional.glu(both).relu()
    ),
    "experts": lambda packed: Stacked(packed=packed),
}


def deviations(model: nn.Module, policy: str) -> list[float]:
    """Plan and return the deviation of each weight but the last, one for each packed block."""
    steps = plan_policy(model, policy, example_inputs=torch.zeros(5, 32))
    weights = [step for step in steps if step.name.startswith("layers") and len(step.shape) > 1]
    found = [step.std if isinstance(step.std, tuple) else (step.std,) for step in weights]
    alike = 2 // len(weights)
    return [std for stds in found for std in (stds * alike if len(stds) == 1 else stds)]


class TestPackedGates:
    """Matrices packed into one weight start as they would as weights of their own."""

    @pytest.mark.parametrize(
        "policy",
        ["auto", "he", "xavier", "lecun", "orthogonal", "signal", "critical", "fixup", "t_fixup"],
    )
    @pytest.mark.parametrize("make", GATED.values(), ids=GATED)
    def test_packed_or_apart(self, make, policy):
        """The two halves of a packed weight have the deviations of two weights."""
        packed, apart = (deviations(make(packed), policy) for packed in (True, False))

        assert packed == pytest.approx(apart, rel=1e-12)

    def test_numbers(self):
        """The deviations of SwiGLU's halves: He's with the gain of SiLU, and Xavier's."""
        normals = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
        gain = 1 / nn.functional.silu(normals).square().mean().sqrt().item()

        assert deviations(GATED["swiglu"](True), "auto") == pytest.approx(
            [gain / 32**0.5, (2 / 96) ** 0.5], rel=1e-2
        )

    def test_values(self):
        """Each half is drawn as planned; a model with the halves exchanged does not verify."""
        model = GATED["swiglu"](True)
        plan = plan_policy(model, example_inputs=torch.zeros(5, 32))
        plan.apply(model, seed=0)
        gate, value = model.layers["both"].weight.detach().chunk(2)

        assert [gate.std().item(), value.std().item()] == pytest.approx(
            list(plan["layers.both.weight"].std), rel=0.06
        )  # 2048 numbers each: four standard errors are 6 %
        plan.verify(model)
        with torch.no_grad():
            model.layers["both"].weight.copy_(torch.cat((value, gate)))
        with pytest.raises(VerifyError, match=r"layers\.both\.weight"):
            plan.verify(model)

    def test_a_saved_plan_draws_the_same(self):
        """A plan of unequal halves survives JSON and draws the same bits."""
        models = [GATED["swiglu"](True) for _ in range(2)]
        plan = plan_policy(models[0], example_inputs=torch.zeros(5, 32))
        again = type(plan).from_json(plan.to_json())
        for model, made in zip(models, (plan, again), strict=True):
            made.apply(model, seed=0)

        assert again == plan
        assert equal(*map(bits, models))
