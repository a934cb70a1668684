"""Standard distributions, of mean zero and no unit, and random orthogonal matrices.

The code is the package's own where torch's changed between versions (`trunc_normal_`) or does more
work than it needs (`orthogonal_`).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

UNCUT = 8.0
"""Standard deviations beyond which a cut changes nothing: one value in 10^15."""

_INVERTIBLE = 3.0  # up to here float32 has enough digits left near the ends for the inverse CDF
_WITHIN = 1 - 2.0**-20  # so that rounding after a change of scale does not reach the bound


class Standard(Protocol):
    """A distribution of mean zero, before it is shifted and scaled."""

    @property
    def std(self) -> float:
        """Its standard deviation."""

    @property
    def reach(self) -> float:
        """The bound that no absolute value exceeds; infinite where there is none."""

    @property
    def kurtosis(self) -> float:
        """Its fourth moment over its squared variance."""

    def fill_(
        self, flat: Tensor, generator: torch.Generator | None, loc: float = 0.0, scale: float = 1.0
    ) -> Tensor:
        """Fill a contiguous real tensor with `loc + scale * x`, and return it."""

    def of_normal(self, normal: Tensor) -> Tensor:
        """Turn standard normals into this distribution."""


@dataclass(frozen=True, slots=True)
class Zero:
    """Always zero."""

    std = 0.0
    reach = 0.0
    kurtosis = 1.0

    def fill_(
        self, flat: Tensor, generator: torch.Generator | None, loc: float = 0.0, scale: float = 1.0
    ) -> Tensor:
        return flat.fill_(loc)

    def of_normal(self, normal: Tensor) -> Tensor:
        return torch.zeros_like(normal)


@dataclass(frozen=True, slots=True)
class StandardUniform:
    """Uniform on `[-1, 1)`."""

    std = 1 / math.sqrt(3)
    reach = 1.0
    kurtosis = 9 / 5

    def fill_(
        self, flat: Tensor, generator: torch.Generator | None, loc: float = 0.0, scale: float = 1.0
    ) -> Tensor:
        return flat.uniform_(loc - scale, loc + scale, generator=generator)

    def of_normal(self, normal: Tensor) -> Tensor:
        return torch.erf(normal / math.sqrt(2))


def truncation(cut: float) -> float:
    """Return the standard deviation of a standard normal that is cut at `-cut` and `cut`."""
    if cut < 1e-3:
        return cut / math.sqrt(3)  # as good as uniform, and the formula below loses its digits
    return math.sqrt(max(1 - 2 * cut * _density_at_cut(cut), 0.0))


def _density_at_cut(cut: float) -> float:
    inside = math.erf(cut / math.sqrt(2))
    return math.exp(-cut * cut / 2) / math.sqrt(2 * math.pi) / inside


@dataclass(frozen=True, slots=True)
class StandardNormal:
    """Normal of variance one before it is cut at `-cut` and `cut`; a cut from 8 on changes nothing.

    Up to 3 the inverse of the distribution function is applied to uniform numbers; beyond, where
    float32 has too few numbers near 1 to reach the tails evenly, the few outliers are drawn again.
    """

    cut: float = math.inf

    @property
    def std(self) -> float:
        return 1.0 if self.cut >= UNCUT else truncation(self.cut)

    @property
    def reach(self) -> float:
        return math.inf if self.cut >= UNCUT else self.cut

    @property
    def kurtosis(self) -> float:
        return 3.0

    def fill_(
        self, flat: Tensor, generator: torch.Generator | None, loc: float = 0.0, scale: float = 1.0
    ) -> Tensor:
        """Fill with numbers that lie less than `cut * scale` from `loc`."""
        if self.cut >= UNCUT:
            return flat.normal_(loc, scale, generator=generator)
        if self.cut <= _INVERTIBLE:
            self._invert_(flat, generator, scale)
        else:
            self._reject_(flat, generator, scale)
        return flat.add_(loc) if loc else flat

    def _invert_(self, flat: Tensor, generator: torch.Generator | None, scale: float) -> None:
        inside = math.erf(self.cut / math.sqrt(2))
        bound = self.cut * scale * _WITHIN
        flat.uniform_(-inside, inside, generator=generator)
        flat.erfinv_().mul_(math.sqrt(2) * scale).clamp_(-bound, bound)

    def _reject_(self, flat: Tensor, generator: torch.Generator | None, scale: float) -> None:
        bound = self.cut * scale * _WITHIN
        flat.normal_(std=scale, generator=generator)
        outside = (flat.abs() > bound).nonzero().squeeze(1)
        while len(outside):
            fresh = flat.new_empty(len(outside)).normal_(std=scale, generator=generator)
            flat[outside] = fresh
            outside = outside[fresh.abs() > bound]

    def of_normal(self, normal: Tensor) -> Tensor:
        """Map the normal's quantiles to those of the cut normal."""
        if self.cut >= UNCUT:
            return normal
        inside = math.erf(self.cut / math.sqrt(2))
        quantiles = torch.erfinv(inside * torch.erf(normal.double() / math.sqrt(2)))
        bound = self.cut * _WITHIN
        return (quantiles * math.sqrt(2)).clamp_(-bound, bound).to(normal.dtype)


@dataclass(frozen=True, slots=True)
class Transformed:
    """The distribution of a function of a standard normal: any continuous one, by its quantiles.

    Args:
        of_normal: Computes the distribution's numbers, element by element, from standard normals.
        std: Its standard deviation.
        kurtosis: Its fourth moment over its squared variance; 3 for a normal.
        reach: The bound that no absolute value exceeds.

    Examples:
        >>> cubed = Transformed(lambda normal: normal**3, std=math.sqrt(15), kurtosis=10395 / 225)
        >>> values = cubed.fill_(torch.empty(100_000), torch.Generator().manual_seed(0))
        >>> abs(values.std().item() / cubed.std - 1) < 0.05
        True
    """

    of_normal: Callable[[Tensor], Tensor]
    std: float
    kurtosis: float = 3.0
    reach: float = math.inf

    def fill_(
        self, flat: Tensor, generator: torch.Generator | None, loc: float = 0.0, scale: float = 1.0
    ) -> Tensor:
        flat.normal_(generator=generator)
        return flat.copy_(self.of_normal(flat)).mul_(scale).add_(loc)


# Random orthogonal matrices

_PANEL = 64  # reflections applied at once; 32 to 128 are equally fast


class _Reflectors(NamedTuple):
    """Householder reflections `1 - v v* / half` of rows `v`, and the phases that make them Haar."""

    vectors: Tensor
    halves: Tensor
    phases: Tensor


def _reflectors(normal: Tensor) -> _Reflectors:
    vectors = normal.triu()
    pivots = vectors.diagonal(dim1=-2, dim2=-1)
    pivots.masked_fill_(pivots == 0, 1e-10)  # an exact zero has no phase
    phases = pivots.sgn()
    wide = torch.promote_types(vectors.dtype, torch.float64)
    norms = torch.linalg.vector_norm(vectors, dim=-1, dtype=wide)
    others = norms.square() - pivots.abs().double().square()
    pivots += phases * norms.to(pivots.real.dtype)
    # Half the squared length of the vectors as they are stored, so that rounding does no harm.
    return _Reflectors(vectors, (others + pivots.abs().double().square()) / 2, phases)


def haar(normal: Tensor) -> Tensor:
    r"""Turn standard normals into matrices with orthonormal rows, uniform among all such.

    The matrix is the product of Householder reflections by independent normal vectors of falling
    length: what a QR decomposition of a normal matrix would yield, without decomposing anything.
    Reflections are applied 64 at a time in the compact form

    .. math:: H_1 \cdots H_k = 1 - V T^{-1} V^*, \qquad T + T^* = V^* V

    where `T` is triangular; the relation holds whatever the rounding of `V`, hence the result is
    orthogonal to a few units of the last place.

    Args:
        normal: Standard normals, real or complex, `(..., rows, columns)`, rows <= columns. What
            lies below the diagonal is not used.

    Returns:
        Matrices of the same shape.

    Reference:
        Stewart, *The Efficient Generation of Random Orthogonal Matrices with an Application to
        Condition Estimators*, 1980, section 3; Mezzadri, *How to generate random matrices from the
        classical compact groups*, 2007, arXiv:math-ph/0609050; Joffrain et al., *Accumulating
        Householder transformations, revisited*, 2006 (the compact form).
    """
    vectors, halves, phases = _reflectors(normal)
    matrix = torch.zeros_like(vectors)
    matrix.diagonal(dim1=-2, dim2=-1).copy_(-phases)
    for start in reversed(range(0, vectors.shape[-2], _PANEL)):
        panel = vectors[..., start : start + _PANEL, start:]
        triangle = (panel @ panel.mH).tril_()
        triangle.diagonal(dim1=-2, dim2=-1).copy_(halves[..., start : start + _PANEL])
        rest = matrix[..., start:, start:]
        weights = torch.linalg.solve_triangular(triangle, rest @ panel.mH, upper=False, left=False)
        rest -= weights @ panel
    return matrix
