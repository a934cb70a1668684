"""A deep residual net without normalisation: Fixup trains, He's variance alone explodes.

Reference:
    Zhang, Dauphin and Ma, *Fixup Initialization*, 2019, arXiv:1901.09321.
"""

from pathlib import Path

import torch
from common import Outcome, clusters, options, report, table, train
from torch import Tensor, nn

from torch_initpolicy import apply_policy

POLICIES = ("fixup", "zero_residual", "depth_scaled", "he")


class Block(nn.Module):
    """Two weights beside a skip, with the scalar biases and the multiplier of Fixup."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width, bias=False)
        self.last = nn.Linear(width, width, bias=False)
        self.before, self.between = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """Add what the branch makes."""
        return x + self.last(torch.relu(self.inner(torch.relu(x) + self.before)) + self.between)


def net(blocks: int, width: int = 64) -> nn.Sequential:
    """Build a residual net without normalisation."""
    return nn.Sequential(
        nn.Linear(64, width), *(Block(width) for _ in range(blocks)), nn.Linear(width, 10)
    )


def main(*, smoke: bool = False, out: Path | None = None) -> dict[str, Outcome]:
    """Train the same net under four policies."""
    blocks, steps = (4, 3) if smoke else (100, 200)
    data, results = clusters().first(64 if smoke else 4096), {}
    for policy in POLICIES:
        model = net(blocks)
        apply_policy(model, policy, seed=0)
        results[policy] = train(model, data, steps=steps, rate=1e-2)
    rows = [(policy, outcome.accuracy, outcome.loss) for policy, outcome in results.items()]
    report("fixup_without_norm", table(("policy", "accuracy", "loss"), rows), out)
    return results


if __name__ == "__main__":
    torch.manual_seed(0)
    main(**vars(options(__doc__)))
