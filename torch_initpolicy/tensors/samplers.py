"""Samplers: how the numbers of one tensor are drawn, once its shape and axes are known."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor

from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.base import Normals, Spread, Spreads, merged_spreads
from torch_initpolicy.tensors.standards import Standard


class Draw(NamedTuple):
    """A distribution: a standard one, scaled and shifted.

    Examples:
        >>> from torch_initpolicy.tensors.standards import StandardUniform
        >>> Draw(StandardUniform(), loc=1.0, scale=0.5).spread.low
        0.5
    """

    standard: Standard
    loc: float = 0.0
    scale: float = 1.0

    @property
    def spread(self) -> Spread:
        """Moments and bounds of the distribution."""
        std, reach = self.scale * self.standard.std, self.scale * self.standard.reach
        bounded = math.isfinite(reach)
        low, high = (self.loc - reach, self.loc + reach) if bounded else (None, None)
        return Spread(self.loc, std, low, high, self.standard.kurtosis)

    def scaled(self, factor: float) -> "Draw":
        """Return the distribution of `factor` times the numbers; all are symmetric."""
        return Draw(self.standard, self.loc * factor, self.scale * abs(factor))


@dataclass(frozen=True, slots=True)
class Independent:
    """Elements that are drawn independently, of one distribution or of one for each packed block.

    Examples:
        >>> from torch_initpolicy.tensors.standards import StandardNormal
        >>> Independent((Draw(StandardNormal(), scale=0.02),)).spread.std
        0.02
    """

    draws: tuple[Draw, ...]

    @property
    def spread(self) -> Spreads:
        """What the numbers will be."""
        return merged_spreads([draw.spread for draw in self.draws])

    def scaled(self, factor: float) -> "Independent":
        """Return the sampler of `factor` times the numbers."""
        return Independent(tuple(draw.scaled(factor) for draw in self.draws))


@dataclass(frozen=True, slots=True)
class Joint:
    """A tensor that is drawn at once, out of standard normals.

    Attributes:
        build: Returns the whole tensor, in the dtype and on the device of the standard normals that
            its argument hands out, fresh ones of any shape at each call.
        spread: What the numbers will be; None where a variance says nothing.

    Examples:
        A random vector of length one:

        >>> unit = Joint(lambda normal: torch.nn.functional.normalize(normal((5,)), dim=0))
        >>> round(unit.build(torch.randn).norm().item(), 6)
        1.0
    """

    build: Callable[[Normals], Tensor]
    spread: Spreads | None = None

    def scaled(self, factor: float) -> "Joint":
        """Return the sampler of `factor` times the numbers."""
        spread = self.spread
        if isinstance(spread, Spread):
            spread = spread.scaled(factor)
        elif spread is not None:
            spread = tuple(each.scaled(factor) for each in spread)
        return Joint(lambda normal: self.build(normal) * factor, spread)


@dataclass(frozen=True, slots=True)
class ByFunction:
    """Code that fills a tensor in place, of which nothing is known before it runs."""

    write_: Callable[[Tensor, torch.Generator | None], None]

    @property
    def spread(self) -> None:
        """Say nothing of the numbers."""


Sampler: TypeAlias = Independent | Joint | ByFunction
"""How the numbers of one tensor are drawn."""


def built(sampler: Sampler, shape: Sequence[int], normal: Normals) -> Tensor:
    """Return a whole tensor, out of standard normals even where its elements are independent."""
    if isinstance(sampler, Joint):
        return sampler.build(normal)
    (draw,) = cast("Independent", sampler).draws
    return _of_normal(draw.standard, normal(shape)) * draw.scale + draw.loc


def _of_normal(standard: Standard, normal: Tensor) -> Tensor:
    """Turn normals into a standard distribution; complex ones part by part."""
    if not normal.is_complex():
        return standard.of_normal(normal)
    parts = standard.of_normal(torch.view_as_real(normal) * math.sqrt(2))
    return torch.view_as_complex(parts) * math.sqrt(0.5)


def _standard_(standard: Standard, flat: Tensor, generator: torch.Generator | None) -> Tensor:
    """Fill with a standard distribution; complex numbers have half the variance in each part."""
    if not flat.is_complex():
        return standard.fill_(flat, generator)
    standard.fill_(torch.view_as_real(flat).view(-1), generator)
    return flat.mul_(math.sqrt(0.5))


def _draw_(draw: Draw, flat: Tensor, generator: torch.Generator | None) -> None:
    if flat.is_complex():
        _standard_(draw.standard, flat, generator).mul_(draw.scale).add_(draw.loc)
    else:
        draw.standard.fill_(flat, generator, draw.loc, draw.scale)


def _block_runs(
    shape: Sequence[int], axes: Axes, start: int, flat: Tensor
) -> tuple[Tensor, Tensor]:
    """Cut the elements from `start` on into runs of one block each: the blocks, and the lengths."""
    axis, stop = cast("int", axes.packed), start + flat.numel()
    inner = math.prod(shape[axis + 1 :])
    first, last = start // inner, -(-stop // inner)
    positions = torch.arange(first, last, device=flat.device)
    edges = torch.tensor(list(itertools.accumulate(axes.blocks)), device=flat.device)
    lengths = torch.full_like(positions, inner)
    lengths[0] -= start - first * inner
    lengths[-1] -= last * inner - stop
    return torch.bucketize(positions % sum(axes.blocks), edges, right=True), lengths


def _mix_(
    draws: Sequence[Draw],
    flat: Tensor,
    runs: tuple[Tensor, Tensor],
    generator: torch.Generator | None,
) -> None:
    """Fill each run with the distribution of its block."""
    blocks, lengths = runs

    def each(values: Sequence[float]) -> Tensor:
        column = torch.tensor(values, dtype=flat.real.dtype, device=flat.device)
        return column[blocks].repeat_interleave(lengths, output_size=flat.numel())

    first, *others = dict.fromkeys(draw.standard for draw in draws)
    _standard_(first, flat, generator)
    for standard in others:
        drawn = _standard_(standard, torch.empty_like(flat), generator)
        theirs = each([draw.standard == standard for draw in draws])
        flat.copy_(torch.where(theirs == 1, drawn, flat))
    flat.mul_(each([draw.scale for draw in draws])).add_(each([draw.loc for draw in draws]))


def fill_with(
    draws: Sequence[Draw],
    flat: Tensor,
    shape: Sequence[int],
    axes: Axes | None,
    *,
    start: int = 0,
    generator: torch.Generator | None = None,
) -> None:
    """Fill `flat` with elements `start, start + 1, ...` of a flattened tensor.

    It is contiguous, one-dimensional, and of a dtype that `working_dtype` returns; of several draws
    each is that of a packed block.
    """
    if not flat.numel():
        return
    if draws.count(draws[0]) == len(draws):
        _draw_(draws[0], flat, generator)
    else:
        _mix_(draws, flat, _block_runs(shape, cast("Axes", axes), start, flat), generator)
