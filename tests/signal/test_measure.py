"""What is measured of an operator: its numbers against plain hooks and numbers by hand."""

import pytest
import torch
from torch import Tensor, nn

from tests.signal.nets import HE, Functional, batch, fill, plain
from torch_initpolicy.signal.run import audit_signal

pytestmark = pytest.mark.usefixtures("one_thread")


class Mapped(nn.Sequential):
    """Runs as another network does, one sample at a time."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(super().forward)(x)


def test_what_runs_inside_vmap_is_measured_over_all_samples():
    """Every number is that of the same network without `vmap`, gradients included."""
    model, x = fill(plain(3, 32), 1.2), batch(16, 32)
    mapped = audit_signal(Mapped(*model), x)
    whole = audit_signal(model, x)

    assert [point.site for point in mapped.weighted] == [point.site for point in whole.weighted]
    for ours, theirs in zip(mapped.weighted, whole.weighted, strict=True):
        for name in ("mean", "std", "likeness", "gradient"):
            assert getattr(ours, name) == pytest.approx(getattr(theirs, name), rel=1e-4)


def test_points_are_the_operators_in_order():
    """Functional operators are seen as well as modules, weights under their canonical names."""
    points = audit_signal(Functional(), batch(4, 3, 8, 8)).points
    assert [point.name for point in points] == [
        "conv.weight", "relu", "raw", "add", "mean", "sigmoid",
    ]  # fmt: skip
    assert [point.index for point in points] == sorted(point.index for point in points)


def test_moments_are_those_of_a_plain_pass():
    """Mean, deviation, second moment and shape of each output agree with float64 by hand."""
    model, x = Functional(), batch(4, 3, 8, 8)
    points = {point.name: point for point in audit_signal(model, x).points}
    with torch.no_grad():
        conv = model.conv(x).double()
        raw = torch.einsum("bchw,cd->bdhw", conv.relu(), model.raw.double())
    for name, made in (("conv.weight", conv), ("raw", raw)):
        point = points[name]
        assert point.shape == tuple(made.shape)
        assert point.mean == pytest.approx(made.mean().item(), rel=1e-4, abs=1e-6)
        assert point.std == pytest.approx(made.std(correction=0).item(), rel=1e-4)
        assert point.second == pytest.approx(made.square().mean().item(), rel=1e-4)
    assert points["relu"].zeros == pytest.approx((conv <= 0).double().mean().item(), abs=1e-9)


class Complex(nn.Module):
    """Two products of complex numbers, with a rectifier of both parts between them."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        draw = {"generator": generator, "dtype": torch.complex64}
        self.first = nn.Parameter(0.1 * torch.randn(6, 8, **draw))
        self.second = nn.Parameter(0.1 * torch.randn(8, 5, **draw))

    def forward(self, z):
        a = torch.view_as_real(z @ self.first)
        return torch.view_as_complex(torch.relu(a)) @ self.second


class Pairs(nn.Module):
    """The same in real numbers: a pair for each complex one, a rotation for each product."""

    def __init__(self, other: Complex) -> None:
        super().__init__()
        self.first = nn.Parameter(self.rotations(other.first))
        self.second = nn.Parameter(self.rotations(other.second))

    @staticmethod
    def rotations(weight: Tensor) -> Tensor:
        a, b = weight.detach().real, weight.detach().imag
        return torch.cat((torch.cat((a, b), 1), torch.cat((-b, a), 1)))

    def forward(self, x):
        return torch.relu(x @ self.first) @ self.second


@pytest.mark.parametrize("conjugate", [False, True], ids=["plain", "conjugate view"])
def test_complex_numbers_are_measured_as_pairs(conjugate):
    """Moments and gradients are twice those of a network of pairs, each number counting as one."""
    model = Complex()
    z = torch.complex(batch(16, 6), 2 * batch(16, 6).flip(0))
    x = torch.cat((z.real, z.imag), 1)
    z = z.conj().resolve_conj().conj() if conjugate else z
    signal = audit_signal(model, z, loss_fn=lambda out: out.abs().square().sum())
    pairs = audit_signal(Pairs(model), x, loss_fn=lambda out: out.square().sum())
    for name in ("first", "second"):
        one = next(point for point in signal.points if point.name == name)
        two = next(point for point in pairs.points if point.name == name)
        assert one.second == pytest.approx(2 * two.second, rel=1e-4)
        assert one.gradient == pytest.approx(2 * two.gradient, rel=1e-4)
        assert one.likeness == pytest.approx(two.likeness, abs=1e-4)
        assert one.rank == pytest.approx(two.rank, rel=1e-4)
    assert signal.loss == pytest.approx(pairs.loss, rel=1e-4)
    model(z).abs().square().sum().backward()
    for update in signal.updates:
        parameter = model.get_parameter(update.site)
        for found, tensor in ((update.second, parameter), (update.gradient, parameter.grad)):
            parts = (tensor.real.square() + tensor.imag.square()).mean().item()
            assert found == pytest.approx(parts, rel=1e-4)


def test_a_complex_spread_is_taken_about_its_mean():
    """The deviation is that of distances from the mean, which is a point of the plane."""
    layer = nn.Linear(6, 200, dtype=torch.complex64)
    nn.init.constant_(layer.bias, 3 - 4j)
    z = torch.complex(batch(64, 6), batch(64, 6).flip(0))
    (point,) = audit_signal(layer, z).points
    with torch.no_grad():
        made = torch.view_as_real(layer(z)).double().flatten(0, 1)
    distance = (made - made.mean(0)).norm(dim=1)
    assert point.mean == pytest.approx(made.mean(0).norm().item(), rel=1e-4)
    assert point.std == pytest.approx(distance.square().mean().sqrt().item(), rel=1e-3)
    assert point.mean == pytest.approx(5, rel=0.1)
    assert point.gradient > 0


def test_a_functional_activation_has_an_address():
    """Its module, which call it is, and the line of code that makes it."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

        def forward(self, x):
            for layer in self.layers:
                x = torch.relu(layer(x))
            return x

    net = fill(Net(), HE)
    with torch.no_grad():
        net.layers[2].bias.fill_(-100.0)
    verdict = next(v for v in audit_signal(net, batch(64, 64)).verdicts if v.kind == "dies")
    assert verdict.where == "relu#3"
    assert verdict.line.startswith("test_measure.py:")


def test_memory_that_nobody_has_written_is_no_signal():
    """A result assembled in fresh memory is judged when it is whole."""

    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(16, 4), nn.Linear(16, 4)

        def forward(self, x):
            out = x.new_full((len(x), 8), torch.nan)
            out[:, :4] = self.first(x)
            out[:, 4:] = self.second(x)
            return out

    assert audit_signal(Parts(), batch(8, 16)).ok


def test_a_scalar_activation_is_measured():
    """A gate that is one number for the whole batch has no axis of units."""

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            h = self.layer(x)
            return h * h.mean().sigmoid() * h.mean().sin()

    assert audit_signal(Gated(), batch(4, 8)).ok
