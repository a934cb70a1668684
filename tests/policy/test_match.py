"""Matchers: each answers for the sites it is meant for, and for no others."""

import abc
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from tests.ids import readable
from tests.policy.hand import facts, site
from torch_initpolicy.errors import PolicyError, UnknownNameError
from torch_initpolicy.policy import match, matchers
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.gains import Activation, Moments

LINEAR = site(nn.Linear(4, 8), prefix="blocks.3.mlp.fc1")
BIAS = site(nn.Linear(4, 8), "bias")
CONV = site(nn.Conv2d(6, 8, 3, groups=2), prefix="stem.0")


def answers(matcher, where=LINEAR, **changes):
    """Ask a matcher about a site of which something more is known."""
    return matcher.matches(where, facts(where, **changes))


class TestName:
    """Names, by globs and regular expressions."""

    @pytest.mark.parametrize(
        ("glob", "fits"),
        [
            ("blocks.3.mlp.fc1.weight", True),
            ("blocks.*", True),
            ("*.weight", True),
            ("blocks.*.weight", True),
            ("*", True),
            ("blocks.?.mlp.fc1.weight", True),
            ("blocks.[0-4].mlp.*", True),
            ("blocks.[!3].*", False),
            ("blocks", False),
            ("fc1.weight", False),
            ("Blocks.*", False),
        ],
    )
    def test_glob(self, glob, fits):
        """A star goes across dots, the whole name must fit, and case matters."""
        assert answers(match.name(glob)) is fits

    def test_regex_fits_the_whole_name(self):
        """A regular expression is anchored on both sides."""
        assert answers(match.name(regex=r"blocks\.\d+\..*"))
        assert not answers(match.name(regex=r"blocks\.\d+"))

    def test_any_pattern_will_do(self):
        """Several globs and a regex are alternatives."""
        assert answers(match.name("head.*", regex=r".*\.weight"))
        assert answers(match.name("head.*", "blocks.*"))
        assert not answers(match.name("head.*", regex=r".*\.bias"))

    def test_ties(self):
        """A rule on `lm_head.weight` fires though the tensor is listed as an embedding (D25)."""
        tied = site(nn.Embedding(9, 4), prefix="wte", names=("wte.weight", "lm_head.weight"))

        assert answers(match.name("lm_head.*"), tied)

    def test_root(self):
        """A parameter of the root has no dot in its name (D30)."""
        assert answers(match.name("bias"), BIAS)
        assert not answers(match.name("*.bias"), BIAS)

    @pytest.mark.parametrize("glob", ["head[", "a[!b", "", 3], ids=repr)
    def test_bad_glob(self, glob):
        """A glob that cannot mean anything is refused where it is written."""
        with pytest.raises(PolicyError, match="glob"):
            match.name(glob)

    def test_bracket_as_itself(self):
        """A bracket in brackets stands for itself."""
        assert answers(match.name("a[[]b"), site(nn.Linear(1, 1), names=("a[b",)))

    def test_name_with_brackets(self):
        """A glob that is a name letter by letter matches it, and what it says as a pattern too."""
        layer = nn.Linear(1, 1)

        assert answers(match.name("a[0].b"), site(layer, names=("a[0].b",)))
        assert answers(match.name("a[0].b"), site(layer, names=("a0.b",)))
        assert not answers(match.name("a[0].b"), site(layer, names=("a[1].b",)))

    def test_bad_regex(self):
        """A bad regular expression is refused where it is written."""
        with pytest.raises(PolicyError, match="no regular expression"):
            match.name(regex="(")

    def test_no_pattern(self):
        """A name matcher without a pattern is refused."""
        with pytest.raises(PolicyError, match="matches nothing"):
            match.name()


class Special(nn.Conv2d):
    """A class of a user's, whose base is torch's."""


class TestKind:
    """Classes, subclasses, and names of classes."""

    @pytest.mark.parametrize(
        "kind",
        [
            nn.Conv2d,
            "Conv2d",
            "torch.nn.Conv2d",
            "torch.nn.modules.conv.Conv2d",
            "_ConvNd",
            nn.Module,
            Special,
            "Special",
        ],
        ids=str,
    )
    def test_subclasses(self, kind):
        """A class is found under each of its names, through the classes it inherits from."""
        special = site(Special(2, 2, 1))

        assert answers(match.kind(kind), special)

    @pytest.mark.parametrize(
        "kind",
        [nn.Linear, "Conv1d", "Conv2dX", "xConv2d", "torch.Linear.Conv2d", "orch.nn.Conv2d", "nn"],
        ids=str,
    )
    def test_strangers(self, kind):
        """Parts of names are no names."""
        assert not answers(match.kind(kind), CONV)

    def test_several(self):
        """Several kinds are alternatives."""
        assert answers(match.kind(nn.Conv2d, nn.Linear))

    def test_parametrised(self):
        """Torch's dynamic class of a parametrised layer is still that layer."""
        layer = parametrizations.weight_norm(nn.Linear(3, 3))
        assert type(layer) is not nn.Linear
        assert parametrize.is_parametrized(layer)

        assert answers(match.kind(nn.Linear), site(layer, "bias"))

    def test_classes_become_names(self):
        """A class and its public path are the same matcher; so a file needs no import."""
        assert match.kind(nn.Conv2d) == match.kind("torch.nn.Conv2d")
        assert match.kind(nn.LSTM) == match.kind("torch.nn.LSTM")

    @pytest.mark.parametrize("kinds", [(), ("",), (3,), (nn.Linear(1, 1),)], ids=repr)
    def test_refused(self, kinds):
        """What is no class, or none at all, is refused."""
        with pytest.raises(PolicyError):
            match.kind(*kinds)


class TestDataFlow:
    """Role, activations, operators and the facts with yes and no."""

    def test_role(self):
        """A role is what the facts say, not what the type says."""
        assert answers(match.role("weight", "bias"))
        assert not answers(match.role("weight"), role="table")

    @pytest.mark.parametrize(
        ("met", "words"),
        [
            (None, {"nothing"}),
            (Activation("relu"), {"relu", "rectifier"}),
            (Activation("leaky_relu", 0.2), {"leaky_relu", "rectifier"}),
            (Activation("gelu"), {"gelu", "rectifier"}),
            (Activation("tanh"), {"tanh", "saturating"}),
            (Activation("softmax"), {"softmax", "saturating"}),
            (Activation("selu"), {"selu"}),
            (Activation("product", moments=Moments(0.1, 0.4, 0.5)), {"product", "rectifier"}),
        ],
        ids=readable,
    )
    def test_activations(self, met, words):
        """An activation answers to its name and to its family, on either side."""
        every = {"nothing", "relu", "leaky_relu", "gelu", "tanh", "softmax", "selu", "product"}
        every |= {"rectifier", "saturating"}

        assert {word for word in every if answers(match.meets(word), meets=met)} == words
        assert {word for word in every if answers(match.fed_by(word), fed_by=met)} == words

    def test_input(self):
        """What reads the model's input is fed by the input, not by nothing."""
        assert answers(match.fed_by("input"), reads_input=True)
        assert not answers(match.fed_by("nothing"), reads_input=True)
        assert not answers(match.fed_by("input"))

    def test_op(self):
        """The operator is the one that consumes the parameter."""
        assert answers(match.op("linear", "matmul"), op="matmul")
        assert not answers(match.op("linear"))

    @pytest.mark.parametrize(
        ("matcher", "changes"),
        [
            (match.ends_residual(), {"ends_residual": True}),
            (match.reads_input(), {"reads_input": True}),
            (match.feeds_output(), {"feeds_output": True}),
            (match.used(), {"used": True}),
            (match.offset(1.0), {"offset": 1.0}),
            (match.offset(), {"offset": 1.0}),
        ],
        ids=repr,
    )
    def test_facts(self, matcher, changes):
        """Each fact is asked for by a matcher of its own."""
        assert answers(matcher, **changes)
        assert not answers(matcher)

    def test_frozen_and_tied(self):
        """What the site itself knows."""
        held = dataclasses.replace(LINEAR, requires_grad=False, names=("a", "b"))

        assert answers(match.frozen() & match.tied(), held)
        assert not answers(match.frozen() | match.tied())

    @pytest.mark.parametrize(
        ("make", "meant"),
        [
            (lambda: match.role("wieght"), "weight"),
            (lambda: match.role("norm"), "norm_bias"),
            (lambda: match.meets("RELU6"), None),
            (lambda: match.meets("lrelu"), "relu"),
            (lambda: match.meets("rectifer"), "rectifier"),
            (lambda: match.fed_by("imput"), "input"),
        ],
        ids=["role", "half a role", "upper case", "activation", "family", "fed_by"],
    )
    def test_unknown_words(self, make, meant):
        """A word that does not exist is refused, with what was probably meant."""
        with pytest.raises(UnknownNameError, match=f"did you mean .*{meant}" if meant else "RELU6"):
            make()

    @pytest.mark.parametrize("make", [match.role, match.meets, match.fed_by, match.op])
    def test_no_word(self, make):
        """A matcher without words is refused."""
        with pytest.raises(PolicyError):
            make()

    def test_nan(self):
        """An offset is a number."""
        with pytest.raises(PolicyError, match="must be a number"):
            match.offset(float("nan"))


class TestSizes:
    """Fans and shapes."""

    @pytest.mark.parametrize(
        ("matcher", "fits"),
        [
            (match.fan(fan_in=27), True),  # 6 / 2 channels of 3 x 3
            (match.fan(fan_in=(27, None)), True),
            (match.fan(fan_in=(None, 27)), True),
            (match.fan(fan_in=(28, None)), False),
            (match.fan(fan_out=36), True),  # 8 / 2 channels of 3 x 3
            (match.fan(fan_out=(1, 35)), False),
            (match.fan(fan_in=27, fan_out=36), True),
            (match.fan(fan_in=27, fan_out=37), False),
        ],
        ids=repr,
    )
    def test_fan(self, matcher, fits):
        """Fans are those of the layer's own axes; bounds are included."""
        assert answers(matcher, CONV) is fits

    def test_fan_of_blocks(self):
        """Of packed matrices each must lie within the bounds."""
        packed = Axes(inputs=(1,), outputs=(0,), blocks=(6, 1, 1))

        assert answers(match.fan(fan_out=(1, 6)), axes=packed)
        assert not answers(match.fan(fan_out=6), axes=packed)

    def test_no_fan(self):
        """What is no linear map has no fans, whatever the bounds."""
        assert not answers(match.fan(fan_in=(0, None)), BIAS)

    @pytest.mark.parametrize(
        "bounds", [(None, None), (3, 1), (1,), (1, 2, 3), ("1", 2), (float("nan"), 2)], ids=repr
    )
    def test_bad_bounds(self, bounds):
        """Bounds that hold no number, or are none, are refused."""
        with pytest.raises(PolicyError):
            match.fan(fan_in=bounds)

    @pytest.mark.parametrize(
        ("matcher", "fits"),
        [
            (match.shape(8, 3, 3, 3), True),
            (match.shape(None, 3, None, None), True),
            (match.shape(None, 4, None, None), False),
            (match.shape(8, 3), False),
            (match.shape(ndim=4), True),
            (match.shape(ndim=2), False),
        ],
        ids=repr,
    )
    def test_shape(self, matcher, fits):
        """A size, any size, or the number of sizes."""
        assert answers(matcher, CONV) is fits

    @pytest.mark.parametrize("sizes", [(-1,), (2.0,), (True,), ("8",)], ids=repr)
    def test_bad_shape(self, sizes):
        """Sizes are whole numbers."""
        with pytest.raises(PolicyError, match="whole numbers"):
            match.shape(*sizes)

    def test_no_shape(self):
        """A shape without sizes is refused."""
        with pytest.raises(PolicyError, match="matches nothing"):
            match.shape()


YES, NO = match.anything(), ~match.anything()


class TestCombinations:
    """`&`, `|` and `~`."""

    @pytest.mark.parametrize("left", [True, False])
    @pytest.mark.parametrize("right", [True, False])
    def test_truth_table(self, left, right):
        """They mean what they mean in logic."""
        a, b = (YES if left else NO), (YES if right else NO)

        assert answers(a & b) is (left and right)
        assert answers(a | b) is (left or right)
        assert answers(~a) is (not left)
        assert answers(~(a & b)) is answers(~a | ~b)

    def test_associative(self):
        """Parts of the same combination lie side by side, however they were bracketed."""
        a, b, c = match.name("a"), match.name("b"), match.name("c")

        assert (a & b) & c == a & (b & c)
        assert (a | b) | c == a | (b | c)
        assert a & b | c != a & (b | c)

    def test_double_negation(self):
        """Two negations are none."""
        assert ~~YES == YES

    @pytest.mark.parametrize(
        "spoil",
        [lambda: YES and NO, lambda: YES or NO, lambda: not YES],
        ids=["and", "or", "not"],
    )
    def test_python_words_are_refused(self, spoil):
        """`and`, `or` and `not` would drop one side without a word."""
        with pytest.raises(TypeError, match="combine matchers with"):
            spoil()

    @pytest.mark.parametrize("other", [True, None, "head.*"], ids=repr)
    def test_strangers(self, other):
        """Only matchers combine."""
        with pytest.raises(TypeError):
            YES & other
        with pytest.raises(TypeError):
            YES | other

    def test_no_parts(self):
        """A combination of nothing, or of something else, is refused."""
        with pytest.raises(PolicyError):
            matchers.AllOf(())
        with pytest.raises(PolicyError):
            matchers.Not("head.*")


class TestPredicate:
    """Functions of the user's own."""

    def test_asked(self):
        """The function sees the site and its facts, and its answer is taken for yes or no."""
        matcher = match.predicate(lambda where, known: where.shape[0] * (known.role == "weight"))

        assert answers(matcher) is True
        assert answers(matcher, role="bias") is False

    def test_raising(self):
        """What the function raises is told together with the site."""
        with pytest.raises(PolicyError, match=r"ZeroDivisionError.*blocks\.3"):
            answers(match.predicate(lambda where, known: 1 / 0))

    def test_no_function(self):
        """A predicate is called."""
        with pytest.raises(PolicyError, match="function"):
            match.predicate("weight")


REPRS = [
    match.name("a.*", regex="b"),
    match.kind(nn.Linear, "Conv2d"),
    match.role("weight"),
    match.meets("relu", "saturating"),
    match.fed_by("input"),
    match.op("linear"),
    match.ends_residual(),
    match.used(),
    match.frozen(),
    match.tied(),
    match.reads_input(),
    match.feeds_output(),
    match.offset(1.0),
    match.fan(fan_in=(1, None)),
    match.shape(None, 3),
    match.shape(ndim=0),
    match.anything(),
    match.role("weight") & (match.name("a") | match.name("b")) & ~match.tied(),
    match.role("weight") & match.name("a") | ~(match.name("b") | match.name("c")),
]


class TestValues:
    """Matchers are values."""

    @pytest.mark.parametrize("matcher", REPRS, ids=repr)
    def test_repr(self, matcher):
        """The repr is the expression that makes the matcher, brackets where they matter."""
        words = {name: getattr(match, name) for name in match.__all__}

        assert eval(repr(matcher), words) == matcher

    @pytest.mark.parametrize("matcher", REPRS, ids=repr)
    def test_frozen_and_hashable(self, matcher):
        """Nothing can be changed, so that it can be a key."""
        assert len({matcher, dataclasses.replace(matcher)}) == 1
        with pytest.raises((AttributeError, TypeError)):  # the latter is a quirk of slots
            matcher.extra = 1

    def test_every_class_is_known_to_files(self):
        """All matchers but the predicate can be kept in a file."""
        classes = {kind for kind in vars(matchers).values() if type(kind) is abc.ABCMeta}
        found = {kind for kind in classes if issubclass(kind, matchers.Matcher)}

        assert set(matchers.SERIALISABLE) == found - {matchers.Matcher, matchers.Predicate}


def test_only_words_are_listed():
    """`dir(match)` shows the words of policies, not what they are made with."""
    assert sorted(dir(match)) == sorted(match.__all__)


def test_unknown_role_lists_the_roles():
    """A word that is close to none of the roles is answered with all of them."""
    with pytest.raises(UnknownNameError, match=r"'gamma'; there are bias, embedding, .*weight"):
        match.role("gamma")


@pytest.mark.parametrize("number", [np.float32(1.0), torch.tensor(1.0), np.int64(1)], ids=repr)
def test_numbers_of_others(number):
    """Numbers of NumPy and tensors of no dimension serve as numbers."""
    assert match.offset(number) == match.offset(1.0)
    assert match.fan(fan_in=(None, number)) == match.fan(fan_in=(None, 1.0))
    assert match.fan(fan_out=number) == match.fan(fan_out=1.0)
