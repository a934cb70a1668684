"""Known constants on the way of a signal: what counts, and where the code may write it."""

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_initpolicy import apply_policy, plan_policy
from torch_initpolicy.trace.facts import ForwardMultiplier

WIDTH = 256


class Written(nn.Module):
    """Two layers, the constant `c` of the first written in one of many ways."""

    def __init__(self, write: Callable[..., Tensor], c: float, function: Callable[..., Tensor]):
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 4)
        self.register_buffer("constant", torch.tensor(c))
        self.write, self.c, self.function = write, c, function

    def read(self, x: Tensor) -> Tensor:
        """Return what the function reads."""
        return self.write(x, self.first, self.c, self.constant)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.read(x)))


WRITINGS: dict[str, Callable[..., Tensor]] = {
    "output": lambda x, layer, c, t: c * layer(x),
    "output, by method": lambda x, layer, c, t: layer(x).mul(c),
    "output, in place": lambda x, layer, c, t: layer(x).mul_(c),
    "output, by function": lambda x, layer, c, t: torch.mul(layer(x), other=c),
    "quotient": lambda x, layer, c, t: layer(x) / (1 / c),
    "quotient by a root": lambda x, layer, c, t: torch.div(layer(x), (1 / c**2) ** 0.5),
    "buffer": lambda x, layer, c, t: layer(x) * t,
    "tensor": lambda x, layer, c, t: layer(x) * torch.tensor(c),
    "computed tensor": lambda x, layer, c, t: layer(x) / torch.sqrt(torch.tensor(1 / c**2)),
    "filled": lambda x, layer, c, t: layer(x) * torch.full((WIDTH,), c),
    "twice": lambda x, layer, c, t: math.sqrt(c) * layer(x) * math.sqrt(c),
    "both sides": lambda x, layer, c, t: math.sqrt(c) * layer(math.sqrt(c) * x),
    "input": lambda x, layer, c, t: layer(c * x),
    "input, in another shape": lambda x, layer, c, t: layer((c * x).view(2, -1, WIDTH)).flatten(
        0, 1
    ),
    "sum": lambda x, layer, c, t: torch.zeros_like(x).add(layer(x), alpha=c),
    "negative": lambda x, layer, c, t: -c * layer(x),
    "shifted": lambda x, layer, c, t: c * (layer(x) + 0.0),
    "reshaped": lambda x, layer, c, t: (c * layer(x).view(-1, 2, WIDTH // 2)).flatten(1),
    "baddbmm": lambda x, layer, c, t: torch.baddbmm(
        torch.zeros(1, 1, WIDTH), x[None], layer.weight.mT[None], alpha=c
    )[0],
}
"""Ways to write a constant of the first layer, which all mean the same."""


def size(model: Written, x: Tensor) -> float:
    """Return the standard deviation of what the function reads."""
    return model.read(x).std().item()


@pytest.mark.parametrize("function", [torch.relu, torch.tanh, torch.Tensor.clone])
@pytest.mark.parametrize("writing", WRITINGS)
def test_what_a_function_reads_does_not_depend_on_where_a_constant_stands(writing, function):
    """Whatever the code multiplies on the way, the function reads the textbook's variance."""
    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0))
    plain = Written(lambda x, layer, c, t: layer(x), 1.0, function)
    apply_policy(plain, seed=0, example_inputs=x)
    for c in (30.0, 0.02):
        model = Written(WRITINGS[writing], c, function)
        apply_policy(model, seed=0, example_inputs=x)

        assert size(model, x) == pytest.approx(size(plain, x), rel=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_constants_scattered_over_a_deep_net_cancel(seed):
    """Constants before and behind the layers and functions of a net leave its output's size."""
    draw = random.Random(seed)

    class Scattered(nn.Module):
        def __init__(self, constants: list[float]) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))
            self.constants = constants

        def forward(self, x: Tensor) -> Tensor:
            for number, layer in enumerate(self.layers):
                before, behind = self.constants[2 * number : 2 * number + 2]
                x = (
                    (layer(x * before) * behind).relu()
                    if number % 2
                    else layer(x * before) * behind
                )
            return x

    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(0))
    found = []
    for constants in ([1.0] * 8, [10 ** draw.uniform(-2, 2) for _ in range(8)]):
        model = Scattered(constants)
        apply_policy(model, seed=0, example_inputs=x)
        found.append(model(x).std().item())

    assert found[1] == pytest.approx(found[0], rel=0.02)


class Kept(nn.Module):
    """Constants that say something else than how large a weight's output is."""

    def __init__(self, use: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(16, 16) for _ in range(3))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.use(x, self.a, self.b).tanh())


@pytest.mark.parametrize(
    "use",
    [
        lambda x, a, b: (a(x) + b(x)) / 2,
        lambda x, a, b: (a(x) + b(x)) * 0.7071,
        lambda x, a, b: 0.3 * a(x) + 0.7 * b(x),
        lambda x, a, b: a(x) / 3**0.5 + b(x) / 3**0.5 + a(b(x)) / 3**0.5,
        lambda x, a, b: 0.1 * a(x) + 0.1 * b(x) + b(x.roll(1)),
        lambda x, a, b: a(x) + 0.1 * b(x),
        lambda x, a, b: (h := a(x)) + 0.2 * b(h.relu()),
        lambda x, a, b: a(b(x / 255)),
        lambda x, a, b: a(b(2 * x - 1)),
        lambda x, a, b: b(30 * (a(x) / 30).tanh()),
        lambda x, a, b: torch.stack([a(x), b(x)]).sum(0) / 2,
    ],
)
def test_what_is_no_constant_of_a_weight_is_left_alone(use):
    """Means, weighed sums, residual scales, units of the input and soft caps are meant."""
    plan = plan_policy(Kept(use), example_inputs=torch.randn(4, 16))

    assert {ForwardMultiplier()} == {
        step.facts.multiplier for step in plan.steps if step.role == "weight"
    }


def test_a_multiplied_embedding_leaves_the_branches_alone():
    """`emb(x) * 4` begins a residual stream: its own affair, not that of the branches."""

    class Stream(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.position = nn.Embedding(10, 16), nn.Embedding(10, 16)
            layer = nn.TransformerEncoderLayer(16, 2, 32, norm_first=True, batch_first=True)
            self.layers = nn.ModuleList([layer, nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16))])
            self.head = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.emb(x) * 4 + self.position(x)
            x = self.layers[0](x)
            return self.head(x + self.layers[1](x))

    plan = plan_policy(Stream(), example_inputs=torch.zeros(2, 5, dtype=torch.long))
    found = {step.name: step.facts.multiplier.total for step in plan.steps}

    assert {name: factor for name, factor in found.items() if factor != 1} == {"emb.weight": 4.0}


def test_the_stream_takes_out_its_own_constant():
    """What begins a residual stream takes out what stands on it; the branch takes out nothing."""
    plan = plan_policy(
        Kept(lambda x, a, b: (h := 3 * a(x)) + 0.2 * b(h)), example_inputs=torch.randn(4, 16)
    )

    assert plan["a.weight"].facts.multiplier == ForwardMultiplier(output=3.0)
    assert plan["b.weight"].facts.multiplier == ForwardMultiplier()
    assert plan["c.weight"].facts.multiplier == ForwardMultiplier()


def test_a_common_factor_of_a_sum_counts():
    """`30 a + 30 b` is `30 (a + b)`: each weight takes it out."""
    plans = [
        plan_policy(Kept(use), example_inputs=torch.randn(4, 16))
        for use in (lambda x, a, b: 30 * a(x) + 30 * b(x), lambda x, a, b: 30 * (a(x) + b(x)))
    ]

    for plan in plans:
        assert plan["a.weight"].facts.multiplier == ForwardMultiplier(output=30.0)
        assert plan["b.weight"].reason.endswith("x 30 taken out")


def test_a_constant_behind_a_normalisation_by_hand_counts():
    """`0.1 * x / rms(x)` is a tenth of a normalised signal, and whoever reads it takes that out."""

    def by_hand(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
        x = a(x)
        return b(0.1 * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)))

    plan = plan_policy(Kept(by_hand), example_inputs=torch.randn(4, 16))

    assert plan["a.weight"].facts.multiplier == ForwardMultiplier()
    assert plan["b.weight"].facts.multiplier == ForwardMultiplier(input=pytest.approx(0.1))


def test_rules_of_a_user_are_obeyed():
    """Variance scaling is counted, since its fans are; a constant standard deviation never."""
    from torch_initpolicy import InitPolicy, Rule, initializers, match

    model = Kept(lambda x, a, b: 30 * a(x))
    policy = InitPolicy([Rule(match.name("a.weight"), initializers.Normal(0.02))]).otherwise(
        "auto" and initializers.Zeros()
    )
    plan = plan_policy(model, policy, example_inputs=torch.randn(4, 16))
    counted = InitPolicy([Rule(match.name("a.weight"), initializers.he_normal())]).otherwise(
        initializers.Zeros()
    )

    assert plan["a.weight"].std == 0.02
    assert plan_policy(model, counted, example_inputs=torch.randn(4, 16))[
        "a.weight"
    ].std == pytest.approx(math.sqrt(2 / 16) / 30)


class Siren(nn.Module):
    """A network of sines on coordinates, as Sitzmann et al. write it."""

    def __init__(self, width: int = 64, w0: float = 30.0) -> None:
        super().__init__()
        sizes = (2, width, width, width)
        self.layers = nn.ModuleList(map(nn.Linear, sizes[:-1], sizes[1:]))
        self.head, self.w0 = nn.Linear(width, 1), w0

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(self.w0 * layer(x))
        return self.head(x)


def test_a_siren_gets_its_published_start():
    """Hidden weights are uniform within `sqrt(6 / n) / w0`, the first layer's within `1 / n`."""
    plan = plan_policy(Siren(), example_inputs=torch.rand(16, 2))

    assert plan["layers.0.weight"].std == pytest.approx(1 / 2 / math.sqrt(3))
    assert plan["layers.1.weight"].std == pytest.approx(math.sqrt(6 / 64) / 30 / math.sqrt(3))
    assert plan["layers.2.weight"].initializer.distribution == "uniform"


def test_a_siren_learns_an_image():
    """A few steps fit what torch's own start cannot: fine structure of a picture."""
    axis = torch.linspace(-1, 1, 32)
    points = torch.cartesian_prod(axis, axis)
    image = (torch.sin(9 * points[:, :1]) * torch.cos(7 * points[:, 1:] + 3 * points[:, :1])).sign()
    losses = []
    for policy in ("auto", "torch_default"):
        model = Siren()
        apply_policy(model, policy, seed=0, example_inputs=points)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        for _ in range(120):
            loss = (model(points) - image).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())

    assert losses[0] < 0.1


class Graph(nn.Module):
    """A graph convolution, whose neighbours are summed up in one of several ways."""

    def __init__(self, aggregate: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.aggregate = nn.Linear(8, 8), aggregate

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return torch.relu(self.aggregate(weights, self.layer(x)))


AGGREGATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": torch.matmul,
    "operator": lambda a, h: a @ h,
    "transposed": lambda a, h: (h.mT @ a.mT).mT,
    "einsum": lambda a, h: torch.einsum("ij,jf->if", a, h),
    "normalised": lambda a, h: (a / a.sum(-1, keepdim=True)) @ h,
    "sparse": lambda a, h: torch.sparse.mm(a.to_sparse(), h),
}


@pytest.mark.parametrize("name", AGGREGATIONS)
@pytest.mark.parametrize("nodes", [4, 100])
def test_how_an_input_weighs_neighbours_is_no_constant(name, nodes):
    """An adjacency matrix averages: how many nodes there are says nothing of a weight."""
    model, weights = Graph(AGGREGATIONS[name]), torch.eye(nodes)
    plan = plan_policy(model, example_inputs=(torch.randn(nodes, 8), weights))

    assert plan["layer.weight"].facts.multiplier == ForwardMultiplier()
