"""The audit of a signal: its numbers against plain hooks, its words against known pathologies."""

import copy
import json
import random

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy.checks.signal import audit_signal
from torch_initpolicy.errors import TraceError


def batch(*shape: int) -> Tensor:
    """Draw standard normal inputs."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def plain(depth: int, width: int = 128, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Build a plain net with a head of ten outputs."""
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), activation())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def fill(model: nn.Module, gain: float) -> nn.Module:
    """Draw weights of variance `gain ** 2 / fan_in`, biases zero; always the same ones."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        matrix = parameter.ndim > 1
        std = gain / parameter.shape[-1] ** 0.5 if matrix else 0.0
        nn.init.normal_(parameter, std=std, generator=generator)
    return model


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


class Functional(nn.Module):
    """A weight of its own, an in-place activation, a residual sum, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.raw = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        a = torch.relu_(self.conv(x))
        b = torch.einsum("bchw,cd->bdhw", a, self.raw)
        return (a + b).mean((2, 3)).sigmoid()


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


def test_gradients_are_those_of_autograd():
    """With a loss, gradients of outputs and parameters are those of a backward pass by hand."""
    model, x = fill(plain(2, 16), 1.4), batch(8, 16)
    signal = audit_signal(model, x, loss_fn=lambda out: out.square().sum())
    first = model[0](x)
    first.retain_grad()
    loss = model[1:](first).square().sum()
    loss.backward()
    assert signal.loss == pytest.approx(loss.item(), rel=1e-5)
    assert signal.points[0].gradient == pytest.approx(first.grad.square().mean().item(), rel=1e-4)
    for update, parameter in zip(signal.updates, model.parameters(), strict=True):
        assert update.gradient == pytest.approx(parameter.grad.square().mean().item(), rel=1e-4)
    weight = model[0].weight
    ratio = (weight.grad.norm() / weight.norm()).item()
    assert signal.updates[0].ratio == pytest.approx(ratio, rel=1e-4)


def test_recurrent_weights_get_their_gradients():
    """A layer that keeps its parameters in a list of its own is no exception."""
    model, x = nn.LSTM(4, 6), batch(5, 3, 4)
    signal = audit_signal(model, x, loss_fn=lambda out: out[0].sum())
    model(x)[0].sum().backward()
    found = {update.site: update.gradient for update in signal.updates}
    assert found == pytest.approx(
        {name: p.grad.square().mean().item() for name, p in model.named_parameters()}, rel=1e-4
    )


def test_parametrised_weights_are_one_site():
    """What lies behind a parametrised weight is reported under the weight's name."""
    model = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
    signal = audit_signal(model, batch(4, 6))
    assert {update.site for update in signal.updates} == {"weight", "bias"}
    assert all(update.ratio for update in signal.updates if update.site == "weight")


class Watched(nn.Module):
    """Everything that a forward pass could move: statistics, dropout, flags, hooks, attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.frozen = nn.BatchNorm1d(8).eval()
        self.calls, self.fails = 0, False

    def forward(self, x):
        self.calls += 1
        x = self.frozen(self.drop(self.norm(self.first(x))))
        if self.fails:
            raise RuntimeError("half-way")
        return x


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_the_model_is_untouched(fails):
    """Parameters, gradients, buffers, flags, attributes, hooks and random states are the old."""
    model = Watched()
    model.fails = fails
    fired = []
    model.first.weight.register_hook(fired.append)
    model.first.weight.grad = torch.ones(8, 8)
    state, versions = copy.deepcopy(model.state_dict()), [p._version for p in model.parameters()]
    rng = torch.random.get_rng_state(), random.getstate()
    if fails:
        with pytest.raises(TraceError, match="half-way"):
            audit_signal(model, batch(4, 8))
    else:
        audit_signal(model, batch(4, 8))
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert [p._version for p in model.parameters()] == versions
    assert torch.equal(model.first.weight.grad, torch.ones(8, 8))
    assert not fired
    assert model.calls == 0
    assert [m.training for m in model.modules()] == [True, True, True, True, False]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(rng[0], torch.random.get_rng_state())
    assert rng[1] == random.getstate()


def test_the_same_audit_twice():
    """Dropout and the random direction come from fixed states: two audits agree exactly."""
    model, x = Watched(), batch(4, 8)
    assert audit_signal(model, x) == audit_signal(model, x)


def kinds(model: nn.Module, x: Tensor) -> list[str]:
    """Name what an audit finds."""
    return [verdict.kind for verdict in audit_signal(model, x).verdicts]


HE = 2**0.5
SICK = {
    "vanishes": (fill(plain(30), 1.0), {"vanishes", "gradient vanishes"}),
    "explodes": (fill(plain(30), 2.2), {"explodes", "gradient explodes"}),
    "overflows": (fill(plain(30), 1e3), {"overflows"}),
    "collapses": (
        fill(plain(20, activation=nn.Sigmoid), 1.0),
        {"collapses", "gradient vanishes", "wanders"},
    ),
    "chaos": (fill(plain(100, activation=nn.Tanh), 5 / 3), {"gradient explodes"}),
}


@pytest.mark.parametrize("name", SICK)
def test_known_pathologies_are_named(name):
    """Nets that cannot train are told why."""
    model, expected = SICK[name]
    assert set(kinds(model, batch(32, 128))) == expected


HEALTHY = {
    "he": fill(plain(20), HE),
    "shallow": fill(plain(1), 0.1),
    "tanh": fill(plain(20, activation=nn.Tanh), 1.03),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_nets_are_left_in_peace(name):
    """Nothing is said of nets that train."""
    assert audit_signal(HEALTHY[name], batch(32, 128)).ok


class Causal(nn.Module):
    """Attention whose mask is written out, as that of many a GPT."""

    def __init__(self, masked: float) -> None:
        super().__init__()
        self.masked = masked
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = (q @ k.mT).masked_fill(future, self.masked)
        return self.proj(scores.softmax(-1) @ v)


@pytest.mark.parametrize("masked", [-torch.inf, torch.finfo(torch.float32).min], ids=str)
def test_a_mask_is_no_overflow(masked):
    """Scores that a mask sets to minus infinity, for softmax to make zeros of, are no signal."""
    assert audit_signal(fill(Causal(masked), 1.0), batch(4, 6, 16)).ok


def test_an_overflow_before_a_mask_is_one():
    """Where the scores are not finite of themselves, the mask excuses nothing."""
    assert kinds(fill(Causal(-torch.inf), 1e30), batch(4, 6, 16)) == ["overflows"]


def test_dead_units_are_found():
    """A bias that silences most of a layer is reported at its activation, with the fraction."""
    model = fill(plain(3, 64), HE)
    nn.init.constant_(model[2].bias[:48], -100.0)
    verdict = next(v for v in audit_signal(model, batch(64, 64)).verdicts if v.kind == "dies")
    assert verdict.where == "3:relu"
    assert "75%" in verdict.reason


def test_a_branch_may_start_at_zero():
    """A residual branch whose last weight is zero says nothing wrong: the skip carries on."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.last = nn.Linear(32, 32), nn.Linear(32, 32)
            nn.init.zeros_(self.last.weight)
            nn.init.zeros_(self.last.bias)

        def forward(self, x):
            return x + self.last(torch.relu(self.inner(x)))

    model = nn.Sequential(nn.Linear(32, 32), *(Block() for _ in range(6)), nn.Linear(32, 4))
    assert audit_signal(model, batch(16, 32)).ok


def test_vanishing_names_the_first_place_and_the_rate():
    """The verdict has the layer from where less than a tenth is left, and the factor a layer."""
    verdict = audit_signal(fill(plain(30), 1.0), batch(32, 128)).verdicts[0]
    layer = int(verdict.where.split(":")[0].split(".")[0])
    assert 4 <= layer <= 10  # a half at each layer: below a tenth after the fourth
    assert "at each of 30 weights" in verdict.reason
    assert "signal" in verdict.advice


def test_likeness_tells_inputs_apart():
    """Equal inputs have likeness 1 and rank 1, orthogonal ones 0 and their number."""
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    nn.init.eye_(model[0].weight)
    same = audit_signal(model, torch.ones(8, 16)).points[0]
    apart = audit_signal(model, torch.eye(8, 16)).points[0]
    assert (same.likeness, same.rank) == pytest.approx((1, 1), abs=1e-5)
    assert (apart.likeness, apart.rank) == pytest.approx((0, 8), abs=1e-5)


def test_inputs_are_drawn_where_none_are_given():
    """The shapes come from the forward pass that planning finds, the numbers are random."""
    signal = audit_signal(fill(plain(2, 16), HE))
    assert signal.inputs == 16
    assert signal.points[0].likeness < 0.3


def test_errors_say_what_to_write():
    """A wrong shape and a loss that is no scalar are the user's to mend."""
    model = plain(1, 8)
    with pytest.raises(TraceError, match="give what forward takes"):
        audit_signal(model, batch(4, 9))
    with pytest.raises(TraceError, match=r"scalar tensor, got one of shape \(4, 10\)"):
        audit_signal(model, batch(4, 8), loss_fn=lambda out: out)


def test_json_and_text():
    """JSON holds every point, also where a number is not finite; the text has one line a weight."""
    signal = audit_signal(fill(plain(30), 1e3), batch(8, 128))
    data = json.loads(signal.to_json())
    assert len(data["points"]) == len(signal.points)
    assert data["points"][-1]["second"] is None
    assert str(signal).count("linear") >= 31


def test_scalars_are_logged():
    """Each weighted operator's moments and each parameter's ratio go to the writer."""
    logged: dict[tuple[str, int], float] = {}

    class Writer:
        def add_scalar(self, tag: str, value: float, step: int) -> None:
            logged[tag, step] = value

    signal = audit_signal(fill(plain(2, 16), HE), batch(4, 16))
    signal.log_to(Writer(), 7)
    assert logged["signal/second/0.weight", 7] == signal.points[0].second
    assert logged["signal/gradient/4.weight", 7] == signal.points[-1].gradient
    assert ("signal/ratio/2.weight", 7) in logged
