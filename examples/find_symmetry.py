"""Four classical mistakes and how the report reads; then a training that is warned in time.

Run it as `python examples/find_symmetry.py`; it takes a few seconds.
"""

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from torch_initpolicy import apply_policy, find_symmetry, warn_on_symmetry
from torch_initpolicy.errors import SymmetricInitWarning
from torch_initpolicy.symmetry.findings import Report


def constant_weights() -> nn.Module:
    """Give every weight one value: 64 hidden units become one."""
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10))
    for layer in (model[0], model[2]):
        nn.init.constant_(layer.weight, 0.05)
        nn.init.zeros_(layer.bias)
    return model


class Adapted(nn.Module):
    """A linear layer with a low-rank correction of which both factors start at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(16, 10)
        self.a = nn.Parameter(torch.zeros(4, 16))
        self.b = nn.Parameter(torch.zeros(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Add the correction."""
        return self.base(x) + linear(linear(x, self.a), self.b)


class CopiedExperts(nn.Module):
    """A mixture whose experts are copies, under a router that starts at zero."""

    def __init__(self) -> None:
        super().__init__()
        expert = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 10))
        self.experts = nn.ModuleList(copy.deepcopy(expert) for _ in range(4))
        self.router = nn.Linear(16, 4)
        nn.init.zeros_(self.router.weight)
        nn.init.zeros_(self.router.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Mix what the experts say."""
        gates = self.router(x).softmax(-1)
        return torch.stack([expert(x) for expert in self.experts], -1) @ gates[..., None]


class ClosedBranch(nn.Module):
    """A residual branch with a zero gate behind a zero layer; either alone would be fine."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.gate = nn.Parameter(torch.zeros(()))
        self.head = nn.Linear(16, 10)
        nn.init.zeros_(self.branch[2].weight)
        nn.init.zeros_(self.branch[2].bias)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the gate lets through."""
        return self.head(x + self.gate * self.branch(x))


MISTAKES = {
    "constant weights": constant_weights,
    "both factors of a product zero": Adapted,
    "copied experts under a zero router": CopiedExperts,
    "a gate that is zero at both ends": ClosedBranch,
}


def zero_head() -> nn.Module:
    """Start the last layer at zero, which is good practice and breaks by itself."""
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 10))
    nn.init.zeros_(model[2].weight)
    return model


def train(model: nn.Module, steps: int = 100) -> tuple[float, list[str]]:
    """Learn which of ten directions an input is closest to, under watch.

    Returns:
        The accuracy at the end, and what was warned of, with the step, counted from 0.
    """
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(16, 10, generator=generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    warned: list[str] = []
    warn_on_symmetry(model)  # this line is all that a training loop needs
    for step in range(steps):
        x = torch.randn(256, 16, generator=generator)
        logits, labels = model(x), (x @ directions).argmax(-1)
        optimizer.zero_grad()
        cross_entropy(logits, labels).backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", SymmetricInitWarning)
            optimizer.step()
        warned += [f"step {step}: {warning.message}" for warning in caught]
    return (logits.argmax(-1) == labels).float().mean().item(), warned


def main() -> tuple[dict[str, Report], list[float]]:
    """Show the reports, then one training before and after."""
    torch.manual_seed(0)
    reports = {name: find_symmetry(build()) for name, build in MISTAKES.items()}
    for name, report in reports.items():
        print(f"{name}:\n{report}\n")
    print(f"a zero head, for comparison:\n{find_symmetry(zero_head())}\n")

    model = constant_weights()
    before, warned = train(model)
    print(f"training from constant weights, accuracy {before:.2f}; warned at", *warned)
    apply_policy(model, seed=0)
    after, warned = train(model)
    print(f"the same after apply_policy(model), accuracy {after:.2f}; {len(warned)} warnings")
    return reports, [before, after]


if __name__ == "__main__":
    main()
