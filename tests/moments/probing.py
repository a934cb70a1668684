"""Networks of two weights with some function between them, and what the second one reads."""

import torch
from torch import nn

from torch_initpolicy.moments.propagate import reads
from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read


def reads_of(model, inputs, **written):
    """Return what each weight of a model reads."""
    found = sites(model)
    return reads(read(model, found, inputs).flow, found, written)


class Probe(nn.Module):
    """A first weight, some function of what it makes, and a last weight that reads that."""

    def __init__(self, between, *, first=None, last=None, shape=(64, 256)):
        super().__init__()
        self.first = first or nn.Linear(256, 256, bias=False)
        self.between, self.shape = between, shape
        self.last = last or nn.Linear(256, 256, bias=False)

    def forward(self, x):
        return self.last(self.between(self.first(x)))


def image(between, last=None):
    """Make a probe of images."""
    conv = nn.Conv2d(8, 128, 3, padding=1, bias=False)
    last = last or nn.Conv2d(128, 8, 1, bias=False)
    return Probe(between, first=conv, last=last, shape=(16, 8, 12, 12))


def measured(probe: Probe) -> float:
    """Return the mean square of what the last weight reads, zeros of its padding included.

    The fan of the transposed convolution is what one output meets: a quarter of its kernel.
    """
    seconds = []
    with torch.no_grad():
        for seed in range(6):
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(probe.shape, generator=generator)
            probe.first.weight.normal_(generator=generator)
            probe.first.weight.div_(probe.first(x).std())
            read = probe.between(probe.first(x))
            seconds.append(read.square().mean().item() * reach(probe.last, read))
    return sum(seconds) / len(seconds)


def reach(last: nn.Module, read: torch.Tensor) -> float:
    """Count the taps of the last weight that meet its input: ones convolved with ones."""
    if isinstance(last, nn.Linear):
        return 1.0
    ones, weight = torch.ones_like(read), last.weight.clone()
    last.weight.fill_(1.0)
    taps = last(ones).mean().item()
    last.weight.copy_(weight)
    transposed = isinstance(last, nn.ConvTranspose2d)
    return taps / (weight.shape[0] * 4 if transposed else weight[0].numel())
