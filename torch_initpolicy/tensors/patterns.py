"""What a tensor holds that no zero-mean random draw leaves behind.

Each test has a probability below `FALSE_PATTERN` on a tensor of independent normal, uniform,
truncated or any other symmetric unimodal numbers, whatever their scale, and on random orthogonal
matrices; scales that differ from block to block change nothing.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

FALSE_PATTERN = 1e-7
"""Probability with which one test may take random numbers for a pattern."""


@torch.no_grad()
def constant_in(tensor: Tensor) -> float | None:
    """Return the number that a tensor is filled with; None where it holds several, or NaN."""
    if tensor.numel() == 0 or tensor.is_complex():
        return None
    first = tensor[(0,) * tensor.ndim]
    if bool((_sample(tensor, _FEW) != first).any()) or bool((tensor != first).any()):
        return None
    return float(first)


@torch.no_grad()
def is_unwritten(tensor: Tensor) -> bool:
    """Tell whether a tensor is memory that nobody has written to, as `torch.empty` leaves it.

    Addresses and counts, read as floating-point numbers, are subnormal or huge.

    Examples:
        >>> is_unwritten(torch.full((8,), 0x7F12_3456_7890).view(torch.float32))
        True
        >>> is_unwritten(torch.tensor([0.0, -1e-30, 1e6]))
        False
    """
    sample = _sample(tensor, _MANY)
    if not sample.is_floating_point():
        return False
    sizes = sample.double().abs()
    subnormal = (sizes > 0) & (sizes < torch.finfo(torch.float32).tiny)
    return bool((subnormal | (sizes > _HUGE)).any())


_HUGE = 1e18
"""Size beyond which a number is no weight: its square is at the end of float32."""

_FEW, _MANY = 8, 256
"""How many elements are looked at to rule a constant out, and to find numbers that repeat."""


def _sample(tensor: Tensor, most: int) -> Tensor:
    """Return at most `most` elements from all over a tensor, the same ones each time."""
    if tensor.numel() <= most:
        return tensor.flatten()
    return tensor.take((_SAMPLED[most] * tensor.numel()).long().to(tensor.device))


_SAMPLED = {
    count: torch.rand(
        count, generator=torch.Generator().manual_seed(0), dtype=torch.double, device="cpu"
    )
    for count in (_FEW, _MANY)
}
"""Places all over a tensor, as shares of its length."""


@torch.no_grad()
def structure_in(tensor: Tensor, *, out: int | None = 0, groups: int = 1) -> str | None:
    """Say which pattern a weight holds that was computed, not drawn; None where there is none.

    Output units lie along axis `out`; `groups` is that of a grouped convolution.
    """
    if tensor.is_complex() or not tensor.is_floating_point() or tensor.numel() < _LEAST:
        return None
    rows = tensor.movedim(out or 0, 0) if tensor.ndim > 1 else tensor[:, None]
    copied = rows.shape[0] > 1 and torch.equal(rows[0], rows[1])
    sample = _sample(rows[0] if copied else tensor, _MANY)
    if not bool(torch.isfinite(sample).all()):
        return None
    return (
        (_identity(tensor) if out is not None and tensor.ndim > 1 else None)
        or (_copies(rows.flatten(1), groups) if copied else None)
        or _repeats(sample)
        or _smooth(rows[:_CORNER].flatten(1)[:, :_CORNER].double())
    )


_LEAST = 8
"""Elements below which numbers are too few to tell a pattern from a draw."""

_CORNER = 32


def _repeats(numbers: Tensor) -> str | None:
    """Find few magnitudes in many places: bilinear kernels, rings, wavelets, sparse matrices.

    Draws of 24 bits hardly ever repeat; those of 8 bits, or cast from such, do: two magnitudes in
    a hundred pairs agree, so a few numbers are compared, and most of them have to.
    """
    numbers, share = numbers.abs(), 0.6
    if any(bool((numbers.to(coarse) == numbers).all()) for coarse in _COARSE):
        numbers, share = numbers[:: -(-numbers.numel() // _COMPARED)], 0.25
    found = int(numbers.sort().values.diff().count_nonzero()) + 1
    if numbers.numel() < _LEAST or found > numbers.numel() * share:
        return None
    zeros = float((numbers == 0).double().mean())
    few = "1 magnitude" if found == 1 else f"{found} magnitudes"
    return f"{zeros:.0%} zeros" if zeros >= _SPARSE else f"{few} in {numbers.numel()} places"


_COARSE, _COMPARED, _SPARSE = (torch.bfloat16, torch.float16), 32, 0.5


def _identity(tensor: Tensor) -> str | None:
    """Find an identity, scaled or with noise around it; of a kernel, at its centre.

    Eight standard deviations of a mean of four have a probability of 1e-57 for normal numbers, and
    the diagonal's own numbers agree.
    """
    centre = tensor[:_CORNER, :_CORNER]
    for size in tensor.shape[2:]:
        centre = centre[:, :, size // 2]
    ones = centre.diagonal().float()
    if ones.numel() < 4:
        return None
    mean, spread = float(ones.mean()), float(ones.std())
    if abs(mean) <= _STANDS_OUT * spread:
        return None
    square = centre[: ones.numel(), : ones.numel()].float()
    beside = (square - square.diagonal().diag()).norm() / math.sqrt(square.numel() - ones.numel())
    if abs(mean) <= _STANDS_OUT * float(beside):
        return None
    name = "identity" if tensor.ndim == 2 else "identity kernel"
    return name if math.isclose(mean, 1, rel_tol=0.05) else f"{name} times {mean:.3g}"


_STANDS_OUT = 8.0
"""How far a diagonal stands out of the numbers beside it, and of its own differences."""


def _copies(rows: Tensor, groups: int) -> str | None:
    """Find one kernel in all groups (a wavelet), or one in every `r * r` rows (ICNR)."""
    if rows.numel() < 2 * _LEAST or bool((rows[0] == rows[0, 0]).all()):
        return None
    if groups > 1 and bool((rows == rows[0]).all()):
        return "one kernel in every group"
    times = next((r * r for r in (2, 3, 4) if _repeat(rows, r * r)), None)
    return None if times is None else f"each kernel {times} times, for subpixels"


def _repeat(rows: Tensor, times: int) -> bool:
    """Say whether each row stands `times` times in succession, and no more often."""
    if rows.shape[0] % times or rows.shape[0] == times:
        return False
    packs = rows.reshape(-1, times, rows.shape[1])
    return bool((packs == packs[:, :1]).all()) and not bool((packs[1, 0] == packs[0, 0]).all())


def _smooth(corner: Tensor) -> str | None:
    """Find neighbours that agree, along rows or columns: sinusoids, ramps, Gabor filters.

    The correlation of independent neighbours has a standard deviation of at most
    `1 / sqrt(numel)`: here 1 / 16.
    """
    if corner.numel() < _ENOUGH:
        return None
    lines = (lines for lines in (corner, corner.T) if lines.shape[1] >= _LEAST)
    return "neighbours agree" if any(_lagged(each) > _AGREE for each in lines) else None


_ENOUGH, _AGREE = 256, 0.6


def _lagged(lines: Tensor) -> float:
    """Return the correlation of neighbours within each line, all lines counting equally."""
    centred = lines - lines.mean(1, keepdim=True)
    unit = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return float((unit[:, 1:] * unit[:, :-1]).sum(1).mean())


# Biases


@torch.no_grad()
def purpose_in(bias: Tensor, scale: float = 0.0) -> str | None:
    """Say what a bias is for that no zero-mean random draw is; None where it may be one.

    Gates may be packed in it; the layer's own default could have drawn numbers up to `scale`.
    """
    numbers = bias.detach().flatten()
    if numbers.numel() == 0 or bias.is_complex() or not bool(torch.isfinite(numbers).all()):
        return None
    zeros = int((numbers == 0).sum())
    if zeros == numbers.numel():
        return None
    if numbers.numel() == 1:
        return _of_one(float(numbers), scale) if numbers.element_size() >= 4 else None
    if zeros >= 8 // numbers.element_size() and zeros * 2 >= numbers.numel():
        return f"bias of zeros but for {numbers.numel() - zeros}"
    return next((found for part in _parts(numbers) if (found := _one_sided(part))), None)


def _parts(numbers: Tensor) -> Iterator[Tensor]:
    """Yield a bias, and the gates that may be packed in it."""
    for count in (1, 2, 3, 4):
        if numbers.numel() % count == 0:
            yield from numbers.reshape(count, -1)


def _one_sided(numbers: Tensor) -> str | None:
    """Find numbers of one sign and of magnitudes so equal that chance can be ruled out.

    With `ratio` the least magnitude over the largest, `n` independent numbers of a symmetric
    unimodal distribution come to this with a probability of at most `((1 - ratio) / 2) ** (n - 1)`:
    signs agree with `1 / 2` each, and a density that falls lets at most `1 - ratio` of what is
    below the largest lie so near to it.
    """
    low, high = (float(edge) for edge in numbers.float().aminmax())
    if low * high <= 0:
        return None
    near, far = sorted((abs(low), abs(high)))
    resolution = torch.finfo(numbers.dtype).eps
    chance = (max(1 - near / far, resolution) / 2) ** (numbers.numel() - 1)
    if chance > FALSE_PATTERN:
        return None
    if near == far:
        return f"bias of {low:.4g}: a prior"
    return f"biases from {low:.3g} to {high:.3g}, all of one sign"


def _of_one(number: float, scale: float) -> str | None:
    """Judge a single number: a round one, or the log odds of a round probability.

    One in a million of what a normal draw leaves beyond `scale` is such a number by chance.
    """
    if abs(number) <= scale or abs(number) < 0.5:
        return None
    is_round = number == round(number) or (abs(number) < 4 and number * 4 == round(number * 4))
    is_near = abs(number) < 16
    return f"bias of {number:.4g}: a prior" if is_near and (is_round or _is_prior(number)) else None


def _is_prior(number: float) -> bool:
    """Say whether a number is the log odds of one digit behind zeros: 0.01, 0.002, ..."""
    odds = 1 / (1 + math.exp(abs(number)))
    step = 10.0 ** math.floor(math.log10(odds))
    log_odds = (math.log((1 - p) / p) for p in (digit * step for digit in range(1, 11)) if p < 1)
    return abs(number) > 2 and any(
        math.isclose(abs(number), each, rel_tol=2.5e-7) for each in log_odds
    )
