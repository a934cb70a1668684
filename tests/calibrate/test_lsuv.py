"""LSUV: every output that can be scaled has the wanted standard deviation, after one pass.

The networks return what their weights make, so that a plain forward pass is the oracle.
"""

import copy
import itertools
import math
from typing import TYPE_CHECKING

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from torch_initpolicy.api import apply_policy
from torch_initpolicy.calibrate.lsuv import lsuv_
from torch_initpolicy.policy.presets import he

if TYPE_CHECKING:
    from torch_initpolicy.calibrate.calibration import Calibration

from tests.calibrate.measuring import (
    TOLERANCE,
    Dense,
    Images,
    Tapped,
    Waves,
    batch,
    deviation,
    joint,
    spread,
)


class Products(Tapped):
    """The other spellings of a product: addmm, baddbmm, einsum, tensordot, bilinear."""

    inputs = (64, 12)

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(12, 20)), nn.Parameter(torch.randn(20))
        self.experts = nn.Parameter(torch.randn(4, 5, 8))
        self.bias = nn.Parameter(0.1 * torch.randn(4, 1, 8))
        self.e, self.t = nn.Parameter(torch.randn(8, 10)), nn.Parameter(torch.randn(10, 6))
        self.both = nn.Bilinear(6, 6, 7)

    def forward(self, x):
        a = torch.addmm(self.b, x, self.w, beta=0.1)
        b = torch.baddbmm(self.bias, torch.relu(a).view(64, 4, 5).transpose(0, 1), self.experts)
        c = torch.einsum("ebi,io->beo", torch.relu(b), self.e)
        d = torch.tensordot(torch.relu(c), self.t, dims=1)
        e = self.both(d[:, 0], d[:, 1])
        return {"w": a, "experts": b, "e": c, "t": d, "both.weight": e}


class Attention(Tapped):
    """Packed and separate projections; queries, keys and values are computed by hand."""

    inputs = (5, 8, 16)

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(16, 4)
        self.cross = nn.MultiheadAttention(16, 2, kdim=12, vdim=20)
        nn.init.normal_(self.own.in_proj_bias, std=0.1)

    def forward(self, x):
        q, k, v = F.linear(x, self.own.in_proj_weight, self.own.in_proj_bias).chunk(3, -1)
        y, _ = self.own(x, x, x)
        keys, values = x[..., :12], torch.cat((x, x[..., :4]), -1)
        z, _ = self.cross(y, keys, values)
        bias = self.cross.in_proj_bias.chunk(3)
        return {
            "own.in_proj_weight/query": q,
            "own.in_proj_weight/key": k,
            "own.in_proj_weight/value": v,
            "own.out_proj.weight": y,
            "cross.q_proj_weight": F.linear(y, self.cross.q_proj_weight, bias[0]),
            "cross.k_proj_weight": F.linear(keys, self.cross.k_proj_weight, bias[1]),
            "cross.v_proj_weight": F.linear(values, self.cross.v_proj_weight, bias[2]),
            "cross.out_proj.weight": z,
        }


class Normed(Tapped):
    """A weight behind torch's weight norm, old and new, and one standardised in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.new = parametrizations.weight_norm(nn.Linear(12, 16))
        with pytest.warns(FutureWarning):
            self.old = nn.utils.weight_norm(nn.Linear(16, 16))
        self.conv = timm.layers.ScaledStdConv2d(1, 8, 3, padding=1)

    def forward(self, x):
        a = self.new(x)
        b = self.old(torch.relu(a))
        c = self.conv(torch.relu(b).view(-1, 1, 4, 4))
        return {"new.weight": a, "old.weight": b, "conv.gain": c}


class Shared(Tapped):
    """One layer, applied three times."""

    inputs = (64, 16)

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        made = []
        for _ in range(3):
            x = self.layer(x)
            made.append(x)
            x = torch.tanh(x)
        return {"layer.weight": joint(made), "last.weight": self.last(x)}


TAPPED = {net.__name__: net for net in (Dense, Products, Images, Attention, Normed, Shared)}


@pytest.mark.parametrize("std", [1.0, 0.3], ids=["unit", "small"])
@pytest.mark.parametrize("name", TAPPED)
def test_every_output_has_the_wanted_standard_deviation(name, std):
    """A plain forward pass finds each output within 0.1 % of it; 1 % off would fail."""
    model = TAPPED[name]()
    x = batch(*model.inputs)
    report = lsuv_(model, x, std=std, orthogonal=False)
    with torch.no_grad():
        made = model(x)
    assert {tap: deviation(output, std) for tap, output in made.items()} == pytest.approx(
        dict.fromkeys(made, 0.0), abs=TOLERANCE
    )
    assert {scaled.site for scaled in report.scaled} >= {tap.split("/")[0] for tap in made}


@pytest.mark.parametrize("name", TAPPED)
def test_the_report_agrees_with_the_model(name):
    """`after` is what a plain forward pass measures, and `worst` its largest deviation."""
    model = TAPPED[name]()
    x = batch(*model.inputs)
    report = lsuv_(model, x, orthogonal=False)
    assert report.worst < TOLERANCE
    assert all(abs(scaled.after - 1) < TOLERANCE for scaled in report.scaled)
    assert all(scaled.factor > 0 for scaled in report.scaled)
    assert all(scaled.site in str(report) for scaled in report.scaled)


def test_weights_keep_their_direction():
    """Without the orthogonal start each weight is its old self times the reported factor."""
    model = Dense()
    before = copy.deepcopy(model)
    report = lsuv_(model, batch(64, 12), orthogonal=False)
    for scaled in report.scaled:
        now, then = model.get_parameter(scaled.site), before.get_parameter(scaled.site)
        torch.testing.assert_close(now, then * scaled.factor, rtol=1e-5, atol=0)


def test_one_forward_pass_is_enough():
    """A model whose weights are used once runs once; shared weights need a few passes more."""
    for net, most in ((Dense, 1), (Shared, 10)):
        runs = itertools.count()  # what else a forward changes is put back

        class Counted(net):
            def forward(self, *args, runs=runs):
                next(runs)
                return super().forward(*args)

        model = Counted()
        report = lsuv_(model, batch(*model.inputs), orthogonal=False)
        assert next(runs) == report.passes <= most


def test_orthogonal_start():
    """Weights are orthogonal times a factor, and the same for the same seed."""
    first = Dense()
    again, other = copy.deepcopy(first), copy.deepcopy(first)
    for model, seed in ((first, 0), (again, 0), (other, 1)):
        lsuv_(model, batch(64, 12), seed=seed)
    weight = first.second.weight.detach()
    gram = weight @ weight.mT
    torch.testing.assert_close(gram / gram[0, 0], torch.eye(24), atol=1e-4, rtol=0)
    assert torch.equal(weight, again.second.weight)
    assert not torch.equal(weight, other.second.weight)


@pytest.mark.parametrize("name", ["Dense", "Images"])
def test_per_channel_means_are_zero(name):
    """With `per_channel` each unit of a layer with a bias has mean zero too."""
    model = TAPPED[name]()
    x = batch(*model.inputs)
    lsuv_(model, x, per_channel=True)
    made = model(x)
    layers = {
        tap: out for tap, out in made.items() if f"{tap[:-6]}bias" in dict(model.named_parameters())
    }
    assert layers
    for output in layers.values():
        units = output.transpose(1, -1) if output.ndim == 4 else output
        units = output.transpose(1, 2) if output.ndim == 3 else units
        assert units.flatten(0, -2).mean(0).abs().max() < 1e-4
        assert deviation(output) < TOLERANCE


def test_half_precision_weights():
    """bfloat16 weights are measured in float32; rounding a weight moves it by 2^-9 at most."""
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64)).bfloat16()
    x = batch(64, 64).bfloat16()
    lsuv_(model, x, orthogonal=False)
    assert deviation(model(x).float()) < 5e-3


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
def test_std_must_be_positive(std):
    """A standard deviation that none can have is refused."""
    with pytest.raises(ValueError, match="positive"):
        lsuv_(Dense(), batch(64, 12), std=std)


def test_a_real_network():
    """All weights of a ResNet, measured by hooks on its layers."""
    model = timm.create_model("resnet10t")
    x = batch(4, 3, 64, 64)
    report: Calibration = lsuv_(model, x)
    found: dict[str, float] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(
                lambda _, __, out, name=name: found.update({name: deviation(out)})
            )
    with torch.no_grad():
        model(x)
    assert len(found) == len(report.scaled)
    assert max(found.values()) < TOLERANCE


def test_complex_weights_calibrated_by_a_policy():
    """The receipt of a calibrated complex model verifies it and reproduces its bits."""
    model, again, x = Waves(), Waves(), batch(32, 4, 16)
    receipt = apply_policy(model, he(), seed=0, calibrate=x)
    receipt.verify(model)
    receipt.reproduce(again)
    assert spread(model(x)["last.weight"]) == pytest.approx(1, rel=TOLERANCE)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
