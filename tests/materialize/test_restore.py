"""Values that were never computed are found by running again the code that computes them."""

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from torch_initpolicy.deferred.undrawn import Pending
from torch_initpolicy.errors import MaterializeError
from torch_initpolicy.materialize.held import tensors_of
from torch_initpolicy.materialize.restore import origins, restore
from torch_initpolicy.materialize.search import Lost
from torch_initpolicy.sites import canonical_modules
from torch_initpolicy.tensors.initializers import Normal, Uniform


@dataclass(frozen=True)
class Config:
    """What a model keeps of itself."""

    width: int = 6
    scale: float = 0.25


class Constants(nn.Module):
    """A buffer, a constant, a random table and a plain tensor, computed in a constructor."""

    def __init__(self, width, scale):
        super().__init__()
        self.register_buffer("ramp", torch.arange(width) * scale, persistent=False)
        self.register_buffer("count", torch.tensor(3))
        self.gamma = nn.Parameter(scale * torch.ones(width))
        self.table = nn.Parameter(torch.empty(width, width))
        nn.init.normal_(self.table, std=scale)
        self.plain = torch.full((2,), scale)

    def forward(self, x):
        return x * self.gamma + self.ramp


class Keeping(Constants):
    """Its arguments are attributes."""

    def __init__(self, width, scale, device=None):
        super().__init__(width, scale)
        self.width, self.scale = width, scale


class Changing(Constants):
    """It keeps another value under an argument's name."""

    def __init__(self, width, scale):
        super().__init__(width, scale)
        self.width, self.scale = width, scale**2


class Forgetful(Constants):
    """It keeps one of its arguments only."""

    def __init__(self, width, scale):
        super().__init__(width, scale)
        self.width = width


class Starred(Constants):
    """Its arguments have no names."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.sizes = sizes


class Configured(nn.Module):
    """It keeps a config that its children do not."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.inner = Starred(config.width, config.scale)


class Resetting(Forgetful):
    """It follows torch's convention."""

    def __init__(self, width, scale):
        super().__init__(width, scale)
        self.hidden = scale
        self.reset_parameters()

    def reset_parameters(self):
        nn.init.constant_(self.gamma, self.hidden)
        nn.init.normal_(self.table, std=self.hidden)

    def init_non_persistent_buffers(self):
        self.ramp = torch.arange(self.width) * self.hidden
        self.count.copy_(torch.tensor(3))
        self.plain = torch.full((2,), self.hidden)


class Reading(Forgetful):
    """Its reset goes by the values that are there, which is no use where none are."""

    def reset_parameters(self):
        self.gamma.data.mul_(0.0).add_(0.25)
        self.count.data = self.count + 0

    def init_buffers(self, required):
        raise AssertionError("it cannot be called without its argument")


class Registered(Forgetful):
    """A function is registered for it below."""


@restore.register
def _(module: Registered) -> None:
    module.ramp = torch.arange(module.width) * 0.5
    nn.init.uniform_(module.table, -1.0, 1.0)


class Misregistered(Forgetful):
    """The function that is registered for it raises."""


@restore.register
def _(module: Misregistered) -> None:
    raise KeyError("sine")


def lost(model):
    """All tensors of a model that are on meta."""
    modules = {id(module): (name, module) for name, module in canonical_modules(model)}
    return [
        Lost(name, module, attribute, tensor.shape)
        for name, module in modules.values()
        for attribute, tensor in tensors_of(module)
        if tensor.is_meta
    ]


def on_meta(build):
    """A model without memory."""
    with torch.device("meta"):
        return build()


def found(build, **options):
    """What is found out about a model built on meta, and its names without prefix."""
    model = on_meta(build)
    return {k.split(".")[-1]: v for k, v in origins(model, lost(model), **options).items()}


ALL = {"ramp", "count", "gamma", "table", "plain"}

SAME = {
    "arguments": partial(Keeping, 6, 0.25),
    "config": partial(Configured, Config()),
    "part": lambda: nn.Sequential(nn.ReLU(), Keeping(6, 0.25)),
    "conventions": partial(Resetting, 6, 0.25),
}


@pytest.mark.parametrize("build", SAME.values(), ids=SAME)
class TestFound:
    """Sources that find everything."""

    def test_values(self, build):
        """Buffers and constants are those of a model built for real."""
        origin, real = found(build), dict(tensors_of(list(build().modules())[-1]))

        assert origin.keys() == ALL
        for name in ALL - {"table"}:
            assert torch.equal(real[name], origin[name].value), name

    def test_default_device(self, build):
        """Values are found on the CPU also where whatever is built lands on meta."""
        model = on_meta(build)
        there = on_meta(lambda: origins(model, lost(model)))
        values = [origin.value for origin in there.values() if origin.value is not None]

        assert len(values) == len(ALL - {"table"})
        assert {value.device.type for value in values} == {"cpu"}

    def test_distributions(self, build):
        """Of what is drawn the distribution is found and no value."""
        table = found(build)["table"]

        assert table[:2] == (None, Pending(Normal(0.25), source=table.source))

    def test_leaves_no_trace(self, build):
        """The model is only looked at, and the global generator stands still."""
        model, state = on_meta(build), torch.get_rng_state()
        before = [dict(vars(module)) for module in model.modules()]
        origins(model, lost(model))

        assert all(tensor.is_meta for module in model.modules() for _, tensor in tensors_of(module))
        assert before == [dict(vars(module)) for module in model.modules()]
        assert torch.equal(state, torch.get_rng_state())


NOTHING = {
    "changed argument": partial(Changing, 6, 0.25),
    "forgotten argument": partial(Forgetful, 6, 0.25),
    "arguments without names": partial(Starred, 6, 0.25),
    "convention that reads": partial(Reading, 6, 0.25),
}


class TestNotFound:
    """A wrong value is worse than none."""

    @pytest.mark.parametrize("build", NOTHING.values(), ids=NOTHING)
    def test_nothing(self, build):
        """Where a constructor cannot be called as it was, nothing is said."""
        assert found(build) == {}

    def test_changed_model(self):
        """A model that differs from what its class builds is no longer described by that."""
        model = on_meta(partial(Keeping, 6, 0.25))
        model.head = on_meta(partial(nn.Linear, 6, 2))

        assert origins(model, lost(model)).keys() == {"head.weight", "head.bias"}

    def test_already_known(self):
        """Nothing is built when nothing is lost."""
        assert origins(nn.Linear(2, 2), []) == {}


class TestTold:
    """What the caller says."""

    def test_rebuild(self):
        """A function that builds the model is believed, and asked first."""
        origin = found(partial(Keeping, 6, 0.25), rebuild=partial(Forgetful, 6, 0.75))

        assert origin["gamma"].value.tolist() == [0.75] * 6
        assert {value.source for value in origin.values()} == {"rebuild"}

    def test_rebuild_of_another_shape(self):
        """Tensors of another shape are not taken from it."""
        assert found(partial(Forgetful, 6, 0.25), rebuild=partial(Forgetful, 5, 0.25)).keys() == {
            "count",
            "plain",
        }

    def test_rebuild_raises(self):
        """An error in it is told with its name."""
        with pytest.raises(MaterializeError, match="rebuild raised ZeroDivisionError"):
            found(partial(Forgetful, 6, 0.25), rebuild=lambda: 1 / 0)

    def test_registered(self):
        """A registered function answers for what it writes, the constructor for nothing."""
        origin = found(partial(Registered, 6, 0.25))

        assert origin.keys() == {"ramp", "table"}
        assert origin["ramp"].value.tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
        assert origin["table"].pending.initializer == Uniform(-1.0, 1.0)

    def test_registered_raises(self):
        """An error in it is told with the class."""
        with pytest.raises(MaterializeError, match="registered for Misregistered raised KeyError"):
            found(partial(Misregistered, 6, 0.25))


class TestSeeds:
    """What constructors draw otherwise than into a parameter depends on the seed alone."""

    class Noisy(nn.Module):
        """A constant that is drawn."""

        def __init__(self):
            super().__init__()
            self.register_buffer("noise", 2 * torch.randn(4))

    def test_seed(self):
        """The same seed finds the same values, another one others."""
        first, again, other = (found(self.Noisy, seed=seed)["noise"].value for seed in (1, 1, 2))

        assert torch.equal(first, again)
        assert not torch.equal(first, other)


class TestLibraries:
    """Models of timm and transformers, which keep how they were built."""

    def test_timm(self):
        """A layer scale that no module keeps, in a model with a head of its own size."""
        timm = pytest.importorskip("timm")
        build = partial(timm.create_model, "convnext_atto", num_classes=7, drop_path_rate=0.1)
        model = on_meta(build)
        wanted = [tensor for tensor in lost(model) if tensor.attribute == "gamma"]
        origin = origins(model, wanted)

        assert len(origin) == len(wanted) == 12
        assert all(value.value.unique().item() == pytest.approx(1e-6) for value in origin.values())

    def test_timm_with_other_arguments(self):
        """A model that its name alone does not describe is not taken for what it is not."""
        timm = pytest.importorskip("timm")
        model = on_meta(partial(timm.create_model, "convnext_atto", kernel_sizes=5))

        assert not origins(model, [t for t in lost(model) if t.attribute == "gamma"])

    def test_torchvision(self):
        """A model that does not keep its name is compared with all it could be."""
        torchvision = pytest.importorskip("torchvision")
        build = partial(torchvision.models.convnext_small, num_classes=7)
        model = on_meta(build)
        wanted = [tensor for tensor in lost(model) if tensor.attribute == "layer_scale"]
        origin = origins(model, wanted)

        assert len(origin) == len(wanted) == 36
        assert {value.source for value in origin.values()} == {
            "torchvision.models.get_model('convnext_small')"
        }
        assert all(value.value.unique().item() == pytest.approx(1e-6) for value in origin.values())

    def test_transformers(self):
        """Rotary frequencies, which no checkpoint holds."""
        transformers = pytest.importorskip("transformers")
        config = transformers.LlamaConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=64, rope_parameters={"rope_type": "default",
            "rope_theta": 500.0})  # fmt: skip
        model = on_meta(partial(transformers.LlamaModel, config))
        wanted = [tensor for tensor in lost(model) if "inv_freq" in tensor.attribute]
        origin = origins(model, wanted)["rotary_emb.inv_freq"]

        assert origin.value.tolist() == pytest.approx([500.0 ** (-i / 8) for i in range(8)])
        assert math.isclose(origin.value[0].item(), 1.0)
