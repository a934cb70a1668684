"""The rules of `auto` that go by the whole data flow: embeddings, closed branches, depth."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torch_initpolicy import apply_policy, plan_policy
from torch_initpolicy.tensors.initializers import Zeros

TOKENS = torch.arange(12).reshape(2, 6)
WIDTH = 16


class Language(nn.Module):
    """A model of rows, of positions, and of what a function makes of them."""

    def __init__(self, read, *, tied: bool = False):
        super().__init__()
        self.rows, self.places = nn.Embedding(20, WIDTH), nn.Embedding(6, WIDTH)
        self.memory = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.layer, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 20, bias=False)
        if tied:
            self.head.weight = self.rows.weight
        self.read = read

    def forward(self, x):
        return self.head(self.read(self, self.rows(x), self.places(torch.arange(6))))


def norm(x):
    """Normalise as a layer norm does."""
    return F.layer_norm(x, (WIDTH,))


READ = {
    "layer": (lambda net, x, places: torch.relu(net.layer(x + places)), False, 0.02),
    "recurrent layer": (lambda net, x, places: net.memory(x + places)[0], False, 1.0),
    "stream": (lambda net, x, p: norm((h := x + p) + net.layer(norm(h))), False, 1.0),
    "stream, scaled": (lambda net, x, p: norm((h := 5 * (x + p)) + net.layer(norm(h))), False, 0.2),
    "tied": (lambda net, x, p: norm((h := x + p) + net.layer(norm(h))), True, 0.25),
    "tied, scaled at the head": (
        lambda net, x, p: WIDTH**-0.5 * norm((h := x + p) + net.layer(norm(h))), True, 1.0,
    ),
    "tied, scaled at the rows": (
        lambda net, x, p: norm((h := 4 * x + p) + net.layer(norm(h))), True, 0.25,
    ),
}  # fmt: skip


@pytest.mark.parametrize(("read", "tied", "std"), READ.values(), ids=READ)
def test_embeddings_by_what_reads_them(read, tied, std):
    """Rows and positions that are added to each other start alike."""
    plan = plan_policy(Language(read, tied=tied), example_inputs=TOKENS)
    assert plan["rows.weight"].std == pytest.approx(std)
    assert plan["places.weight"].std == pytest.approx(std)


def test_tied_logits_have_the_variance_of_what_is_read():
    """Whatever the width: the first loss of a tied model is near that of equal odds."""
    model = Language(READ["tied"][0], tied=True)
    apply_policy(model, seed=0, example_inputs=TOKENS)
    loss = F.cross_entropy(model(TOKENS).flatten(0, 1), TOKENS.flatten())
    assert loss.item() < math.log(20) + 1.5


class Block(nn.Module):
    """A residual branch, with norms before, behind or nowhere."""

    def __init__(self, kind):
        super().__init__()
        conv = [nn.Conv1d(4, 4, 3, padding=1) for _ in range(2)]
        norms = [nn.BatchNorm1d(4) for _ in range(2)]
        self.branch = {
            "behind": nn.Sequential(conv[0], norms[0], nn.ReLU(), conv[1], norms[1]),
            "before": nn.Sequential(norms[0], nn.ReLU(), conv[0], norms[1], nn.ReLU(), conv[1]),
            "without numbers": nn.Sequential(
                conv[0], norms[0], nn.ReLU(), conv[1], nn.BatchNorm1d(4, affine=False)
            ),
            "groups": nn.Sequential(nn.GroupNorm(2, 4), conv[0], nn.ReLU(), conv[1]),
        }[kind]

    def forward(self, x):
        return x + self.branch(x)


class Net(nn.Module):
    """Three branches, and a norm at the end or none."""

    def __init__(self, kind, *, last):
        super().__init__()
        self.blocks = nn.Sequential(*(Block(kind) for _ in range(3)))
        self.norm, self.head = nn.GroupNorm(2, 4) if last else nn.Identity(), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.norm(self.blocks(x)).mean(2))


@pytest.mark.parametrize(
    ("kind", "closing"),
    [("behind", "branch.4.weight"), ("before", "branch.5.weight"), ("groups", None),
     ("without numbers", None)],
)  # fmt: skip
def test_batch_normalised_branches_start_closed(kind, closing):
    """What closes a branch is zero: its norm, or its last weight where no norm comes behind."""
    plan = plan_policy(Net(kind, last=True), example_inputs=torch.zeros(2, 4, 8))
    closed = {s.name for s in plan if s.initializer == Zeros() and "bias" not in s.role}
    assert closed == ({f"blocks.{i}.{closing}" for i in range(3)} if closing else set())


@pytest.mark.parametrize("last", [False, True], ids=["no last norm", "last norm"])
def test_depth_counts_where_no_norm_comes_last(last):
    """The last weight of each branch is divided by the root of their number, or is not."""
    plan = plan_policy(Net("groups", last=last), example_inputs=torch.zeros(2, 4, 8))
    expected = math.sqrt(2 / 24) / (1 if last else math.sqrt(3))
    for block in range(3):
        assert plan[f"blocks.{block}.branch.3.weight"].std == pytest.approx(expected)
        assert plan[f"blocks.{block}.branch.1.weight"].std == pytest.approx(math.sqrt(2 / 24))


class Twice(nn.Module):
    """A residual stream of one branch, in which two rectifiers follow one another."""

    def __init__(self, norm=nn.LayerNorm):
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(8, 8), norm(8), nn.Linear(8, 8)
        self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        inner = torch.relu(self.second(torch.relu(self.first(self.norm(x)))))
        return self.head(F.layer_norm(x + self.third(inner), (8,)))


def test_what_reads_a_stream_needs_no_gain():
    """He's gain makes up for the rectifier before a weight: the second layer of a branch has it."""
    plan = plan_policy(Twice(), example_inputs=torch.zeros(2, 8))
    gains = {name: plan[f"{name}.weight"].std * math.sqrt(8) for name in ("first", "second")}
    assert gains == pytest.approx({"first": 1, "second": math.sqrt(2)})


def test_batch_normalised_branches_keep_the_gain():
    """Scales before a batch normalisation are none of the signal's, and He's are what is usual."""
    plan = plan_policy(Twice(nn.BatchNorm1d), example_inputs=torch.zeros(2, 8))
    assert plan["first.weight"].std == pytest.approx(math.sqrt(2 / 8))


def test_packed_projections_of_attention_close_nothing():
    """Of a whole attention layer its output projection is the last weight."""

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.head(x + self.layer(x, x, x, need_weights=False)[0])

    plan = plan_policy(Attending(), example_inputs=torch.zeros(2, 5, 8))
    ends = {step.name for step in plan if step.facts.ends_residual and step.role == "weight"}
    assert ends == {"layer.out_proj.weight"}


class Ending(nn.Module):
    """A layer whose output is the model's, by way of a function."""

    def __init__(self, end):
        super().__init__()
        self.hidden, self.head, self.end = nn.Linear(8, 8), nn.Linear(8, 8), end

    def forward(self, x):
        return self.end(self.head(torch.relu(self.hidden(x))), x)


ENDS = {
    "head": (lambda y, x: y, math.sqrt(1 / 8)),
    "scaled head": (lambda y, x: 4 * y, math.sqrt(1 / 8) / 4),
    "branch of a stream": (lambda y, x: x + y, math.sqrt(1 / 8)),
    "before a norm": (lambda y, x: F.layer_norm(y, (8,)), math.sqrt(1 / 8)),
    "sigmoid": (lambda y, x: torch.sigmoid(y), math.sqrt(1 / 8)),
}


@pytest.mark.parametrize(("end", "std"), ENDS.values(), ids=ENDS)
def test_heads_are_as_other_layers(end, std):
    """A head is drawn by Xavier, whatever the model does with what it makes."""
    plan = plan_policy(Ending(end), example_inputs=torch.zeros(2, 8))
    assert plan["head.weight"].std == pytest.approx(std)
    in_branch = plan["hidden.weight"].facts.branch_depth > 0
    assert plan["hidden.weight"].std == pytest.approx(math.sqrt((1 if in_branch else 2) / 8))


@pytest.mark.parametrize("frequency", [1.0, 30.0])
def test_sines_start_with_half_their_power(frequency):
    """Whatever the inputs: constant ones, too, since the phases are spread over one period."""

    class Sines(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.next = nn.Linear(2, 4096), nn.Linear(4096, 1)

        def forward(self, x):
            return self.next(self.features(x))

        def features(self, x):
            return torch.sin(frequency * self.layer(x))

    net, inputs = Sines(), torch.zeros(2, 2)
    apply_policy(net, seed=0, example_inputs=inputs)
    assert net.features(inputs).square().mean().item() == pytest.approx(0.5, abs=0.02)
