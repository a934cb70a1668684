"""What the tests of calibration run, draw, and measure by a plain forward pass."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOLERANCE = 1e-3
"""What the issue promises: within 0.1 % of the wanted standard deviation."""


def batch(*shape: int) -> Tensor:
    """Draw inputs whose size is nowhere near one."""
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1)) + 0.5


def deviation(output: Tensor, std: float = 1.0) -> float:
    """Return how far the standard deviation of an output is from the wanted one, relatively."""
    return abs(output.double().std(correction=0).item() / std - 1)


def joint(outputs: list[Tensor]) -> Tensor:
    """Join what one weight makes at several places; each has a mean of its own."""
    return torch.cat([output - output.mean() for output in outputs])


def spread(outputs: Tensor) -> float:
    """Return the root mean square distance of complex numbers from their mean, in the plane."""
    pairs = torch.view_as_real(outputs.detach().resolve_conj()).double().reshape(-1, 2)
    return (pairs - pairs.mean(0)).norm(dim=1).square().mean().sqrt().item()


class Tapped(nn.Module):
    """A network that returns what its weights make, by canonical name."""

    inputs: tuple[int, ...] = (64, 12)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        raise NotImplementedError


class Dense(Tapped):
    """Linear layers with biases, a raw product, and a product with a transposed parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 32), nn.Linear(32, 24)
        self.raw = nn.Parameter(torch.randn(24, 16))
        self.turned = nn.Parameter(torch.randn(8, 16))

    def forward(self, x):
        a = self.first(x)
        b = self.second(torch.relu(a))
        c = torch.tanh(b) @ self.raw
        return {
            "first.weight": a,
            "second.weight": b,
            "raw": c,
            "turned": F.gelu(c).matmul(self.turned.t()),
        }


class Images(Tapped):
    """Convolutions: plain, grouped, transposed, and before a normalisation."""

    inputs = (8, 3, 16, 16)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.up = nn.ConvTranspose2d(16, 8, 4, stride=2)
        self.line = nn.Conv1d(8, 4, 5)

    def forward(self, x):
        a = self.stem(x)
        b = self.depthwise(F.relu(self.norm(a), inplace=True))
        c = self.up(F.silu(b))
        d = self.line(F.relu(c).flatten(2))
        return {"stem.weight": a, "depthwise.weight": b, "up.weight": c, "line.weight": d}


class Waves(nn.Module):
    """Complex weights: a Fourier operator, layers with biases, a pair of real numbers."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.modes = nn.Parameter(torch.randn(4, 6, 9, dtype=torch.complex64, generator=generator))
        self.layer = nn.Linear(9, 20, dtype=torch.complex64)
        self.pairs = nn.Parameter(torch.randn(20, 8, 2, generator=generator))
        self.last = nn.Linear(8, 5, dtype=torch.complex64)
        for layer in (self.layer, self.last):
            nn.init.normal_(layer.bias, std=0.2)

    def forward(self, x):
        a = torch.einsum("bif,iof->bof", torch.fft.rfft(x), self.modes)
        b = self.layer(a)
        c = torch.matmul(b * torch.sigmoid(b.abs()), torch.view_as_complex(self.pairs))
        return {"modes": a, "layer.weight": b, "pairs": c, "last.weight": self.last(c.conj())}
