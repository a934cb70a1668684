"""An initializer as a user writes one, outside the package: Laplace's, scaled by the fan-in."""

import math
from dataclasses import dataclass, replace

import torch

from torch_initpolicy import initializers

LAPLACE = initializers.Transformed(
    lambda normal: -normal.sign() * torch.erfc(normal.abs() / math.sqrt(2)).log(),
    std=math.sqrt(2),
    kurtosis=6.0,
)


@initializers.register
@dataclass(frozen=True, slots=True)
class Laplace(initializers.Initializer):
    """Draw from a Laplace distribution of variance `gain^2 / fan_in`."""

    gain: initializers.Gain = 1.0

    def resolve(self, context):
        """Make the gain a number."""
        return replace(self, gain=context.gain(self.gain))

    def sampler(self, shape, axes):
        """Draw each packed block by its own fans."""
        widths = [self.gain / math.sqrt(2 * fans.fan_in) for fans in self.fans(shape, axes)]
        return initializers.Independent(
            tuple(initializers.Draw(LAPLACE, scale=width) for width in widths)
        )
