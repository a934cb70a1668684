"""Verification: no false alarms, and every error it is meant to catch is caught.

Each test of power changes one thing by the least that must be found, on a tensor of stated size.
"""

import math
from dataclasses import replace

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.utils import parametrizations

from tests.writing.helpers import pairs, step_for
from torch_initpolicy.errors import VerifyError
from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.initializers import (
    ICNR,
    Blocks,
    Constant,
    DeltaOrthogonal,
    Dirac,
    From,
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
    he_normal,
    xavier_normal,
    xavier_uniform,
)
from torch_initpolicy.writing.apply import apply_steps
from torch_initpolicy.writing.drawing import Drawing
from torch_initpolicy.writing.verify import measure_steps, std_bounds, verify_steps

MATRIX = (200, 500)  # 10^5 elements
KERNEL = (64, 32, 3, 3)
PACK = Axes((1,), (0,), blocks=(120, 40, 40))

CASES = [
    pytest.param(Constant(0.1), MATRIX, None, id="constant"),
    pytest.param(Zeros(), MATRIX, None, id="zeros"),
    pytest.param(Normal(0.02), MATRIX, None, id="normal"),
    pytest.param(Normal(0.02, mean=1.0), MATRIX, None, id="normal about one"),
    pytest.param(Uniform(-1.0, 2.0), MATRIX, None, id="uniform"),
    pytest.param(TruncatedNormal(0.02), MATRIX, None, id="truncated"),
    pytest.param(he_normal(), KERNEL, None, id="he"),
    pytest.param(xavier_uniform(), MATRIX, PACK, id="packed"),
    pytest.param(Orthogonal(), MATRIX, None, id="wide orthogonal"),
    pytest.param(Orthogonal(2.0), (500, 200), None, id="tall orthogonal"),
    pytest.param(Orthogonal(), MATRIX, PACK, id="packed orthogonal"),
    pytest.param(DeltaOrthogonal(), KERNEL, None, id="delta orthogonal"),
    pytest.param(Dirac(), KERNEL, None, id="dirac"),
    pytest.param(Identity(), MATRIX, None, id="identity"),
    pytest.param(Sparse(0.9), MATRIX, None, id="sparse"),
    pytest.param(ICNR(he_normal(), 2), KERNEL, None, id="icnr"),
    pytest.param(Blocks((Ones(), Normal(0.1), Orthogonal())), MATRIX, PACK, id="blocks"),
    pytest.param(Blocks((Identity(), Normal(0.1), Sparse(0.5))), MATRIX, PACK, id="mixed blocks"),
]
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64], ids=str
)


def filled(initializer, shape, axes=None, dtype=torch.float32, seed=0, factors=()):
    """A model of one tensor, written by an initializer, and the pair of its site and step."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(shape, dtype=dtype))
    (site,) = sites(model)
    step = step_for(site, initializer)
    step = replace(step, facts=replace(step.facts, axes=axes), factors=factors)
    apply_steps([(site, step)], Drawing(seed))
    return model.weight.detach(), (site, step)


def reasons(pair):
    """What is found about one site."""
    return [finding.reason for finding in measure_steps([pair]).findings]


class TestNoFalseAlarm:
    """What has been written as planned passes."""

    @pytest.mark.parametrize(("initializer", "shape", "axes"), CASES)
    @DTYPES
    def test_as_planned(self, initializer, shape, axes, dtype):
        """Every initializer, in every dtype."""
        _, pair = filled(initializer, shape, axes, dtype)

        assert reasons(pair) == []

    @pytest.mark.parametrize(
        "initializer", [Normal(0.02), Uniform(-1.0, 2.0), TruncatedNormal(0.02), Constant(0.3)]
    )
    @pytest.mark.parametrize("size", [0, 1, 2, 3, 10, 30])
    def test_small(self, initializer, size):
        """Tensors of few elements, 60 of each size."""
        for seed in range(60):
            _, pair = filled(initializer, (size,), seed=seed)
            assert reasons(pair) == []

    def test_scalar(self):
        """A tensor without axes."""
        _, pair = filled(Normal(1.0), ())

        assert reasons(pair) == []

    @pytest.mark.parametrize("initializer", [Keep(), From(nn.init.normal_)], ids=repr)
    def test_unmeasured(self, initializer):
        """What says nothing of its values is counted and not judged."""
        _, pair = filled(initializer, MATRIX)
        verification = measure_steps([pair])

        assert verification.unmeasured == ("weight",)
        assert verification.ok

    @pytest.mark.parametrize(("initializer", "shape", "axes"), CASES)
    @DTYPES
    def test_multiplied(self, initializer, shape, axes, dtype):
        """Every initializer, whose values a calibration has multiplied."""
        _, pair = filled(initializer, shape, axes, dtype, factors=(0.7,))

        assert reasons(pair) == []

    @pytest.mark.parametrize(
        ("initializer", "shape", "axes"), [case for case in CASES if case.id != "zeros"]
    )
    def test_multiplied_by_something_else(self, initializer, shape, axes):
        """A factor that is 7 % off is found."""
        _, (site, step) = filled(initializer, shape, axes, factors=(0.7,))

        assert reasons((site, replace(step, factors=(0.75,))))

    def test_counts_in_words(self):
        """One finding is one finding, and one tensor one tensor."""
        _, (site, step) = filled(Normal(0.02), MATRIX)
        wrong = measure_steps([(site, replace(step, initializer=Normal(0.04)))])

        assert str(measure_steps([(site, step)])) == "1 tensor measured, 0 not: all well"
        assert str(wrong).startswith("1 tensor measured, 0 not, 1 finding:\n  - 'weight': std")

    def test_thirds(self):
        """Queries, keys and values each with a factor of its own, in a pack and out of one."""
        axes = Axes((1,), (0,), blocks=(100, 100, 100))
        for layout in (axes, replace(axes, blocks=())):
            _, pair = filled(xavier_normal(), (300, 500), layout, factors=(0.5, 1.0, 2.0))
            assert reasons(pair) == []
        _, (site, step) = filled(xavier_normal(), (300, 500), axes, factors=(0.5, 1.0, 2.0))
        (reason,) = reasons((site, replace(step, factors=(0.5, 1.0, 2.1))))
        assert reason.startswith("block 2: std")

    def test_layouts(self):
        """Padding, norms, recurrent packs and parametrised weights pass."""
        model = nn.ModuleDict(
            {
                "embedding": nn.Embedding(300, 64, padding_idx=5),
                "norm": nn.BatchNorm1d(8),
                "lstm": nn.LSTM(64, 64),
                "normed": parametrizations.weight_norm(nn.Linear(64, 64)),
            }
        )
        chosen = pairs(model, lambda site: Normal(0.1) if len(site.shape) > 1 else Ones())
        apply_steps(chosen, Drawing(0))

        assert verify_steps(chosen).ok

    @pytest.mark.parametrize(
        ("count", "kurtosis"),
        [(1, 3.0), (2, 3.0), (5, 3.0), (5, 9.0), (20, 3.0), (100, 9.0), (10_000, 3.0)],
    )
    @pytest.mark.parametrize("quantile", [3.0, 5.0, 7.0])
    def test_bounds_are_outside(self, count, kurtosis, quantile):
        """The bounds enclose the exact chi-squared quantiles: scipy's, by another method."""
        freedom = 2 * count / (kurtosis - 1)
        tail = stats.norm.sf(quantile)
        low, high = std_bounds(count, kurtosis, quantile)

        assert low <= math.sqrt(stats.chi2.ppf(tail, freedom) / freedom) * 1.001
        assert high >= math.sqrt(stats.chi2.isf(tail, freedom) / freedom) * 0.999


class TestPower:
    """What is not as planned is found."""

    @pytest.mark.parametrize("factor", [0.98, 1.02, 0.95, 1.05])
    @pytest.mark.parametrize(
        "initializer", [Normal(0.02), Uniform(-1.0, 1.0), TruncatedNormal(0.02)], ids=repr
    )
    def test_std(self, initializer, factor):
        """A standard deviation that is off by 2 % on 10^5 elements, and so 5 %."""
        weight, pair = filled(initializer, MATRIX)
        weight.mul_(factor)

        assert any("std" in reason for reason in reasons(pair))

    def test_mean(self):
        """A mean off by 0.03 standard deviations on 10^5 elements."""
        weight, pair = filled(Normal(0.02), MATRIX)
        weight.add_(0.0006)

        assert any("mean" in reason for reason in reasons(pair))

    @pytest.mark.parametrize("initializer", [Uniform(-1.0, 1.0), TruncatedNormal(0.02)], ids=repr)
    def test_bounds(self, initializer):
        """A single element beyond the bounds."""
        weight, pair = filled(initializer, MATRIX)
        weight[3, 4] = initializer.spread(MATRIX, None).high * 1.0001

        assert any("values between" in reason for reason in reasons(pair))

    @pytest.mark.parametrize("initializer", [Constant(0.1), Zeros()], ids=repr)
    def test_constants(self, initializer):
        """A single element that differs from the constant."""
        weight, pair = filled(initializer, MATRIX)
        weight[3, 4] += 1e-6

        assert any("values between" in reason for reason in reasons(pair))

    def test_other_fan(self):
        """fan_out in the place of fan_in."""
        _, (site, step) = filled(he_normal(mode="fan_out"), MATRIX)

        assert reasons((site, replace(step, initializer=he_normal())))

    def test_cut(self):
        """A truncated normal whose standard deviation was not corrected for the cut (12 %)."""
        _, (site, step) = filled(TruncatedNormal(0.02 * 0.8796), MATRIX)

        assert reasons((site, replace(step, initializer=TruncatedNormal(0.02))))

    def test_packed(self):
        """One packed block of three with the fans of the whole."""
        _, (site, step) = filled(xavier_normal(), MATRIX, PACK)
        weight = site.parameters[0].detach()
        weight[120:160].mul_(math.sqrt((500 + 40) / (500 + 200)))

        assert [reason.split(":")[0] for reason in reasons((site, step))] == ["block 1"]

    def test_padding(self):
        """A padding row that is not zero."""
        model = nn.Embedding(50, 16, padding_idx=3)
        chosen = pairs(model, lambda site: Normal(1.0))
        apply_steps(chosen, Drawing(0))
        with torch.no_grad():
            model.weight[3, 0] = 1e-9

        assert reasons(chosen[0]) == ["row 3 is for padding and not zero"]

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    @pytest.mark.parametrize("initializer", [Normal(1.0), Zeros(), Orthogonal()], ids=repr)
    def test_not_finite(self, initializer, value):
        """A single value that is no number."""
        weight, pair = filled(initializer, MATRIX)
        weight[3, 4] = value

        assert reasons(pair)

    def test_meta(self):
        """A tensor that holds no values."""
        model = nn.Linear(3, 4, device="meta")

        assert "on meta" in reasons(pairs(model, lambda site: Normal(1.0))[0])[0]


class TestReport:
    """What is found is reported together."""

    def test_raises(self):
        """`verify_steps` raises once and lists every tensor."""
        model = nn.Sequential(nn.Linear(200, 500), nn.Linear(500, 200))
        chosen = pairs(model, lambda site: VarianceScaling(9.0) if "w" in site.name else Zeros())

        with pytest.raises(VerifyError) as error:
            verify_steps(chosen)

        message = str(error.value)
        assert message.startswith("4 tensors measured, 0 not")
        assert all(name in message for name in ("'0.weight'", "'0.bias'", "'1.weight'"))

    def test_all_well(self):
        """A model that is as planned says so."""
        _, pair = filled(Normal(1.0), MATRIX)

        assert str(verify_steps([pair])) == "1 tensor measured, 0 not: all well"
