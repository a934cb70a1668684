"""LSUV by activation function: whatever bends the signal, its size is right, and the net trains.

Reference:
    Mishkin and Matas, *All you need is a good init*, 2015, arXiv:1511.06422, table 2.
"""

from pathlib import Path

import torch
from common import Outcome, clusters, options, plain, report, table, train
from torch import nn

from torch_initpolicy import apply_policy, lsuv_

ACTIVATIONS = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "softsign": nn.Softsign,
    "sigmoid": nn.Sigmoid,
}  # fmt: skip
STARTS = ("lsuv", "he", "xavier", "torch_default")


def main(*, smoke: bool = False, out: Path | None = None) -> dict[tuple[str, str], Outcome]:
    """Train one net for each activation and start."""
    depth, steps = (4, 3) if smoke else (20, 200)
    data, results = clusters().first(64 if smoke else 4096), {}
    for name, activation in ACTIVATIONS.items():
        for start in STARTS:
            model = plain(depth, 128, activation)
            if start == "lsuv":
                lsuv_(model, data.inputs[:256], per_channel=True)
            else:
                apply_policy(model, start, seed=0)
            results[name, start] = train(model, data, steps=steps, rate=3e-3)
    rows = [(a, *(results[a, start].accuracy for start in STARTS)) for a in ACTIVATIONS]
    report("lsuv_by_activation", table(("activation", *STARTS), rows), out)
    return results


if __name__ == "__main__":
    torch.manual_seed(0)
    main(**vars(options(__doc__)))
