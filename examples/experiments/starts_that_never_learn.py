"""Zeros and constants: the net trains, yet its units stay alike, and it never learns more.

Reference:
    Goodfellow, Bengio and Courville, *Deep Learning*, 2016, section 8.4: the start must break
    symmetry.
"""

import warnings
from pathlib import Path

import torch
from common import clusters, options, plain, report, table, train
from torch import nn

from torch_initpolicy import apply_policy, presets
from torch_initpolicy.errors import SymmetricInitWarning
from torch_initpolicy.symmetry.find import find_symmetry

POLICIES = {
    "zeros": presets.zeros(),
    "constant 0.05": presets.constant(0.05),
    "he": presets.he(),
}


def main(*, smoke: bool = False, out: Path | None = None) -> dict[str, tuple[float, int, bool]]:
    """Train under three policies; count the different units of the first layer afterwards."""
    steps = 3 if smoke else 600
    data, results = clusters().first(64 if smoke else 4096), {}
    for name, policy in POLICIES.items():
        model = plain(2, 64, nn.ReLU)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SymmetricInitWarning)  # which is what this is about
            apply_policy(model, policy, seed=0)
        found = find_symmetry(model, data.inputs[:8]).ok
        outcome = train(model, data, steps=steps, rate=1e-2)
        results[name] = outcome.accuracy, len(model[0].weight.unique(dim=0)), found
    head = ("policy", "accuracy", "different units of 64", "find_symmetry(model).ok")
    rows = [(name, *values) for name, values in results.items()]
    report("starts_that_never_learn", table(head, rows), out)
    return results


if __name__ == "__main__":
    torch.manual_seed(0)
    main(**vars(options(__doc__)))
