"""Weights that a network generates: their makers start so that the made weights are right."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_initpolicy import apply_policy, plan_policy

DEPTH, WIDTH = 5, 32


class Hyper(nn.Module):
    """A deep ReLU network all weights of which come out of layers."""

    def __init__(self, apply: Callable[..., Tensor], make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.makers = nn.ModuleList(make() for _ in range(DEPTH))
        self.apply_weight = apply

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        for maker in self.makers:
            x = self.apply_weight(x, maker(z)).relu()
        return x


def _bmm(x: Tensor, w: Tensor) -> Tensor:
    return torch.bmm(x, w.view(-1, WIDTH, WIDTH))


def _einsum(x: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("bni,boi->bno", x, w.unflatten(-1, (WIDTH, WIDTH)))


def _scaled(x: Tensor, w: Tensor) -> Tensor:
    return 9 * x @ (0.2 * w).reshape(-1, WIDTH, WIDTH).mT


def _linear(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w[0].view(WIDTH, WIDTH))


def _conv(x: Tensor, w: Tensor) -> Tensor:
    """Apply a kernel of its own to each sample, by groups."""
    made = F.conv1d(x.mT.reshape(1, -1, x.shape[1]), w.view(-1, WIDTH, 1), groups=len(x))
    return made.view(len(x), WIDTH, -1).mT


@pytest.mark.parametrize("apply", [_bmm, _einsum, _scaled, _linear, _conv])
def test_generated_weights_keep_the_signal(apply):
    """However a generated weight is applied, the signal keeps its size through five layers."""
    z, x = torch.randn(8, 64), torch.randn(8, 16, WIDTH)
    sizes = []
    for seed in range(3):
        model = Hyper(apply, lambda: nn.Linear(64, WIDTH * WIDTH))
        apply_policy(model, seed=seed, example_inputs=(z, x))
        sizes.append(model(z, x).square().mean().item())

    assert 0.25 < sum(sizes) / 3 < 4


def test_queries_and_keys_are_no_generated_weights():
    """Attention multiplies signals too, and keeps what its textbook says."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(64, 64) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (
                f(x).unflatten(-1, (4, 16)).transpose(1, 2) for f in (self.q, self.k, self.v)
            )
            return (q @ k.mT / 4).softmax(-1) @ v

    plan = plan_policy(Attention(), example_inputs=torch.randn(2, 5, 64))

    assert {step.facts.multiplier.total for step in plan.steps} == {1.0}


def test_a_style_that_modulates_a_kernel_is_no_generated_weight():
    """A kernel of parameters, times a signal, has its size from the parameters."""

    class Modulated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.style, self.kernel = nn.Linear(16, 8), nn.Parameter(torch.randn(8, 8, 3, 3))

        def forward(self, z: Tensor, x: Tensor) -> Tensor:
            kernel = self.kernel * self.style(z)[0, None, :, None, None]
            return F.conv2d(x, kernel, padding=1).relu()

    inputs = torch.randn(1, 16), torch.randn(2, 8, 6, 6)

    assert (
        plan_policy(Modulated(), example_inputs=inputs)["style.weight"].facts.multiplier.total == 1
    )
