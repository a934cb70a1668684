"""The doctor is right: 300 small nets, half of them with one fault, audited first and trained then.

Each net is trained from its start, and so is its healthy twin; a net is ill where it does not reach
90 % of what its twin reaches. `audit_model` sees the start, one batch and the optimizer, nothing of
the training; what it recommends is run as it is written, and trained too. `torchmortem` looks at
the training itself. The bounds of the verdicts were set on other seeds, the table is of seed 1000.

References:
    Ben Braiek and Khomh, *TheDeepChecker*, 2022, arXiv:2204.00694; Zhang et al., *AUTOTRAINER*,
    2021; Nikanjam et al., *NeuraLint*, 2021, arXiv:2105.08095: catalogues of faults.
"""

import collections
import copy
import functools
import itertools
import json
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from common import Data, digits, parser_of, report, table
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from torch_initpolicy import apply_policy, audit_model, lsuv_, presets
from torch_initpolicy.errors import InitPolicyWarning

RATE, SIREN_RATE, STEPS = 2e-3, 5e-4, 200
"""Learning rates of Adam, and how many steps it takes; a SIREN does not learn at the first."""

BATCH = 64

WATCHED = 120
"""Nets that torchmortem watches, an even sample of all kinds: it costs several trainings."""


class Residual(nn.Module):
    """A branch beside a skip."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Add the branch."""
        return x + self.branch(x)


class Gated(nn.Module):
    """One layer times the sigmoid of another."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value, self.gate = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return self.value(x) * torch.sigmoid(self.gate(x))


class Sine(nn.Module):
    """A layer of a SIREN."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(fan_in, fan_out)

    def forward(self, x: Tensor) -> Tensor:
        """Take the sine of thirty times the layer."""
        return torch.sin(30 * self.linear(x))


class Last(nn.Module):
    """A recurrent layer, of whose outputs the last one counts."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the last output."""
        return self.layer(x)[0][:, -1]


class Encoder(nn.Module):
    """Layers of attention over the rows of an image, and the mean over rows."""

    def __init__(self, depth: int, *, norm_first: bool, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, width), nn.Parameter(torch.randn(8, width) * 0.02)
        make = functools.partial(
            nn.TransformerEncoderLayer, width, 4, 2 * width, 0.0, batch_first=True
        )
        self.layers = nn.ModuleList(make(norm_first=norm_first) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        x = self.embed(x) + self.place
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


def plain(depth: int, width: int, activation: type[nn.Module]) -> nn.Sequential:
    """Build a plain net."""
    widths = [64, *[width] * depth]
    pairs = itertools.pairwise(widths)
    layers = [layer for pair in pairs for layer in (nn.Linear(*pair), activation())]
    return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 10))


def convolutions(depth: int, *, norm: bool) -> nn.Sequential:
    """Build a convolutional net, with or without normalisation."""
    layers: list[nn.Module] = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU()]
    for _ in range(depth):
        layers += [nn.Conv2d(16, 16, 3, padding=1), *[nn.BatchNorm2d(16)] * norm, nn.ReLU()]
    pool = [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16 * 16, 10)]
    return nn.Sequential(nn.Unflatten(1, (1, 8)), *layers, *pool)


def residual(depth: int, *, norm: bool, width: int = 48) -> nn.Sequential:
    """Build a residual net, with or without normalisation."""
    blocks = (
        Residual(*[nn.LayerNorm(width)] * norm, nn.Linear(width, width), nn.GELU(),
                 nn.Linear(width, width))
        for _ in range(depth)
    )  # fmt: skip
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), *blocks, nn.Linear(width, 10))


def siren(depth: int, width: int = 48) -> nn.Sequential:
    """Build a SIREN of the plane."""
    widths = [2, *[width] * depth]
    layers = (Sine(*pair) for pair in itertools.pairwise(widths))
    return nn.Sequential(*layers, nn.Linear(width, 1))


def start_siren(net: nn.Module) -> None:
    """Start as Sitzmann et al., 2020, arXiv:2006.09661, section 3.2."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            inputs = module.in_features
            bound = 1 / inputs if inputs == 2 else math.sqrt(6 / inputs) / 30
            nn.init.uniform_(module.weight, -bound, bound)


Draw = random.Random

NETS: Mapping[str, Callable[[Draw], nn.Module]] = {
    "relu": lambda draw: plain(draw.randint(2, 12), draw.choice((48, 64)), nn.ReLU),
    "tanh": lambda draw: plain(draw.randint(2, 10), draw.choice((48, 64)), nn.Tanh),
    "gelu": lambda draw: plain(draw.randint(2, 8), draw.choice((48, 64)), nn.GELU),
    "sigmoid": lambda draw: plain(draw.randint(1, 2), draw.choice((48, 64)), nn.Sigmoid),
    "convolutions": lambda draw: convolutions(draw.randint(2, 6), norm=False),
    "batch norm": lambda draw: convolutions(draw.randint(2, 6), norm=True),
    "residual": lambda draw: residual(draw.randint(2, 8), norm=True),
    "attention": lambda draw: Encoder(draw.randint(1, 3), norm_first=True),
    "gates": lambda draw: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 48), *(Gated(48) for _ in range(draw.randint(1, 3))),
        nn.Linear(48, 10),
    ),
    "lstm": lambda draw: nn.Sequential(
        Last(nn.LSTM(8, 48, draw.randint(1, 2), batch_first=True)), nn.Linear(48, 10)
    ),
    "siren": lambda draw: siren(draw.randint(3, 4)),
}  # fmt: skip


def weights(net: nn.Module) -> list[nn.Module]:
    """Return the layers of a net, in order of registration."""
    return [m for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def times(factor: float, *, head: bool = False) -> Callable[[nn.Module, Draw], None]:
    """Multiply all weights, or that of the head alone."""

    def fault(net: nn.Module, _: Draw) -> None:
        for layer in weights(net)[-1:] if head else weights(net):
            layer.weight.mul_(factor)

    return fault


def filled(value: float, *, bias: bool = False, which: slice = slice(None)) -> "Fault":
    """Fill weights or biases with one number."""

    def fault(net: nn.Module, _: Draw) -> None:
        for layer in weights(net)[which]:
            (layer.bias if bias else layer.weight).fill_(value)

    return fault


def one_layer(change: Callable[[nn.Module], object]) -> "Fault":
    """Change one hidden layer."""

    def fault(net: nn.Module, draw: Draw) -> None:
        change(draw.choice(weights(net)[:-1]))

    return fault


def first_times(factor: float) -> "Fault":
    """Multiply the first layer alone."""

    def fault(net: nn.Module, _: Draw) -> None:
        weights(net)[0].weight.mul_(factor)

    return fault


def norms_of_zero(net: nn.Module, _: Draw) -> None:
    """Start every normalisation at zero, where no skip leads around it."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.zero_()


def sharp_attention(net: nn.Module, _: Draw) -> None:
    """Make queries and keys so large that each query attends to one key."""
    for module in net.modules():
        if isinstance(module, nn.MultiheadAttention):
            module.in_proj_weight[:64].mul_(40)


def closed_gates(net: nn.Module, _: Draw) -> None:
    """Close every gate."""
    for module in net.modules():
        if isinstance(module, Gated):
            module.gate.bias.fill_(-25)


def saturated_lstm(net: nn.Module, _: Draw) -> None:
    """Start the recurrent layer so large that all its gates are open or closed."""
    for name, parameter in net.named_parameters():
        if "layer." in name:
            parameter.mul_(60)


Fault = Callable[[nn.Module, Draw], None]


def keep(net: nn.Module, _: Draw) -> None:
    """Change nothing."""


class Case(NamedTuple):
    """A kind of fault.

    Attributes:
        nets: Families that it is made in.
        fault: Changes a healthy net.
        build: Builds a net in which it is a fault of the structure; None for the family's own.
        repairable: Whether another start can repair it.
    """

    nets: Sequence[str]
    fault: Fault = keep
    build: Callable[[Draw], nn.Module] | None = None
    repairable: bool = True


PLAIN = ("relu", "gelu", "convolutions")

FAULTS: Mapping[str, Case] = {
    "weights too small": Case(("relu", "gelu", "tanh"), times(0.05)),
    "weights too large": Case(PLAIN, times(12.0)),
    "weights of zero": Case((*PLAIN, "tanh", "residual", "batch norm"), filled(0.0)),
    "constant weights": Case((*PLAIN, "tanh", "batch norm"), filled(0.05)),
    "a constant hidden layer": Case(PLAIN, one_layer(lambda m: m.weight.fill_(0.1))),
    "dead units": Case(("relu",), one_layer(lambda m: m.bias.fill_(-50.0))),
    "all units dead": Case(("relu", "convolutions"), filled(-8.0, bias=True, which=slice(-1))),
    "a head too large": Case(("relu", "attention"), times(100, head=True)),
    "tanh saturates": Case(("tanh",), times(25.0)),
    "sigmoid saturates": Case(("sigmoid",), times(60.0)),
    "a stack of sigmoids": Case(("sigmoid",), build=lambda _: plain(8, 48, nn.Sigmoid)),
    "softmax over one class": Case(("relu",), build=lambda _: nn.Sequential(
        plain(3, 48, nn.ReLU), nn.Linear(10, 1), nn.Softmax(-1), nn.Linear(1, 10),
    ), repairable=False),
    "a norm over one element": Case(("relu",), build=lambda _: nn.Sequential(
        plain(3, 48, nn.ReLU), nn.Linear(10, 1), nn.LayerNorm(1), nn.Linear(1, 10),
    ), repairable=False),
    "nan in a weight": Case(
        ("relu", "tanh", "residual"), one_layer(lambda m: m.weight[0, 0].fill_(math.nan))
        ),
    "norms of zero": Case(("batch norm",), norms_of_zero),
    "attention is an argmax": Case(("attention",), sharp_attention),
    "post-norm, twelve layers": Case(
        ("attention",), build=lambda _: Encoder(12, norm_first=False)
    ),
    "gates closed": Case(("gates",), closed_gates),
    "narrow and deep": Case(
        ("relu",), build=lambda draw: plain(draw.randint(12, 20), 2, nn.ReLU), repairable=False
    ),
    "a sine net too large": Case(("siren",), times(4.0)),
    "a sine layer that hashes": Case(("siren",), first_times(64.0)),
    "branches without a norm": Case(
        ("residual",), times(2.0), build=lambda draw: residual(draw.randint(16, 24), norm=False)
    ),
    "saturated lstm": Case(("lstm",), saturated_lstm),
}  # fmt: skip


def prior(net: nn.Module, _: Draw) -> None:
    """Give the head a prior."""
    net = weights(net)[-1]
    nn.init.normal_(net.weight, std=0.01)
    net.bias.copy_(torch.linspace(-1, 1, net.bias.numel()))


def zero_branches(net: nn.Module, _: Draw) -> None:
    """Close residual branches."""
    for module in net.modules():
        if isinstance(module, Residual):
            module.branch[-1].weight.zero_()


MEANT: Mapping[str, Case] = {
    "as it is": Case(tuple(NETS), keep),
    "a prior": Case(("relu", "residual", "attention"), prior),
    "a head of zeros": Case(("relu", "residual", "batch norm"), filled(0.0, which=slice(-1, None))),
    "closed branches": Case(("residual",), zero_branches),
}
"""Starts that look odd and are meant."""


#
# Training
#


class Task(NamedTuple):
    """What a net is to learn.

    Attributes:
        data: What it is trained on.
        held_out: What it is measured on.
        rate: Learning rate.
        loss: The loss.
        skill: Says how well outputs fit targets, 1 for perfectly and 0 for not at all.
        whole: Whether all of the data is one batch, as the nodes of a graph are.
    """

    data: Data
    held_out: Data
    rate: float
    loss: Callable[[Tensor, Tensor], Tensor]
    skill: Callable[[Tensor, Tensor], Tensor]
    whole: bool = False


@functools.cache
def digits_task() -> Task:
    """Tell ten digits apart."""
    found = digits()
    data = Data(found.inputs[:, 0], found.targets)
    held_out = Data(data.inputs[1400:], data.targets[1400:])
    return Task(
        data.first(1400), held_out, RATE, F.cross_entropy,
        lambda out, y: ((out.argmax(-1) == y).float().mean() - 0.1) / 0.9,
    )  # fmt: skip


@functools.cache
def waves_task() -> Task:
    """Fit waves on the plane."""
    points = torch.rand(2560, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    waves = torch.sin(8 * points[:, :1]) * torch.cos(5 * points[:, 1:])
    data = Data(points, waves / waves.std())
    return Task(
        data.first(2048), Data(data.inputs[2048:], data.targets[2048:]), SIREN_RATE, F.mse_loss,
        lambda out, y: 1 - (out - y).square().mean() / y.var(),
    )  # fmt: skip


def task_of(family: str) -> Task:
    """Return what nets of a family learn."""
    return waves_task() if family == "siren" else digits_task()


def batch(task: Task, seed: int, size: int = BATCH) -> Data:
    """Draw a batch."""
    if task.whole:
        return task.data
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randint(len(task.data.targets), (size,), generator=generator)
    return Data(task.data.inputs[chosen], task.data.targets[chosen])


def train(
    net: nn.Module, task: Task, steps: int, after: Callable[[float], None] | None = None
) -> float:
    """Train a net by Adam, and return its skill."""
    optimizer = torch.optim.Adam(net.parameters(), lr=task.rate)
    net.train()
    for step in range(steps):
        inputs, targets = batch(task, step)
        loss = task.loss(net(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if after is not None:
            after(loss.item())
    net.eval()
    with torch.no_grad():
        skill = task.skill(net(task.held_out.inputs), task.held_out.targets).item()
    return skill if math.isfinite(skill) else 0.0


def post_mortem(net: nn.Module, task: Task, steps: int) -> tuple[float, bool]:
    """Train a net under the eyes of torchmortem; return its skill, and whether that complains."""
    from torchmortem import Autopsy, Severity  # noqa: PLC0415 - an extra

    net = copy.deepcopy(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=task.rate)
    with (
        warnings.catch_warnings(),
        Autopsy(net, optimizer=optimizer, sampling="fast") as autopsy,
    ):
        warnings.simplefilter("ignore")
        skill = train(net, task, steps, after=lambda loss: autopsy.step(loss=loss))
    found = autopsy.get_report().findings
    return skill, any(finding.severity == Severity.CRITICAL for finding in found)


def unwatched(net: nn.Module, task: Task, steps: int) -> tuple[float, None]:
    """Train a net; return its skill, and that nobody was asked whether something is critical."""
    return train(net, task, steps), None


#
# The benchmark
#


class Result(NamedTuple):
    """What became of one net.

    Attributes:
        kind: Its fault, or what is meant about it.
        family: What kind of net it is.
        ill: Whether it fell behind its twin.
        found: Whether the audit says that something is wrong.
        repaired: Whether the recommended call lets it reach its twin; None where it was not ill, or
            no start can repair it.
        seconds: What the audit took.
        mortem: Whether torchmortem says that something is critical; None where it was not asked.
        skills: Skills of the twin, of the net, and of the repaired net.
        headline: What the audit says.
    """

    kind: str
    family: str
    ill: bool
    found: bool
    repaired: bool | None
    seconds: float
    mortem: bool | None
    skills: tuple[float, float, float | None]
    headline: str


def started(net: nn.Module, family: str, seed: int, *, policy: bool) -> nn.Module:
    """Start a net well: as published, by the policy, or as torch does."""
    if family == "siren":
        start_siren(net)
    elif policy:
        apply_policy(net, seed=seed, example_inputs=batch(task_of(family), seed).inputs)
    return net


def built(kind: str, case: Case, seed: int) -> tuple[str, nn.Module, nn.Module]:
    """Build a net of a kind, and its healthy twin; say of which family."""
    draw = random.Random(seed)
    family = draw.choice(case.nets)
    torch.manual_seed(seed)
    healthy = NETS[family](draw)
    net = copy.deepcopy(healthy) if case.build is None else case.build(draw)
    twin = started(healthy, family, seed, policy=True)
    net = started(net, family, seed + 1, policy=kind in FAULTS or draw.random() < 0.5)
    with torch.no_grad():
        case.fault(net, draw)
    return family, net, twin


def examine(kind: str, case: Case, seed: int, steps: int, *, watched: bool) -> Result:
    """Build a net, audit it, train it, watched or not, and try what is recommended."""
    family, net, twin = built(kind, case, seed)
    task = task_of(family)
    inputs, targets = batch(task, seed)
    loss = functools.partial(loss_with, task, targets)
    begun = time.perf_counter()
    audit = audit_model(net, inputs, loss_fn=loss, optimizer="adam", lr=task.rate)
    seconds = time.perf_counter() - begun
    mended = None
    if audit.recommended is not None:
        mended = copy.deepcopy(net)
        names = {
            "apply_policy": functools.partial(apply_policy, seed=seed),
            "lsuv_": lsuv_,
            "presets": presets,
        }
        eval(audit.recommended.call, names, {"model": mended, "batch": inputs})
    best = train(twin, task, steps)
    reached, complains = (
        post_mortem(net, task, steps) if watched else (train(net, task, steps), None)
    )
    again = None if mended is None else train(mended, task, steps)
    ill = reached < 0.9 * best
    can = ill and case.repairable and best > 0.5
    well = again is not None and again >= 0.9 * best
    return Result(
        kind, family, ill, not audit.ok, well if can else None, seconds, complains,
        (best, reached, again), audit.headline,
    )  # fmt: skip


def examined(count: int, seed: int, steps: int, resume: Path | None) -> Iterator[Result]:
    """Examine all nets; those in the file that is to be resumed are read, the others added."""
    lines = resume.read_text(encoding="utf-8").splitlines() if resume and resume.exists() else []
    yield from (Result(**json.loads(line)) for line in lines)
    for at, case in itertools.islice(enumerate(cases(count, seed)), len(lines), None):
        result = examine(*case, steps, watched=at < WATCHED)
        if resume is not None:
            with resume.open("a", encoding="utf-8") as file:
                file.write(json.dumps(result._asdict()) + "\n")
        yield result


def loss_with(task: Task, targets: Tensor, outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Return the loss of outputs, in their dtype."""
    dtype = (outputs if isinstance(outputs, Tensor) else outputs[0]).dtype
    return task.loss(outputs, targets.to(dtype) if targets.is_floating_point() else targets)


def cases(count: int, seed: int) -> Iterator[tuple[str, Case, int]]:
    """Yield as many nets with a fault as without, kind by kind."""
    for at in range(count // 2):
        for kinds in (FAULTS, MEANT):
            kind = list(kinds)[at % len(kinds)] if kinds is FAULTS or at % 3 == 0 else "as it is"
            yield kind, kinds[kind], seed + at


def shares(results: Sequence[Result]) -> dict[str, float]:
    """Return recall, false alarms, share repaired and the median time."""
    ill, well = [r for r in results if r.ill], [r for r in results if not r.ill]
    repairable = [r for r in results if r.repaired is not None]
    watched = [r for r in results if r.mortem is not None]
    return {
        "nets": len(results),
        "ill": len(ill),
        "recall": _share(r.found for r in ill),
        "false alarms": _share(r.found for r in well),
        "repaired": _share(bool(r.repaired) for r in repairable),
        "seconds per net": statistics.median(r.seconds for r in results),
        "nets that torchmortem watched": len(watched),
        "recall of torchmortem": _share(bool(r.mortem) for r in watched if r.ill),
        "false alarms of torchmortem": _share(bool(r.mortem) for r in watched if not r.ill),
    }


def _share(found: Iterator[bool]) -> float:
    known = list(found)
    return sum(known) / len(known) if known else math.nan


def by_kind(results: Sequence[Result]) -> Iterator[tuple[object, ...]]:
    """Yield a row for each kind: how many, ill, found, repaired, and found by torchmortem."""
    kinds = collections.defaultdict(list)
    for result in results:
        kinds[result.kind].append(result)
    for kind, own in kinds.items():
        can = [r.repaired for r in own if r.repaired is not None]
        seen = [r.mortem for r in own if r.mortem is not None]
        yield (
            kind, len(own), sum(r.ill for r in own), sum(r.found for r in own),
            f"{sum(map(bool, can))} of {len(can)}", f"{sum(map(bool, seen))} of {len(seen)}",
        )  # fmt: skip


def main(
    *,
    smoke: bool = False,
    out: Path | None = None,
    count: int = 300,
    seed: int = 1000,
    resume: Path | None = None,
) -> dict[str, float]:
    """Examine all nets; print what the doctor found, in all and by kind."""
    warnings.simplefilter("ignore", InitPolicyWarning)
    steps, count = (2, 8) if smoke else (STEPS, count)
    results = list(examined(count, seed, steps, resume))
    found = shares(results)
    head = ("kind", "nets", "ill", "found", "repaired", "found by torchmortem")
    summary = table(("figure", "value"), found.items())
    report("doctor", f"{summary}\n\n{table(head, by_kind(results))}", out)
    for result in results:
        if result.found is not result.ill or result.repaired is False:
            print(result)
    return found


def _options() -> dict[str, object]:
    parser = parser_of(__doc__)
    parser.add_argument("--count", type=int, default=300, help="how many nets")
    parser.add_argument("--seed", type=int, default=1000, help="that of the first net")
    parser.add_argument("--resume", type=Path, help="file of results, to go on from and to add to")
    return vars(parser.parse_args())


if __name__ == "__main__":
    main(**_options())
