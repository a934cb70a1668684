"""The codec: what goes in comes out, and what cannot be meant is refused where it stands."""

import json
import math
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torch_initpolicy.errors import MissingExtraError, PolicyError, UnknownNameError
from torch_initpolicy.policy import codec, match
from torch_initpolicy.policy.codec import FUNCTIONS, decode, digest, encode, fits_annotation
from torch_initpolicy.policy.family import Family, Member
from torch_initpolicy.policy.recipes import (
    AspectScale,
    EmbeddingScale,
    Frequencies,
    Phases,
    SirenScale,
    TorchDefault,
    UnitScale,
)
from torch_initpolicy.policy.rules import CLASSES
from torch_initpolicy.policy.scaling import Scaling
from torch_initpolicy.tensors import initializers
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.initializers import (
    ICNR,
    AsConstructed,
    BranchScaled,
    Constant,
    DeltaOrthogonal,
    Dirac,
    Identity,
    Keep,
    Normal,
    Ones,
    Orthogonal,
    Sparse,
    TruncatedNormal,
    Uniform,
    VarianceScaling,
    Zeros,
)
from torch_initpolicy.trace.facts import ForwardMultiplier

EVERY = [
    Constant(-4.595119850134589),
    Zeros(),
    Ones(),
    Uniform(-0.1, 1 / 3),
    Normal(0.02, 1e-300),
    TruncatedNormal(0.02, cut=math.inf),
    VarianceScaling(2.0, "fan_out", "truncated_normal", "meets"),
    Orthogonal("fed_by"),
    Orthogonal(math.sqrt(2)),
    DeltaOrthogonal(),
    Dirac(),
    Identity(0.5),
    Sparse(0.9),
    initializers.Chrono(50.0),
    ICNR(VarianceScaling(), 3),
    initializers.Scaled(Orthogonal(), 0.1),
    initializers.Blocks((Zeros(), Ones(), Orthogonal())),
    BranchScaled(Normal(0.02), "fixup"),
    BranchScaled(Normal(0.02), -0.5),
    Keep(),
    AsConstructed(),
    initializers.From(nn.init.trunc_normal_, std=0.02, a=-2.0, b=2.0),
    UnitScale(),
    TorchDefault(),
    AspectScale(),
    EmbeddingScale(),
    SirenScale(12.0),
    Frequencies(),
    Phases(),
    Axes(inputs=(1,), outputs=(0,), blocks=(2, 2)),
    Member("fc", (4, 8), Axes((1,), (0,)), multipliers=(ForwardMultiplier(0.5),), drawn=Ones()),
    Scaling("mup", Family((Member("bias", (4,)),), 3), forward_multipliers=True),
    match.name("a.*", "[!x]?", regex=r"\d+\.\"é"),
    match.kind(nn.Conv2d),
    match.role("weight", "bias") & (match.meets("relu") | ~match.fed_by("input")),
    match.op("linear") & match.tied() & match.offset(1.0),
    match.fan(fan_in=(None, 2**40), fan_out=0.5),
    match.shape(None, 3),
    match.shape(ndim=0),
    match.anything(),
    (1, 1.0, True, "1", None, (), ((),)),
    torch.bfloat16,
    math.inf,
    -math.inf,
]


def through_json(value):
    """Write a value as JSON text and read it back."""
    return decode(codec.read_json(codec.write_json(encode(value, CLASSES))), CLASSES)


def through_toml(value):
    """Write a value as TOML text and read it back."""
    text = codec.write_toml({"value": encode(value, CLASSES)})
    return decode(codec.read_toml(text)["value"], CLASSES)


def kinds(value):
    """Return the types of a value and of everything in it."""
    return (type(value), *map(kinds, value)) if isinstance(value, tuple) else type(value)


class TestRoundTrip:
    """Equal values, of the same types."""

    @pytest.mark.parametrize("through", [through_json, through_toml])
    @pytest.mark.parametrize("value", EVERY, ids=repr)
    def test_every_kind_of_value(self, value, through):
        """Each class there is comes back equal, numbers to the last digit, tuples as tuples."""
        again = through(value)

        assert again == value
        assert kinds(again) == kinds(value)
        assert repr(again) == repr(value)

    def test_every_class_is_tried(self):
        """The list above holds an instance of each class of ours that files know."""
        seen = {type(value).__name__ for value in EVERY} | {
            *("AnyOf", "Not", "FedBy", "Meets", "Is", "Family", "ForwardMultiplier"),
        }

        ours = {name for name, kind in CLASSES.items() if "torch_initpolicy" in kind.__module__}
        assert ours - seen <= {"Rule", "HasRole", "Op", "Offset"}

    @given(st.floats(allow_nan=False), st.integers(), st.text())
    @settings(max_examples=200)
    def test_numbers_and_words(self, number, whole, word):
        """Every float, integer and word survives both languages bit by bit."""
        value = (number, whole % 2**63, word)

        for again in (through_json(value), through_toml(value)):
            assert again == value
            assert math.copysign(1, again[0]) == math.copysign(1, number)

    @pytest.mark.parametrize("name", sorted(FUNCTIONS))
    def test_functions_of_torch(self, name):
        """Every function of `torch.nn.init` that fills a tensor is written by its name."""
        assert through_json(FUNCTIONS[name]) is FUNCTIONS[name]

    def test_functions_of_torch_are_the_public_ones(self):
        """They are those of torch's documentation, and nothing that could run code."""
        names = {name.rpartition(".")[2] for name in FUNCTIONS}

        assert {"xavier_uniform_", "kaiming_normal_", "zeros_", "orthogonal_"} <= names
        assert all(name.endswith("_") and not name.startswith("_") for name in names)


@dataclass(frozen=True)
class Stranger:
    """A class of the user's."""

    size: int = 1


class TestRefusal:
    """What a file cannot hold, and what a file cannot mean."""

    @pytest.mark.parametrize(
        "value",
        [
            [1, 2],
            {"a": 1},
            Stranger(),
            lambda tensor: tensor.zero_(),
            initializers.From(print),
            match.predicate(lambda where, known: True),
            nn.Linear,
            torch.zeros(1),
            nn.functional.relu,
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_no_notation(self, value):
        """Functions of the user's, foreign classes, lists and tensors are refused by name."""
        with pytest.raises(PolicyError, match="cannot be written to a file"):
            encode(value, CLASSES)

    def test_substitute(self):
        """Where the caller has something to put in their place, that is written."""
        assert encode((print, 1), CLASSES, lambda value: value.__name__) == ["print", 1]

    @pytest.mark.parametrize(
        ("data", "error", "words"),
        [
            ({"class": "Normla", "std": 1}, UnknownNameError, "did you mean 'Normal'"),
            ({"class": "Normal", "sdt": 1}, UnknownNameError, "file: .*'sdt'.*'std'"),
            ({"class": "Normal"}, PolicyError, r"Normal needs the fields \['std'\]"),
            ({"class": "Normal", "std": "1"}, PolicyError, "file.std must be float"),
            ({"class": "Normal", "std": True}, PolicyError, "file.std must be"),
            ({"class": "Normal", "std": -1.0}, PolicyError, "file: .*std"),
            ({"class": "Normal", "std": {"float": "inf"}}, PolicyError, "finite"),
            ({"class": "Name", "globs": "head.*"}, PolicyError, "file.globs must be tuple"),
            ({"class": "Name", "globs": ["head["]}, PolicyError, "never closed"),
            ({"class": "Name", "globs": [1]}, PolicyError, "file.globs must be"),
            ({"class": "HasRole", "roles": ["wight"]}, PolicyError, "file.roles must be"),
            ({"class": "Meets", "activations": ["rely"]}, UnknownNameError, "did you mean 'relu'"),
            ({"class": "Not", "inner": {"class": "Zeros"}}, PolicyError, "file.inner must be"),
            ({"class": "Shape", "sizes": [1.5]}, PolicyError, "file.sizes must be"),
            ({"class": ["Normal"]}, UnknownNameError, "no class is called"),
            ({"class": "object"}, UnknownNameError, "no class"),
            ({"function": "os.system"}, UnknownNameError, "no function is called 'os.system'"),
            ({"function": "torch.nn.init._no_grad_fill_"}, UnknownNameError, "no function"),
            ({"function": 3}, UnknownNameError, "no function"),
            ({"dtype": "float23"}, UnknownNameError, "did you mean 'float32'"),
            ({"float": "nan"}, UnknownNameError, "no float"),
            ({"std": 1.0}, PolicyError, "an object needs a"),
            ({"a": 1, "b": 2}, PolicyError, r"fields \['a', 'b'\]"),
            ([{"class": "Zeros"}, {"class": "Zero"}], UnknownNameError, r"file\[1\]"),
        ],
        ids=str,
    )
    def test_data(self, data, error, words):
        """Each mistake is told at its place, with what was probably meant."""
        with pytest.raises(error, match=words):
            decode(data, CLASSES)

    @pytest.mark.parametrize("text", ["", "{", "NaN", "Infinity", '{"a": -Infinity}', "[" * 99_999])
    def test_json(self, text):
        """Text that is no JSON is an error of the policy, not of Python."""
        with pytest.raises(PolicyError, match="no JSON"):
            codec.read_json(text)

    @pytest.mark.parametrize("text", ["=", "a = ", "a = [1", "a = 1\na = 2"])
    def test_toml(self, text):
        """Text that is no TOML is an error of the policy, not of Python."""
        with pytest.raises(PolicyError, match="no TOML"):
            codec.read_toml(text)

    def test_toml_is_an_object(self):
        """A TOML file cannot hold anything but an object."""
        with pytest.raises(PolicyError, match="one object"):
            codec.write_toml([1])

    def test_missing_extra(self, monkeypatch):
        """Without `tomli_w` the error names the extra."""
        monkeypatch.setitem(sys.modules, "tomli_w", None)

        with pytest.raises(MissingExtraError, match="the extra 'toml'"):
            codec.write_toml({})

    def test_missing_forerunner(self, monkeypatch):
        """On Python 3.10 without `tomli`, likewise."""
        monkeypatch.setattr(sys, "version_info", (3, 10))
        monkeypatch.setitem(sys.modules, "tomli", None)

        with pytest.raises(MissingExtraError, match="reading TOML"):
            codec.read_toml("")

    def test_nothing_runs(self, monkeypatch):
        """A hostile file imports nothing and evaluates nothing."""
        monkeypatch.setattr("builtins.eval", lambda *_: pytest.fail("evaluated"))
        before = set(sys.modules)

        for word in ("__import__('antigravity')", "antigravity.System", "torch.nn.init.__doc__"):
            for tag in ("class", "function", "dtype", "float"):
                with pytest.raises(PolicyError):
                    decode({tag: word}, CLASSES)

        assert set(sys.modules) - before == set()


class TestNotation:
    """What the text looks like, for those who write it by hand."""

    def test_json(self):
        """An object of the class and its fields; what is None by default is left out."""
        assert encode(match.name("a.*"), CLASSES) == {"class": "Name", "globs": ["a.*"]}
        assert encode(match.shape(None, 3), CLASSES) == {"class": "Shape", "sizes": [None, 3]}

    def test_json_is_standard(self):
        """Infinity is an object, because standard JSON has no word for it."""
        text = codec.write_json(encode(TruncatedNormal(0.02, cut=math.inf), CLASSES))

        assert json.loads(text, parse_constant=pytest.fail)["cut"] == {"float": "inf"}

    def test_toml_has_no_null(self):
        """None is an empty table in TOML."""
        text = codec.write_toml({"shape": [None, 3]})

        assert codec.read_toml(text) == {"shape": [{}, 3]}

    def test_toml_infinity_by_hand(self):
        """TOML's own word for infinity is understood."""
        text = 'class = "TruncatedNormal"\nstd = 0.02\ncut = inf'

        assert decode(codec.read_toml(text), CLASSES) == TruncatedNormal(0.02, cut=math.inf)


class TestDigest:
    """A hash of what data mean."""

    def test_known_value(self):
        """It is the same in every process and version: this one was computed with `b2sum`."""
        # printf '{"a":1.0,"b":[true,null,"x"]}' | b2sum -l 128
        assert digest({"b": [True, None, "x"], "a": 1}) == "c86e6afe2b6e3e821c4c866d0e9bb779"

    def test_equal_numbers(self):
        """Equal numbers hash alike, and a truth is no number."""
        assert digest([1]) == digest([1.0]) != digest([True])
        assert digest([2**60]) != digest([2**60 + 1])

    def test_order(self):
        """The order of fields means nothing, that of items does."""
        assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        assert digest([1, 2]) != digest([2, 1])


class TestFits:
    """Annotations, checked."""

    @pytest.mark.parametrize(
        ("value", "hint", "expected"),
        [
            (1, float, True),
            (1.0, int, False),
            (True, int, False),
            (None, int | None, True),
            ("a", int | None, False),
            ((1, "a"), tuple[int, str], True),
            ((1,), tuple[int, str], False),
            ((), tuple[int, ...], True),
            ([1], tuple[int, ...], False),
            (print, Callable[..., object], True),
            (1, Callable[..., object], False),
            (Zeros(), initializers.Initializer, True),
            (1, initializers.Initializer, False),
            (1, typing.Any, True),
            (1, object, True),
        ],
        ids=str,
    )
    def test_hints(self, value, hint, expected):
        """A value fits an annotation, or it does not."""
        assert fits_annotation(value, hint) is expected
