"""Networks whose signal is known, and what an audit says of them."""

import torch
from torch import Tensor, nn

from torch_initpolicy.signal.run import audit_signal


def batch(*shape: int) -> Tensor:
    """Draw standard normal inputs."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def plain(depth: int, width: int = 128, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Build a plain net with a head of ten outputs."""
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), activation())]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def fill(model: nn.Module, gain: float) -> nn.Module:
    """Draw weights of variance `gain ** 2 / fan_in`, biases zero; always the same ones."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        matrix = parameter.ndim > 1
        std = gain / parameter.shape[-1] ** 0.5 if matrix else 0.0
        nn.init.normal_(parameter, std=std, generator=generator)
    return model


class Functional(nn.Module):
    """A weight of its own, an in-place activation, a residual sum, a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.raw = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        a = torch.relu_(self.conv(x))
        b = torch.einsum("bchw,cd->bdhw", a, self.raw)
        return (a + b).mean((2, 3)).sigmoid()


def kinds(model: nn.Module, x: Tensor, **options: object) -> list[str]:
    """Name what an audit finds."""
    return [verdict.kind for verdict in audit_signal(model, x, **options).verdicts]


HE = 2**0.5


def fill_images(model: nn.Module) -> nn.Module:
    """Draw He's weights for convolutions too."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, generator=generator)
    return model


def kinds_and_places(model: nn.Module, x: Tensor, **options: object) -> dict[str, str]:
    """Return where an audit finds what."""
    verdicts = audit_signal(model, x, **options).verdicts
    return {verdict.kind: verdict.where for verdict in verdicts}


class Contrasted(nn.Module):
    """Cosines of two towers, times a learned factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(16, 8), nn.Linear(16, 8)
        self.scale = nn.Parameter(torch.tensor(factor).log())

    def forward(self, x, y):
        left, right = (nn.functional.normalize(t, dim=-1) for t in (self.left(x), self.right(y)))
        return self.scale.exp() * left @ right.mT
