"""Many structures, three starts of each: the constructor's own, `apply_policy`, the published one.

Each is trained for a short while with the learning rate that is best for it on a validation split;
the loss on a test split is compared between starts from the same seeds and batches.
"""

import logging
import math
import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from common import parser_of, report, table
from structures import STRUCTURES, Split, Structure
from torch import Tensor, nn

from torch_initpolicy import apply_policy

STEPS, BATCH, SEEDS = 50, 32, 3
TUNED_ON = 1000
"""The seed that chooses the learning rate; no row is measured on it."""
WORST = 1e3
"""What a training that diverged counts."""


class Row(NamedTuple):
    """What came out for one structure.

    Attributes:
        own: Mean test loss from the constructor's own start.
        auto: What `apply_policy` is worse by: mean and standard error over seeds.
        recipe: The same of the published start, or None.
    """

    own: float
    auto: tuple[float, float]
    recipe: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """Say in a word what `apply_policy` is next to the constructor's own start."""
        mean, error = self.auto
        return "better" if mean < -error else "worse" if mean > error else "even"


Start = Callable[[nn.Module, int, Tensor], object]


def starts(structure: Structure) -> dict[str, Start]:
    """Return what each start does to a model that its constructor has built."""
    policies = {"own": None, "auto": "auto"}
    if structure.recipe is not None:
        policies["recipe"] = structure.recipe

    def of(policy: object) -> Start:
        def start(model: nn.Module, seed: int, inputs: Tensor) -> object:
            return policy and apply_policy(model, policy, seed=seed, example_inputs=inputs)

        return start

    return {name: of(policy) for name, policy in policies.items()}


def trained(structure: Structure, start: Start, rate: float, seed: int, steps: int) -> nn.Module:
    """Build a model, start it, and train it; seed and batches are those of other starts."""
    inputs, targets = structure.data().train
    torch.manual_seed(seed)
    model = structure.build()
    start(model, seed, inputs[:BATCH])
    generator = torch.Generator().manual_seed(seed)
    momentum = {"momentum": 0.9} if structure.optimizer is torch.optim.SGD else {}
    optimizer = structure.optimizer(model.parameters(), lr=rate, **momentum)
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:  # a short warm-up, then a cosine to zero
            group["lr"] = rate * min((step + 1) / 8, 0.5 * (1 + math.cos(math.pi * step / steps)))
        chosen = torch.randint(len(inputs), (BATCH,), generator=generator)
        loss = structure.loss(model(inputs[chosen]), targets[chosen])
        if not math.isfinite(loss.item()):
            break
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    return model


@torch.no_grad()
def loss_on(structure: Structure, model: nn.Module, part: tuple[Tensor, Tensor]) -> float:
    """Measure a model on at most 512 inputs."""
    model.eval()
    found = structure.loss(model(part[0][:512]), part[1][:512]).item()
    return min(found, WORST) if math.isfinite(found) else WORST


def losses(structure: Structure, start: Start, *, steps: int, seeds: range) -> list[float]:
    """Choose the learning rate by the validation split, and measure on the test split."""
    data: Split = structure.data()

    def of(rate: float, seed: int, part: tuple[Tensor, Tensor]) -> float:
        return loss_on(structure, trained(structure, start, rate, seed, steps), part)

    rates = structure.rates if len(seeds) > 1 else structure.rates[1:2]
    tuned = {rate: of(rate, TUNED_ON, data.validation) for rate in rates}
    best = min(tuned, key=lambda rate: tuned[rate])
    return [of(best, seed, data.test) for seed in seeds]


def difference(found: Sequence[float], own: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard error of paired differences."""
    each = [a - b for a, b in zip(found, own, strict=True)]
    error = statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else 0.0
    return statistics.mean(each), error


def row(structure: Structure, *, steps: int, seeds: range) -> Row:
    """Train one structure from all of its starts."""
    found = {
        name: losses(structure, start, steps=steps, seeds=seeds)
        for name, start in starts(structure).items()
    }
    recipe = difference(found["recipe"], found["own"]) if "recipe" in found else None
    return Row(statistics.mean(found["own"]), difference(found["auto"], found["own"]), recipe)


def _written(pair: tuple[float, float] | None) -> str:
    return "" if pair is None else f"{pair[0]:+.3f} ± {pair[1]:.3f}"


HEAD = (
    "structure", "own start: test loss", "auto - own", "published - own", "published", "auto is",
)  # fmt: skip


def main(
    *, smoke: bool = False, out: Path | None = None, only: str = "", first_seed: int = 0
) -> dict[str, Row]:
    """Train every structure, or those whose name holds `only`; a smoke test takes a few steps."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    names = [name for name in STRUCTURES if only in name]
    steps, seeds = (2, 1) if smoke else (STEPS, SEEDS)
    results = {}
    for name in names[1::5] if smoke else names:
        results[name] = row(
            STRUCTURES[name], steps=steps, seeds=range(first_seed, first_seed + seeds)
        )
        if not smoke:
            print(f"{name}: {_written(results[name].auto)}", flush=True)
    rows = [
        (
            name, found.own, _written(found.auto), _written(found.recipe),
            STRUCTURES[name].recipe or "", found.verdict,
        )
        for name, found in results.items()
    ]  # fmt: skip
    report("scoreboard", table(HEAD, rows), out)
    return results


if __name__ == "__main__":
    parser = parser_of(__doc__)
    parser.add_argument("--only", default="", help="only structures whose name holds this")
    parser.add_argument("--first-seed", type=int, default=0, help="of the three that are paired")
    main(**vars(parser.parse_args()))
