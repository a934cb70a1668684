"""Tests whether two tensors were drawn from one distribution, and puts distributions into words.

Each test gives a probability that two draws of one distribution differ as much as these two do.
What is no matter of chance (constants, zero rows, copies, orthogonality) has the probability 0
where it differs, and no test where it agrees.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from torch_initpolicy.tensors.standards import truncation

SAMPLE = 2**16
"""Elements whose order is compared; of larger tensors an evenly spread part is taken."""

RELEVANT = 0.02
"""Differences below this are never reported: of a mean in standard deviations, of a standard
deviation relatively. A spectral norm, say, gives every draw a scale of its own within that."""

FEW = 30
"""Elements below which only the order of the values is tested, which needs no large numbers."""

_PARTS = (2, 3, 4)
"""Into how many equal parts along its first axis a tensor is cut: gates, q/k/v, value and gate."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """One comparison of two tensors.

    Attributes:
        what: What was compared: `"scale"`, `"mean"`, `"shape"`, `"bounds"`, `"zeros"`, ...
        probability: How probable so large a difference is where both have one distribution.
        mine: The figure of the first tensor, in words.
        reference: The figure of the second.
    """

    what: str
    probability: float
    mine: str
    reference: str


def contrasts(mine: Tensor, reference: Tensor) -> Iterator[Contrast]:
    """Yield every test of two tensors of one shape."""
    first, second = _real(mine), _real(reference)
    if torch.equal(first, second) or first.numel() == 0:
        return
    fixed = next(_fixed(first, second), None)
    if fixed is not None:
        yield fixed
        return
    if _is_close(first, second):
        return
    copies = _copies(first), _copies(second)
    yield from _structure(first, second, copies)
    parts = (_random_part(*side) for side in zip((first, second), copies, strict=True))
    yield from _of_values(*parts)
    yield from _of_parts(first, second)


def _real(tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor in double precision; complex ones as an axis of two."""
    plain = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return plain.detach().to("cpu", torch.float64)


def _is_close(first: Tensor, second: Tensor) -> bool:
    return bool(torch.allclose(first, second, rtol=1e-4, atol=1e-8))


# What is no matter of chance


def _fixed(first: Tensor, second: Tensor) -> Iterator[Contrast]:
    """Yield the difference of two tensors one of which is constant or not finite."""
    constant = [_is_constant(side) for side in (first, second)]
    if not all(bool(side.isfinite().all()) for side in (first, second)):
        yield Contrast("finite", 0.0, in_words(first), in_words(second))
    elif constant[0] != constant[1] or (constant[0] and not _is_close(first, second)):
        yield Contrast("constant", 0.0, in_words(first), in_words(second))


def _is_constant(values: Tensor) -> bool:
    return bool((values == values.flatten()[0]).all())


def _structure(first: Tensor, second: Tensor, copies: tuple[int, int]) -> Iterator[Contrast]:
    """Yield the differences in zeros, copies and orthogonality."""
    if first.dim() > 1:
        for axis in (0, first.dim() - 1):
            rows = _zero_slices(first, axis), _zero_slices(second, axis)
            if not torch.equal(*rows):
                count = (f"{int(row.sum())} of {len(row)}" for row in rows)
                yield Contrast(f"zero slices along axis {axis}", 0.0, *count)
        orthogonal = is_orthogonal(first), is_orthogonal(second)
        for what, found in (("copied rows", copies), ("orthogonality", orthogonal)):
            if found[0] != found[1]:
                yield Contrast(what, 0.0, str(found[0]), str(found[1]))
    zeros = int((first == 0).sum()), int((second == 0).sum())
    if any(zeros):
        shares = (f"{100 * count / first.numel():.3g} % zeros" for count in zeros)
        yield Contrast("zeros", _of_counts(*zeros, first.numel()), *shares)


def _zero_slices(values: Tensor, axis: int) -> Tensor:
    return (values == 0).movedim(axis, 0).flatten(1).all(1)


def _copies(values: Tensor) -> int:
    """Count the rows that repeat another one, zero rows apart."""
    if values.dim() < 2:
        return 0
    rows = values.flatten(1)
    rows = rows[rows.ne(0).any(1)]
    # A random projection tells unequal rows apart with certainty in double precision.
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(rows.shape[1], dtype=rows.dtype, generator=generator)
    return len(rows) - len(torch.unique(rows @ direction))


def is_orthogonal(values: Tensor) -> bool:
    """Tell whether the shorter side of a matrix, kernel axes flattened, is orthogonal."""
    matrix = values.flatten(1).to(torch.float64)
    matrix = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    if min(matrix.shape) < 2:
        return False
    rows = matrix[:64]
    gram = rows @ rows.T
    off = (gram - gram.diagonal().mean() * torch.eye(len(rows), dtype=gram.dtype)).abs().max()
    return bool(off < 1e-3 * gram.diagonal().mean())


# What is a matter of chance


def _random_part(values: Tensor, copies: int) -> Tensor:
    """Return the elements that chance decides: no zeros, and each of several equal rows once."""
    if copies:
        values = torch.unique(values.flatten(1), dim=0)
    return values[values != 0]


def _chosen(values: Tensor, most: int = SAMPLE) -> Tensor:
    """Return at most about so many elements, evenly spread and sorted."""
    return values[:: max(1, values.numel() // most)].sort().values


def _of_values(a: Tensor, b: Tensor) -> Iterator[Contrast]:
    if min(len(a), len(b)) == 0:
        return
    yield from _moments(a, b, "")
    yield _kolmogorov_smirnov(_chosen(a), _chosen(b))
    yield from _beyond(a, b)


def _of_parts(first: Tensor, second: Tensor) -> Iterator[Contrast]:
    """Yield the tests of equal parts along the first axis: one gate of four may be another."""
    for parts in _PARTS if first.dim() else ():
        if first.shape[0] % parts or first.numel() < parts * FEW:
            continue
        pairs = zip(first.chunk(parts), second.chunk(parts), strict=True)
        for number, (a, b) in enumerate(pairs):
            if not (_is_constant(a) or _is_constant(b)):
                where = f" of part {number + 1} of {parts}"
                yield from _moments(a[a != 0], b[b != 0], where)
            elif not _is_close(a, b):
                yield Contrast(f"part {number + 1} of {parts}", 0.0, in_words(a), in_words(b))


def _moments(a: Tensor, b: Tensor, where: str) -> Iterator[Contrast]:
    """Test mean and standard deviation by their normal approximations.

    The variance of the logarithm of a standard deviation is `(kurtosis - 1) / (4 n)`.
    """
    if min(len(a), len(b)) < FEW:
        return
    sizes, stds = (len(a), len(b)), (a.std().item(), b.std().item())
    if min(stds) == 0:
        return
    error = math.sqrt(stds[0] ** 2 / sizes[0] + stds[1] ** 2 / sizes[1])
    shift = a.mean().item() - b.mean().item()
    if abs(shift) > RELEVANT * max(stds):
        figures = (f"{x.mean().item():.4g}" for x in (a, b))
        yield Contrast(f"mean{where}", _two_sided(shift / error), *figures)
    ratio = math.log(stds[0] / stds[1])
    kurtosis = max(_kurtosis(a), _kurtosis(b))
    spread = math.sqrt((kurtosis - 1) / 4 * (1 / sizes[0] + 1 / sizes[1]))
    if abs(ratio) > RELEVANT:
        probability = _two_sided(ratio / spread) if spread else 0.0
        yield Contrast(f"scale{where}", probability, *(f"std {std:.4g}" for std in stds))


def _kurtosis(values: Tensor) -> float:
    centred = values - values.mean()
    return (centred.pow(4).mean() / centred.pow(2).mean().square()).item()


def _two_sided(z: float) -> float:
    return math.erfc(abs(z) / math.sqrt(2))


def _of_counts(first: int, second: int, n: int) -> float:
    """Test two counts among `n` for one share."""
    share = (first + second) / (2 * n)
    error = math.sqrt(2 * n * share * (1 - share))
    return _two_sided((first - second) / error) if error else float(first == second)


def _kolmogorov_smirnov(a: Tensor, b: Tensor) -> Contrast:
    """Test sorted samples for one distribution.

    Reference:
        Stephens, *Use of the Kolmogorov-Smirnov, Cramer-von Mises and Related Statistics Without
        Extensive Tables*, 1970, for the correction of the statistic at small sizes.
    """
    below = torch.searchsorted(b, a) / len(b)
    probability = _of_distance(_misfit(below), len(a) * len(b) / (len(a) + len(b)))
    sides = (in_words(a), in_words(b)) if probability < _FIT else ("", "")
    return Contrast("shape", probability, *sides)


def _of_distance(distance: float, count: float) -> float:
    """Return how probable so large a distance of two distribution functions is."""
    root = math.sqrt(count)
    return min(1.0, 2 * math.exp(-2 * ((root + 0.12 + 0.11 / root) * distance) ** 2))


def _misfit(probabilities: Tensor) -> float:
    """Return the largest distance of a sorted sample's distribution from a given one."""
    steps = torch.arange(len(probabilities) + 1, dtype=torch.float64) / len(probabilities)
    above, below = steps[1:] - probabilities, probabilities - steps[:-1]
    return max(above.abs().max().item(), below.abs().max().item())


def _beyond(a: Tensor, b: Tensor) -> Iterator[Contrast]:
    """Test how many values of one lie beyond all of the other, at both ends.

    Among `n + m` values of one distribution the `k` largest are all of the first sample with the
    probability of drawing `k` times without replacement. It sees a truncation that hardly changes
    the distribution otherwise.
    """
    for sign, end in ((1.0, "upper"), (-1.0, "lower")):
        x, y = sign * a, sign * b
        counts = int((x > y.max()).sum()), int((y > x.max()).sum())
        sizes = (len(x), len(y)) if counts[0] else (len(y), len(x))
        drawn = range(max(counts))
        chances = (math.log((sizes[0] - i) / (sum(sizes) - i)) for i in drawn if i < sizes[0])
        figures = (f"ends at {sign * v.max().item():.4g}" for v in (x, y))
        yield Contrast(f"{end} bound", 2 * math.exp(sum(chances)) if drawn else 1.0, *figures)


# In words

_FIT = 1e-3
"""Probability below which a family is not named: words may err, tests may not."""

_CUTS = (2.0, 1.0, 3.0)


def in_words(values: Tensor) -> str:
    """Say what a tensor seems to be drawn from."""
    flat = _real(values).flatten()
    if flat.numel() == 0:
        return "no elements"
    if not bool(flat.isfinite().all()):
        return f"{int((~flat.isfinite()).sum())} values not finite"
    if _is_constant(flat):
        return f"constant {flat[0].item():.4g}" if flat[0] else "zeros"
    sample = _chosen(flat, 4096)
    mean, std = sample.mean().item(), sample.std().item()
    around = f", mean {mean:.3g}" if abs(mean) > 4 * std / math.sqrt(len(sample)) else ""
    return _family(sample, mean, std) + around


def _family(sample: Tensor, mean: float, std: float) -> str:
    """Name the first family that fits a sorted sample, if one does."""
    low, high = sample[0].item(), sample[-1].item()
    fits: dict[str, Tensor] = {}
    farthest = max(high - mean, mean - low) / std
    if (2 * NormalDist().cdf(farthest) - 1) ** len(sample) > _FIT:  # else it has been cut
        fits[f"normal, std {std:.4g}"] = torch.special.ndtr((sample - mean) / std)
    fits[f"uniform in [{low:.4g}, {high:.4g}]"] = (sample - low) / (high - low)
    for cut in _CUTS:
        edge = NormalDist().cdf(cut)
        inner = torch.special.ndtr((sample - mean) / (std / truncation(cut)))
        whole = ((inner - (1 - edge)) / (2 * edge - 1)).clamp(0, 1)
        fits[f"normal cut at {cut:.0f} std, std {std:.4g}"] = whole
    for text, probabilities in fits.items():
        if _of_distance(_misfit(probabilities), len(sample)) > _FIT:
            return text
    return f"std {std:.4g}"
