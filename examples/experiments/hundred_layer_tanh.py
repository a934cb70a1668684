"""A hundred layers of tanh: only orthogonal weights on the edge of chaos train.

Reference:
    Pennington, Schoenholz and Ganguli, *Resurrecting the sigmoid in deep learning through
    dynamical isometry*, 2017, arXiv:1711.04735.
"""

from pathlib import Path

import torch
from common import Outcome, clusters, options, plain, report, table, train
from torch import nn

from torch_initpolicy import InitPolicy, apply_policy, initializers, presets

FIVE_THIRDS = InitPolicy(presets.xavier().rules[:-1]).otherwise(
    initializers.VarianceScaling(1.0, "fan_avg", gain=5 / 3)
)
POLICIES = {
    "critical": presets.critical(),
    "xavier": presets.xavier(),
    "xavier, gain 5/3": FIVE_THIRDS,
    "torch_default": presets.torch_default(),
}


def main(*, smoke: bool = False, out: Path | None = None) -> dict[str, Outcome]:
    """Train the same net under four policies."""
    depth, steps = (10, 3) if smoke else (99, 400)
    data, results = clusters().first(64 if smoke else 4096), {}
    for name, policy in POLICIES.items():
        model = plain(depth, 128, nn.Tanh)
        apply_policy(model, policy, seed=0)
        results[name] = train(model, data, steps=steps, rate=5e-3)
    rows = [(name, outcome.accuracy, outcome.loss) for name, outcome in results.items()]
    report("hundred_layer_tanh", table(("policy", "accuracy", "loss"), rows), out)
    return results


if __name__ == "__main__":
    torch.manual_seed(0)
    main(**vars(options(__doc__)))
