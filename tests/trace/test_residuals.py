"""Residual branches of small nets; what the blocks are is tested with the flow."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, softplus

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read


class Net(nn.Module):
    """Layers of four units, which a function puts together."""

    def __init__(self, together) -> None:
        super().__init__()
        self.together = together
        self.stem, self.side, self.head = (nn.Linear(4, 4) for _ in range(3))
        self.a, self.b, self.c, self.d = (
            nn.ModuleList(nn.Linear(4, 4) for _ in range(3)) for _ in range(4)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(4) for _ in range(3))
        self.scale = nn.Parameter(torch.ones(4))

    @property
    def blocks(self):
        """Return the layers of each block."""
        return zip(self.a, self.b, self.c, self.d, strict=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.together(self, x, y)


def facts(together, *shapes):
    """Return what is known of the weights of a net."""
    model = Net(together)
    inputs = tuple(torch.zeros(shape) for shape in shapes or [(3, 4), (3, 4)])
    found = read(model, sites(model), inputs).facts
    return {name: fact for name, fact in found.items() if fact.used and name.endswith("weight")}


#
# Nets with branches: how many, and the layers that end them
#


def plain(net, x, y):
    """A weight and a function in each branch."""
    x = net.stem(x)
    for a, b, _, _ in net.blocks:
        x = x + b(gelu(a(x)))
    return net.head(x)


def repeated(net, x, y):
    """The stem is added behind every layer."""
    first = x = net.stem(x)
    for a, b, _, _ in net.blocks:
        x = first + b(gelu(a(x)))
    return net.head(x)


def parallel(join):
    """Return a net with two branches side by side, as GPT-J's, and the way to add them up."""

    def together(net, x, y):
        x = net.stem(x)
        for a, b, c, d in net.blocks:
            x = join(x, b(gelu(a(x))), d(gelu(c(x))))
        return net.head(x)

    return together


def experts(net, x, y):
    """A mixture is one branch, however many experts there are."""
    x = net.stem(x)
    gates = net.side(x).softmax(-1).unbind(-1)
    mixed = zip(gates, net.a, net.b, strict=False)
    return net.head(x + sum(gate[:, None] * b(gelu(a(x))) for gate, a, b in mixed))


def adapted(net, x, y):
    """A low-rank update beside the last weight of a branch."""
    x = net.stem(x)
    for a, b, c, d in net.blocks:
        h = gelu(a(x))
        x = x + (b(h) + d(c(h)))
    return net.head(x)


def adapted_later(net, x, y):
    """The same, added after the branch."""
    x = net.stem(x)
    for a, b, c, d in net.blocks:
        h = gelu(a(x))
        x = x + b(h) + d(c(h))
    return net.head(x)


def wavenet(net, x, y):
    """What is read of each residual block is summed up; these sums are no stream."""
    x, total = net.stem(x), 0
    for a, b, c, d in net.blocks:
        h = torch.tanh(a(x)) * torch.sigmoid(d(x))
        x, total = x + b(h), total + c(h)
    return net.head(torch.relu(total))


def timed(net, x, y):
    """A time is added inside each residual block."""
    y, x = torch.relu(net.side(y)), net.stem(x)
    for a, b, c, _ in net.blocks:
        x = x + b(torch.relu(a(x) + c(y)))
    return net.head(x)


def projected(net, x, y):
    """A projection for a skip in every block, and a residual block inside."""
    x = net.stem(x)
    for a, b, c, d in net.blocks:
        h = a(torch.relu(x))
        h = h + d(torch.relu(h))
        x = c(x) + b(torch.relu(h))
    return net.head(torch.relu(x))


def downsampled(net, x, y):
    """ResNet: one block with a projection, and blocks without behind it."""
    x = net.stem(x)
    x = net.side(x) + net.b[0](torch.relu(net.a[0](x)))
    for a, b in [(net.c[0], net.d[0]), (net.c[1], net.d[1])]:
        x = torch.relu(x)
        x = x + b(torch.relu(a(x)))
    return net.head(x)


def projected_last(net, x, y):
    """A block without a projection, and then one with."""
    x = net.stem(x)
    x = torch.relu(x + net.b[0](torch.relu(net.a[0](x))))
    return net.head(torch.relu(net.side(x) + net.b[1](torch.relu(net.a[1](x)))))


def attention(net, x, y):
    """A mask, and something that is read of the stream, are added to scores."""
    x = net.stem(x)
    for a, b, c, d in net.blocks:
        scores = a(x) @ c(x).mT + y
        scores = scores + d(x).sum(-1, keepdim=True).expand(scores.shape)
        x = x + b(scores.softmax(-1) @ x)
    return net.head(x)


def without_softmax(net, x, y):
    """One mask for all samples, and weights of another kind."""
    x = net.stem(x)
    for a, b, c, d in net.blocks:
        x = x + b(torch.relu(a(x) @ c(x).mT + y) @ d(x))
    return net.head(x)


def highway(mix):
    """Return a net of gates between a layer and what it reads."""

    def together(net, x, y):
        x = net.stem(x)
        for a, b, _, _ in net.blocks:
            x = mix(x, torch.relu(a(x)), torch.sigmoid(b(x)))
        return net.head(x)

    return together


def scan(net, x, y):
    """Mamba: a scan is no branch, nor is what it adds of its input."""
    x = net.stem(x)
    for a, b, c, _ in net.blocks:
        u, state, seen = gelu(a(x)), torch.zeros(3, 4), []
        step = softplus(c(u))
        for t in range(5):
            state = torch.exp(-step[:, t]) * state + step[:, t] * u[:, t]
            seen.append(state + net.scale * u[:, t])
        x = x + b(torch.stack(seen, 1))
    return net.head(x)


def two_streams(net, x, y):
    """Each of two streams reads the other, and they are added up in the end."""
    x, y = net.stem(x), net.side(x)
    for a, b, c, d in net.blocks:
        x = x + b(gelu(a(y)))
        y = y + d(gelu(c(x)))
    return net.head(x + y)


def nested(net, x, y):
    """A branch that ends in a scaled residual block of a norm of the stream."""
    x = net.stem(x)
    for (a, b, _, _), norm in zip(net.blocks, net.norms, strict=True):
        h = norm(x)
        x = x + net.scale * (h + b(gelu(a(h))))
    return net.head(x)


def joined(net, x, y):
    """The branch is joined to a part of the stream."""
    x = net.stem(x)
    for a, b, _, _ in net.blocks:
        x = x + torch.cat([b(gelu(a(x)))[:1], x[1:]])
    return net.head(x)


def two_cells_back(net, x, y):
    """NASNet: the last sum reads two others, and a stream leads past the nearer one."""
    x = net.stem(x)
    near = torch.relu(x + net.b[0](gelu(net.a[0](x))))
    far = torch.relu(x + net.b[1](gelu(net.a[1](near))))
    return net.head(torch.relu(net.c[0](near) + net.d[0](far)))


def conditioned(net, x, y):
    """What a stream has made of one input is added to another, twice."""
    y = net.side(y)
    y = torch.relu(y + net.b[0](gelu(net.a[0](y))))
    x = torch.relu(net.stem(x) + net.c[0](y))
    return net.head(torch.relu(net.a[1](x) + net.c[1](y)))


def softmax_of_all(net, x, y):
    """The model's own softmax is taken of a stream."""
    x = net.stem(x)
    return (x + net.b[0](gelu(net.a[0](x)))).softmax(-1)


SEQUENCES = (3, 5, 4), (3, 5, 5)


@pytest.mark.parametrize(
    ("together", "count", "ending", "shapes"),
    [
        (plain, 3, "b", ()),
        (repeated, 3, "b", ()),
        (parallel(lambda x, a, m: a + m + x), 6, "bd", ()),
        (parallel(lambda x, a, m: x + a + m), 6, "bd", ()),
        (parallel(lambda x, a, m: x + (a + m) * 0.5), 6, "bd", ()),
        (parallel(lambda x, a, m: a + (x + m)), 6, "bd", ()),
        (experts, 1, "b", ()),
        (adapted, 3, "bd", ()),
        (adapted_later, 3, "bd", ()),
        (wavenet, 3, "b", ()),
        (timed, 3, "b", ()),
        (projected, 6, "bd", ()),
        (attention, 3, "b", SEQUENCES),
        (without_softmax, 3, "b", (SEQUENCES[0], (1, 1, 5))),
        (highway(lambda x, h, gate: gate * h + (1 - gate) * x), 3, "", ()),
        (highway(lambda x, h, gate: x + gate * (h - x)), 3, "", ()),
        (highway(torch.lerp), 3, "", ()),
        (scan, 3, "b", (SEQUENCES[0], (1,))),
        (two_streams, 6, "bd", ()),
        (nested, 3, "b", ()),
        (joined, 3, "b", ()),
    ],
)
def test_branches(together, count, ending, shapes):
    """The branches of three blocks are counted, and end in the last weight of each."""
    known = facts(together, *shapes)

    assert {fact.residual_branches for fact in known.values()} == {count}
    ends = {name for name, fact in known.items() if fact.ends_residual and fact.role == "weight"}
    assert ends == {f"{letter}.{number}.weight" for letter in ending for number in range(3)}


@pytest.mark.parametrize(
    ("together", "ending"),
    [
        (downsampled, ["b.0", "d.0", "d.1"]),
        (projected_last, ["b.0", "b.1"]),
        (two_cells_back, ["b.0", "b.1"]),
        (conditioned, ["b.0"]),
        (softmax_of_all, ["b.0"]),
    ],
)
def test_single_branches(together, ending):
    """Projections count beside other branches, and the model's own softmax is no attention."""
    known = facts(together)

    assert known["stem.weight"].residual_branches == len(ending)
    ends = [name for name, fact in known.items() if fact.closes_residual]
    assert sorted(ends) == [f"{name}.weight" for name in ending]


#
# Nets without any
#


def times_added(net, x, y):
    """Plain layers to each of which a time is added."""
    y = torch.relu(net.side(y))
    for a, b, c, _ in net.blocks:
        x = torch.relu(b(torch.relu(a(x) + c(y))))
    return net.head(x)


def low_rank(net, x, y):
    """LoRA: each weight with an update."""
    for a, b, c, _ in net.blocks:
        x = torch.relu(a(x) + c(b(x)))
    return net.head(x)


def shared_expert(net, x, y):
    """A deep and a shallow path."""
    x = torch.relu(net.stem(x))
    return net.head(net.c[0](x) + net.b[0](torch.relu(net.a[0](x))))


def inception(net, x, y):
    """Paths of one, two and three weights."""
    x = torch.relu(net.stem(x))
    deep = net.a[2](torch.relu(net.a[1](torch.relu(net.a[0](x)))))
    return net.head(torch.relu(net.c[0](x) + net.b[1](torch.relu(net.b[0](x))) + deep))


def pyramid(net, x, y):
    """FPN: lateral and top-down paths are added up."""
    seen = [x := torch.relu(a(x)) for a in net.a]
    total = net.b[2](seen[2])
    for number in (1, 0):
        total = net.b[number](seen[number]) + total
    return net.head(torch.relu(net.d[0](total)))


def recurrent(net, x, y):
    """A recurrent loop, written out."""
    state = torch.zeros(3, 4)
    for t in range(5):
        state = torch.tanh(net.a[0](x[:, t]) + net.b[0](state))
    return net.head(state)


def modulated(net, x, y):
    """FiLM: scale and shift of one origin."""
    y = torch.relu(net.side(y))
    return net.head(torch.relu(net.stem(x) * (1 + net.a[0](y)) + net.b[0](y)))


@pytest.mark.parametrize(
    ("together", "shapes"),
    [
        (times_added, ()),
        (low_rank, ()),
        (shared_expert, ()),
        (inception, ()),
        (pyramid, ()),
        (recurrent, ((3, 5, 4), (1,))),
        (modulated, ()),
    ],
)
def test_sums_that_are_none(together, shapes):
    """Sums of paths of which no stream is read end no branches."""
    for fact in facts(together, *shapes).values():
        assert (fact.residual_branches, fact.branch_depth, fact.ends_residual) == (0, 0, False)


#
# What else is known of branches
#


def test_depths():
    """Weights in a row are counted behind the fork, whatever else is read on the way."""
    known = facts(timed)
    assert {known[name].branch_depth for name in ("a.0.weight", "b.0.weight", "b.2.weight")} == {2}
    assert known["stem.weight"].branch_depth == known["head.weight"].branch_depth == 0

    def crossed(net, x, y):
        x = net.stem(x)
        memory = net.d[0](gelu(net.c[0](gelu(net.side(y)))))
        return net.head(x + net.b[0]((net.a[0](x) @ memory.mT).softmax(-1) @ memory))

    assert facts(crossed)["b.0.weight"].branch_depth == 2

    assert facts(projected)["d.1.weight"].branch_depth == 1
    assert facts(projected)["b.1.weight"].branch_depth == 3


def test_batch_normalised():
    """A branch with a batch normalisation is known for it."""

    def together(net, x, y):
        x = net.stem(x)
        x = x + net.b[0](net.norms[0](net.a[0](x)))
        return net.head(x + net.b[1](gelu(net.a[1](x))))

    known = facts(together)

    assert known["a.0.weight"].in_batch_norm
    assert not known["a.1.weight"].in_batch_norm


def test_scale_of_a_nested_branch():
    """A scale behind a residual block that is a branch itself closes the branch."""
    model = Net(nested)
    found = read(model, sites(model), (torch.zeros(3, 4), torch.zeros(3, 4))).facts

    assert found["scale"].closes_residual
    assert not found["b.0.weight"].closes_residual or found["b.0.weight"].ends_residual
