"""Rules and policies: order, composition, and the files they are kept in."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.ids import readable
from tests.policy.hand import facts, site
from torch_initpolicy.errors import PolicyError, UnknownNameError
from torch_initpolicy.policy import match, presets
from torch_initpolicy.policy.recipes import (
    AspectScale,
    EmbeddingScale,
    Frequencies,
    Phases,
    SirenScale,
    TorchDefault,
    UnitScale,
)
from torch_initpolicy.policy.rules import PRESETS, InitPolicy, Rule, preset, preset_named
from torch_initpolicy.policy.scaling import Scaling
from torch_initpolicy.tensors import initializers
from torch_initpolicy.tensors.initializers import (
    BranchScaled,
    Constant,
    From,
    Keep,
    Normal,
    TruncatedNormal,
    VarianceScaling,
    Zeros,
    he_normal,
)

LINEAR = site(nn.Linear(4, 8), prefix="head")

CUSTOM = InitPolicy(
    [
        Rule(match.name("head.*", regex=r"fc\d\..*"), Zeros(), "a new head starts silent"),
        Rule(match.kind(nn.Conv2d) & ~match.meets("relu"), From(nn.init.dirac_, groups=2)),
        Rule(match.role("bias") | match.shape(None, 3), Constant(1 / 3)),
        Rule(match.fan(fan_in=(None, 64)), TruncatedNormal(0.02, cut=float("inf"))),
        Rule(match.ends_residual(), BranchScaled(VarianceScaling(gain="fed_by"), "fixup")),
    ],
    name="mine",
).otherwise(presets.auto())

RECIPES = (AspectScale, EmbeddingScale, Frequencies, Phases, SirenScale, TorchDefault, UnitScale)

POLICIES = {"custom": CUSTOM, "empty": InitPolicy()} | {
    name: preset_named(name, {"value": 0.1} if name == "constant" else None)
    for name in PRESETS
    if name not in ("mup", "complete_p")
}


def fill_half(tensor):
    """Fill a tensor in place: an initializer of a user's."""
    tensor.fill_(0.5)


def decides(policy, where=LINEAR, **changes):
    """Return the initializer that a policy has for a site."""
    rule = policy.first(where, facts(where, **changes))
    return None if rule is None else rule.initializer


class TestRule:
    """A matcher and an initializer."""

    @pytest.mark.parametrize(
        "function",
        [nn.init.xavier_uniform_, fill_half, lambda tensor: tensor.zero_(), torch.Tensor.zero_],
        ids=["torch.nn.init", "function", "lambda", "method"],
    )
    def test_functions_are_wrapped(self, function):
        """Any function that fills a tensor serves as an initializer."""
        assert Rule(match.anything(), function).initializer == From(function)

    def test_recipes_are_kept(self):
        """A recipe is asked later, for each site."""
        assert Rule(match.anything(), UnitScale()).initializer == UnitScale()

    @pytest.mark.parametrize(
        ("filler", "words"),
        [
            (0.5, r"write Constant\(0\.5\)"),
            ("auto", "needs an initializer"),
            (None, "needs an initializer"),
            (Zeros, r"call it: Zeros\(\.\.\.\)"),
            (nn.Linear, r"Linear makes initializers, it is none"),
            (he_normal, r"call it: he_normal\(\.\.\.\)"),
            (presets.auto, r"call it: auto\(\.\.\.\)"),
            (match.anything(), "needs an initializer"),
        ],
        ids=readable,
    )
    def test_no_initializer(self, filler, words):
        """What cannot fill a tensor is refused, with what to write."""
        with pytest.raises(PolicyError, match=words):
            Rule(match.anything(), filler)

    @pytest.mark.parametrize("matcher", ["head.*", nn.Linear, None, Zeros()], ids=str)
    def test_no_matcher(self, matcher):
        """What is no matcher is refused, with what to write."""
        with pytest.raises(PolicyError, match=r"name\('head"):
            Rule(matcher, Zeros())


class TestOrder:
    """The first rule that matches decides."""

    def test_first_match_wins(self):
        """Also where a later rule is more specific."""
        policy = InitPolicy(
            [Rule(match.role("weight"), Zeros()), Rule(match.name("head.weight"), Normal(1.0))]
        )

        assert decides(policy) == Zeros()
        assert decides(policy, role="unknown") == Normal(1.0)

    def test_no_match(self):
        """A policy need not be complete; the plan says so."""
        assert decides(InitPolicy([Rule(match.role("bias"), Zeros())])) is None

    def test_otherwise(self):
        """What no rule matches goes to the rest, a policy or one initializer."""
        policy = InitPolicy([Rule(match.role("bias"), Zeros())], name="mine")

        assert decides(policy.otherwise(Normal(0.1))) == Normal(0.1)
        assert decides(policy.otherwise(fill_half)) == From(fill_half)
        assert decides(policy.otherwise(presets.zeros())) == Zeros()
        assert decides(policy.otherwise(Normal(0.1)), role="bias") == Zeros()
        assert policy.otherwise(Normal(0.1)).name == "mine"

    def test_override(self):
        """What is put in front decides first."""
        front = Rule(match.name("head.*"), Normal(0.1))

        assert decides(presets.zeros().override(front)) == Normal(0.1)
        assert decides(presets.zeros().override(InitPolicy([front]))) == Normal(0.1)
        assert presets.zeros().override(front).name == "zeros"

    @pytest.mark.parametrize(
        ("rest", "words"),
        [
            ("auto", r"write otherwise\(presets\.auto\(\)\)"),
            (Rule(match.anything(), Zeros()), r"write otherwise\(InitPolicy\(\[Rule"),
            (0.0, "Constant"),
        ],
        ids=["name", "rule", "number"],
    )
    def test_otherwise_refuses(self, rest, words):
        """What is no policy is refused, with what to write."""
        with pytest.raises(PolicyError, match=words):
            InitPolicy().otherwise(rest)

    def test_nothing_is_changed(self):
        """Composition makes new policies; the old ones are values."""
        policy = InitPolicy([Rule(match.role("bias"), Zeros())])
        policy.otherwise(Zeros())
        policy.override(Rule(match.anything(), Zeros()))

        assert len(policy) == 1

    def test_no_rules(self):
        """A policy is made of rules."""
        with pytest.raises(PolicyError, match="made of rules"):
            InitPolicy([(match.anything(), Zeros())])

    def test_iterates(self):
        """Iterating yields the rules in order."""
        assert InitPolicy(iter(CUSTOM)).rules == CUSTOM.rules


class TestValue:
    """A policy is a value."""

    @pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
    def test_repr(self, policy):
        """The repr is the expression that makes the policy."""
        words = {**vars(initializers), **vars(match), "torch": torch, "inf": float("inf")}
        words |= {kind.__name__: kind for kind in (InitPolicy, Rule, Scaling, *RECIPES)}

        assert eval(repr(policy), words) == policy

    @pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
    def test_pickles_and_hashes(self, policy):
        """It goes to other processes, and can be a key."""
        assert pickle.loads(pickle.dumps(policy)) == policy
        assert len({policy, pickle.loads(pickle.dumps(policy))}) == 1


class TestFiles:
    """JSON and TOML."""

    @pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
    def test_round_trip(self, policy):
        """What is read is equal to what was written, in both languages."""
        assert InitPolicy.from_json(policy.to_json()) == policy
        assert InitPolicy.from_toml(policy.to_toml()) == policy

    @pytest.mark.parametrize("suffix", [".json", ".toml"])
    def test_save_and_load(self, suffix, tmp_path):
        """The ending of the file says which language."""
        path = tmp_path / f"policy{suffix}"
        CUSTOM.save(path)

        assert InitPolicy.load(path) == CUSTOM
        assert InitPolicy.load(str(path)) == CUSTOM

    def test_by_hand(self):
        """A person can write one, and name a preset for what is left."""
        policy = InitPolicy.from_toml("""
            format = 1
            name = "mine"
            otherwise = "he"

            [[rules]]
            matcher = {class = "Name", globs = ["head.*"]}
            initializer = {class = "Zeros"}
        """)

        assert policy == InitPolicy([Rule(match.name("head.*"), Zeros())], "mine").otherwise(
            presets.he()
        )

    @pytest.mark.parametrize(
        ("rest", "expected"),
        [
            ('"zeros"', presets.zeros()),
            ('{"preset": "normal", "std": 0.5}', presets.normal(0.5)),
            ('{"class": "Keep"}', InitPolicy().otherwise(Keep())),
        ],
    )
    def test_otherwise(self, rest, expected):
        """`otherwise` is a preset, one with arguments, or an initializer."""
        policy = InitPolicy.from_json(f'{{"format": 1, "otherwise": {rest}}}')

        assert policy.rules == expected.rules

    @pytest.mark.parametrize(
        ("text", "error", "words"),
        [
            ("[]", PolicyError, "holds an object"),
            ("{}", PolicyError, "has format = None"),
            ('{"format": 2}', PolicyError, "has format = 2"),
            ('{"format": "1"}', PolicyError, "has format = '1'"),
            ('{"format": 1, "rule": []}', UnknownNameError, "did you mean 'rules'"),
            ('{"format": 1, "rules": {}}', PolicyError, r"rules must be tuple\[Rule"),
            ('{"format": 1, "name": 3}', PolicyError, r"name must be str \| None, got 3"),
            ('{"format": 1, "rules": [3]}', PolicyError, r"Rule, ...\], got \[3\]"),
            ('{"format": 1, "rules": [{}]}', PolicyError, r"rules\[0\]: Rule needs the fields"),
            ('{"format": 1, "rules": [{"matches": 1}]}', UnknownNameError, "did you mean 'matcher"),
            ('{"format": 1, "otherwise": "atuo"}', UnknownNameError, "did you mean 'auto'"),
            ('{"format": 1, "otherwise": 3}', PolicyError, "needs an initializer"),
            ('{"format": 1, "otherwise": {"preset": "he", "x": 1}}', PolicyError, "preset 'he'"),
            ('{"format": 1, "otherwise": {"preset": "constant"}}', PolicyError, "value"),
        ],
    )
    def test_refused(self, text, error, words):
        """Each mistake in a file is told with its place and what was probably meant."""
        with pytest.raises(error, match=words):
            InitPolicy.from_json(text)

    def test_an_initializer_in_a_matchers_place(self):
        """Two mistakes that are easily made."""
        zeros, name = {"class": "Zeros"}, {"class": "Anything"}

        with pytest.raises(PolicyError, match=r"rules\[0\].matcher must be"):
            InitPolicy.from_json(
                json.dumps({"format": 1, "rules": [{"matcher": zeros, "initializer": zeros}]})
            )
        with pytest.raises(PolicyError, match=r"rules\[0\]: a rule needs an initializer"):
            InitPolicy.from_json(
                json.dumps({"format": 1, "rules": [{"matcher": name, "initializer": name}]})
            )

    @pytest.mark.parametrize("language", ["to_json", "to_toml"])
    def test_functions_of_the_users_stay_in_python(self, language):
        """A policy with code in it cannot be kept in a file, and has no hash."""
        policy = InitPolicy([Rule(match.anything(), fill_half)])

        with pytest.raises(PolicyError, match="keep such a policy in Python"):
            getattr(policy, language)()
        with pytest.raises(PolicyError, match="keep such a policy in Python"):
            policy.hash  # noqa: B018

    def test_the_file_is_named_in_errors(self, tmp_path):
        """An error says in which file it is."""
        path = tmp_path / "policy.json"
        path.write_text('{"format": 1, "otherwise": "atuo"}')

        with pytest.raises(UnknownNameError, match=r"policy\.json: no preset"):
            InitPolicy.load(path)

    @pytest.mark.parametrize("name", ["missing.json", "missing.toml"])
    def test_missing_file(self, name, tmp_path):
        """A file that is not there is an error of the policy."""
        with pytest.raises(PolicyError, match="cannot be read"):
            InitPolicy.load(tmp_path / name)

    def test_binary_file(self, tmp_path):
        """So is one that is no text."""
        path = tmp_path / "policy.json"
        path.write_bytes(b"\xff\xfe")

        with pytest.raises(PolicyError, match="cannot be read"):
            InitPolicy.load(path)

    @pytest.mark.parametrize("name", ["policy.yaml", "policy", "policy.pt"])
    def test_other_endings(self, name, tmp_path):
        """Only two languages are spoken, and no pickle is ever opened."""
        with pytest.raises(PolicyError, match=r"\.json or \.toml"):
            InitPolicy.load(tmp_path / name)
        with pytest.raises(PolicyError, match=r"\.json or \.toml"):
            CUSTOM.save(tmp_path / name)

    def test_a_failed_save_leaves_the_file(self, tmp_path):
        """A policy that cannot be written does not empty the file that is there."""
        path = tmp_path / "policy.json"
        CUSTOM.save(path)
        with pytest.raises(PolicyError):
            CUSTOM.override(Rule(match.anything(), fill_half)).save(path)

        assert InitPolicy.load(path) == CUSTOM


class TestHash:
    """What identifies a policy."""

    def test_other_processes(self):
        """It does not depend on the process (as Python's own `hash` of strings does)."""
        code = "from torch_initpolicy.policy.presets import auto; print(auto().hash)"
        root = Path(__file__).parents[2]
        hashes = {
            subprocess.run(
                [sys.executable, "-c", code],
                env={"PYTHONHASHSEED": seed},
                capture_output=True,
                text=True,
                check=True,
                cwd=root,
            ).stdout.strip()
            for seed in ("1", "2")
        }

        assert hashes == {presets.auto().hash}

    @pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
    def test_survives_files(self, policy):
        """What is read from a file has the hash of what was written."""
        assert InitPolicy.from_toml(policy.to_toml()).hash == policy.hash

    def test_tells_apart(self):
        """Different policies have different hashes, equal ones the same."""
        assert len({policy.hash for policy in POLICIES.values()}) == len(POLICIES)
        assert presets.constant(1).hash == presets.constant(1.0).hash


class TestPresetNames:
    """The table of presets."""

    def test_twice(self):
        """A second preset of a name is refused."""

        def auto():
            return InitPolicy()

        with pytest.raises(PolicyError, match="there is a preset 'auto' already"):
            preset(auto)

    def test_unknown(self):
        """The error suggests, and lists what there is."""
        with pytest.raises(
            UnknownNameError, match=r"did you mean 'xavier'\?; there are auto, chrono"
        ):
            preset_named("xaver")

    def test_a_preset_without_what_it_needs(self):
        """The message shows how the preset is written, in Python and in a file."""
        with pytest.raises(
            PolicyError, match=r"write presets\.constant\(value: float\), in a file"
        ):
            preset_named("constant")
