"""A meta-built model becomes the model that would have been built for real."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from torch_initpolicy import (
    InitPolicy,
    Rule,
    apply_policy,
    initializers,
    match,
    presets,
    restore,
    skip_init,
)
from torch_initpolicy import materialize as materialize_
from torch_initpolicy.errors import ApplyError, MaterializeError, PlanError

materialize = partial(materialize_, seed=0)


class Tokens(nn.Module):
    """Embedding, positions and tied head; buffers that are saved and such that are not."""

    inputs = (torch.tensor([[1, 2, 0, 4, 3]]),)

    def __init__(self, width=6):
        super().__init__()
        self.width = width
        self.embedding = nn.Embedding(7, width, padding_idx=2)
        self.positions = nn.Parameter(torch.empty(1, 5, width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.hidden = nn.Linear(width, 2 * width)
        self.gamma = nn.Parameter(0.1 * torch.ones(width))
        self.back = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("ramp", torch.arange(5.0)[None, :, None], persistent=False)
        self.register_buffer("scale", torch.tensor(0.5))
        self.shift = torch.full((width,), 0.25)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.positions + self.ramp * self.scale
        x = x + self.gamma * self.back(torch.relu(self.hidden(x))) + self.shift
        return self.head(x)


class Normalised(nn.Module):
    """A head whose weight has a frozen gain of ones, as in DINO."""

    def __init__(self, width=6):
        super().__init__()
        self.width = width
        self.head = parametrizations.weight_norm(nn.Linear(width, 8, bias=False))
        self.head.parametrizations.weight.original0.data.fill_(1.0)
        self.head.parametrizations.weight.original0.requires_grad_(requires_grad=False)

    def forward(self, x):
        return self.head(x)


class Helper:
    """An object that is no module and holds a tensor."""

    def __init__(self, width):
        self.mask = torch.arange(float(width))


class Tables(nn.Module):
    """Tensors that are neither parameters nor buffers."""

    def __init__(self, width=4):
        super().__init__()
        self.width = width
        self.lin = nn.Linear(width, width)
        self.tables = {"shift": torch.ones(width), "more": [None, torch.full((width,), 2.0)]}
        self.helper = Helper(width)

    def forward(self, x):
        return self.lin(x) + self.tables["shift"] + self.tables["more"][1] + self.helper.mask


class Scaled(nn.Module):
    """A table whose lookups are multiplied by a buffer, slopes of PReLU, and a closed branch."""

    def __init__(self, width=16):
        super().__init__()
        self.width = width
        self.table = nn.Embedding(40, width)
        self.register_buffer("scale", torch.tensor(width**0.5), persistent=False)
        self.hidden = nn.Linear(width, 4 * width)
        self.act = nn.PReLU(init=0.1)
        self.out = nn.Linear(4 * width, width)
        self.gate = nn.Linear(width, width)
        self.head = nn.Linear(width, 4)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, tokens):
        x = self.table(tokens) * self.scale
        x = x + self.out(self.act(self.hidden(x)))
        return self.head(x + self.gate(x))


def images():
    """Convolutions with two kinds of norms, one of them without weights."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2),
        nn.InstanceNorm2d(8, track_running_stats=True), nn.Flatten(), nn.Linear(8 * 16, 3),
    )  # fmt: skip


class Recurrent(nn.Module):
    """A recurrent layer, which keeps a list of its own weights."""

    inputs = (torch.ones(2, 3, 4),)

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(4, 5, bidirectional=True)
        self.head = nn.Linear(10, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


class Twice(nn.Module):
    """One module under two names, and one tensor in two modules."""

    inputs = (torch.ones(2, 4),)

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first
        self.third = nn.Linear(4, 4)
        self.third.weight = self.first.weight

    def forward(self, x):
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


BUILD = {
    "tokens": (Tokens, Tokens.inputs),
    "images": (images, (torch.ones(1, 3, 8, 8),)),
    "recurrent": (Recurrent, Recurrent.inputs),
    "shared": (Twice, Twice.inputs),
}


def on_meta(build):
    """A model without memory."""
    with torch.device("meta"):
        return build()


def built(build, *policy, **options):
    """The same model, built for real."""
    with skip_init():
        model = build()
    apply_policy(model, *policy, seed=0, **options)
    return model


def same(first, second):
    """Whether two models hold the same bits under the same names, buffers included."""
    states = [{**m.state_dict(), **dict(m.named_buffers())} for m in (first, second)]
    return states[0].keys() == states[1].keys() and all(
        torch.equal(tensor, states[1][name]) for name, tensor in states[0].items()
    )


@pytest.mark.parametrize(("build", "inputs"), BUILD.values(), ids=BUILD)
class TestSame:
    """Materialised and built for real are one."""

    def test_state_and_output(self, build, inputs):
        """Same policy, same seed: the same state and the same output, to the last bit."""
        model, real = on_meta(build), built(build, example_inputs=inputs)
        materialize(model, example_inputs=inputs)

        assert same(real, model)
        assert torch.equal(real.eval()(*inputs), model.eval()(*inputs))

    def test_without_fills(self, build, inputs):
        """It is the same whether the fills of the constructor ran on meta or were left out."""
        model = on_meta(build)
        with skip_init():
            unfilled = on_meta(build)
        for each in (model, unfilled):
            materialize(each, seed=0, example_inputs=inputs)

        assert same(model, unfilled)

    def test_ties(self, build, inputs):
        """What was one tensor is one tensor."""
        model = on_meta(build)
        names = [n for n, _ in model.named_parameters()]
        materialize(model)

        assert names == [n for n, _ in model.named_parameters()]

    def test_trains(self, build, inputs):
        """It can be trained."""
        model = on_meta(build)
        materialize(model)
        model(*inputs).sum().backward()

        assert all(parameter.grad is not None for parameter in model.parameters())


class TestDetails:
    """What else a model has."""

    def test_receipt(self):
        """The receipt says where what was kept comes from."""
        receipt = materialize(on_meta(Tokens))

        assert "; the value given by Tokens built again with width" in receipt.plan["gamma"].reason
        assert receipt.plan["positions"].initializer == initializers.Normal(0.02)
        assert receipt.plan["positions"].reason == (
            "kept: what Tokens built again with width would have drawn, from a stream of its own"
        )
        assert receipt.seed == 0

    def test_inputs_found(self):
        """Inputs are found, as long as its table of positions."""
        receipt = materialize(model := on_meta(Tokens))

        assert {step.evidence for step in receipt.plan} == {"traced"}
        assert receipt.plan["positions"].initializer == initializers.Normal(0.02)
        assert same(built(Tokens), model)

    def test_plain_tensors(self):
        """A tensor that is no buffer is restored as well."""
        model = on_meta(Tokens)
        materialize(model)

        assert model.shift.tolist() == [0.25] * 6

    def test_dtype(self):
        """A model that was cast on meta is one that was cast for real."""
        model = on_meta(Tokens).to(torch.bfloat16)
        with skip_init():
            real = Tokens()
        apply_policy(real.to(torch.bfloat16), seed=0, example_inputs=Tokens.inputs)
        materialize(model, example_inputs=Tokens.inputs)

        assert same(real, model)
        assert model.ramp.dtype == torch.bfloat16

    def test_partly_real(self):
        """What has values keeps them, unless the policy says otherwise."""
        model = on_meta(Tokens)
        model.gamma = nn.Parameter(torch.full((6,), 3.0))
        model.ramp = torch.zeros(1, 5, 1)
        materialize(model)

        assert model.gamma.tolist() == [3.0] * 6
        assert not model.ramp.any()

    def test_nested_tensors(self):
        """Tensors in dictionaries, lists and helper objects are restored."""
        model = on_meta(Tables)
        materialize(model)

        assert model.tables["shift"].tolist() == [1.0] * 4
        assert model.tables["more"][1].tolist() == [2.0] * 4
        assert model.helper.mask.tolist() == [0.0, 1.0, 2.0, 3.0]
        assert model(torch.ones(1, 4)).device.type == "cpu"

    def test_nested_unknown(self):
        """What cannot be restored is named, and the model stays as it was."""
        with torch.device("meta"):
            model = Tables(4)
            del model.width
            model.pair = (torch.ones(2), 1)
        before = [model.tables["shift"], model.helper.mask]

        with pytest.raises(MaterializeError) as error:
            materialize(model)
        for name in ("tables['shift']", "tables['more'][1]", "helper.mask", "pair[0]"):
            assert f"{name}" in str(error.value).replace("\\", "")
        assert before[0] is model.tables["shift"]
        assert before[1] is model.helper.mask

    def test_nested_undone(self):
        """Where writing fails they are on meta again."""

        def fail(tensor):
            raise RuntimeError("no")

        model = on_meta(Tables)
        with pytest.raises(ApplyError):
            materialize(model, initializers.From(fail))
        assert model.tables["shift"].is_meta
        assert model.helper.mask.is_meta

    def test_values_decide(self):
        """Buffers, slopes and what was meant decide as they do where the model is real."""
        real, model = Scaled(), on_meta(Scaled)
        expected = apply_policy(real, seed=0).plan
        receipt = materialize(model)

        assert same(real, model)
        assert receipt.plan["gate.weight"].reason.startswith(expected["gate.weight"].reason)
        assert not model.gate.weight.any()

    def test_frozen_gain(self):
        """A frozen gain has what its constructor gives it, and only the direction is drawn."""
        model, real = on_meta(Normalised), Normalised()
        apply_policy(real, seed=0)
        materialize(model)

        assert same(real, model)
        assert (model.head.parametrizations.weight.original0 == 1).all()

    def test_frozen(self):
        """A frozen parameter has what its constructor draws, and stays frozen."""
        model = on_meta(Tokens)
        model.hidden.weight.requires_grad_(requires_grad=False)
        materialize(model)

        assert not model.hidden.weight.requires_grad
        assert 0 < model.hidden.weight.abs().max() <= 6**-0.5

    def test_attributes_of_parameters(self):
        """What is written on a parameter stays there."""
        model = on_meta(Tokens)
        model.hidden.weight.no_decay = True
        materialize(model)

        assert model.hidden.weight.no_decay

    def test_parametrised(self):
        """A weight behind a parametrisation is filled through it."""
        build = lambda: parametrizations.weight_norm(nn.Linear(4, 3))  # noqa: E731
        model, real = on_meta(build), build()
        materialize(model, initializers.Normal(0.5))
        apply_policy(real, initializers.Normal(0.5), seed=0)

        assert same(real, model)

    def test_nothing_on_meta(self):
        """A real model is initialised like any other."""
        model, real = nn.Linear(4, 4), nn.Linear(4, 4)
        materialize(model)
        apply_policy(real, seed=0)

        assert same(real, model)

    def test_within_skip_init(self):
        """It may be called where constructors are skipped."""
        with skip_init():
            model = on_meta(Tokens)
            materialize(model, example_inputs=Tokens.inputs)

        assert same(built(Tokens, example_inputs=Tokens.inputs), model)


class Forgetful(nn.Module):
    """Nobody can tell its constants."""

    def __init__(self, value):
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.gamma = nn.Parameter(value * torch.ones(3))
        self.register_buffer("mask", value * torch.ones(2, 2), persistent=False)

    def forward(self, x):
        return self.gamma * self.inner(x)


def snapshot(model):
    """Identities of all that a model holds."""
    return [
        (dict(vars(m)), dict(m._parameters), dict(m._buffers), dict(m._modules))
        for m in model.modules()
    ]


class TestErrors:
    """One error for all, and nothing has happened."""

    def test_lists_all(self):
        """Every tensor that nobody knows is listed, with what to write."""
        model = on_meta(lambda: nn.Sequential(Forgetful(2.0), Forgetful(3.0)))
        before = snapshot(model)
        with pytest.raises(MaterializeError) as raised:
            materialize(model)

        assert str(raised.value) == (
            "4 tensors of a model built on the meta device with values that only its constructor "
            "computes:\n"
            "  - '0.gamma' (Forgetful, shape (3,))\n"
            "  - '0.mask' (Forgetful, shape (2, 2))\n"
            "  - '1.gamma' (Forgetful, shape (3,))\n"
            "  - '1.mask' (Forgetful, shape (2, 2))\n"
            "pass rebuild=..., a function that builds the model once more (it runs on the CPU and "
            "draws no weights), or register a function that computes them with "
            "torch_initpolicy.restore.register; a parameter may also get a Rule"
        )
        assert before == snapshot(model)

    def test_restore(self):
        """What the message says to register is enough, and holds for that class alone."""

        class Remembered(Forgetful):
            pass

        @restore.register
        def _(module: Remembered) -> None:
            module.mask = torch.full((2, 2), 5.0)
            module.gamma.data.fill_(5.0)

        model = on_meta(lambda: nn.Sequential(Remembered(5.0), Forgetful(3.0)))
        with pytest.raises(MaterializeError, match="2 tensors of a model") as raised:
            materialize(model)
        materialize(model[0])

        assert "'1.gamma'" in str(raised.value)
        assert (model[0].mask.sum().item(), model[0].gamma.tolist()) == (20.0, [5.0] * 3)

    def test_rebuild(self):
        """A function that builds the model tells all."""
        build = partial(Forgetful, 2.0)
        model = on_meta(build)
        materialize(model, rebuild=build)

        assert same(built(build), model)

    def test_rule(self):
        """A parameter with a rule needs no constructor."""
        policy = InitPolicy([Rule(match.name("*gamma"), initializers.Ones())])
        model = on_meta(partial(Forgetful, 2.0))
        model.mask = torch.ones(2, 2)
        materialize(model, policy.otherwise(presets.auto()))

        assert model.gamma.tolist() == [1.0] * 3

    def test_undone(self):
        """When a step fails the model is on meta as before, a recurrent one's own list too."""

        def refuse(tensor):
            raise ValueError("no")

        policy = InitPolicy([Rule(match.name("head.weight"), initializers.From(refuse))])
        model = on_meta(Recurrent)
        before = snapshot(model)
        with pytest.raises(ApplyError, match=r"head.weight(?s:.)*no"):
            materialize(model, policy.otherwise(presets.auto()))

        assert [entry[1:] for entry in before] == [entry[1:] for entry in snapshot(model)]
        assert all(weight.is_meta for weight in model.lstm._flat_weights)

    def test_plan_error(self):
        """A policy without a rule for everything is refused before anything is built."""
        with pytest.raises(PlanError, match="no rule matches"):
            materialize(
                on_meta(Tokens), InitPolicy([Rule(match.name("head.*"), initializers.Ones())])
            )


def tied(width):
    """Build a table that is the head, too."""
    model = nn.Sequential(nn.Embedding(20, width), nn.Linear(width, 20, bias=False))
    model[1].weight = model[0].weight
    return model


def test_forward_multipliers():
    """What a parametrisation cannot fold into a parameter is hooked as `apply_policy` hooks it."""
    policy = presets.mup(base=tied(8), forward_multipliers=True)
    tokens = torch.arange(6).view(2, 3)
    model, real = on_meta(partial(tied, 32)), tied(32)
    materialize(model, policy, seed=0, example_inputs=tokens)
    apply_policy(real, policy, seed=0, example_inputs=tokens)

    assert torch.equal(model(tokens), real(tokens))
