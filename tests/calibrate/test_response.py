"""How outputs respond to the scale of a weight: measured whole, at any size, complex too."""

import math

import pytest
import torch
from torch import nn

from tests.calibrate.measuring import TOLERANCE, Waves, batch, deviation, spread
from torch_initpolicy.calibrate.lsuv import lsuv_
from torch_initpolicy.calibrate.response import Feedback, Line, means, measure


@pytest.mark.parametrize("orthogonal", [False, True], ids=["as it is", "orthogonal"])
@pytest.mark.parametrize("std", [1.0, 0.3])
def test_complex_outputs_have_the_wanted_distance_from_their_mean(orthogonal, std):
    """Complex weights, raw ones too, are scaled until `E |z - E z| ** 2` is what was wanted."""
    model, x = Waves(), batch(32, 4, 16)
    assert spread(model(x)["modes"]) / std > 2
    report = lsuv_(model, x, std=std, orthogonal=orthogonal)
    assert {scaled.site for scaled in report.scaled} == set(model(x))
    assert report.left == ()
    for made in model(x).values():
        assert spread(made) == pytest.approx(std, rel=TOLERANCE)
        assert spread(made * 1.01) != pytest.approx(std, rel=TOLERANCE)


def test_complex_units_are_centred():
    """With `per_channel` the complex mean of each unit is zero, and the spread the wanted one."""
    model = nn.Linear(6, 10, dtype=torch.complex64)
    x = torch.complex(batch(64, 6), batch(64, 6).flip(0))
    lsuv_(model, x, per_channel=True)
    assert model(x).mean(0).abs().max() < 1e-5
    assert spread(model(x)) == pytest.approx(1, rel=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_numbers_whose_squares_single_precision_does_not_hold(dtype, size):
    """A signal so small or large is no reason to leave a weight."""
    model = nn.Linear(6, 10, bias=False, dtype=dtype)
    with torch.no_grad():
        model.weight.mul_(size)
    x = batch(64, 6).to(dtype)
    report = lsuv_(model, x, orthogonal=False)
    made = torch.complex(model(x), torch.zeros(())) if dtype == torch.float32 else model(x)
    assert [scaled.site for scaled in report.scaled] == ["weight"]
    assert spread(made) == pytest.approx(1, rel=TOLERANCE)


@pytest.mark.parametrize("size", [1e-20, 0.3, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_rounding_is_no_spread(dtype, size):
    """Outputs that are all the same are left, though a mean of them rounds."""
    model = nn.Linear(7, 9, bias=False, dtype=dtype)
    nn.init.constant_(model.weight, size)
    report = lsuv_(model, torch.full((61, 7), 0.7, dtype=dtype), orthogonal=False)
    assert report.scaled == ()
    assert report.left[0].reason == "its operator's output is the same for all units and inputs"


@pytest.mark.parametrize("shape", [(2**19 + 3,), (3, 2**18 + 1), (1, 2, 5, 2**16), (7,), (2, 0)])
def test_sums_of_pieces_are_those_of_the_whole(shape):
    """However long its axes are, every number of an output counts once."""
    x, offset = batch(*shape).double(), batch(*shape[-1:]).double()
    b = offset.expand_as(x)

    sums = [x.numel(), x.sum(), x.square().sum(), b.sum(), b.square().sum(), (x * b).sum()]
    expected = Line.of(*map(float, sums))
    found = measure(x, offset, groups=())
    assert found.count == expected.count
    assert found.std(1.7) == pytest.approx(expected.std(1.7))


@pytest.mark.parametrize("std", [0.7, 3.0])
def test_a_scale_with_an_offset_that_varies_along(std):
    """The solution, applied to the numbers themselves, gives the wanted deviation."""
    a, b = batch(50, 8), 0.1 * batch(8)
    scale = measure(a, b, ()).solve(std)

    assert deviation(a * scale + b, std) < 1e-6


SAME, FAR = torch.ones(4, 3), 5 * torch.arange(3.0)


@pytest.mark.parametrize(
    ("weighted", "offset", "reason"),
    [
        (torch.ones(0, 3), None, "no inputs"),
        (SAME, None, "the same for all"),
        (batch(4, 3) * math.inf, None, "not finite"),
        (batch(4, 3), FAR, "bias alone has a standard deviation of 4.08"),
    ],
    ids=["empty", "constant", "infinite", "bias"],
)
def test_why_there_is_no_scale(weighted, offset, reason):
    """Each hopeless case says what it is."""
    assert reason in measure(weighted, offset, ()).solve(1.0)


@pytest.mark.parametrize("shape", [(5,), (3, 1), (4, 1, 1), (4, 1, 5)])
def test_means_where_a_bias_is_the_same(shape):
    """Taking them away centres the signal along what a bias of that shape does not tell apart."""
    x = batch(4, 3, 5)
    centred = x - means(x, shape, ())

    assert centred.sum_to_size(shape).abs().max() < 1e-5
    assert centred.shape == x.shape
    assert means(x, shape, ()).numel() == math.prod(shape)


@pytest.mark.parametrize("std", [0.5, 2.0])
def test_feedback_settles_on_a_power(std):
    """Gates that grow with some power of the scale below two are solved for."""
    feedback = Feedback(1.0, lambda scale: 3.0 * scale**1.4)

    assert feedback.std(feedback.solve(std)) == pytest.approx(std, rel=2e-5)


def test_feedback_without_a_solution_says_so():
    """Gates that do not respond do not settle; those without a size say which."""
    assert "settle" in Feedback(1.0, lambda scale: 3.0).solve(1.0)
    assert "0" in Feedback(1.0, lambda scale: 0.0).solve(1.0)
