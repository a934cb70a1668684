"""He against Xavier in deep ReLU nets: one trains, the other does not move.

Reference:
    He et al., *Delving Deep into Rectifiers*, 2015, arXiv:1502.01852, section 2.2 and figure 3.
"""

from pathlib import Path

import torch
from common import Outcome, clusters, digits, options, plain, report, table, train
from torch import nn

from torch_initpolicy import apply_policy, audit_signal

POLICIES = ("he", "xavier")


def convolutional(depth: int, channels: int = 32) -> nn.Sequential:
    """Build a plain convolutional net for images of 8 x 8 pixels."""
    layers: list[nn.Module] = [nn.Conv2d(1, channels, 3, padding=1), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 64, 10))


def main(*, smoke: bool = False, out: Path | None = None) -> dict[tuple[str, str], Outcome]:
    """Train both kinds of nets under both policies."""
    steps, most = (3, 64) if smoke else (800, 4096)
    tasks = {
        "30 layers, width 128": (lambda: plain(29, 128, nn.ReLU), clusters().first(most), 1e-3),
        "20 convolutions, digits": (lambda: convolutional(20), digits().first(most), 1e-3),
    }
    results, signals = {}, []
    for name, (build, data, rate) in tasks.items():
        for policy in POLICIES:
            model = build()
            apply_policy(model, policy, seed=0)
            signals.append(audit_signal(model, data.inputs[:32]))
            results[name, policy] = train(
                model, data, steps=steps if "layers" in name or smoke else 200, rate=rate, batch=128
            )
    rows = [(*key, outcome.accuracy, outcome.loss) for key, outcome in results.items()]
    figure = signals[0].plot(signals[1], labels=POLICIES) if out else None
    report("he_against_xavier", table(("net", "policy", "accuracy", "loss"), rows), out, figure)
    return results


if __name__ == "__main__":
    torch.manual_seed(0)
    main(**vars(options(__doc__)))
