"""Nets of kinds that no bound of the doctor was set on: what it misses, and what it promises.

As in `doctor.py` a net is ill where it does not reach 90 % of what its twin reaches, and what the
audit recommends is run as it is written and trained. Graphs, mixture densities, sines of other
frequencies, deep narrow nets, recurrent layers that are to recall, and starts copied by mistake.

References:
    Oono and Suzuki, *Graph Neural Networks Exponentially Lose Expressive Power*, 2020,
    arXiv:1905.10947; Bishop, *Mixture Density Networks*, 1994; Tallec and Ollivier, *Can Recurrent
    Neural Networks Warp Time?*, 2018, arXiv:1804.11188.
"""

import copy
import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from common import Data, options, report, table
from doctor import (
    Residual,
    Task,
    batch,
    convolutions,
    digits_task,
    loss_with,
    plain,
    residual,
    start_siren,
    train,
    waves_task,
)
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it

from torch_initpolicy import apply_policy, audit_model, lsuv_, presets
from torch_initpolicy.errors import InitPolicyWarning

STEPS, NODES, SEEN, LENGTH = 200, 240, 120, 24

Change = Callable[[nn.Module], object]


#
# Kinds of nets
#


class Graph(nn.Module):
    """Layers of `relu(A x W)` on a graph of four groups (Kipf and Welling, 2017, eq. 2)."""

    def __init__(self, depth: int, width: int = 32, *, skip: bool = False) -> None:
        super().__init__()
        widths = [32, *[width] * depth]
        self.layers = nn.ModuleList(map(nn.Linear, widths[:-1], widths[1:]))
        self.head, self.skip = nn.Linear(width, 4), skip
        self.register_buffer("averages", averages())

    def forward(self, x: Tensor) -> Tensor:
        """Classify each node."""
        for at, layer in enumerate(self.layers):
            new = torch.relu(self.averages.to(x) @ layer(x))
            x = x + new if self.skip and at else new
        return self.head(x)


class Mixture(nn.Module):
    """A mixture of five normals: logits, means, and logarithms of standard deviations."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()
        )
        self.shares, self.means = nn.Linear(width, 5), nn.Linear(width, 5)
        self.spread = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mixture."""
        x = self.body(x)
        return self.shares(x), self.means(x), self.spread(x).exp()


class Waves(nn.Module):
    """A sine net of the plane that writes its frequencies."""

    def __init__(self, first: float, hidden: float, depth: int = 3, width: int = 48) -> None:
        super().__init__()
        widths = [2, *[width] * depth]
        self.layers = nn.ModuleList(map(nn.Linear, widths[:-1], widths[1:]))
        self.head, self.first, self.hidden = nn.Linear(width, 1), first, hidden

    def forward(self, x: Tensor) -> Tensor:
        """Fit."""
        for at, layer in enumerate(self.layers):
            x = torch.sin((self.hidden if at else self.first) * layer(x))
        return self.head(x)


class Recall(nn.Module):
    """A recurrent layer that is to say, in the end, what it read first."""

    def __init__(self, kind: type[nn.RNNBase], width: int = 48) -> None:
        super().__init__()
        self.layer, self.head = kind(9, width, batch_first=True), nn.Linear(width, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Classify by the last output."""
        return self.head(self.layer(x)[0][:, -1])


class Highway(nn.Module):
    """Carries as much as its gate is closed (Srivastava et al., 2015)."""

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.change, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Mix."""
        share = torch.sigmoid(self.gate(x))
        return share * torch.relu(self.change(x)) + (1 - share) * x


class Experts(nn.Module):
    """Four layers, mixed by a softmax."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.router = nn.Linear(width, 4)
        self.experts = nn.ModuleList(nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Mix."""
        made = torch.stack([torch.relu(expert(x)) for expert in self.experts], -1)
        return (made * self.router(x).softmax(-1)[:, None]).sum(-1)


class Rows(nn.Module):
    """Sums what a layer says of each row of an image (deep sets), or of all their copies."""

    def __init__(self, copies: int) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU())
        self.place = nn.Parameter(torch.randn(8, 8))
        self.head = nn.Sequential(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10))
        self.copies = copies

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        return self.head(self.copies * self.each(x + self.place).sum(1))


def flat(*layers: nn.Module) -> nn.Sequential:
    """Put layers of 48 units between an image and ten classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 48), *layers, nn.Linear(48, 10))


#
# Tasks
#


@functools.cache
def averages() -> Tensor:
    """Return the normalised adjacency of a random graph of four groups."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(NODES) % 4
    chance = torch.where(groups[:, None] == groups, 0.08, 0.008)
    edges = (torch.rand(NODES, NODES, generator=generator) < chance).triu(1)
    joined = (edges | edges.T | torch.eye(NODES, dtype=torch.bool)).float()
    degrees = joined.sum(1).rsqrt()
    return degrees[:, None] * joined * degrees


@functools.cache
def graph_task() -> Task:
    """Tell the groups of nodes, half of which are known; features are noisy."""
    generator = torch.Generator().manual_seed(1)
    groups = torch.arange(NODES) % 4
    centres = torch.randn(4, 32, generator=generator)
    data = Data(0.3 * centres[groups] + torch.randn(NODES, 32, generator=generator), groups)
    return Task(
        data, data, 5e-3, lambda out, y: F.cross_entropy(out[:SEEN], y[:SEEN]),
        lambda out, y: ((out[SEEN:].argmax(-1) == y[SEEN:]).float().mean() - 0.25) / 0.75,
        whole=True,
    )  # fmt: skip


@functools.cache
def recall_task() -> Task:
    """Say which of eight words came first, after noise."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(8, (2560,), generator=generator)
    noise = torch.randn(2560, LENGTH, 9, generator=generator)
    noise[:, :, :8] *= 0.1
    noise[:, 0, :8] = F.one_hot(words, 8).float() * 2
    data = Data(noise, words)
    return Task(
        data.first(2048), Data(noise[2048:], words[2048:]), 5e-3, F.cross_entropy,
        lambda out, y: ((out.argmax(-1) == y).float().mean() - 1 / 8) * 8 / 7,
    )  # fmt: skip


def density(out: tuple[Tensor, Tensor, Tensor], y: Tensor) -> Tensor:
    """Return the mean negative logarithm of the density of targets."""
    shares, means, spreads = out
    logs = torch.distributions.Normal(means, spreads, validate_args=False).log_prob(y)
    return -torch.logsumexp(shares.log_softmax(-1) + logs, -1).mean()


@functools.cache
def inverse_task() -> Task:
    """Fit the density of `x` given `x + 0.3 sin(2 pi x)` (Bishop, 1994, section 5)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2560, 1, generator=generator)
    y = x + 0.3 * torch.sin(2 * math.pi * x) + 0.05 * torch.randn(2560, 1, generator=generator)
    data = Data(2 * y - 1, 2 * x - 1)
    return Task(
        data.first(2048), Data(data.inputs[2048:], data.targets[2048:]), 5e-3, density,
        lambda out, y: 1 - density(out, y) / 1.1,
    )  # fmt: skip


#
# Cases
#


def keep(_: nn.Module) -> None:
    """Change nothing."""


def by(policy: str) -> Change:
    """Start by a policy."""
    return lambda net: apply_policy(net, policy, seed=0)


def gates(value: float) -> Change:
    """Shift all gates that forget (LSTM) or update (GRU)."""

    def change(net: Recall) -> None:
        width = net.layer.hidden_size
        net.layer.bias_ih_l0[width : 2 * width].add_(value)

    return change


def times(factor: float, glob: str = "") -> Change:
    """Multiply weights whose names have a part."""

    def change(net: nn.Module) -> None:
        for name, parameter in net.named_parameters():
            if name.endswith("weight") and glob in name:
                parameter.mul_(factor)

    return change


def shifted(value: float, name: str) -> Change:
    """Fill a bias."""
    return lambda net: net.get_parameter(name).fill_(value)


class Case(NamedTuple):
    """A net, how it is started, and its twin, which learns the same task well."""

    task: Callable[[], Task]
    build: Callable[[], nn.Module]
    start: Change = keep
    twin: Callable[[], nn.Module] = lambda: plain(2, 48, nn.ReLU)


def sine(first: float, hidden: float) -> Case:
    """Make a case of a sine net started as published, whatever its frequencies."""
    return Case(
        waves_task, lambda: Waves(first, hidden), start_siren, lambda: started_waves(30.0, 30.0)
    )


def started_waves(first: float, hidden: float) -> nn.Module:
    """Build a sine net and start it as published."""
    net = Waves(first, hidden)
    start_siren(net)
    return net


def graph(depth: int, start: Change = keep, *, skip: bool = False) -> Case:
    """Make a case of a graph net; its twin has two layers."""
    return Case(graph_task, lambda: Graph(depth, skip=skip), start, lambda: Graph(2))


def mixture(start: Change) -> Case:
    """Make a case of a mixture density."""
    return Case(inverse_task, Mixture, start, Mixture)


def recall(kind: type[nn.RNNBase], start: Change = keep) -> Case:
    """Make a case of a recurrent layer; its twin opens its gates."""
    return Case(recall_task, lambda: Recall(kind), start, open_lstm)


def open_lstm() -> nn.Module:
    """Build an LSTM that remembers."""
    net = Recall(nn.LSTM)
    with torch.no_grad():
        gates(3.0)(net)
    return net


def digit(build: Callable[[], nn.Module], start: Change = keep) -> Case:
    """Make a case of a net for digits; its twin is plain, of two layers."""
    return Case(digits_task, build, start)


def images(factor: float) -> Case:
    """Make a case of inputs that nobody has brought to size."""
    return digit(lambda: nn.Sequential(Times(factor), plain(3, 48, nn.ReLU)))


class Times(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return self.factor * x


CASES: Mapping[str, Case] = {
    **{f"GCN of {d}": graph(d) for d in (2, 4, 8, 16, 32)},
    "GCN of 4, He": graph(4, by("he")),
    "GCN of 16, He": graph(16, by("he")),
    "GCN of 16, skips": graph(16, skip=True),
    "mixture": mixture(keep),
    "mixture, He": mixture(by("he")),
    **{
        f"mixture, log sigma {v:+d}": mixture(shifted(v, "spread.bias"))
        for v in (-1, -4, -8, 4, 8)
    },
    "mixture, log sigma times 30": mixture(times(30, "spread")),
    "mixture, shares times 50": mixture(times(50, "shares")),
    "mixture, means times 20": mixture(times(20, "means")),
    **{f"sines of {w:g}": sine(w, 30.0) for w in (1.0, 5.0, 30.0, 100.0, 300.0)},
    "sines of 1 throughout": sine(1.0, 1.0),
    "sines of 300 throughout": sine(300.0, 300.0),
    **{
        f"ReLU, width {w}, depth {d}": digit(lambda w=w, d=d: plain(d, w, nn.ReLU), by("he"))
        for w, d in ((4, 24), (8, 24), (16, 30), (4, 4))
    },
    "GRU": recall(nn.GRU),
    **{f"GRU, update gate {v:+d}": recall(nn.GRU, gates(v)) for v in (-4, -2, 3)},
    "LSTM": recall(nn.LSTM),
    **{f"LSTM, forget gate {v:+d}": recall(nn.LSTM, gates(v)) for v in (-4, -2, 3)},
    "RNN": recall(nn.RNN),
    **{
        f"highway of 20, gates {v:+d}": digit(
            lambda v=v: flat(*(Highway(48, float(v)) for _ in range(20)))
        )
        for v in (-2, 0, 3)
    },
    "experts": digit(lambda: flat(Experts(), Experts())),
    "experts, router times 100": digit(lambda: flat(Experts(), Experts()), times(100, "router")),
    "sums of rows": digit(lambda: Rows(1)),
    "sums of rows, 1,000 copies": digit(lambda: Rows(1000)),
    "inputs times 40": images(40.0),
    "inputs times 1e-3": images(1e-3),
    "inputs times 1e4": images(1e4),
    "PReLU of 8": digit(lambda: plain(8, 48, nn.PReLU)),
    "SELU of 12": digit(lambda: plain(12, 48, nn.SELU)),
    "softplus of 8": digit(lambda: plain(8, 48, nn.Softplus)),
    "hard tanh of 10, times 6": digit(lambda: plain(10, 48, nn.Hardtanh), times(6)),
    "no skips, 20 convolutions": digit(lambda: convolutions(20, norm=False)),
    "batch norm, 12 convolutions": digit(lambda: convolutions(12, norm=True)),
    "residual of 16 with norms": digit(lambda: residual(16, norm=True)),
    "residual of 40 without norms": digit(lambda: residual(40, norm=False)),
    "bottleneck of two": digit(
        lambda: flat(nn.Linear(48, 2), nn.Tanh(), nn.Linear(2, 48), nn.ReLU())
    ),
    "norms behind skips, 16": digit(lambda: flat(*(
        nn.Sequential(Residual(nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48)), nn.LayerNorm(48))
        for _ in range(16)
    ))),
}  # fmt: skip


class Result(NamedTuple):
    """What became of a net.

    Attributes:
        name: What it is.
        best: Skill of its twin.
        reached: Its own skill.
        again: Its skill after what is recommended; None where nothing is.
        found: Whether the audit says that something is wrong.
        said: What it says.
        warned: Whether it says no more than that something may slow training.
        said: What it says.
    """

    name: str
    best: float
    reached: float
    again: float | None
    found: bool
    warned: bool
    said: str

    @property
    def ill(self) -> bool:
        """Whether the net falls behind its twin."""
        return self.reached < 0.9 * self.best


def examine(name: str, case: Case, steps: int) -> Result:
    """Audit a net, train it and its twin, and train what the audit recommends."""
    torch.manual_seed(0)
    twin, net, task = case.twin(), case.build(), case.task()
    with torch.no_grad():
        case.start(net)
    inputs, targets = batch(task, 0)
    loss = functools.partial(loss_with, task, targets)
    audit = audit_model(net, inputs, loss_fn=loss, optimizer="adam", lr=task.rate)
    best, reached = train(twin, task, steps), train(copy.deepcopy(net), task, steps)
    again = None
    if audit.recommended is not None:
        names = {
            "apply_policy": functools.partial(apply_policy, seed=1),
            "lsuv_": lsuv_,
            "presets": presets,
        }
        eval(audit.recommended.call, names, {"model": net, "batch": inputs})
        again = train(net, task, steps)
    warned = audit.ok and bool(audit.signal.verdicts)
    return Result(name, best, reached, again, not audit.ok, warned, audit.headline)


def main(*, smoke: bool = False, out: Path | None = None) -> dict[str, int]:
    """Examine all nets; print what the doctor found, net by net."""
    warnings.simplefilter("ignore", InitPolicyWarning)
    chosen = list(CASES)[: 3 if smoke else None]
    results = [examine(name, CASES[name], 2 if smoke else STEPS) for name in chosen]
    figures = shares(results)
    summary = table(("figure", "value"), figures.items())
    rows = table(("net", "twin", "as it is", "repaired", "audit"), map(_row, results))
    report("unseen_nets", f"{summary}\n\n{rows}", out)
    return figures


def shares(results: Sequence[Result]) -> dict[str, int]:
    """Count what was found, what was called ill and is not, and what the repairs do."""
    ill, well = [r for r in results if r.ill], [r for r in results if not r.ill]
    mended = [r for r in ill if r.again is not None]
    return {
        "nets": len(results),
        "ill": len(ill),
        "found": sum(r.found for r in ill),
        "warned of": sum(r.warned for r in ill),
        "false alarms": sum(r.found for r in well),
        "repairs promised": len(mended),
        "of these train as their twins": sum(r.again >= 0.9 * r.best for r in mended),
    }


def _row(result: Result) -> tuple[object, ...]:
    again = "-" if result.again is None else f"{result.again:.2f}"
    return result.name, f"{result.best:.2f}", f"{result.reached:.2f}", again, result.said


if __name__ == "__main__":
    given = options(__doc__)
    main(smoke=given.smoke, out=given.out)
