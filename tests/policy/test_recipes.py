"""Recipes: what torch's constructors draw, found by drawing."""

import math

import pytest
import torch
from torch import nn

from tests.policy.hand import facts, site
from torch_initpolicy.policy.recipes import Frequencies, Phases, Recipe, TorchDefault, UnitScale
from torch_initpolicy.tensors.initializers import (
    Constant,
    Keep,
    Normal,
    Ones,
    Uniform,
    VarianceScaling,
    Zeros,
)
from torch_initpolicy.trace.facts import ForwardMultiplier

LAYERS = {
    "linear": nn.Linear(300, 200),
    "conv1d": nn.Conv1d(64, 128, 5),
    "conv2d grouped": nn.Conv2d(64, 256, 3, groups=4),
    "conv2d depthwise": nn.Conv2d(2048, 2048, 5, groups=2048),
    "conv3d": nn.Conv3d(16, 64, 3),
    "transposed": nn.ConvTranspose2d(32, 64, 4, stride=2),
    "transposed grouped": nn.ConvTranspose1d(256, 64, 4, groups=4),
    "bilinear": nn.Bilinear(30, 40, 50),
    "embedding": nn.Embedding(500, 100),
    "bag": nn.EmbeddingBag(500, 100),
    "lstm": nn.LSTM(100, 120, num_layers=2, bidirectional=True, proj_size=30),
    "gru": nn.GRU(100, 120),
    "rnn": nn.RNN(100, 240),
    "lstm cell": nn.LSTMCell(100, 120),
    "gru cell": nn.GRUCell(100, 120),
    "rnn cell": nn.RNNCell(100, 240),
    "attention": nn.MultiheadAttention(120, 4, add_bias_kv=True),
    "cross attention": nn.MultiheadAttention(120, 4, kdim=200, vdim=80),
    "batch norm": nn.BatchNorm2d(64),
    "instance norm": nn.InstanceNorm2d(64, affine=True),
    "group norm": nn.GroupNorm(4, 64),
    "layer norm": nn.LayerNorm((8, 8)),
    "rms norm": nn.RMSNorm(64),
    "prelu": nn.PReLU(64, init=0.1),
}


def modules(layer):
    """Yield each parameter of a layer with the module that holds it."""
    for module in layer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            yield module, name, parameter.detach().flatten()


CASES = {
    f"{kind}: {type(module).__name__}.{name}": (module, name, drawn)
    for kind, layer in LAYERS.items()
    for module, name, drawn in modules(layer)
}


def distance(first, second):
    """Return the largest distance between the distribution functions of two samples."""
    weights = [torch.full((len(x),), 1 / len(x)).double() for x in (first, second)]
    values, order = torch.cat([first, second]).sort()
    steps = torch.cat([weights[0], -weights[1]])[order].cumsum(0)
    last_of_equals = torch.cat([values.diff() > 0, torch.tensor([True])])
    return steps[last_of_equals].abs().max().item()


def critical(first, second, alarm=1e-9):
    """Return the distance that samples of one distribution exceed once in `1 / alarm` times."""
    size = 1 / (1 / first.numel() + 1 / second.numel())
    return math.sqrt(math.log(2 / alarm) / 2 / size)


class TestTorchDefault:
    """Distributed as torch's constructors distribute."""

    @pytest.mark.parametrize(("module", "name", "drawn"), CASES.values(), ids=CASES)
    def test_same_distribution(self, module, name, drawn):
        """Kolmogorov and Smirnov cannot tell our draw from torch's, for every layer there is.

        Seed 0; false alarms 1e-9 a case. Constants must be equal.
        """
        where = site(module, name)
        initializer = TorchDefault().for_site(where, facts(where))
        ours = torch.empty(200_000 if drawn.std() > 0 else drawn.numel())
        initializer(ours, generator=torch.Generator().manual_seed(0))

        assert distance(drawn, ours) < critical(drawn, ours)
        assert ours.std() > 0 or torch.equal(ours, drawn)

    @pytest.mark.parametrize("factor", [0.95, 1.05])
    def test_power(self, factor):
        """The same test notices 5 % in the standard deviation of the linear layer."""
        module, name, drawn = CASES["linear: Linear.weight"]
        bound = TorchDefault().for_site(site(module, name), None).high * factor
        ours = torch.empty(200_000)
        Uniform(-bound, bound)(ours, generator=torch.Generator().manual_seed(0))

        assert distance(drawn, ours) > critical(drawn, ours)

    @pytest.mark.parametrize("case", ["linear: Linear.weight", "embedding: Embedding.weight"])
    def test_uniform_is_no_normal(self, case):
        """It tells a uniform from a normal of the same standard deviation."""
        _, _, drawn = CASES[case]
        std = drawn.std().item()
        wrong = (
            Normal(std) if drawn.abs().max() < 2 * std else Uniform(-(3**0.5) * std, 3**0.5 * std)
        )
        ours = torch.empty(200_000)
        wrong(ours, generator=torch.Generator().manual_seed(0))

        assert distance(drawn, ours) > critical(drawn, ours)

    def test_subclasses(self):
        """A user's layer draws as torch's layer that it inherits from."""

        class Mine(nn.Linear):
            pass

        assert TorchDefault().for_site(site(Mine(4, 2)), None) == Uniform(-0.5, 0.5)

    def test_strangers(self):
        """What no layer of torch's holds is kept, also an extra parameter of a subclass."""

        class Gained(nn.Linear):
            def __init__(self):
                super().__init__(4, 2)
                self.gain = nn.Parameter(torch.ones(2))

        raw = nn.Module()
        raw.table = nn.Parameter(torch.zeros(3))

        assert TorchDefault().for_site(site(raw, "table"), None) == Keep()
        assert TorchDefault().for_site(site(Gained(), "gain"), None) == Keep()

    @pytest.mark.parametrize(
        ("kind", "sizes"),
        [(nn.Linear, (0, 3)), (nn.Conv2d, (0, 3, 1)), (nn.ConvTranspose1d, (3, 0, 1))],
        ids=lambda value: getattr(value, "__name__", None),
    )
    @pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
    def test_nothing_is_connected(self, kind, sizes):
        """Layers without inputs have a defined answer."""
        for module, name, _ in modules(kind(*sizes)):
            initializer = TorchDefault().for_site(site(module, name), None)
            assert initializer == Uniform(0.0, 0.0)


class TestFrequencies:
    """What sines make of coordinates."""

    def test_a_frequency_in_the_code_is_kept(self):
        """`sin(30 * (W x))` of 4 coordinates: weights within 1 / 4, whatever the frequency."""
        where = site(nn.Linear(4, 8))
        known = facts(where, multiplier=ForwardMultiplier(output=30.0))

        assert Frequencies().for_site(where, known) == Uniform(-0.25, 0.25)

    def test_without_one_the_sine_reads_a_variance_of_one(self):
        """`sin(W x)` reads what it reads in the layers behind."""
        where = site(nn.Linear(4, 8))
        expected = VarianceScaling(2.0, "fan_in", "uniform")

        assert Frequencies().for_site(where, facts(where)) == expected


class TestPhases:
    """What the biases of sines are."""

    def test_one_period_in_total(self):
        """Behind `sin(30 * (W x + b))` a bias has a thirtieth of the period."""
        where = site(nn.Linear(4, 8), "bias")
        known = facts(where, multiplier=ForwardMultiplier(output=30.0))

        assert Phases().for_site(where, known) == Uniform(-math.pi / 30, math.pi / 30)
        assert Phases().for_site(where, facts(where)) == Uniform(-math.pi, math.pi)


class TestUnitScale:
    """A scale of one in total."""

    @pytest.mark.parametrize(
        ("offset", "expected"), [(0.0, Ones()), (1.0, Zeros()), (0.25, Constant(0.75))]
    )
    def test_offset(self, offset, expected):
        """What the operator adds and what is written are one (D29)."""
        where = site(nn.LayerNorm(4))

        assert UnitScale().for_site(where, facts(where, offset=offset)) == expected

    def test_are_recipes(self):
        """Both answer to the protocol; an initializer does not."""
        assert isinstance(UnitScale(), Recipe)
        assert isinstance(TorchDefault(), Recipe)
        assert not isinstance(Zeros(), Recipe)
