"""A plain tanh CNN of a thousand layers: its signal arrives, and the first steps learn.

Pass `--layers 10000` for the depth of the paper's title; the signal is then audited, and five steps
are taken.

Reference:
    Xiao et al., *How to Train 10,000-Layer Vanilla Convolutional Neural Networks*, 2018,
    arXiv:1806.05393.
"""

import sys
from pathlib import Path

import torch
from common import Outcome, digits, options, report, score, table, train
from torch import nn

from torch_initpolicy import apply_policy, audit_signal, presets


def net(depth: int, channels: int = 16) -> nn.Sequential:
    """Build a plain net of circular 3 x 3 convolutions behind two that halve the edge."""
    layers: list[nn.Module] = [
        nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.Tanh(),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.Tanh(),
    ]  # fmt: skip
    for _ in range(depth):
        layers += [nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular"), nn.Tanh()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 4, 10))


def main(*, smoke: bool = False, out: Path | None = None, layers: int = 1000) -> dict[str, Outcome]:
    """Audit and train the same net under two policies."""
    depth, steps = (20, 2) if smoke else (layers, 80 if layers <= 1000 else 5)
    data, results, rows = digits().first(64 if smoke else 512), {}, []
    policies = {
        "delta_orthogonal": presets.delta_orthogonal(q=1 / depth),
        "xavier": presets.xavier(),
    }
    for name, policy in policies.items():
        model = net(depth)
        apply_policy(model, policy, seed=0)
        signal = audit_signal(model, data.inputs[:16])
        before = score(model, data)
        results[name] = train(model, data, steps=steps, rate=0.2 / depth, batch=32)
        ends = [point.second for point in signal.weighted if point.gradient is not None]
        rows.append(
            (name, ends[2], ends[-2], before.loss, results[name].loss, results[name].accuracy)
        )
    head = ("policy", "first layers", "last layers", "loss before", "loss after", "accuracy")
    report(f"{depth}_layer_cnn", table(head, rows), out)
    return results


if __name__ == "__main__":
    torch.manual_seed(0)
    depth = int(sys.argv.pop(sys.argv.index("--layers") + 1)) if "--layers" in sys.argv else 1000
    sys.argv = [word for word in sys.argv if word != "--layers"]
    main(**vars(options(__doc__)), layers=depth)
