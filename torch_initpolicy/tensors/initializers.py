"""Initializers: frozen values that say how a tensor is to be filled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from torch_initpolicy.tensors.axes import Axes

Gain = float | Literal["meets", "fed_by"]
Mode = Literal["fan_in", "fan_out", "fan_avg", "fan_geo"]
Distribution = Literal["normal", "uniform", "truncated_normal"]


@dataclass(frozen=True, slots=True)
class Context:
    """What an initializer may want to know of the site, numbers only."""

    meets_gain: float = 1.0
    fed_gain: float = 1.0
    residual_branches: int = 0
    branch_depth: int = 0


@dataclass(frozen=True, slots=True)
class Spread:
    """What the drawn values will be: mean, standard deviation and bounds (None: unbounded)."""

    mean: float
    std: float
    low: float | None = None
    high: float | None = None


class Initializer(Protocol):
    """Anything that fills a tensor in place."""

    def __call__(
        self, tensor: Tensor, axes: Axes | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        """Fill `tensor` in place; without `axes` its layout is torch's `(out, in, *kernel)`."""


class Elementwise(Initializer, Protocol):
    """An initializer whose elements are independent: any piece can be drawn on its own."""

    def resolve(self, context: Context) -> "Elementwise":
        """Replace symbolic fields (`gain="meets"`, branch scaling) by numbers."""

    def scaled(self, factor: float) -> "Elementwise":
        """Multiply every value by `factor`."""

    def spread(self, shape: Sequence[int], axes: Axes | None) -> Spread | tuple[Spread, ...]:
        """Say what the values will be, one `Spread` per packed block where they differ.

        Raises PolicyError where the shape or the axes do not fit, so a plan finds it in time.
        """

    def fill_(
        self,
        flat: Tensor,
        shape: Sequence[int],
        axes: Axes | None,
        *,
        start: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        """Fill `flat` with elements `start, start + 1, ...` of the flattened logical tensor.

        `flat` is contiguous, one-dimensional and of a dtype that `working_dtype` returns.
        """


class Structured(Initializer, Protocol):
    """An initializer that needs the whole logical tensor at once."""

    def resolve(self, context: Context) -> "Structured": ...
    def scaled(self, factor: float) -> "Structured": ...
    def spread(
        self, shape: Sequence[int], axes: Axes | None
    ) -> Spread | tuple[Spread, ...] | None: ...
    def build(
        self, shape: Sequence[int], axes: Axes | None, normal: Callable[[Sequence[int]], Tensor]
    ) -> Tensor:
        """Return the whole tensor; `normal(shape)` hands out fresh standard normals."""


# Public names to come, all frozen dataclasses with keyword-or-positional fields:
#   elementwise: Constant(value) Zeros() Ones() Uniform(low, high) Normal(std, mean=0.0)
#     TruncatedNormal(std, mean=0.0, cut=2.0)
#     VarianceScaling(scale=1.0, mode="fan_in", distribution="normal", gain=1.0)
#   structured: Orthogonal(gain=1.0) DeltaOrthogonal(gain=1.0) Dirac(gain=1.0) Identity(gain=1.0)
#     Sparse(sparsity, std=0.01) ICNR(inner, upscale_factor=2)
#   either: Blocks((a, b, ...))     resolves to one of the above: BranchScaled(inner, exponent=-0.5)
#   others: Keep(), From(function, **arguments)
#   recipes: he_normal(gain=None, mode="fan_in") he_uniform xavier_normal(gain=1.0) xavier_uniform
#     lecun_normal(gain=1.0) lecun_uniform
#   is_elementwise(initializer) -> bool, working_dtype(dtype) -> dtype, BUILTIN: tuple[type, ...]
