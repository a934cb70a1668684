"""Words: what a step does in a few words, and tables that fold what repeats."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.writing.helpers import pairs
from torch_initpolicy.planning.describe import extent, figure, folded, header, rows, summary, table
from torch_initpolicy.tensors.initializers import (
    ICNR,
    Blocks,
    Constant,
    Keep,
    Normal,
    Ones,
    Orthogonal,
    TruncatedNormal,
    Uniform,
    VarianceScaling,
    Zeros,
    he_uniform,
    lecun_normal,
    xavier_normal,
    xavier_uniform,
)


class TestTold:
    """An initializer in words."""

    @pytest.mark.parametrize(
        ("initializer", "words"),
        [
            (VarianceScaling(2.0), "He normal, fan_in 576, gain 1.41421"),
            (VarianceScaling(gain=1.5335), "He normal, fan_in 576, gain 1.5335"),
            (he_uniform(), "He uniform, fan_in 576, gain 1.41421"),
            (he_uniform(mode="fan_out"), "He uniform, fan_out 64, gain 1.41421"),
            (lecun_normal(), "LeCun normal, fan_in 576"),
            (xavier_normal(), "Xavier normal, fans 576 + 64"),
            (xavier_uniform(gain=5 / 3), "Xavier uniform, fans 576 + 64, gain 1.66667"),
            (
                VarianceScaling(1.0, "fan_geo", "truncated_normal"),
                "geometric truncated normal, fans 576 * 64",
            ),
            (Orthogonal(), "orthogonal"),
            (Orthogonal(math.sqrt(2)), "orthogonal, gain 1.41421"),
            (Normal(0.02), "normal, std 0.02"),
            (Normal(0.02, 1.0), "normal, std 0.02, mean 1"),
            (TruncatedNormal(0.02), "normal cut at 2 std, std 0.02"),
            (Uniform(-0.1, 0.1), "uniform in [-0.1, 0.1]"),
            (Constant(-4.595), "constant -4.595"),
            (Zeros(), "zeros"),
            (Ones(), "ones"),
            (Keep(), "kept as it is"),
            (Blocks((Zeros(), Ones())), "zeros | ones"),
            (ICNR(Normal(0.1)), "ICNR(inner=Normal(std=0.1, mean=0.0), upscale_factor=2)"),
        ],
        ids=repr,
    )
    def test_words(self, initializer, words):
        """Family, fans and gain for what has them; the call itself for what is rare."""
        assert summary(initializer, 576, 64) == words

    def test_blocks_of_different_size(self):
        """Where packed blocks have fans of their own all are written."""
        assert summary(xavier_normal(), 768, (768, 64, 64)) == "Xavier normal, fans 768 + 768/64/64"

    @pytest.mark.parametrize(
        ("number", "text"),
        [(0.117851, "0.117851"), (1e-6, "1e-06"), (27.5, "27.5"), (None, "-"), ((1, 2.5), "1/2.5")],
        ids=str,
    )
    def test_figure(self, number, text):
        """Six digits, those of blocks with a stroke between, a dash for none."""
        assert figure(number) == text

    @pytest.mark.parametrize(
        ("shape", "text"), [((64, 3, 7, 7), "64x3x7x7"), ((), "1"), ((0,), "0")]
    )
    def test_extent(self, shape, text):
        """Sizes with a cross between."""
        assert extent(shape) == text


class TestFolded:
    """Rows that say the same of numbered modules."""

    @pytest.mark.parametrize(
        ("names", "expected"),
        [
            (["0.w"], ["0.w"]),
            (["w", "b"], ["w", "b"]),
            (["0.w", "1.w", "2.w"], ["{0-2}.w"]),
            (["0.w", "2.w", "3.w", "10.w"], ["{0,2-3,10}.w"]),
            (["a.0.b.1.w", "a.0.b.2.w", "a.1.b.1.w"], ["a.0.b.{1-2}.w", "a.1.b.1.w"]),
            (["layer1.0.w", "layer2.0.w"], ["layer1.0.w", "layer2.0.w"]),
            (["0", "1"], ["{0-1}"]),
            (["a.0", "b.0", "a.1"], ["a.{0-1}", "b.0"]),
        ],
        ids=str,
    )
    def test_names(self, names, expected):
        """Only whole parts of names are numbers, and only one of them is folded."""
        assert [name for name, _ in folded((name, ()) for name in names)] == expected

    def test_cells(self):
        """Rows with other cells stay apart, in the order of the model."""
        given = [("0.w", ("a",)), ("0.b", ("c",)), ("1.w", ("b",)), ("1.b", ("c",))]

        assert folded(given) == [("0.w", ("a",)), ("{0-1}.b", ("c",)), ("1.w", ("b",))]

    @given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.sampled_from("ab"))))
    def test_nothing_is_lost(self, places):
        """Unfolding a folded table gives all rows and no others."""
        given = {f"x.{i}.y.{j}.w": (cell,) for i, j, cell in places}

        unfolded = [
            (name, cells) for pattern, cells in folded(given.items()) for name in unfold(pattern)
        ]

        assert dict(unfolded) == given
        assert len(unfolded) == len(given)


def unfold(pattern):
    """Return the names that a folded one stands for."""
    if "{" not in pattern:
        return [pattern]
    before, _, rest = pattern.partition("{")
    ranges, _, after = rest.partition("}")
    ends = [[int(end) for end in part.split("-")] for part in ranges.split(",")]
    return [f"{before}{n}{after}" for end in ends for n in range(end[0], end[-1] + 1)]


def steps(count, initializer=Normal(0.1)):  # noqa: B008 - a frozen value
    """Steps for layers that are all alike."""
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(count)))
    return [step for _, step in pairs(model, lambda site: initializer)]


class TestTable:
    """What `print(plan)` prints."""

    def test_layout(self):
        """Columns are aligned, and nothing hangs over at the end of a line."""
        lines = table(steps(2)).splitlines()

        assert lines == [
            "parameter     shape  std  from  why",
            "{0-1}.weight  3x3    -    type  because a test says so",
            "{0-1}.bias    3      -    type  because a test says so",
        ]

    def test_size_does_not_matter(self):
        """Two hundred equal layers take as many lines as two."""
        assert len(rows(steps(200))) == len(rows(steps(2)))

    def test_ties(self):
        """Other names of a tensor stand behind the reason."""
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        model[1].weight = model[0].weight
        (line,) = rows([step for _, step in pairs(model, lambda site: Zeros())])

        assert line[-1] == "because a test says so (tied: 1.weight)"

    def test_header(self):
        """Counts add up, and what is unknown is named."""
        made = steps(2, Keep()) + [step for _, step in pairs(Raw(), lambda site: Zeros())]

        assert header(made, "mine", {"my_op": 2, "other": 1}).splitlines() == [
            "policy mine: 5 parameters, 34 elements; 4 kept",
            "known from: type 5",
            "operators of unknown role, nothing guessed: my_op 2, other 1",
            "to say what one computes: torch_initpolicy.operators.register('my_op', like=function)",
            "parameters of unknown role: raw",
        ]

    def test_why_nothing_was_traced(self):
        """Where the order of registration had to do, the header says why, and what helps."""
        text = header(steps(2), "mine", {}, "no inputs found: ValueError")

        assert text.splitlines()[1:] == ["known from: type 4 (no inputs found: ValueError)"]

    def test_long_headers_are_broken(self):
        """No line of the header is wider than a hundred columns."""
        text = header(steps(1), "mine", {f"operator_number_{i}": i for i in range(40)})

        assert max(map(len, text.splitlines())) <= 100


class Raw(nn.Module):
    """Holds a parameter of which nothing is known."""

    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(2, 5))
