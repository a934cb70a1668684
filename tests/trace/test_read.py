"""How a model is read: inputs that are found, fallbacks that say so, errors that help."""

import dataclasses
import functools
import re
import sys
from collections import OrderedDict, UserDict
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_initpolicy import plan_policy
from torch_initpolicy.errors import TraceError
from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.trace.read import Reading, read


def reading(model: nn.Module, example_inputs: object = None) -> Reading:
    """Read a model."""
    return read(model, sites(model), example_inputs)


class Branching(nn.Module):
    """A forward whose path depends on its numbers: it cannot run on meta."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.second(F.relu(x) if x.sum() < torch.inf else torch.tanh(x))


class Hopeless(nn.Module):
    """A forward that nothing suits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(4, 4), nn.LeakyReLU(0.2), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("not today")


class Auxiliary(nn.Module):
    """A head that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head, self.auxiliary = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        return self.head(x) + torch.tanh(self.auxiliary(x)) if self.training else self.head(x)


class TestEvidence:
    def test_traced(self):
        """What runs on meta is traced."""
        found = reading(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))

        assert found.evidence == "traced"
        assert found.facts["0.weight"].meets == Activation("relu")

    @pytest.mark.parametrize("example", [None, torch.zeros(2, 4)], ids=["searched", "given"])
    def test_ran(self, example):
        """What does not run on meta runs on small real tensors, and says why it had to."""
        found = reading(Branching(), example)

        assert {fact.evidence for fact in found.facts.values()} == {"ran"}
        assert found.facts["first.weight"].meets == Activation("relu")
        assert found.failure is not None

    def test_order(self):
        """What runs on nothing is read in the order of registration, and says so."""
        found = reading(Hopeless())

        assert {fact.evidence for fact in found.facts.values()} == {"order"}
        assert found.facts["first.weight"].meets == Activation("leaky_relu", 0.2)
        assert found.facts["second.weight"].meets is None
        assert "not today" in str(found.failure)

    def test_training_only_parts_are_found(self):
        """What evaluation mode leaves out is looked for in training mode."""
        model = Auxiliary()
        found = reading(model)

        assert found.facts["auxiliary.weight"].meets == Activation("tanh")
        assert found.facts["auxiliary.weight"].used
        assert model.training

    def test_unused_parameters_are_said_to_be_unused(self):
        """A parameter that no forward pass reads is found, and not used."""
        model = nn.Sequential(nn.Linear(4, 4))
        model.register_parameter("spare", nn.Parameter(torch.zeros(3)))
        found = reading(model)

        assert (found.facts["spare"].used, found.facts["spare"].role) == (False, "unknown")


class TestErrors:
    def test_given_inputs_that_do_not_fit(self):
        """Inputs that the user gave are not replaced: the error shows what forward said."""
        with pytest.raises(TraceError, match="Sequential raises with the given example_inputs"):
            reading(nn.Sequential(nn.Linear(4, 4)), torch.zeros(2, 5))

    def test_a_forward_that_raises(self):
        """The message carries the model's own words and says what to give."""
        with pytest.raises(TraceError, match=r"not today.*give what forward takes"):
            reading(Hopeless(), torch.zeros(2, 4))


class Keywords(nn.Module):
    """A forward with keyword arguments and a nested result."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, *, x: Tensor, scale: float = 1.0) -> dict[str, list[Tensor]]:
        return {"out": [torch.sigmoid(self.linear(x)) * scale]}


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (nn.Linear(4, 2), torch.zeros(3, 4)),
        (nn.Bilinear(4, 3, 2), (torch.zeros(2, 4), torch.zeros(2, 3))),
        (Keywords(), {"x": torch.zeros(2, 4)}),
    ],
    ids=["tensor", "tuple", "mapping"],
)
def test_example_inputs_come_as_a_tensor_a_tuple_or_a_mapping(model, example):
    """Each way of giving inputs leads to a traced forward pass."""
    assert reading(model, example).evidence == "traced"


class Mapped(nn.Module):
    """A forward that maps itself over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.vmap(lambda row: self.second(F.relu(self.first(row))))(x)


class MappedAlongColumns(Mapped):
    """A forward whose mapped dimension comes last, and goes on behind the map."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.vmap(self.first, in_dims=1, out_dims=1)(x.T)
        return self.second(F.relu(hidden).T)


class Perturbed(Mapped):
    """A forward that is a gradient, for each sample."""

    def forward(self, x: Tensor) -> Tensor:
        energy = torch.func.grad(lambda row: self.second(F.relu(self.first(row))).sum())
        return torch.vmap(energy)(x)


class Forces(Mapped):
    """Forces are the gradient of an energy; its forward takes it, and leaves gradients behind."""

    def forward(self, x: Tensor) -> Tensor:
        x.requires_grad_()
        energy = self.second(F.relu(self.first(x))).sum()
        energy.backward(retain_graph=True)
        return -torch.autograd.grad(energy, x, create_graph=True)[0]


@pytest.mark.parametrize("example", [None, torch.ones(3, 4)], ids=["searched", "given"])
@pytest.mark.parametrize("kind", [Mapped, MappedAlongColumns, Perturbed, Forces])
def test_functional_transforms_are_seen_through(kind, example):
    """Inside `vmap` and `grad` a weight is seen with its operator and with what it meets."""
    model = kind()
    model.first.weight.grad = torch.full((4, 4), 7.0)
    found = reading(model, example)
    weights = [found.facts[name] for name in ("first.weight", "second.weight")]

    assert (found.evidence, dict(found.unknown_operators)) == ("traced", {})
    assert [facts.op for facts in weights] == ["linear", "linear"]
    assert [facts.meets for facts in weights] == [Activation("relu"), None]
    assert weights[0].reads_input
    assert model.first.weight.grad.tolist() == [[7.0] * 4] * 4
    assert [p.grad for p in model.second.parameters()] == [None, None]
    assert example is None or not example.requires_grad


class Ensemble(nn.Module):
    """Three networks as one, their weights stacked."""

    def __init__(self) -> None:
        super().__init__()
        members = [nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)) for _ in range(3)]
        stacked, _ = torch.func.stack_module_state(members)
        self.names = [name.replace(".", "_") for name in stacked]
        for name, values in zip(self.names, stacked.values(), strict=True):
            self.register_parameter(name, nn.Parameter(values.detach()))
        self.member = members[:1]  # a list, so that it is no part of the model

    def forward(self, x: Tensor) -> Tensor:
        stacked = {name.replace("_", "."): getattr(self, name) for name in self.names}

        def run(state: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(self.member[0], state, (x,))

        return torch.vmap(run)(stacked)


@pytest.mark.parametrize("example", [None, torch.ones(5, 4)], ids=["searched", "given"])
def test_stacked_ensembles_are_copies(example):
    """Each member has the fans it would have alone; the stacked axis counts for nothing."""
    found = reading(Ensemble(), example)
    first, second = found.facts["0_weight"], found.facts["2_weight"]

    assert dict(found.unknown_operators) == {}
    assert first.meets == Activation("tanh")
    assert {first.axes, second.axes} == {Axes(inputs=(2,), outputs=(1,), copies=(0,))}


class Named(NamedTuple):
    x: Tensor


@dataclasses.dataclass
class Batch:
    x: Tensor


class Unpacking(nn.Module):
    """A forward that takes its input out of a container."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, batch: object) -> Tensor:
        x = batch.x if isinstance(batch, (Named, Batch)) else batch["x"]
        return self.second(torch.tanh(self.first(x)))


@pytest.mark.parametrize("container", [dict, OrderedDict, UserDict, Named, Batch])
def test_inputs_inside_containers_are_inputs(container):
    """Whatever carries the input, the layer that reads it is fed by the input."""
    found = reading(Unpacking(), (container(x=torch.zeros(2, 4)),))

    assert found.evidence == "traced"
    assert found.facts["first.weight"].reads_input
    assert found.facts["second.weight"].fed_by == Activation("tanh")


def _called(model: nn.Module, x: Tensor, other: object) -> object:
    return model.layer(x, other)


def _stateful(model: nn.Module, x: Tensor, state: Tensor, cell: Tensor) -> object:
    return model.layer(x, (state, cell))


def _attended(model: nn.Module, x: Tensor, context: Tensor) -> object:
    return model.layer(x, context, context)


def _compared(model: nn.Module, x: Tensor, other: Tensor) -> Tensor:
    return model.layer(x)[0] - model.layer(other)[0]


class Several(nn.Module):
    """A forward with as many arguments as a function has that is given the model."""

    def __init__(self, layer: nn.Module, run: Callable[..., object]) -> None:
        super().__init__()
        self.layer = layer
        self.forward = functools.partial(run, self)


FOUND_BY_THEMSELVES = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 8)),
    "lenet": lambda: nn.Sequential(
        nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    ),
    "convolution_1d": lambda: nn.Sequential(nn.Conv1d(2, 4, 9), nn.ReLU()),
    "convolution_3d": lambda: nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU()),
    "embedding": lambda: nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2)),
    "bag": lambda: nn.Sequential(nn.EmbeddingBag(7, 4), nn.Linear(4, 2)),
    "lstm": lambda: nn.LSTM(3, 4, batch_first=True),
    "encoder": lambda: nn.TransformerEncoderLayer(8, 2, 16),
    "transformer": lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "attention_of_three_sizes": lambda: nn.MultiheadAttention(16, 4, kdim=8, vdim=12),
    "attention_batch_first": lambda: nn.MultiheadAttention(16, 4, kdim=8, batch_first=True),
    "decoder": lambda: nn.TransformerDecoderLayer(8, 2, 16),
    "decoders": lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 2),
    "bilinear": lambda: nn.Bilinear(8, 9, 5),
    "gru": lambda: nn.GRU(3, 4, bidirectional=True),
    "rnn_cell": lambda: nn.RNNCell(3, 4),
    "lstm_cell": lambda: nn.LSTMCell(3, 4),
    "cross_attention": lambda: Several(nn.MultiheadAttention(16, 4, kdim=8, vdim=8), _attended),
    "both_sides": lambda: Several(nn.Bilinear(8, 9, 5), _called),
    "state": lambda: Several(nn.GRU(3, 4, 2), _called),
    "state_batch_first": lambda: Several(nn.GRU(3, 4, 2, batch_first=True), _called),
    "states": lambda: Several(nn.LSTM(3, 4, proj_size=2), _called),
    "two_states": lambda: Several(nn.LSTM(3, 4), _stateful),
    "two_sequences": lambda: Several(nn.LSTM(3, 4), _compared),
    "two_steps": lambda: Several(nn.LSTMCell(3, 4), _compared),
    "cell_state": lambda: Several(nn.GRUCell(3, 4), _called),
    "cell_states": lambda: Several(nn.LSTMCell(3, 4), _called),
    "two_cell_states": lambda: Several(nn.LSTMCell(3, 4), _stateful),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 2),
    "norm_first": lambda: nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6)),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND_BY_THEMSELVES)
def test_inputs_are_found_from_the_first_layer(name):
    """A model that declares nothing is traced with inputs its first layer has the shape for."""
    found = reading(FOUND_BY_THEMSELVES[name]())

    assert found.evidence == "traced"
    assert all(fact.used for fact in found.facts.values())


class TestWrappers:
    def test_compiled_and_parallel_models_are_read_inside(self):
        """Wrappers change neither names nor facts."""
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        plain = reading(model)

        for wrapped in (nn.DataParallel(model), torch.compile(model)):
            found = reading(wrapped)
            assert dict(found.facts) == dict(plain.facts)

    def test_compiled_blocks_are_run_plainly_and_stay_compiled(self):
        """A compiled block inside a model is seen through, and compiled again afterwards."""
        block = torch.compile(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
        model = nn.Sequential(nn.Linear(4, 4), block)
        model.compile()
        compiled = (model._compiled_call_impl, vars(block).get("forward"))
        found = reading(model)

        assert found.evidence == "traced"
        assert found.facts["1.0.weight"].meets == Activation("tanh")
        assert compiled == (model._compiled_call_impl, vars(block).get("forward"))

    def test_models_built_on_meta_are_read_alike(self):
        """A model without memory has the same facts as a real one."""
        with torch.device("meta"):
            built = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU())

        assert dict(reading(built).facts) == dict(
            reading(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU())).facts
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_precision_is_no_fact(dtype):
    """The data flow is the same in every precision, behind norms and convolutions too."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.Conv2d(4, 4, 1))
    plain = reading(model)
    found = reading(model.to(dtype))

    assert found.evidence == "traced"
    assert dict(found.facts) == dict(plain.facts)


class Refuses(nn.Module):
    """A forward that fails without a word, as a bare `assert` does in many models."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError


def test_a_wordless_failure_is_a_failure_like_others():
    """A bare `assert` in a forward ended planning with an IndexError of our own."""
    found = reading(Refuses())

    assert found.evidence == "order"
    assert found.failure == "AssertionError"
    assert re.fullmatch(
        r"no inputs found: AssertionError with x float32 \(.*\); give example_inputs=",
        found.untraced or "",
    )


class Verbose(nn.Module):
    """Refuses every input, with a page of words in one line."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        raise ValueError("words " * 400)


def test_a_long_failure_leaves_the_remedy_in_sight():
    """An error of a page is shortened, what helps is not."""
    untraced = reading(Verbose()).untraced

    assert len(untraced) < 300
    assert re.search(r"\[...\] with x float32 \(.*\); give example_inputs=$", untraced)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("inputs", [None, torch.zeros(2, 3)], ids=["searched", "given"])
@pytest.mark.parametrize(
    "compiled",
    [torch.jit.script, lambda model: torch.jit.trace(model, torch.zeros(2, 3))],
    ids=["script", "trace"],
)
def test_torchscript_is_not_followed(compiled, inputs):
    """A scripted or traced part is no reason to ask for inputs, which would not help."""
    model = nn.Sequential(compiled(nn.Linear(3, 3)), nn.Linear(3, 3))
    found = read(model, sites(model), inputs)

    assert found.evidence == "order"
    assert found.untraced == "TorchScript hides what its parameters do"


def test_what_was_read_is_not_untraced():
    """Attempts that failed before one that did not are no reason to doubt it."""
    assert reading(nn.Linear(3, 3)).untraced is None


class _Nested(nn.Module):
    """A module that holds the next one."""

    def __init__(self, inner: nn.Module | None) -> None:
        super().__init__()
        self.inner, self.linear = inner, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.linear(x))
        return x if self.inner is None else self.inner(x)


def test_modules_that_nest_deeper_than_python_recurses():
    """A thousand modules, one in the other, are walked and traced; the limit is as it was."""
    model, limit = None, sys.getrecursionlimit()
    for _ in range(1000):
        model = _Nested(model)

    plan = plan_policy(model, example_inputs=torch.zeros(2, 2))

    assert {step.meets for step in plan if step.role == "weight"} == {"relu"}
    assert sys.getrecursionlimit() == limit


class _Optional(nn.Module):
    """An encoder for each of two arguments that default to None."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        self.text, self.head = nn.Embedding(20, 4), nn.Linear(4, 4)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> list[Tensor]:
        seen = [] if image is None else [self.image(image)]
        return seen + ([] if text is None else [torch.tanh(self.head(self.text(text)))])


def test_arguments_with_defaults_are_given_until_all_is_used():
    """A call with nothing runs and says nothing; others are tried while parameters are unused."""
    model = _Optional()
    found = read(model, sites(model))

    assert (found.evidence, found.unused) == ("traced", set())
    assert found.facts["image.0.weight"].meets.name == "relu"
    assert found.facts["head.weight"].meets.name == "tanh"


def test_a_search_in_vain_ends():
    """What a forward can take before it refuses everything is bounded by the budget."""
    ran = []

    class Refusing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(5000):
                x = x + 1
            ran.append(1)
            raise ValueError("never")

    model = Refusing()
    found = read(model, sites(model))

    assert found.evidence == "order"
    assert ran == []


def test_experts_that_few_draws_reach_are_read():
    """A router sends every draw elsewhere: all experts are seen, whatever weights it holds."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Linear(4, 6)
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            best = self.gate(x).argmax(-1)
            return sum(torch.tanh(self.experts[k](x)) for k in best.unique().tolist())

    found = [read(model, sites(model)) for model in (Routed(), Routed())]

    assert [reading.unused for reading in found] == [set(), set()]
    assert found[0].facts == found[1].facts
