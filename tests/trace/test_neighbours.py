"""Which weights decide whether the units of another stay alike, against flows drawn by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_initpolicy import find_symmetry, initializers, match, plan_policy, presets
from torch_initpolicy.policy.rules import InitPolicy, Rule
from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read


class Flow(nn.Module):
    """Layers `a`, `b`, `c` ... in this order of registration, and any flow through them."""

    def __init__(self, function, count: int = 4) -> None:
        super().__init__()
        self.function = function
        for name in "abcdefghijklmnopqrst"[:count]:
            self.add_module(name, nn.Linear(4, 4, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def neighbours(model: nn.Module, *inputs: Tensor) -> dict[str, str | None]:
    """Return the neighbours of each layer as letters; None for what has no say."""
    found = read(model, sites(model), inputs or torch.zeros(2, 4))
    return {
        name.removesuffix(".weight"): None
        if fact.neighbours is None
        else " ".join(other.removesuffix(".weight") for other in fact.neighbours)
        for name, fact in found.facts.items()
    }


def gated(m: Flow, x: Tensor) -> Tensor:
    """Multiply two layers' outputs."""
    return m.c(F.silu(m.a(x)) * m.b(x))


def residual(m: Flow, x: Tensor) -> Tensor:
    """Add a branch of two layers to a layer's output."""
    x = m.a(x)
    return m.d(x + m.c(F.relu(m.b(x))))


def attention(m: Flow, x: Tensor) -> Tensor:
    """Attend with one head."""
    query, key, value = (layer(x)[None] for layer in (m.a, m.b, m.c))
    return m.d(F.scaled_dot_product_attention(query, key, value))


FLOWS = {
    "another order": (
        lambda m, x: m.b(torch.tanh(m.c(torch.tanh(m.a(x))))),
        {"a": "c", "b": "", "c": "b", "d": ""},
    ),
    "a gate": (gated, {"a": "b c", "b": "a c", "c": "", "d": ""}),
    "a residual": (residual, {"a": "b c d", "b": "c", "c": "a d", "d": ""}),
    "attention": (attention, {"a": "b c d", "b": "a c d", "c": "a b d", "d": ""}),
    "side by side": (
        lambda m, x: torch.cat([m.a(x), m.b(x)], -1) @ torch.cat([m.c.weight, m.d.weight]),
        {"a": "c d", "b": "c d", "c": "", "d": ""},
    ),
    "seen outside": (
        lambda m, x: (h := torch.tanh(m.a(x)), m.b(h)),
        {"a": "", "b": "", "c": "", "d": ""},
    ),
    "behind what nobody knows": (
        lambda m, x: m.b(torch.linalg.matrix_exp(m.a(x)[:4, :4])),
        {"a": "", "b": "", "c": "", "d": ""},
    ),
    "used twice": (
        lambda m, x: m.b(torch.tanh(m.a(torch.tanh(m.a(x))))),
        {"a": "a b", "b": "", "c": "", "d": ""},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOWS)
def test_by_hand(name):
    """What lies next in the data flow counts, and what it is combined with on the way there."""
    function, expected = FLOWS[name]

    assert neighbours(Flow(function), torch.zeros(4, 4)) == expected


def stream(m: Flow, x: Tensor) -> Tensor:
    """Every second layer reads the stream, and the one behind it adds to the stream."""
    layers = list(m.children())
    for inner, outer in zip(layers[:-1:2], layers[1:-1:2], strict=True):
        x = x + outer(F.relu(inner(x)))
    return layers[-1](x)


def test_a_long_stream_decides_nothing():
    """What goes on to a great many weights has no neighbours; what is inside a branch does."""
    found = neighbours(Flow(stream, 19))

    assert [found[name] for name in "aceg"] == ["b", "d", "f", "h"]
    assert found["b"] == ""


def test_recurrent_layers_decide_about_themselves():
    """The states of a layer are read by all of its weights, and by the next layer."""
    model = nn.ModuleDict({"rnn": nn.GRU(4, 4, bias=False), "head": nn.Linear(4, 2)})
    model.forward = lambda x: model["head"](model["rnn"](x)[0])
    found = neighbours(model, torch.zeros(3, 2, 4))

    both = "rnn.weight_hh_l0 rnn.weight_ih_l0"
    assert found["rnn.weight_ih_l0"] == found["rnn.weight_hh_l0"] == f"head {both}"
    assert found["head"] == ""
    assert found["head.bias"] is None


def test_projections_inside_attention():
    """Inside an attention layer the output projection comes next."""
    model = nn.ModuleDict({"mha": nn.MultiheadAttention(4, 2), "head": nn.Linear(4, 2)})
    model.forward = lambda x: model["head"](model["mha"](x, x, x)[0])
    found = neighbours(model, torch.zeros(3, 2, 4))

    assert found["mha.in_proj_weight"] == "mha.in_proj_weight mha.out_proj"
    assert found["mha.out_proj"] == "head"


def test_the_order_of_registration_says_nothing():
    """Where nothing could be read, nobody knows."""
    model = Flow(lambda m, x: 1 / 0)
    facts = read(model, sites(model)).facts

    assert {fact.evidence for fact in facts.values()} == {"order"}
    assert {fact.neighbours for fact in facts.values()} == {None}


APART = {
    "others between": (lambda m, x: m.c(torch.tanh(m.a(torch.tanh(m.b(x))))), ["a.weight"]),
    "side by side": (lambda m, x: m.c(torch.tanh(m.b(torch.tanh(m.a(x))))), []),
    "beside a random one": (lambda m, x: m.c(torch.tanh(m.a(x)) * m.b(x)), []),
    "beside one that a random one parts": (
        lambda m, x: m.d(torch.tanh(m.a(x) + m.c(x))) + m.d(torch.tanh(m.b(m.c(x)))),
        [],
    ),
    "beside a constant": (lambda m, x: m.d(torch.tanh(m.a(x) + m.c(x))), ["a.weight", "c.weight"]),
}
"""Flows in which `b` is random and all others are constant, with what stays alike."""


@pytest.mark.filterwarnings("ignore::torch_initpolicy.errors.SymmetricInitWarning")
@pytest.mark.parametrize("name", APART)
def test_the_plan_says_what_a_search_finds(name):
    """What a plan warns of is what training cannot part, whatever stands beside what."""
    function, expected = APART[name]
    model = Flow(function)
    constants = Rule(~match.name("b.weight"), initializers.Constant(0.3))
    plan = plan_policy(model, InitPolicy([constants]).otherwise(presets.xavier()))
    plan.apply(seed=0)
    report = find_symmetry(model, torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    tied = {finding.name for finding in report.findings if finding.verdict == "tied"}

    assert [step.name for step in plan.symmetric] == expected
    assert tied.isdisjoint({"a.weight"}) == (expected == [])
    assert tied.issuperset(expected)
