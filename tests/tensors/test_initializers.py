"""What every initializer promises, and those that are built of others."""

import copy
import dataclasses
import functools
import math
import pickle
from typing import NamedTuple

import pytest
import torch
from torch import nn

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.tensors import initializers
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.base import Context, Spread
from torch_initpolicy.tensors.initializer import REGISTERED
from torch_initpolicy.tensors.initializers import (
    ICNR,
    Blocks,
    BranchScaled,
    Chrono,
    Constant,
    DeltaOrthogonal,
    Dirac,
    From,
    Identity,
    Keep,
    Normal,
    Ones,
    Orthogonal,
    Scaled,
    Sparse,
    TruncatedNormal,
    Uniform,
    VarianceScaling,
    Zeros,
    he_normal,
    lecun_uniform,
    xavier_normal,
    xavier_uniform,
)
from torch_initpolicy.tensors.samplers import ByFunction, Independent, Joint
from torch_initpolicy.tensors.standards import truncation


class Case(NamedTuple):
    """An initializer with a tensor it fits."""

    initializer: initializers.Initializer
    shape: tuple[int, ...] = (24, 16)
    axes: Axes | None = None


GQA = Axes((1,), (0,), blocks=(12, 6, 6))
GATES = Axes((), (0,), blocks=(4, 4, 4, 4))
KERNEL = (24, 16, 3, 3)

ALL = {
    "constant": Case(Constant(0.3)),
    "zeros": Case(Zeros(), (24,)),
    "ones": Case(Ones(), ()),
    "uniform": Case(Uniform(-0.1, 0.3)),
    "normal": Case(Normal(0.02, mean=0.1), (7, 5, 3)),
    "truncated": Case(TruncatedNormal(0.02)),
    "truncated far out": Case(TruncatedNormal(0.02, cut=4.0)),
    "he": Case(he_normal(), KERNEL),
    "xavier": Case(xavier_uniform(), (24, 16), GQA),
    "lecun": Case(lecun_uniform(), (24, 16, 3), Axes((1,), (0,), groups=4)),
    "truncated scaling": Case(VarianceScaling(1.0, "fan_geo", "truncated_normal")),
    "orthogonal": Case(Orthogonal(), (24, 16), GQA),
    "delta": Case(DeltaOrthogonal(), KERNEL),
    "dirac": Case(Dirac(), KERNEL),
    "identity": Case(Identity()),
    "sparse": Case(Sparse(0.5)),
    "icnr": Case(ICNR(he_normal()), KERNEL),
    "icnr of uniform": Case(ICNR(xavier_uniform()), KERNEL),
    "icnr of orthogonal": Case(ICNR(Orthogonal()), KERNEL),
    "chrono": Case(Chrono(50.0), (16,), GATES),
    "forget gate": Case(Blocks((Zeros(), Ones(), Zeros(), Zeros())), (16,), GATES),
    "blocks": Case(Blocks((xavier_normal(), xavier_uniform(), Zeros())), (24, 16), GQA),
    "blocks of all kinds": Case(
        Blocks((Orthogonal(), TruncatedNormal(0.1), Sparse(0.5))), (24, 16), GQA
    ),
    "scaled": Case(Scaled(he_normal(), 0.5), KERNEL),
    "scaled orthogonal": Case(Scaled(Orthogonal(), 0.5), (24, 16), GQA),
    "branch": Case(BranchScaled(Normal(0.02)).resolve(Context(residual_branches=24))),
    "from": Case(From(nn.init.kaiming_normal_, mode="fan_out")),
    "from sparse": Case(From(nn.init.sparse_, sparsity=0.5)),
    "from a lambda": Case(From(lambda tensor: tensor.normal_())),
}

FIXED = ("constant", "zeros", "ones", "dirac", "identity", "forget gate")
OURS = {name: case for name, case in ALL.items() if not isinstance(case.initializer, From)}
DRAWING = {name: case for name, case in ALL.items() if name not in FIXED}
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DTYPES = (*FLOATS, torch.complex64, torch.complex128)


def seeded(seed=0):
    """Return a generator of its own."""
    return torch.Generator().manual_seed(seed)


def drawn(case, dtype=torch.float32, seed=0):
    """Return a tensor filled from a generator of its own."""
    tensor = torch.full(case.shape, math.nan, dtype=dtype)
    case.initializer(tensor, case.axes, generator=seeded(seed))
    return tensor


every = pytest.mark.parametrize("case", ALL.values(), ids=ALL)
ours = pytest.mark.parametrize("case", OURS.values(), ids=OURS)
drawing = pytest.mark.parametrize("case", DRAWING.values(), ids=DRAWING)


class TestContract:
    """What every initializer promises."""

    @every
    def test_in_place(self, case):
        """All elements are written, in place, and nothing is returned."""
        tensor = torch.full(case.shape, math.nan)
        address = tensor.data_ptr()

        assert case.initializer(tensor, case.axes, generator=seeded()) is None
        assert tensor.data_ptr() == address
        assert tensor.isfinite().all()

    @ours
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_dtype(self, case, dtype):
        """Every floating-point and complex dtype is filled and kept."""
        tensor = drawn(case, dtype)

        assert tensor.dtype == dtype
        assert tensor.isfinite().all()

    @ours
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_half_precision_is_rounded(self, case, dtype):
        """Half precision holds the numbers of float32, rounded."""
        assert torch.equal(drawn(case, dtype), drawn(case).to(dtype))

    @every
    def test_same_seed_same_bits(self, case):
        """The same seed gives the same bits."""
        assert torch.equal(drawn(case), drawn(case))

    @drawing
    def test_other_seed_other_numbers(self, case):
        """Another seed gives other numbers."""
        assert not torch.equal(drawn(case), drawn(case, seed=1))

    @every
    def test_global_generator_is_untouched(self, case):
        """With a generator of its own nothing is read from torch's, nor moved."""
        before = torch.get_rng_state()
        first = drawn(case)
        after = torch.get_rng_state()
        torch.manual_seed(99)

        assert torch.equal(before, after)
        assert torch.equal(first, drawn(case))

    @drawing
    def test_global_generator_is_the_default(self, case):
        """Without a generator torch's own is used."""
        tensors = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            tensors.append(torch.empty(case.shape))
            case.initializer(tensors[-1], case.axes)

        assert torch.equal(tensors[0], tensors[1])
        assert not torch.equal(tensors[0], tensors[2])

    @ours
    def test_memory_layout_does_not_matter(self, case):
        """A tensor that is not contiguous gets the numbers of one that is."""
        shape = case.shape[::-1]
        tensor = torch.empty(shape).permute(tuple(reversed(range(len(shape)))))
        case.initializer(tensor, case.axes, generator=seeded())

        assert torch.equal(tensor, drawn(case))

    @ours
    def test_part_of_a_larger_tensor(self, case):
        """Writing to a view leaves what lies around it."""
        around = torch.full((3, *case.shape), 7.0)
        case.initializer(around[1], case.axes, generator=seeded())

        assert torch.equal(around[1], drawn(case))
        assert around[::2].eq(7).all()

    @every
    def test_meta_is_left(self, case):
        """On the meta device nothing happens."""
        before = torch.get_rng_state()
        case.initializer(torch.empty(case.shape, device="meta"), case.axes)

        assert torch.equal(before, torch.get_rng_state())

    @every
    def test_parameter_stays_a_leaf(self, case):
        """A parameter is written without a graph, keeps `requires_grad`, and notes the write."""
        parameter = nn.Parameter(torch.empty(case.shape))
        version = parameter._version
        case.initializer(parameter, case.axes, generator=seeded())

        assert parameter.is_leaf
        assert parameter.requires_grad
        assert parameter.grad_fn is None
        assert parameter._version > version

    @ours
    def test_integers_are_refused(self, case):
        """Integers hold no random numbers; the error names the dtype."""
        with pytest.raises(PolicyError, match="int64"):
            case.initializer(torch.zeros(case.shape, dtype=torch.int64), case.axes)

    @ours
    def test_repr_is_the_call_that_makes_it(self, case):
        """The repr recreates the value."""
        names = {name: getattr(initializers, name) for name in initializers.__all__}

        assert eval(repr(case.initializer), names) == case.initializer

    @every
    def test_value(self, case):
        """Initializers are frozen, hashable, and equal to their copies."""
        initializer = case.initializer

        assert copy.deepcopy(initializer) == initializer
        assert hash(dataclasses.replace(initializer) if case in OURS.values() else initializer)
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
            initializer.gain = 2.0

    @ours
    def test_pickle(self, case):
        """Initializers can be pickled."""
        assert pickle.loads(pickle.dumps(case.initializer)) == case.initializer

    @ours
    def test_resolved_is_itself(self, case):
        """What has only numbers in it does not change with a site."""
        assert case.initializer.resolve(Context(meets_gain=2.0, residual_branches=9)) == (
            case.initializer
        )

    @ours
    def test_scaled(self, case):
        """Twice the initializer draws twice the numbers."""
        twice = Case(case.initializer.scaled(2.0), case.shape, case.axes)

        assert torch.allclose(drawn(twice), 2 * drawn(case), rtol=1e-5)

    @ours
    def test_spread_describes_the_numbers(self, case):
        """Mean, standard deviation and bounds are those of 64 draws, within five errors.

        The error of a standard deviation is told by the kurtosis; blocks are compared together.
        """
        spread = case.initializer.spread(case.shape, case.axes)
        tensors = torch.stack([drawn(case, torch.float64, seed) for seed in range(64)])
        blocks = (tensors,) if case.axes is None else tensors.split(case.axes.blocks or (24,), 1)
        spreads = spread if isinstance(spread, tuple) else (spread,) * len(blocks)

        assert all(map(is_described, blocks, spreads))

    @ours
    def test_classes_are_listed(self, case):
        """Every class can be found by its name."""
        assert REGISTERED[type(case.initializer).__name__] is type(case.initializer)


def is_described(values: torch.Tensor, spread: Spread | None) -> bool:
    """Compare numbers with what a plan says of them."""
    if spread is None:
        return True
    size = values.numel()
    std_error = spread.std * math.sqrt(max(spread.kurtosis - 1, 0) / (4 * size))
    deviation = (values - spread.mean).square().mean().sqrt()
    return bool(
        abs(values.mean() - spread.mean) <= 5 * spread.std / math.sqrt(size) + 1e-12
        and abs(deviation - spread.std) <= 5 * std_error + 1e-12
        and (spread.low is None or values.min() >= spread.low - 1e-12)
        and (spread.high is None or values.max() <= spread.high + 1e-12)
    )


@pytest.mark.parametrize(
    "wrong",
    [Spread(0.0, 1.05), Spread(0.03, 1.0), Spread(0.0, 1.0, low=-2.0)],
    ids=["std 5 % off", "mean off", "bounded"],
)
def test_description_has_power(wrong):
    """The comparison rejects a standard deviation 5 % off, a shifted mean and wrong bounds."""
    values = torch.randn(64 * 24 * 16, dtype=torch.float64, generator=seeded())

    assert is_described(values, Spread(0.0, 1.0))
    assert not is_described(values, wrong)


EMPTY = {
    "no outputs": (0, 16),
    "no inputs": (24, 0),
    "nothing": (0, 0),
}


@pytest.mark.parametrize("shape", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize(
    "initializer",
    [
        Zeros(),
        Uniform(-1, 1),
        TruncatedNormal(1.0),
        he_normal(),
        xavier_uniform(),
        Orthogonal(),
        Identity(),
        Sparse(0.5),
        ICNR(he_normal()),
    ],
    ids=lambda initializer: type(initializer).__name__,
)
@pytest.mark.parametrize("groups", [1, 2])
def test_empty_tensors(initializer, shape, groups):
    """A tensor without elements is filled with nothing, and a plan can speak of it."""
    axes = Axes((1,), (0,), groups=groups)
    initializer(torch.empty(shape), axes)
    spread = initializer.spread(shape, axes)
    sampler = initializer.sampler(shape, axes)
    built = sampler.build(torch.randn) if isinstance(sampler, Joint) else None

    assert spread is None or math.isfinite(spread.std)
    assert built is None or built.shape == shape


REFUSED = {
    "nan": (lambda: Normal(math.nan), "std must be a finite number from 0"),
    "negative std": (lambda: Normal(-0.02), "got -0.02"),
    "infinite std": (lambda: TruncatedNormal(math.inf), "std must be a finite number"),
    "word for a number": (lambda: Normal("0.02"), "got '0.02'"),
    "boolean": (lambda: Constant(True), "got True"),
    "interval": (lambda: Uniform(1.0, -1.0), "high must be a finite number from 1"),
    "cut": (lambda: TruncatedNormal(1.0, cut=0.0), "cut must be positive"),
    "cut of nan": (lambda: TruncatedNormal(1.0, cut=math.nan), "cut must be positive"),
    "negative scale": (lambda: VarianceScaling(-1.0), "scale must be a finite number from 0"),
    "mode": (lambda: VarianceScaling(mode="fan_inn"), "did you mean 'fan_in'"),
    "distribution": (lambda: VarianceScaling(distribution="gaussian"), "'truncated_normal'"),
    "gain": (lambda: xavier_normal(gain="met"), "did you mean 'meets'"),
    "negative gain": (lambda: Orthogonal(-1.0), "gain must be a finite number from 0"),
    "exponent": (lambda: BranchScaled(Zeros(), "fixupp"), "did you mean 'fixup'"),
    "inner": (lambda: BranchScaled(nn.init.zeros_), "initializers that say what they draw"),
    "inner that keeps": (lambda: Blocks((Keep(),)), "initializers that say what they draw"),
    "blocks of blocks": (lambda: Blocks((Blocks((Zeros(),)),)), "no blocks of its own"),
    "no blocks": (lambda: Blocks(()), "got none"),
    "upscale": (lambda: ICNR(Zeros(), 0), "upscale_factor"),
    "no function": (lambda: From("xavier"), "needs a function"),
}


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_bad_fields(make, said):
    """Fields are checked where they are written, and the error says what is wrong with which."""
    with pytest.raises(PolicyError, match=said):
        make()


class TestBlocks:
    """One initializer per packed block."""

    def test_forget_gate(self):
        """Each gate's bias has its own constant."""
        assert drawn(ALL["forget gate"]).tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8

    def test_interleaved(self):
        """Blocks that recur are found at each of their places."""
        axes = Axes((1,), (0,), blocks=(1, 2), repeats=3)
        tensor = drawn(Case(Blocks((Ones(), Zeros())), (9, 2), axes))

        assert tensor[:, 0].tolist() == [1, 0, 0] * 3

    def test_unlike_blocks(self):
        """Blocks of different distributions have each their own."""
        case = Case(Blocks((Normal(1.0), Uniform(5, 6), Zeros())), (4096, 8), GQA)
        case = case._replace(axes=Axes((1,), (0,), blocks=(2048, 1024, 1024)))
        normal, uniform, zero = drawn(case).split((2048, 1024, 1024))

        assert normal.std().item() == pytest.approx(1, rel=0.05)
        assert 5 <= uniform.min() < 5.01
        assert 5.99 < uniform.max() <= 6
        assert not zero.any()

    def test_mixed_families(self):
        """Structured and element-wise blocks stand side by side."""
        orthogonal, normal, sparse = drawn(ALL["blocks of all kinds"]).split((12, 6, 6))

        assert torch.allclose(orthogonal @ orthogonal.mT, torch.eye(12), atol=1e-6)
        assert 0 < normal.abs().max() < 0.1 * 2 / truncation(2.0)
        assert (sparse == 0).sum(1).eq(8).all()

    def test_each_block_has_its_own_fans(self):
        """Fans of a block do not see its neighbours."""
        spreads = Blocks((xavier_normal(), xavier_normal(), Zeros())).spread((24, 16), GQA)

        assert [s.std for s in spreads] == pytest.approx([(2 / 28) ** 0.5, (2 / 22) ** 0.5, 0.0])

    def test_resolve(self):
        """Words inside become numbers."""
        blocks = Blocks((he_normal(gain="meets"), BranchScaled(Normal(1.0)), Zeros()))
        context = Context(meets_gain=1.5, residual_branches=4)

        assert blocks.resolve(context) == Blocks((he_normal(gain=1.5), Normal(0.5), Zeros()))

    @pytest.mark.parametrize(
        "axes", [None, Axes((1,), (0,)), GATES], ids=["none", "unpacked", "four"]
    )
    def test_number_of_blocks(self, axes):
        """Three initializers need three blocks, and the error says what to pass."""
        with pytest.raises(PolicyError, match=r"3 initializers for \d packed blocks.*blocks="):
            Blocks((Zeros(), Zeros(), Zeros())).spread((16,), axes)


class TestBranchScaled:
    """Initializers that shrink with the number of residual branches."""

    def test_gpt2(self):
        """With 12 blocks of two branches each the factor is 1 / sqrt(2 * 12)."""
        resolved = BranchScaled(Normal(0.02)).resolve(Context(residual_branches=24))

        assert resolved.std == pytest.approx(0.02 / math.sqrt(2 * 12))

    @pytest.mark.parametrize(
        ("depth", "expected"), [(2, 54**-0.5), (3, 54**-0.25), (1, 1.0), (0, 1.0)]
    )
    def test_fixup(self, depth, expected):
        """Fixup's factor is L^(-1 / (2m - 2)), and 1 where a branch has but one weight."""
        inner = BranchScaled(he_normal(), "fixup")
        context = Context(residual_branches=54, branch_depth=depth)

        assert inner.resolve(context).gain == pytest.approx(expected)

    def test_without_branches(self):
        """A model without branches is not scaled."""
        assert BranchScaled(Normal(0.02)).resolve(Context()) == Normal(0.02)

    def test_words_inside(self):
        """The inner initializer is resolved first."""
        context = Context(meets_gain=2.0, residual_branches=4)

        assert BranchScaled(Orthogonal("meets")).resolve(context) == Orthogonal(1.0)

    @pytest.mark.parametrize(
        "use",
        [
            lambda scaled: scaled(torch.empty(2, 2)),
            lambda scaled: scaled.spread((2, 2), None),
        ],
        ids=["call", "spread"],
    )
    def test_unresolved(self, use):
        """Outside a plan the branches are not known, and the error says what to do."""
        with pytest.raises(PolicyError, match="residual_branches="):
            use(BranchScaled(Normal(0.02)))


class TestICNR:
    """Convolutions before a pixel shuffle."""

    @pytest.mark.parametrize("factor", [2, 3])
    def test_no_checkerboard(self, factor):
        """After the shuffle all pixels of a patch are alike."""
        layer = nn.Conv2d(5, 4 * factor**2, 3, bias=False)
        ICNR(he_normal(), factor)(layer.weight)
        image = nn.PixelShuffle(factor)(layer(torch.randn(1, 5, 8, 8)))

        assert torch.equal(image, image[..., ::factor, ::factor].repeat_interleave(
            factor, -1).repeat_interleave(factor, -2))  # fmt: skip

    def test_inner_fans(self):
        """Fans are those of the smaller convolution: Xavier's fan_out is a quarter."""
        spread = ICNR(xavier_normal()).spread(KERNEL, None)

        assert spread.std == pytest.approx(math.sqrt(2 / (16 * 9 + 6 * 9)))

    def test_channels(self):
        """Channels that make no whole patches are refused in planning."""
        with pytest.raises(PolicyError, match="multiple of 9 output channels, got 16"):
            ICNR(he_normal(), 3).spread((16, 3, 3, 3), None)

    def test_groups(self):
        """Patches do not reach across groups, and the error is about the whole."""
        with pytest.raises(PolicyError, match=r"ICNR.*4 groups do not divide"):
            ICNR(he_normal()).spread(KERNEL, Axes((1,), (0,), groups=4))

    def test_packed(self):
        """Packed blocks make no patches."""
        with pytest.raises(PolicyError, match="without packed blocks"):
            ICNR(he_normal()).spread((24, 16), GQA)


class TestFrom:
    """Functions of others."""

    def test_repr(self):
        """The function is written by its full name."""
        assert repr(From(nn.init.normal_, std=0.1)) == "From(torch.nn.init.normal_, std=0.1)"
        assert repr(From(functools.partial(nn.init.zeros_))).startswith("From(functools.partial")

    def test_equality(self):
        """Function and arguments make the value, in any order."""
        assert From(nn.init.normal_, std=0.1, mean=0.0) == From(nn.init.normal_, mean=0.0, std=0.1)
        assert From(nn.init.normal_, std=0.1) != From(nn.init.normal_, std=0.2)

    def test_generator_is_passed_on(self):
        """A function that takes a generator draws from it, as if called by hand."""
        expected = nn.init.normal_(torch.empty(9), generator=seeded(3))
        tensor = torch.empty(9)
        generator = seeded(3)
        state = generator.get_state()
        From(nn.init.normal_)(tensor, generator=generator)

        assert not torch.equal(generator.get_state(), state)
        assert tensor.shape == expected.shape

    def test_new_tensor(self):
        """A function that returns a new tensor has filled nothing, and that is said."""
        with pytest.raises(PolicyError, match="must fill its argument in place"):
            From(torch.randn_like)(torch.empty(3))

    def test_generators_are_restored_when_it_raises(self):
        """Torch's own generator is put back also when the function raises."""
        before = torch.get_rng_state()
        with pytest.raises(ValueError, match="Fan in and fan out"):
            From(nn.init.xavier_normal_)(torch.empty(3), generator=seeded())

        assert torch.equal(before, torch.get_rng_state())


class TestKeep:
    """Leaving a tensor as it is."""

    def test_nothing_happens(self):
        """Not even a write is noted, whatever the dtype."""
        tensor = torch.arange(3)
        version = tensor._version
        Keep()(tensor)

        assert tensor._version == version
        assert Keep().spread((3,), None) is None
        assert Keep().resolve(Context()) == Keep()


def test_public_names_are_what_one_writes():
    """Public are the initializers, their shorthands and the types to annotate with; no plumbing."""
    shorthands = {
        f"{name}_{form}" for name in ("he", "lecun", "xavier") for form in ("normal", "uniform")
    }
    open_ = {"Context", "Draw", "Independent", "Initializer", "Joint", "Spread", "Transformed"}
    types = {"Distribution", "Gain", "Mode"}
    kinds = {name for name, kind in REGISTERED.items() if "torch_initpolicy" in kind.__module__}

    assert set(initializers.__all__) == kinds | shorthands | types | open_ | {"register"}


@pytest.mark.parametrize(
    ("initializer", "expected"),
    [
        (Normal(1.0), Independent),
        (Blocks((Zeros(), Normal(1.0))), Independent),
        (Blocks((Zeros(), Orthogonal())), Joint),
        (Orthogonal(), Joint),
        (ICNR(Zeros()), Joint),
        (Keep(), ByFunction),
        (From(nn.init.zeros_), ByFunction),
    ],
    ids=lambda value: type(value).__name__,
)
def test_samplers(initializer, expected):
    """Elements are drawn one by one wherever they can be."""
    axes = Axes((1,), (0,), blocks=(4, 4)) if isinstance(initializer, Blocks) else None

    assert type(initializer.sampler((8, 8), axes)) is expected
    assert initializer.is_opaque is (expected is ByFunction)


@pytest.mark.parametrize(
    "initializer",
    [Normal(2.0), Uniform(-math.sqrt(12), math.sqrt(12)), TruncatedNormal(2.0)],
    ids=lambda initializer: type(initializer).__name__,
)
def test_complex_variance_is_split(initializer):
    """Both parts of complex numbers have half the variance; five errors of 40,000 are 2 %."""
    tensor = drawn(Case(initializer, (200, 200)), torch.complex64)

    assert tensor.real.std().item() == pytest.approx(math.sqrt(2), rel=0.02)
    assert tensor.imag.std().item() == pytest.approx(math.sqrt(2), rel=0.02)
