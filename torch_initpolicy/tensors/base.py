"""What initializers share: their words, what they know of a site, and what they say of numbers."""

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from torch_initpolicy.errors import PolicyError, nearest
from torch_initpolicy.tensors.axes import Axes, Fans, block_ranges, check_axes, conventional, part

Gain = float | Literal["meets", "fed_by", "signal"]
"""A factor of the standard deviation: a number, the gain of the activation that the weight's output
meets or that its input is fed by, or the one that gives its output the second moment 1. Words
become numbers by `resolve`."""

Mode = Literal["fan_in", "fan_out", "fan_avg", "fan_geo"]
"""Which fan divides the variance: one of the two, or their arithmetic or geometric mean."""

Distribution = Literal["normal", "uniform", "truncated_normal"]
"""What is drawn; the truncated normal is cut at two standard deviations."""

Normals = Callable[[Sequence[int]], Tensor]
"""Hands out standard normals of a shape, fresh ones at each call; tells dtype and device too."""


@dataclass(frozen=True, slots=True)
class Shared:
    """How the variance of a weight in use is shared out among the factors that make it.

    Its standard deviation is `growth` times the product of those of its factors; both the weight in
    use and the parameter have fans.
    """

    factors: int
    growth: float
    used: Fans
    own: Fans


@dataclass(frozen=True, slots=True)
class Context:
    """What an initializer may want to know of its site, in numbers.

    Attributes:
        meets_gain: Gain of the activation that the site's output meets.
        fed_gain: Gain of the activation that its input comes from.
        signal_gain: One over the root mean square of what it reads.
        residual_branches: How many residual branches the model has.
        branch_depth: How many weights lie on the longest path through the site's own branch.
        multiplier: Product of the known constants between the numbers drawn and the function that
            reads the result; variance scaling takes them out again.
        weight_multiplier: The part of it that the weight itself is multiplied by.
        shared: How the weight in use is made of several parameters; None where it is one.
    """

    meets_gain: float = 1.0
    fed_gain: float = 1.0
    signal_gain: float = 1.0
    residual_branches: int = 0
    branch_depth: int = 0
    multiplier: float = 1.0
    weight_multiplier: float = 1.0
    shared: Shared | None = None

    def gain(self, gain: Gain) -> float:
        """Return a gain as a number, over the known constants between numbers and activation.

        For `"signal"` all constants before the weight are in what it reads already.
        """
        if gain == "signal":
            return self.signal_gain / self.weight_multiplier
        number = {"meets": self.meets_gain, "fed_by": self.fed_gain}.get(str(gain), gain)
        return float(number) / self.multiplier


@dataclass(frozen=True, slots=True)
class Spread:
    """What the numbers of a filled tensor will be.

    Attributes:
        mean: Their mean.
        std: Their standard deviation.
        low: No number is less; None where there is no bound.
        high: No number is greater; None where there is no bound.
        kurtosis: Their fourth central moment over the squared variance, at most: a sample of `n`
            has a relative error of `sqrt((kurtosis - 1) / (4 * n))` in its standard deviation.
    """

    mean: float
    std: float
    low: float | None = None
    high: float | None = None
    kurtosis: float = 3.0

    def scaled(self, factor: float) -> "Spread":
        """Return the spread of `factor` times the numbers, `factor` being positive."""
        low, high = (None if bound is None else bound * factor for bound in (self.low, self.high))
        return Spread(self.mean * factor, self.std * factor, low, high, self.kurtosis)


Spreads = Spread | tuple[Spread, ...]
"""One for the whole tensor, or one per packed block where they differ."""


def merged_spreads(spreads: Sequence[Spread]) -> Spreads:
    """Return one spread where all packed blocks have the same, else all of them."""
    return spreads[0] if len(set(spreads)) == 1 else tuple(spreads)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the word for a dtype, as it stands in messages and files: `"bfloat16"`."""
    return str(dtype).removeprefix("torch.")


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which numbers are drawn before they are rounded to `dtype`, or raise."""
    if str(dtype) in _NO_NUMBERS:
        raise PolicyError(f"cannot initialise {dtype}: {_NO_NUMBERS[str(dtype)]}")
    if dtype.is_complex:
        return torch.complex128 if dtype == torch.complex128 else torch.complex64
    if not dtype.is_floating_point:
        raise PolicyError(f"cannot initialise {dtype}: it holds no real or complex numbers")
    return torch.float64 if dtype == torch.float64 else torch.float32


def widened(tensor: Tensor) -> Tensor:
    """Return a tensor, in float16 where it has floats of one byte: torch only copies such."""
    return tensor.half() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


_NO_NUMBERS: Mapping[str, str] = MappingProxyType(
    {
        "torch.float8_e8m0fnu": "it holds powers of two alone, no zero and nothing negative",
        "torch.float4_e2m1fn_x2": "each of its elements holds two numbers",
    }
)
"""Floating-point dtypes that only store scales or packs, by name: not every torch has them."""


def take_number(owner: object, name: str, low: float = -math.inf) -> None:
    """Make a field a plain number from `low` on: NumPy's, and tensors of no dimension, are such."""
    given = getattr(owner, name)
    number = plain_number(given)
    if number is None or not (math.isfinite(number) and number >= low):
        least = "" if low == -math.inf else f" from {low:g} on"
        kind = type(owner).__name__
        raise PolicyError(f"{kind}: {name} must be a finite number{least}, got {given!r:.80}")
    object.__setattr__(owner, name, number)


@runtime_checkable
class _Scalar(Protocol):
    """A number of NumPy or torch, where its shape is `()`."""

    @property
    def shape(self) -> Sequence[int]:
        """Its shape."""

    def item(self) -> object:
        """Return the number as Python's own."""


def plain_number(value: object) -> float | None:
    """Return a real number as Python's own, an integer as an integer; None for anything else."""
    if type(value) is float:  # nearly all are, and asking a protocol is slow
        return value
    try:
        if isinstance(value, _Scalar) and tuple(value.shape) == ():
            value = value.item()
        if isinstance(value, bool) or not isinstance(value, (int, numbers.Real)):
            return None
        number = float(value)  # an integer of 400 digits is too large to count with
        return int(value) if isinstance(value, int) else number
    except (OverflowError, RuntimeError):  # a tensor on the meta device has no number
        return None


def require_word(owner: object, name: str, value: object, words: Sequence[str]) -> None:
    """Raise where a field is none of the words it may be."""
    if value not in words:
        kind, known = type(owner).__name__, ", ".join(map(repr, words))
        meant = nearest(value, words) if isinstance(value, str) else ""
        raise PolicyError(f"{kind}: {name} is one of {known}, got {value!r}{meant}")


def take_gain(owner: object, gain: Gain) -> None:
    """Make the field `gain` a plain number from 0 on where it is no word."""
    if isinstance(gain, str):
        require_word(owner, "gain", gain, ("meets", "fed_by", "signal"))
    else:
        take_number(owner, "gain", 0.0)


def known(gain: Gain) -> float:
    """Return a gain that is a number already, or raise."""
    if isinstance(gain, str):
        raise PolicyError(
            f"gain={gain!r} is known in a plan, where the data flow has been read; "
            "call resolve(Context(...)) first, or write a number"
        )
    return gain


def fitting(owner: object, shape: Sequence[int], axes: Axes | None) -> Axes:
    """Return the axes of a tensor that has inputs and outputs, or raise where it has none."""
    try:
        layout = conventional(shape) if axes is None else axes
        check_axes(shape, layout)
        for block in range(len(layout.blocks)):
            part(shape, layout, block)
    except ValueError as error:
        raise PolicyError(f"{owner} does not fit: {error}") from None
    return layout


def parts(shape: Sequence[int], axes: Axes) -> list[tuple[tuple[int, ...], Axes]]:
    """Return shape and axes of each packed block, or of the whole tensor."""
    if axes.packed is None:
        return [(tuple(shape), axes)]
    return [part(shape, axes, block) for block in range(len(axes.blocks))]


def joined_blocks(shape: Sequence[int], axes: Axes, blocks: Sequence[Tensor]) -> Tensor:
    """Put packed blocks together again."""
    if axes.packed is None:
        return blocks[0]
    whole = blocks[0].new_empty(tuple(shape))
    for block, ranges in zip(blocks, block_ranges(shape, axes), strict=True):
        index = torch.cat([torch.arange(r.start, r.stop, device=whole.device) for r in ranges])
        whole.index_copy_(axes.packed, index, block)
    return whole
