"""What the experiments share: data, training, tables, pictures."""

import argparse
import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  # torch's own name for it


class Data(NamedTuple):
    """Inputs with their classes."""

    inputs: Tensor
    targets: Tensor

    def first(self, count: int) -> "Data":
        """Return the first so many inputs."""
        return Data(self.inputs[:count], self.targets[:count])


class Outcome(NamedTuple):
    """How a training ended."""

    accuracy: float
    loss: float
    seconds: float


def clusters(count: int = 4096, features: int = 64, classes: int = 10, seed: int = 0) -> Data:
    """Draw points around ten centres; the noise is as large as the distances."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, features, generator=generator)
    targets = torch.randint(classes, (count,), generator=generator)
    noise = torch.randn(count, features, generator=generator)
    inputs = centres[targets] + noise
    return Data((inputs - inputs.mean(0)) / inputs.std(0), targets)


def digits() -> Data:
    """Load scikit-learn's 1,797 digits as images of 8 x 8 pixels."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - an extra

    found = load_digits()
    images = torch.tensor(found.images, dtype=torch.float32)[:, None]
    images = (images - images.mean()) / images.std()
    return Data(images, torch.tensor(found.target))


def train(
    model: nn.Module, data: Data, *, steps: int, rate: float, batch: int = 128, seed: int = 0
) -> Outcome:
    """Train by SGD with momentum 0.9; return accuracy and loss on all of the data."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    begun = time.perf_counter()
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(data.targets), (batch,), generator=generator)
        loss = F.cross_entropy(model(data.inputs[chosen]), data.targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return score(model, data, time.perf_counter() - begun)


@torch.no_grad()
def score(model: nn.Module, data: Data, seconds: float = 0.0) -> Outcome:
    """Measure accuracy and loss on all of the data."""
    model.eval()
    logits = model(data.inputs)
    accuracy = (logits.argmax(-1) == data.targets).double().mean().item()
    return Outcome(accuracy, F.cross_entropy(logits, data.targets).item(), seconds)


def plain(
    depth: int, width: int, activation: Callable[[], nn.Module], features: int = 64
) -> nn.Sequential:
    """Build a plain net of `depth` hidden layers and a head of ten outputs."""
    widths = [features, *[width] * depth]
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a table in Markdown; numbers get four digits."""
    lines = [head, ["---"] * len(head), *([_cell(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def report(name: str, text: str, out: Path | None, figure: object = None) -> None:
    """Print a table; where there is a folder write it there, and the picture beside it."""
    print(f"\n{name}\n\n{text}")
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    if figure is not None:
        figure.savefig(out / f"{name}.png", dpi=120)


def options(description: str | None) -> argparse.Namespace:
    """Read the command line that all experiments have."""
    return parser_of(description).parse_args()


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Make the parser of what all experiments understand."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--out", type=Path, help="folder for tables and pictures")
    return parser
