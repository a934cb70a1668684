"""The scan finds every equal unit of every parameter, and calls few of them suspects."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from torch_initpolicy.sites import sites
from torch_initpolicy.symmetry.scan import EqualUnits, scan, suspects
from torch_initpolicy.symmetry.units import equal_groups


def found(model: nn.Module, *, thorough: bool = False) -> dict[tuple[str, str], EqualUnits]:
    """Scan a model; equal_units by name and side."""
    equal_units = scan(sites(model), thorough=thorough)
    return {(like.site.name, like.view.along): like for like in equal_units if not like.shuffled}


def equal(like: EqualUnits) -> tuple[tuple[int, ...], ...]:
    """Return the groups of equal units, by their numbers."""
    units = like.units.tolist()
    return tuple(tuple(units[i] for i in group) for group in equal_groups(like.labels))


PLANTED = {
    "linear rows": (lambda: nn.Linear(40, 30), lambda w: w[[3, 20]], "outputs", (3, 20)),
    "linear columns": (lambda: nn.Linear(40, 30), lambda w: w[:, [3, 20]], "inputs", (3, 20)),
    "conv outputs": (lambda: nn.Conv2d(8, 6, 3), lambda w: w[[1, 4]], "outputs", (1, 4)),
    "conv inputs": (lambda: nn.Conv2d(8, 6, 3), lambda w: w[:, [1, 4]], "inputs", (1, 4)),
    "transposed outputs": (
        lambda: nn.ConvTranspose1d(8, 6, 3),
        lambda w: w[:, [1, 4]],
        "outputs",
        (1, 4),
    ),
    "transposed inputs": (
        lambda: nn.ConvTranspose1d(8, 6, 3),
        lambda w: w[[1, 4]],
        "inputs",
        (1, 4),
    ),
    "group's inputs": (
        lambda: nn.Conv2d(8, 6, 3, groups=2),
        lambda w: w[3:, [0, 2]],
        "inputs",
        (4, 6),
    ),
    "embedding rows": (lambda: nn.Embedding(90, 8), lambda w: w[[5, 80]], "copies", (5, 80)),
    "embedding columns": (lambda: nn.Embedding(90, 8), lambda w: w[:, [5, 7]], "outputs", (5, 7)),
}


class TestUnits:
    @pytest.mark.parametrize("name", PLANTED)
    def test_planted_pair(self, name):
        """A copied unit is found on its side, under its number, and nothing else is."""
        build, pick, along, pair = PLANTED[name]
        layer = build()
        with torch.no_grad():
            _copy(layer.weight, pick)

        (like,) = found(layer).values()

        assert ("weight", along) == (like.site.name, like.view.along)
        assert (pair,) == equal(like)

    @given(st.integers(2, 12), st.integers(2, 12), st.integers(0, 2**16), st.integers(1, 3))
    @settings(max_examples=50)
    def test_as_by_comparing_all_pairs(self, units, features, seed, high):
        """Of a matrix of few different numbers all equal and zero rows and columns are found."""
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randint(-high, high + 1, (units, features), generator=generator).float()
        model = nn.ParameterDict({"w": matrix})

        equal_units = found(model)

        for along, rows in (("axis 0", matrix), ("axis 1", matrix.T)):
            like = equal_units.get(("w", along))
            assert _in_company(rows) == ([] if like is None else like.units.tolist())
            assert like is None or (rows[like.units] == _leaders(rows, like)).all()

    @pytest.mark.parametrize(
        "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.complex64]
    )
    def test_dtypes(self, dtype):
        """Equal units are equal in any dtype."""
        layer = nn.Module()
        layer.weight = nn.Parameter(torch.randn(30, 40, dtype=dtype))
        with torch.no_grad():
            layer.weight[20] = layer.weight[3]

        assert equal(found(layer)["weight", "axis 0"]) == ((3, 20),)

    def test_equal_in_the_first_elements_only(self):
        """Rows that agree where the scan looks first, and differ further on, are different."""
        layer = nn.Linear(400, 30)
        with torch.no_grad():
            layer.weight[20, :399] = layer.weight[3, :399]

        assert found(layer) == {}

    def test_up_to_a_sign(self):
        """A negated unit is equal, with the other sign."""
        layer = nn.Linear(40, 30)
        with torch.no_grad():
            layer.weight[20] = -layer.weight[3]
        like = found(layer)["weight", "outputs"]

        assert equal(like) == ((3, 20),)
        assert like.signs.prod() == -1

    def test_a_row_of_zeros_stands_alone(self):
        """Zeros may be dead without a copies."""
        layer = nn.Linear(40, 30)
        nn.init.zeros_(layer.weight[7])
        like = found(layer)["weight", "outputs"]

        assert like.units.tolist() == [7]
        assert like.signs.tolist() == [0]

    def test_channels_last(self):
        """Memory format does not matter."""
        layer = nn.Conv2d(8, 6, 3).to(memory_format=torch.channels_last)
        with torch.no_grad():
            layer.weight[4] = layer.weight[1]

        assert equal(found(layer)["weight", "outputs"]) == ((1, 4),)

    def test_parametrised_weights_go_by_the_weights_name(self):
        """What weight norm is made of is found under the weight."""
        layer = parametrizations.weight_norm(nn.Linear(40, 30))
        with torch.no_grad():
            layer.parametrizations.weight.original1[20] = layer.parametrizations.weight.original1[3]

        assert equal(found(layer)["weight", "outputs"]) == ((3, 20),)

    @pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
    def test_what_is_not_trained_or_holds_no_numbers(self):
        """Frozen, integer, empty and lazy parameters are passed over."""
        model = nn.ModuleDict(
            {
                "frozen": nn.Linear(4, 4).requires_grad_(False),
                "empty": nn.Linear(4, 0),
                "lazy": nn.LazyLinear(4),
            }
        )
        model.register_parameter("whole", nn.Parameter(torch.zeros(4, 4, dtype=torch.int32), False))
        for parameter in model["frozen"].parameters():
            parameter.fill_(0.0)

        assert found(model) == {}

    def test_thorough_finds_units_equal_once_sorted(self):
        """Rows of the identity are permutations of one another; so are copies of a block."""
        layer = nn.Linear(6, 6)
        nn.init.eye_(layer.weight)

        (shuffled,) = [
            like
            for like in scan(sites(layer), thorough=True)
            if like.shuffled and like.view.along == "outputs"
        ]

        assert equal(shuffled) == ((0, 1, 2, 3, 4, 5),)

    def test_random_layers_have_none(self):
        """On a thousand random units of any kind nothing is found, thorough or not."""
        model = nn.ModuleList(
            [nn.Linear(64, 1000), nn.Conv2d(16, 64, 3), nn.LSTM(16, 64), nn.Embedding(999, 8)]
        )

        assert list(scan(sites(model))) == []
        assert [like for like in scan(sites(model), thorough=True) if not like.is_vector] == []


def _in_company(rows: torch.Tensor) -> list[int]:
    """Number the rows that are zero, or equal to another up to the sign."""
    twice = [{tuple(row.tolist()), tuple((-row).tolist())} for row in rows]
    return [i for i, row in enumerate(rows) if not row.any() or twice.count(twice[i]) > 1]


def _leaders(rows: torch.Tensor, like: EqualUnits) -> torch.Tensor:
    """Return what a start says that its units are: the first of their like, with its sign."""
    signs = dict(zip(like.units.tolist(), like.signs.tolist(), strict=True))
    negated_too = [
        signs[unit] * signs[label] for unit, label in zip(signs, like.labels.tolist(), strict=True)
    ]
    return rows[like.labels] * torch.tensor(negated_too)[:, None]


def _copy(weight: nn.Parameter, pick) -> None:
    """Make the second of two picked slices a copy of the first."""
    numbers = torch.arange(weight.numel()).view_as(weight)
    first, second = (slices.flatten() for slices in _pair(pick(numbers), weight))
    weight.view(-1)[second] = weight.view(-1)[first]


def _pair(picked: torch.Tensor, weight: nn.Parameter) -> tuple[torch.Tensor, torch.Tensor]:
    axis = next(axis for axis, size in enumerate(picked.shape) if size == 2 != weight.shape[axis])
    first, second = picked.unbind(axis)
    return first, second


VECTORS = {
    "zero bias": ("bias", 0.0, False),
    "positive bias": ("bias", 0.1, False),
    "negative bias": ("bias", -3.0, True),
    "huge bias": ("bias", 50.0, True),
    "neutral norm": ("norm.weight", 1.0, False),
    "closed norm": ("norm.weight", 0.0, True),
    "neutral norm's bias": ("norm.bias", 0.0, False),
    "norm that switches off": ("norm.bias", -20.0, True),
    "layer scale": ("vector", 1e-5, False),
    "closed gate": ("vector", 0.0, True),
    "closed scalar gate": ("number", 0.0, True),
    "class token": ("token", 0.0, False),
}
"""The parameter of `_Beside` that is filled, with what, and whether that makes it a suspect."""


class _Beside(nn.Linear):
    """A random matrix with vectors of all kinds beside it."""

    def __init__(self) -> None:
        super().__init__(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.vector = nn.Parameter(torch.rand(6))
        self.number = nn.Parameter(torch.rand(()))
        self.token = nn.Parameter(torch.rand(1, 1, 6))


class TestSuspects:
    @pytest.mark.parametrize("name", VECTORS)
    def test_vectors(self, name):
        """Vectors are suspects where they may close a way or switch units off, and only there."""
        parameter, value, suspected = VECTORS[name]
        model = _Beside()
        nn.init.constant_(model.get_parameter(parameter), value)

        assert suspects(model, sites(model)).names == ((parameter,) if suspected else ())

    def test_constant_vectors_where_there_is_nothing_else(self):
        """Without matrices, or where somebody asks, raw constant vectors are suspects."""
        alone = nn.ParameterDict({"w": torch.full((6,), 0.5)})
        beside = nn.ModuleDict({"linear": nn.Linear(4, 6), "vectors": alone})

        assert suspects(alone, sites(alone)).names == ("w",)
        assert suspects(beside, sites(beside)).names == ()
        assert suspects(beside, sites(beside), asked=True).names == ("vectors.w",)

    def test_among(self):
        """Only the parameters that are asked for are looked at."""
        model = nn.Linear(4, 3)
        nn.init.zeros_(model.weight)

        assert not suspects(model, sites(model), among=["bias"])
        assert suspects(model, sites(model), among=["weight"]).names == ("weight",)

    def test_rows_that_are_next_to_nothing(self):
        """Weights of 1e-6 are a start of zeros, up to noise that takes thousands of steps."""
        model = nn.Linear(8, 6)
        nn.init.normal_(model.weight, std=1e-6)
        (like,) = [
            s for s in suspects(model, sites(model)).equal_units if s.view.along == "outputs"
        ]

        assert like.groups() == ((0, 1, 2, 3, 4, 5),)
        assert not like.signs.any()
