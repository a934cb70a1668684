"""Constructors run, their random draws do not, and nothing that is read is ever undrawn."""

import copy
import io
import math
import threading
from functools import partial

import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from torch_initpolicy import apply_policy, plan_policy, presets
from torch_initpolicy.deferred.skip import opened, skip_init
from torch_initpolicy.deferred.undrawn import Pending, SkippedParameter, mark_filled, pending_of
from torch_initpolicy.planning.decide import make_plan
from torch_initpolicy.tensors.initializers import (
    Normal,
    Orthogonal,
    Sparse,
    TruncatedNormal,
    Uniform,
)
from torch_initpolicy.writing.apply import apply_steps
from torch_initpolicy.writing.drawing import Drawing


class Operators(TorchDispatchMode):
    """Note the names of all operators that reach a kernel."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def erfinv_trunc_normal_(tensor, mean=0.0, std=1.0, a=-2.0, b=2.0):
    """The truncated normal of timm, MMEngine and torch before 2.12."""
    cdf = [(1 + math.erf((bound - mean) / std / math.sqrt(2))) / 2 for bound in (a, b)]
    with torch.no_grad():
        tensor.uniform_(2 * cdf[0] - 1, 2 * cdf[1] - 1)
        tensor.erfinv_().mul_(std * math.sqrt(2.0)).add_(mean).clamp_(min=a, max=b)


def scaled_trunc_normal_(tensor):
    """Timm's `trunc_normal_tf_`: truncate a standard normal, then scale."""
    erfinv_trunc_normal_(tensor)
    tensor.data.mul_(0.5).add_(1.0)


def through_data_(tensor):
    """The idiom of older repositories."""
    tensor.data.normal_(0, 0.02)
    tensor.data.div_(math.sqrt(2.0 * 8))


CUT2 = 0.879625661034  # std of a standard normal cut at two: reference value

FILLS = {
    "uniform_": (lambda w: nn.init.uniform_(w, -0.1, 0.3), Uniform(-0.1, 0.3)),
    "method": (lambda w: w.data.uniform_(), Uniform(0.0, 1.0)),
    "keywords": (lambda w: w.data.uniform_(**{"from": 1.0, "to": 2.0}), Uniform(1.0, 2.0)),
    "normal_": (lambda w: nn.init.normal_(w, 1.0, 0.5), Normal(0.5, 1.0)),
    "trunc": (lambda w: nn.init.trunc_normal_(w, std=0.5, a=-1.0, b=1.0),
              TruncatedNormal(0.439812830517, cut=2.0)),
    "trunc wide": (lambda w: nn.init.trunc_normal_(w, std=0.02), Normal(0.02)),
    "erfinv": (erfinv_trunc_normal_, TruncatedNormal(CUT2, cut=2.0)),
    "erfinv wide": (lambda w: erfinv_trunc_normal_(w, std=0.02), Normal(0.02)),
    "erfinv scaled": (scaled_trunc_normal_, TruncatedNormal(CUT2 / 2, 1.0, 2.0)),
    "xavier_uniform_": (nn.init.xavier_uniform_, Uniform(-0.125, 0.125)),
    "xavier_normal_": (nn.init.xavier_normal_, Normal(0.0721687836487)),
    "kaiming_uniform_": (lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)),
                         Uniform(-0.0883883476483, 0.0883883476483)),
    "kaiming_normal_": (lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
                        Normal(0.0883883476483)),
    "orthogonal_": (lambda w: nn.init.orthogonal_(w, gain=2.0), Orthogonal(2.0)),
    "sparse_": (lambda w: nn.init.sparse_(w, 0.25, std=0.1), Sparse(0.25, 0.1)),
    "through data": (through_data_, Normal(0.005)),
    "minus and half": (lambda w: w.data.normal_(1.0, 2.0).neg_().sub_(1.0).mul_(0.5),
                       Normal(1.0, -1.0)),
}  # fmt: skip


class Holder(nn.Module):
    """One parameter of 32,768 elements, filled by a function."""

    def __init__(self, fill, shape=(256, 128)):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        fill(self.weight)


@pytest.mark.parametrize(("fill", "expected"), FILLS.values(), ids=FILLS)
class TestRemembered:
    """What a skipped fill is remembered as."""

    def test_initializer(self, fill, expected):
        """A fill of a parameter is not carried out and is remembered as its distribution."""
        with skip_init():
            weight = Holder(fill).weight

        assert type(weight) is SkippedParameter
        assert Pending(expected, None) == pending_of(weight)

    def test_distribution(self, fill, expected):
        """What the initializer draws is what the fill draws, in shape and width.

        32,768 numbers each: a KS test raises a false alarm once in 10^6, the standard deviations
        differ by less than 2.5 %, which is 4.5 of their own, and by more if one is 5 % off.
        """
        real = Holder(fill).weight.detach()
        drawn = torch.empty_like(real)
        expected(drawn, generator=torch.Generator().manual_seed(1))

        assert stats.ks_2samp(real.flatten(), drawn.flatten()).pvalue > 1e-6
        assert real.std().item() == pytest.approx(drawn.std().item(), rel=0.025)
        assert real.std().item() != pytest.approx(1.05 * drawn.std().item(), rel=0.025)

    def test_global_state(self, fill, expected):
        """Skipping draws nothing from the global generator, but for `sparse_`'s permutations."""
        before = torch.get_rng_state()
        with skip_init():
            Holder(fill)

        assert torch.equal(before, torch.get_rng_state()) or isinstance(expected, Sparse)


READS = {
    "norm": lambda w: w.norm(),
    "clone": lambda w: w.clone().norm(),
    "product": lambda w: (2 * w).norm() / 2,
    "data": lambda w: w.data.norm(),
    "view": lambda w: w.detach().view(-1).norm(),
    "item": lambda w: w.pow(2).sum().sqrt().detach().clone(),
    "copy": lambda w: copy.deepcopy(w).norm(),
    "cat": lambda w: torch.cat([w[:1], w[1:]]).norm(),
    "numpy": lambda w: torch.tensor(w.detach().numpy()).norm(),
    "saved": lambda w: saved(w).norm(),
    "half": lambda w: w.double().norm().float(),
    "copied": lambda w: torch.empty(256, 128).copy_(w).norm(),
    "linear": lambda w: nn.functional.linear(torch.eye(128), w).norm(),
}


def saved(tensor):
    """What `torch.load` returns of a tensor."""
    file = io.BytesIO()
    torch.save(tensor, file)
    file.seek(0)
    return torch.load(file)


class TestReading:
    """Whatever reads an undrawn tensor has it drawn first."""

    @pytest.mark.parametrize("read", READS.values(), ids=READS)
    def test_values(self, read):
        """What was read in the block is what the parameter holds after it."""
        with skip_init():
            weight = Holder(lambda w: nn.init.normal_(w, std=0.02)).weight
            seen = read(weight)

        assert type(weight) is nn.Parameter
        assert torch.isclose(seen.detach(), weight.detach().norm())
        assert weight.std().item() == pytest.approx(0.02, rel=0.03)

    @pytest.mark.parametrize(
        "change",
        [
            lambda w: w.data[:10].mul_(2.0),
            lambda w: w.data.mul_(torch.ones(256, 128)),
            lambda w: w.data.pow_(2),
            lambda w: w.data.clamp_(-0.01, 0.01),
            lambda w: w.data[3:5].zero_(),
            lambda w: w.data[:, 0].fill_(1.0),
            lambda w: w.data[:128].normal_(),
            lambda w: w.data[torch.tensor([1, 2])].sum(),
            lambda w: w.data.__setitem__((slice(None), 5), 3.0),
            lambda w: w.data.__setitem__(0, torch.ones(128)),
            lambda w: nn.init.trunc_normal_(w, mean=0.0, std=1.0, a=-0.5, b=2.0),
            lambda w: nn.init.trunc_normal_(w, mean=0.0, std=1.0, a=1.0, b=2.0),
        ],
        ids="part product square clamp rows column fill index setitem row lopsided tail".split(),
    )
    def test_changes(self, change):
        """A change that no distribution expresses is carried out: the same moments result."""
        real = Holder(lambda w: (nn.init.normal_(w), change(w))).weight
        with skip_init():
            weight = Holder(lambda w: (nn.init.normal_(w), change(w))).weight

        assert type(weight) is nn.Parameter
        assert stats.ks_2samp(real.detach().flatten(), weight.detach().flatten()).pvalue > 1e-6

    def test_wrong_arguments(self):
        """An argument that torch refuses is refused in the block too."""
        with skip_init(), pytest.raises(RuntimeError, match="std"):
            Holder(lambda w: nn.init.normal_(w, std=-1.0))
        with skip_init(), pytest.raises(ValueError, match="an in and fan out"):
            Holder(nn.init.kaiming_normal_, shape=(8,))

    def test_generator(self):
        """A generator that the constructor passed draws if it is read, and else stands still."""
        generator = torch.Generator().manual_seed(3)
        expected = torch.empty(256, 128).normal_(generator=torch.Generator().manual_seed(3))
        with skip_init():
            weight = Holder(lambda w: w.data.normal_(generator=generator)).weight
            before = generator.get_state()
            weight.norm()

        assert torch.equal(before, torch.Generator().manual_seed(3).get_state())
        assert torch.equal(expected, weight)


class TestOverwriting:
    """The last fill counts."""

    def test_constants_are_real(self):
        """Constants and buffers are written as usual."""
        with skip_init():
            norm, linear = nn.BatchNorm2d(3), nn.Linear(3, 3)
            nn.init.zeros_(linear.bias)
            nn.init.eye_(linear.weight)

        assert all(torch.equal(a, b) for a, b in zip(norm.state_dict().values(),
                                                     nn.BatchNorm2d(3).state_dict().values(),
                                                     strict=True))  # fmt: skip
        assert torch.equal(torch.eye(3), linear.weight)
        assert linear.bias.tolist() == [0.0] * 3

    def test_last_fill(self):
        """A second fill replaces the first, a copy replaces both."""
        with skip_init():
            one, two = nn.Linear(4, 4), nn.Linear(4, 4)
            nn.init.normal_(one.weight, std=0.02)
            two.load_state_dict({"weight": torch.ones(4, 4), "bias": torch.ones(4)})

        assert Pending(Normal(0.02), None) == pending_of(one.weight)
        assert torch.equal(torch.ones(4, 4), two.weight)

    @pytest.mark.parametrize(
        "zero",
        [
            lambda w: w.data[2].zero_(),
            lambda w: nn.init.zeros_(w[2]),
            lambda w: nn.init.constant_(w.data[2], 0.0),
            lambda w: w.data.__setitem__(2, 0),
        ],
        ids=["zero_", "zeros_", "constant_", "setitem"],
    )
    def test_padding_row(self, zero):
        """A zeroed row is remembered beside the draw, as `nn.Embedding` makes it."""
        with skip_init():
            embedding = nn.Embedding(5, 3, padding_idx=2)
            weight = Holder(lambda w: (nn.init.normal_(w), zero(w)), (5, 3)).weight
            read = Holder(lambda w: (nn.init.normal_(w), zero(w), w.norm()), (5, 3)).weight

        assert Pending(Normal(1.0), 2) == pending_of(embedding.weight) == pending_of(weight)
        assert read.any(dim=1).tolist() == [True, True, False, True, True]

    def test_whole_of_one_row(self):
        """A tensor of one row that becomes zero is zero, and has no padding."""
        with skip_init():
            weight = Holder(lambda w: (nn.init.normal_(w), nn.init.zeros_(w)), (1, 1, 8)).weight

        assert type(weight) is nn.Parameter
        assert not weight.any()


class TestWhatIsSkipped:
    """Parameters of any make, and nothing else."""

    def test_late_parameter(self):
        """A tensor that is filled first and made a parameter then is skipped as well."""
        with skip_init():
            module = nn.Module()
            module.first = nn.Parameter(nn.init.xavier_normal_(torch.empty(4, 4)))
            module.second = nn.Parameter(torch.randn(4, 4))
            module.third = nn.Parameter(module.first.data)

        assert Pending(Normal(0.5), None) == pending_of(module.first) == pending_of(module.third)
        assert Pending(Normal(1.0), None) == pending_of(module.second)
        mark_filled(module.third)
        assert type(module.first) is nn.Parameter

    @pytest.mark.parametrize(
        ("made", "expected"),
        [
            (lambda: torch.randn(4, 4), Normal(1.0)),
            (lambda: torch.rand(4, 4), Uniform(0.0, 1.0)),
            (lambda: torch.randn_like(torch.zeros(4, 4)), Normal(1.0)),
            (lambda: torch.rand_like(torch.zeros(4, 4)), Uniform(0.0, 1.0)),
            (lambda: torch.normal(0.5, 0.02, (4, 4)), Normal(0.02, 0.5)),
            (lambda: torch.normal(mean=0.0, std=0.02, size=(4, 4)), Normal(0.02)),
            (lambda: torch.normal(torch.zeros(4, 4), 0.02), None),
            (lambda: torch.normal(0.0, torch.ones(4, 4)), None),
            (lambda: torch.randn(4, 4, out=torch.empty(0)), None),
        ],
    )
    def test_allocated_and_filled_in_one(self, made, expected):
        """What is made and drawn in one call is put off where its distribution has two numbers."""
        before = torch.get_rng_state()
        with skip_init():
            module = nn.Module()
            module.weight = nn.Parameter(made())
        pending = pending_of(module.weight)

        assert expected == (pending and pending.initializer)
        assert torch.equal(before, torch.get_rng_state()) == (expected is not None)

    def test_others_are_drawn(self):
        """Buffers and plain tensors are drawn when the block ends, at the latest."""
        with skip_init():
            module = nn.Module()
            module.register_buffer("noise", torch.empty(10_000).normal_())
            module.plain = torch.rand(10_000)

        assert module.noise.std().item() == pytest.approx(1.0, rel=0.05)
        assert module.plain.mean().item() == pytest.approx(0.5, rel=0.05)

    def test_replaced_parameters(self):
        """Parameters that are thrown away cost nothing: they are never drawn."""
        before = torch.get_rng_state()
        with skip_init():
            for _ in range(3):
                layer = nn.Linear(8, 8)
                layer.weight = nn.Parameter(torch.zeros(8, 8))

        assert torch.equal(before, torch.get_rng_state())

    def test_subclasses_are_drawn(self):
        """A parameter of a class of its own is drawn; its class is not ours to change."""

        class Special(nn.Parameter):
            pass

        with skip_init():
            module = nn.Module()
            module.weight = Special(torch.empty(100, 100))
            nn.init.normal_(module.weight)

        assert type(module.weight) is Special
        assert module.weight.std().item() == pytest.approx(1.0, rel=0.05)

    def test_clones_are_equal(self):
        """Layers that a constructor copies are equal, as without skipping."""
        with skip_init():
            encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(8, 2, 16), 2, enable_nested_tensor=False
            )

        first, second = (layer.linear1.weight for layer in encoder.layers)
        assert torch.equal(first, second)

    def test_fused_recurrent_weights(self):
        """A recurrent layer is skipped like any other and works once it is filled."""
        with skip_init():
            layer = nn.LSTM(3, 4)
        with opened(layer):
            for parameter in layer.parameters():
                parameter.data.fill_(0.1)
                mark_filled(parameter)

        assert layer(torch.ones(2, 1, 3))[0].isfinite().all()

    @pytest.mark.parametrize(
        "blocks",
        [(partial(torch.device, "meta"), skip_init), (skip_init, partial(torch.device, "meta"))],
        ids=["within", "around"],
    )
    def test_meta(self, blocks):
        """On meta nothing is filled, whichever block is the outer one, and nothing remembered."""
        outer, inner = blocks
        with outer(), inner(), Operators() as seen:
            layer = nn.Linear(4, 4)
            erfinv_trunc_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
            answer = layer.weight.data.mul_(0.5)

        assert "empty" in seen.names
        assert not any(name.endswith("_") for name in seen.names)
        assert (answer.device.type, answer.shape) == ("meta", (4, 4))
        assert type(layer.weight) is nn.Parameter

    def test_meta_outside(self):
        """Without the block the same fills do run, so that the test above sees them."""
        with torch.device("meta"), Operators() as seen:
            erfinv_trunc_normal_(torch.empty(4, 4))

        assert {"uniform_", "erfinv_", "mul_", "add_", "clamp_"} <= seen.names

    def test_lazy(self):
        """A lazy layer stays lazy, its neighbour is skipped, and its first batch draws as ever."""
        with skip_init():
            model = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d(), nn.Linear(4, 2))

        assert is_lazy(model[0].weight)
        assert pending_of(model[2].weight) is not None
        model[:2](torch.ones(2, 3))
        assert 0 < model[0].weight.abs().max() <= 3**-0.5

    def test_lazy_within(self):
        """A lazy layer whose first batch comes within the block is skipped like any other."""
        with skip_init():
            layer = nn.LazyLinear(4)
            layer.initialize_parameters(torch.ones(2, 3))

        assert pending_of(layer.weight) is not None


class TestSurroundings:
    """Nobody else notices."""

    def test_other_threads(self):
        """Another thread draws as usual while this one skips."""
        built = []
        with skip_init():
            thread = threading.Thread(target=lambda: built.append(nn.Linear(100, 100)))
            thread.start()
            thread.join()

        assert type(built[0].weight) is nn.Parameter
        assert built[0].weight.std().item() == pytest.approx(0.0577, rel=0.05)

    def test_exceptions(self):
        """An exception ends the block like any other end; what it had built stays guarded."""

        class Failing(nn.Linear):
            def __init__(self):
                super().__init__(4, 4)
                built.append(self)
                raise RuntimeError("mine")

        built = []
        with pytest.raises(RuntimeError, match="mine"), skip_init():
            Failing()

        assert type(built[0].weight) is SkippedParameter
        assert type(nn.Linear(4, 4).weight) is nn.Parameter
        assert not torch.overrides._get_current_function_mode_stack()

    def test_nested(self):
        """Blocks nest; the outer one decides when it is over."""
        with skip_init():
            with skip_init():
                layer = nn.Linear(4, 4)
            assert type(layer.weight) is nn.Parameter
            layer.weight.norm()

        assert type(layer.weight) is nn.Parameter
        assert type(layer.bias) is SkippedParameter

    def test_other_models(self):
        """A model built before computes in the block what it computes outside."""
        model, x = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)), torch.randn(2, 4)
        expected = model(x)
        with skip_init():
            found = model(x)

        assert torch.equal(expected, found)

    def test_opened_within(self):
        """In an `opened` block random fills are real, also inside of `skip_init`."""
        with skip_init():
            layer = nn.Linear(100, 100)
            with opened(layer):
                assert Pending(Uniform(-0.1, 0.1), None) == pending_of(layer.weight)
                layer.weight.data.normal_()
                mark_filled(layer.weight)
                assert layer.weight.std().item() == pytest.approx(1.0, rel=0.05)
            other = nn.Linear(4, 4)

        assert [nn.Parameter, SkippedParameter] == [type(layer.weight), type(layer.bias)]
        assert type(other.weight) is SkippedParameter

    @pytest.mark.parametrize(
        "write",
        [
            pytest.param(lambda model: apply_policy(model, seed=0), id="apply_policy"),
            pytest.param(lambda model: plan_policy(model).apply(seed=0), id="plan and apply"),
            pytest.param(
                lambda model: apply_steps(plan_policy(model).pairs(), Drawing(0)), id="steps"
            ),
            pytest.param(
                lambda model: apply_steps(
                    make_plan(model, {}, presets.policy("auto")).pairs(), Drawing(0)
                ),
                id="steps without a trace",
            ),
        ],
    )
    def test_written_within(self, write):
        """What is written inside of a block stays, and is what is written outside of one."""
        outside = nn.Linear(64, 32)
        write(outside)
        with skip_init():
            inside, other = nn.Linear(64, 32), nn.Linear(4, 4)
            write(inside)
            early = inside.weight.sum().item()

        assert torch.equal(outside.weight, inside.weight)
        assert torch.equal(outside.bias, inside.bias)
        assert early == outside.weight.sum().item()
        assert type(inside.weight) is nn.Parameter
        assert type(other.weight) is SkippedParameter

    def test_calibrated_within(self):
        """A policy with a calibration serves inside of a block too."""
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
        outside = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))
        apply_policy(outside, seed=0, calibrate=x)
        with skip_init():
            inside = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 3))
            apply_policy(inside, seed=0, calibrate=x)

        assert all(map(torch.equal, outside.parameters(), inside.parameters()))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_real_models(name):
    """What a library's constructor computes is there; its weights' distributions are its own."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    real = timm.create_model(name)
    with skip_init():
        model = timm.create_model(name)

    drawn = dict(model.named_parameters())
    for key, parameter in real.named_parameters():
        pending = pending_of(drawn[key])
        if pending is None:
            assert torch.equal(parameter, drawn[key]), key
        elif parameter.numel() > 1000:
            spread = pending.initializer.spread(parameter.shape, None)
            tolerance = 5 / math.sqrt(2 * parameter.numel())
            assert spread.std == pytest.approx(parameter.std().item(), rel=tolerance), key
    assert all(map(torch.equal, real.buffers(), model.buffers()))
