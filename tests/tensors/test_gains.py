"""Moments agree with closed forms and Monte Carlo; activations are known by name and by value."""

import math

import pytest
import torch
from torch.nn import functional as F

from torch_initpolicy.errors import UnknownNameError
from torch_initpolicy.tensors.gains import (
    KNOWN,
    Activation,
    Moments,
    family,
    gain,
    moments,
    recognise,
)

TABLE = {
    Activation("relu"): (0.398942, 0.500000, 1.414214, 1.414214),
    Activation("leaky_relu", 0.01): (0.394953, 0.500050, 1.414143, 1.414143),
    Activation("leaky_relu", 0.2): (0.319154, 0.520000, 1.386750, 1.386750),
    Activation("prelu"): (0.299207, 0.531250, 1.371989, 1.371989),
    Activation("relu6"): (0.398942, 0.500000, 1.414214, 1.414214),
    Activation("tanh"): (0.0, 0.394294, 1.592537, 1.467414),
    Activation("sigmoid"): (0.5, 0.293379, 1.846229, 4.722646),
    Activation("hardtanh"): (0.0, 0.516059, 1.392036, 1.210287),
    Activation("hardswish"): (0.166217, 0.331567, 1.736657, 1.670076),
    Activation("hardsigmoid"): (0.5, 0.277639, 1.897840, 6.008116),
    Activation("relu2"): (0.5, 1.5, 0.816497, 0.707107),
    Activation("silu"): (0.206621, 0.355776, 1.676532, 1.623320),
    Activation("gelu"): (0.282095, 0.425221, 1.533530, 1.481114),
    Activation("gelu_tanh"): (0.282039, 0.425194, 1.533581, 1.481168),
    Activation("quick_gelu"): (0.282331, 0.421953, 1.539459, 1.491459),
    Activation("mish"): (0.240404, 0.452342, 1.486848, 1.444755),
    Activation("elu"): (0.160521, 0.644945, 1.245198, 1.223429),
    Activation("celu"): (0.160521, 0.644945, 1.245198, 1.223429),
    Activation("selu"): (0.0, 1.0, 1.0, 0.966026),
    Activation("softplus"): (0.806059, 0.921246, 1.041867, 1.846229),
    Activation("softsign"): (0.0, 0.183014, 2.337533, 2.095781),
    Activation("sin"): (0.0, 0.432332, 1.520867, 1.327251),
}
"""Means, second moments, gains and inverse roots of `E f'(z)^2`, to six digits."""


@pytest.mark.parametrize(
    ("activation", "expected"), TABLE.items(), ids=[f"{a.name} {a.parameter or ''}" for a in TABLE]
)
def test_six_digits(activation, expected):
    """Moments and gains agree with the reference to its last digit."""
    found = moments(activation)

    assert (found.mean, found.second) == pytest.approx(expected[:2], abs=6e-7)
    assert (gain(activation), found.slope**-0.5) == pytest.approx(expected[2:], abs=6e-7)


def phi(x):
    """Return the normal density."""
    return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def tail(x):
    """Return the probability that a standard normal exceeds `x`."""
    return math.erfc(x / math.sqrt(2)) / 2


def shifted_relu(kink):
    """Return the moments of `relu(z - kink)` in closed form."""
    mean = phi(kink) - kink * tail(kink)
    return mean, (1 + kink**2) * tail(kink) - kink * phi(kink), tail(kink)


CLOSED = {
    "kink on a panel's edge": (lambda x: F.relu(x - 0.5), shifted_relu(0.5)),
    "kink inside a panel": (lambda x: F.relu(x - 0.123456), shifted_relu(0.123456)),
    "kink in the tail": (lambda x: F.relu(x - 3.3), shifted_relu(3.3)),
    "jump": (lambda x: (x > 0.3).double(), (tail(0.3), tail(0.3), 0.0)),
    "sign": (torch.sign, (0.0, 1.0, 0.0)),
    "jump and slope": (
        lambda x: torch.where(x > 0.7, x, 0.0),
        (phi(0.7), tail(0.7) + 0.7 * phi(0.7), tail(0.7)),
    ),
    "fast sine": (lambda x: torch.sin(20 * x), (0.0, 0.5, 200.0)),
    "exponential": (torch.exp, (math.exp(0.5), math.exp(2), math.exp(2))),
    "cube": (lambda x: x**3, (0.0, 15.0, 27.0)),
    "small on a large constant": (lambda x: 1e3 + 1e-3 * x, (1e3, 1e6 + 1e-6, 1e-6)),
    "constant": (lambda x: torch.full_like(x, 2.0), (2.0, 4.0, 0.0)),
    "in place": (lambda x: x.relu_(), shifted_relu(0.0)),
    "without a gradient": (lambda x: torch.from_numpy(abs(x.numpy())), (2 * phi(0), 1.0, 1.0)),
    "sawtooth": (lambda x: 3 * x - torch.floor(3 * x), (0.5, 1 / 3, 9.0)),
}


@pytest.mark.parametrize(("function", "expected"), CLOSED.values(), ids=CLOSED)
def test_closed_forms(function, expected):
    """Any element-wise function is integrated to 1e-5, kinks and jumps wherever they lie."""
    mean, second, slope = moments(function)

    assert mean == pytest.approx(expected[0], rel=1e-5, abs=1e-8 * math.sqrt(second))
    assert second == pytest.approx(expected[1], rel=1e-5)
    assert slope == pytest.approx(expected[2], rel=1e-5, abs=1e-8)


def test_function_in_float32():
    """Rounding inside the function is taken for noise, not for kinks: 1e-4 is left of the slope."""
    assert moments(lambda x: x.float().relu()) == pytest.approx(shifted_relu(0.0), rel=1e-4)


ONE_VARIABLE = [name for name, known in KNOWN.items() if known.function is not None]
SAMPLES = 400_000


def is_plausible(sample: torch.Tensor, expected: float) -> bool:
    """Say whether a sample's mean is within five standard errors (false alarm 6e-7) of a value."""
    return bool(abs(sample.mean() - expected) <= 5 * sample.std() / math.sqrt(len(sample)) + 1e-12)


def sampled(name):
    """Return samples of `f`, `f^2` and `f'^2`, the slope by autograd."""
    known = KNOWN[name]
    normal = torch.randn(SAMPLES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    normal.requires_grad_()
    value = known.function(normal, *known.usual)
    (slope,) = torch.autograd.grad(value.sum(), normal)
    return value.detach(), value.detach() ** 2, slope**2


@pytest.mark.parametrize("name", ONE_VARIABLE)
def test_monte_carlo(name):
    """Every activation's moments are means of 400,000 samples, slopes by autograd.

    The smallest error this catches is five standard errors, about 2 % of gelu's second moment.
    """
    for sample, expected in zip(sampled(name), moments(name), strict=True):
        assert is_plausible(sample, expected)


def test_monte_carlo_has_power():
    """The same test rejects gelu's second moment when it is 3 % off, and relu's in its place."""
    _, squares, _ = sampled("gelu")

    assert not is_plausible(squares, 1.03 * moments("gelu").second)
    assert not is_plausible(squares, moments("relu").second)


def test_randomised_relu():
    """RReLU in training has a slope uniform in its bounds: exact against 400,000 samples."""
    generator = torch.Generator().manual_seed(2)
    normal = torch.randn(SAMPLES, dtype=torch.float64, generator=generator)
    slopes = torch.empty_like(normal).uniform_(0.1, 0.9, generator=generator)
    value = torch.where(normal > 0, normal, slopes * normal)
    mean, second, slope = moments(Activation("rrelu", (0.1, 0.9)))

    assert is_plausible(value, mean)
    assert is_plausible(value**2, second)
    assert is_plausible(torch.where(normal > 0, 1.0, slopes**2), slope)


class TestOtherInputs:
    """Moments under a normal input of any mean and standard deviation."""

    def test_positive_homogeneity(self):
        """Twice as wide an input makes ReLU's second moment four times as large."""
        assert moments("relu", std=2.0) == pytest.approx((2 * phi(0), 2.0, 0.5), rel=1e-6)

    def test_shift(self):
        """A shifted input is a shifted kink."""
        assert moments("relu", mean=-0.4) == pytest.approx(shifted_relu(0.4), rel=1e-6)

    def test_critical_tanh(self):
        """On tanh's critical line at q = 1/16 the mean squared slope is 1 / 1.115381 (trap D13)."""
        assert 1.115381 * moments("tanh", std=0.25).slope == pytest.approx(1, abs=1e-6)

    @pytest.mark.parametrize(
        "given", [{"std": 0.0}, {"std": -1.0}, {"std": math.nan}, {"mean": math.inf}], ids=str
    )
    def test_no_normal(self, given):
        """An input that is no normal variable is refused."""
        with pytest.raises(ValueError, match="positive std"):
            moments("relu", **given)

    def test_measured_moments_hold_for_the_standard_normal(self):
        """Moments that were measured cannot be moved to another input."""
        activation = Activation("own", moments=Moments(0.0, 0.5, 0.5))

        assert moments(activation) == (0.0, 0.5, 0.5)
        with pytest.raises(ValueError, match="pass its function"):
            moments(activation, std=2.0)


class TestGain:
    """Gains are torch's for the rectifiers and second-moment integrals else."""

    @pytest.mark.parametrize("slope", [0.0, 0.01, 0.25, 1.0])
    def test_torch_agrees_on_rectifiers(self, slope):
        """Leaky ReLUs have torch's own gain, to the last digit but one."""
        expected = torch.nn.init.calculate_gain("leaky_relu", slope)

        assert gain(Activation("leaky_relu", slope)) == pytest.approx(expected, rel=1e-15)

    def test_softmax(self):
        """A softmax is no function of one variable; its gain is 1 by convention."""
        assert gain("softmax") == gain("log_softmax") == 1.0

    @pytest.mark.parametrize(
        ("name", "gate"),
        [("glu", "sigmoid"), ("swiglu", "silu"), ("geglu", "gelu"), ("reglu", "relu")],
        ids=["glu", "swiglu", "geglu", "reglu"],
    )
    def test_gated(self, name, gate):
        """A product of two independent halves has the power of its gate."""
        assert gain(name) == pytest.approx(gain(gate), rel=1e-9)

    def test_measured(self):
        """Measured moments are used, whatever the name."""
        assert gain(Activation("relu", moments=Moments(0.0, 4.0, 16.0))) == 0.5

    def test_unknown_name(self):
        """An unknown name is refused with the nearest ones."""
        with pytest.raises(UnknownNameError, match="did you mean 'gelu'"):
            gain("geluu")

    @pytest.mark.parametrize("second", [0.0, math.inf, math.nan])
    def test_no_gain(self, second):
        """A function that vanishes, or is not finite, has no gain."""
        with pytest.raises(ValueError, match="has no gain"):
            gain(Activation("own", moments=Moments(0.0, second, 1.0)))

    def test_wrong_parameters(self):
        """Two numbers for one slope are refused."""
        with pytest.raises(ValueError, match="takes 1 parameter"):
            gain(Activation("leaky_relu", (0.1, 0.2)))


def test_depth_keeps_the_second_moment():
    """Weights of `gain / sqrt(fan_in)` behind gelu keep the signal through twenty layers.

    Width 512, 256 samples, seed 0; a finite width scatters by some 15 %. The gain of relu instead
    of gelu's, 8 % less, would leave a fifth.
    """
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(256, 512, generator=generator)
    for _ in range(20):
        weight = torch.randn(512, 512, generator=generator) * gain("gelu") / math.sqrt(512)
        signal = F.gelu(signal) @ weight.T

    assert 0.7 < signal.square().mean().sqrt() < 1.4


class TestFamily:
    """Families choose the initialisation."""

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("leaky_relu", "rectifier"),
            ("softplus", "rectifier"),
            ("hardsigmoid", "saturating"),
            ("softmax", "saturating"),
            ("selu", "selu"),
            ("identity", "linear"),
        ],
    )
    def test_names(self, name, expected):
        """Each known activation has a family."""
        assert family(name) == expected

    def test_measured(self):
        """What is known by its moments gets He's rule with its own gain."""
        assert family(Activation("own", moments=Moments(0.0, 1.0, 1.0))) == "rectifier"


RECOGNISED = {
    "silu": (lambda x: x * torch.sigmoid(x), Activation("silu")),
    "silu by exp": (lambda x: x / (1 + torch.exp(-x)), Activation("silu")),
    "relu by clamp": (lambda x: x.clamp(min=0), Activation("relu")),
    "relu by mask": (lambda x: x * (x > 0), Activation("relu")),
    "relu squared": (lambda x: F.relu(x) ** 2, Activation("relu2")),
    "relu6": (lambda x: x.clamp(0, 6), Activation("relu6")),
    "hardtanh": (lambda x: x.clamp(-1, 1), Activation("hardtanh")),
    "hardtanh of own bounds": (lambda x: x.clamp(-2, 3), Activation("hardtanh", (-2.0, 3.0))),
    "gelu": (lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)), Activation("gelu")),
    "gelu_tanh": (
        lambda x: 0.5 * x * (1 + torch.tanh(0.79788456 * (x + 0.044715 * x**3))),
        Activation("gelu_tanh"),
    ),
    "quick_gelu": (lambda x: x * torch.sigmoid(1.702 * x), Activation("quick_gelu")),
    "mish": (lambda x: x * torch.tanh(F.softplus(x)), Activation("mish")),
    "hardswish": (lambda x: x * F.relu6(x + 3) / 6, Activation("hardswish")),
    "softsign": (lambda x: x / (1 + x.abs()), Activation("softsign")),
    "leaky_relu": (lambda x: torch.maximum(x, 0.2 * x), Activation("leaky_relu", 0.2)),
    "elu": (lambda x: torch.where(x > 0, x, 0.5 * torch.expm1(x)), Activation("elu", 0.5)),
    "celu": (lambda x: F.celu(x, 2.0), Activation("celu", 2.0)),
    "softplus": (lambda x: torch.log1p(torch.exp(3 * x)) / 3, Activation("softplus", 3.0)),
    "square": (lambda x: x * x, Activation("square")),
    "in place": (lambda x: x.mul_(x.sigmoid()), Activation("silu")),
}


class TestRecognise:
    """Functions built of primitives are known by their values."""

    @pytest.mark.parametrize(("function", "expected"), RECOGNISED.values(), ids=RECOGNISED)
    def test_known(self, function, expected):
        """A function of the table is found, with its parameter where it has one of its own."""
        found = recognise(function)

        assert (found.name, found.moments) == (expected.name, None)
        assert found.parameter == pytest.approx(expected.parameter)

    @pytest.mark.parametrize(
        "function",
        [
            lambda x: x,
            lambda x: -2 * x + 1,
            lambda x: 0 * x,
            lambda x: x.clamp(-50, 50),
        ],
        ids=["identity", "affine", "constant", "soft cap beyond the signal"],
    )
    def test_affine(self, function):
        """A scale and a shift are no activation."""
        assert recognise(function) is None

    def test_other(self):
        """Any other function is measured, under the name it is given."""
        found = recognise(lambda x: 5 * torch.tanh(x / 5), name="soft cap")
        grid = torch.linspace(-10, 10, 20001, dtype=torch.float64)
        density = torch.exp(-grid.square() / 2) / math.sqrt(2 * math.pi)
        second = torch.trapezoid((5 * torch.tanh(grid / 5)).square() * density, grid)

        assert found.name == "soft cap"
        assert gain(found) == pytest.approx(second.item() ** -0.5, rel=1e-5)

    @pytest.mark.parametrize(
        ("function", "expected"),
        [
            (lambda x: 1.2 * x * torch.sigmoid(2 * x) + 0.1 * x, "custom"),
            (lambda x: x + torch.sin(x) ** 2, "custom"),
            (lambda x: torch.sigmoid(x - 1), "sigmoid"),
            (lambda x: 30 * torch.sigmoid(x / 30), "sigmoid"),
            (lambda x: torch.sin(30 * x), "sigmoid"),
        ],
        ids=["acon-c", "snake", "shifted", "soft cap", "fast sine"],
    )
    def test_what_grows_is_not_called_after_what_saturates(self, function, expected):
        """A function that contains a sigmoid but grows like a ReLU asks for He's rule."""
        found = recognise(function, name="sigmoid")

        assert found.name == expected
        assert family(found) == ("rectifier" if expected == "custom" else "saturating")

    def test_not_elementwise(self):
        """A function that changes the shape is refused."""
        with pytest.raises(ValueError, match="not element-wise"):
            recognise(lambda x: x[:3])
        with pytest.raises(ValueError, match="not an element-wise"):
            moments(lambda x: x.sum())


@pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"]
)
def test_any_grad_mode(mode):
    """Moments do not depend on the caller's grad mode."""
    with mode():
        found = recognise(lambda x: x * torch.sigmoid(1.5 * x))

    assert found.moments == moments(lambda x: x * torch.sigmoid(1.5 * x))


def test_default_device_and_dtype_do_not_matter():
    """Moments are float64 on the CPU, whatever the caller's defaults."""
    expected = moments(lambda x: F.relu(x - 0.1))
    with torch.device("meta"):
        found = moments(lambda x: F.relu(x - 0.1))

    assert found == expected
