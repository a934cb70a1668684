"""Inputs from words of the command line."""

import pytest
import torch
from torch import nn

from torch_initpolicy.errors import InitPolicyError
from torch_initpolicy.integrations.inputs import Input, drawn, require_distinct

WORDS = {
    "floats": ("2,3,224,224", Input((2, 3, 224, 224))),
    "one axis": ("7", Input((7,))),
    "kind": ("int:2,16", Input((2, 16), "int")),
    "name": ("x=2,3", Input((2, 3), name="x")),
    "name and kind": ("_mask_2=bool:2,8", Input((2, 8), "bool", "_mask_2")),
}

MALFORMED = [
    "",
    ",",
    "2,",
    "2, 3",
    "0,3",
    "-1,3",
    "2x3",
    "int",
    "int:",
    "=2,3",
    "2=3",
    "a b=2",
    "²",
]


class TestParse:
    """Words are read exactly, or refused."""

    @pytest.mark.parametrize(("word", "expected"), WORDS.values(), ids=WORDS)
    def test_word(self, word, expected):
        """Shape, kind and name are what the word says."""
        assert Input.parse(word) == expected

    @pytest.mark.parametrize("word", MALFORMED, ids=repr)
    def test_malformed(self, word):
        """Anything else is shown beside what was expected."""
        with pytest.raises(InitPolicyError, match="is no input; write") as refused:
            Input.parse(word)

        assert repr(word) in str(refused.value)

    @pytest.mark.parametrize(
        ("word", "advice"), [("itn:2", "did you mean 'int'"), ("zzz:2", "known are float, ")]
    )
    def test_kind(self, word, advice):
        """A kind that does not exist is answered with those that do."""
        with pytest.raises(InitPolicyError, match=advice):
            Input.parse(word)

    def test_distinct(self):
        """A name can be given once; what has no name, as often as one likes."""
        require_distinct([Input((1,)), Input((1,)), Input((1,), name="a"), Input((1,), name="b")])

        with pytest.raises(InitPolicyError, match="2 inputs are named 'a'"):
            require_distinct([Input((1,), name="a"), Input((2,), name="a")])


class TestDrawn:
    """What a model gets."""

    def test_nothing(self):
        """Without inputs some are looked for."""
        assert drawn(None, nn.Identity()) is None
        assert drawn([], nn.Identity()) is None

    @pytest.mark.parametrize(
        ("kind", "dtype"),
        [
            ("float", torch.float32),
            ("double", torch.float64),
            ("half", torch.float16),
            ("bfloat16", torch.bfloat16),
            ("complex", torch.complex64),
            ("int", torch.int64),
            ("bool", torch.bool),
        ],
    )
    def test_kinds(self, kind, dtype):
        """Each kind has its dtype and the shape that was asked for."""
        call = drawn([Input((3, 5), kind)], nn.Identity())

        assert call.args[0].dtype is dtype
        assert call.args[0].shape == (3, 5)

    def test_places_and_names(self):
        """What has no name goes by its place, in the order given."""
        call = drawn([Input((1,)), Input((2,), name="x"), Input((3,))], nn.Identity())

        assert [tensor.shape[0] for tensor in call.args] == [1, 3]
        assert call.kwargs["x"].shape == (2,)

    def test_indices(self):
        """Indices are held by every table, and all of them occur."""
        model = nn.ModuleList([nn.Embedding(9, 2), nn.Embedding(5, 2)])

        (ids,) = drawn([Input((400,), "int")], model).args

        assert sorted(set(ids.tolist())) == [0, 1, 2, 3, 4]

    def test_the_same_again(self):
        """Two calls give the same numbers, and torch's generator stays where it was."""
        before = torch.random.get_rng_state()
        first, second = (drawn([Input((4, 4))], nn.Identity()).args[0] for _ in range(2))

        assert torch.equal(first, second)
        assert torch.equal(torch.random.get_rng_state(), before)

    def test_device(self):
        """They are where the model is."""
        call = drawn([Input((2,))], nn.Linear(2, 2, device="meta"))

        assert call.args[0].is_meta
