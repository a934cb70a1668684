"""Initializers: frozen values that say how a tensor is to be filled.

All of them are found here; those that are built of others are written here. None has ever heard of
a model. Calling one fills a tensor in place:

>>> weight = torch.empty(64, 3, 7, 7)
>>> he_normal()(weight, generator=torch.Generator().manual_seed(0))
>>> round(weight.std().item() / math.sqrt(2 / (3 * 7 * 7)), 2)
1.0

There are two families. *Element-wise* ones draw every element independently, so that any piece of
a tensor can be drawn alone (`fill_`). *Structured* ones (orthogonal, sparse, identity) need the
whole tensor at once (`build`). A gain multiplies a standard deviation, a scale a variance. The
`std` of every initializer is that of the numbers drawn, after any truncation.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn, cast

import torch
from torch import Tensor, nn

from torch_initpolicy.errors import PolicyError, counted
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.base import (
    Context,
    Distribution,
    Draw,
    Elementwise,
    Gain,
    Initializer,
    Layout,
    Mode,
    Normals,
    Spread,
    Spreads,
    Structured,
    alike,
    fitting,
    joined,
    parts,
    require_number,
    require_word,
)
from torch_initpolicy.tensors.distributions import (
    Constant,
    Normal,
    Ones,
    TruncatedNormal,
    Uniform,
    VarianceScaling,
    Zeros,
    fill_,
    he_normal,
    he_uniform,
    lecun_normal,
    lecun_uniform,
    write_,
    xavier_normal,
    xavier_uniform,
)
from torch_initpolicy.tensors.samplers import Standard
from torch_initpolicy.tensors.structured import (
    DeltaOrthogonal,
    Dirac,
    Identity,
    Orthogonal,
    Sparse,
    write_whole_,
)

__all__ = [
    "ICNR",
    "Blocks",
    "BranchScaled",
    "Constant",
    "DeltaOrthogonal",
    "Dirac",
    "Distribution",
    "From",
    "Gain",
    "Identity",
    "Initializer",
    "Keep",
    "Mode",
    "Normal",
    "Ones",
    "Orthogonal",
    "Sparse",
    "TruncatedNormal",
    "Uniform",
    "VarianceScaling",
    "Zeros",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "xavier_normal",
    "xavier_uniform",
]


@dataclass(frozen=True, slots=True)
class ICNR:
    """Draw a convolution before `nn.PixelShuffle` so that its output has no checkerboard.

    The kernels of the `upscale_factor^2` channels that become one patch of pixels are equal, as if
    the image were resized by nearest neighbour and then convolved. Training tells them apart,
    because each meets pixels of its own.

    Args:
        inner: Draws one kernel per patch; its fans are those of the smaller convolution.
        upscale_factor: That of the `nn.PixelShuffle`.

    Reference:
        Aitken et al., *Checkerboard artifact free sub-pixel convolution*, 2017, arXiv:1707.02937
        (initialization to convolution, nearest-neighbour resize).

    Examples:
        >>> weight = torch.empty(4, 1, 3, 3)
        >>> ICNR(Normal(0.1))(weight)
        >>> bool((weight == weight[0]).all())
        True
    """

    inner: Initializer
    upscale_factor: int = 2

    def __post_init__(self) -> None:
        _builtin(self.inner)
        if not isinstance(self.upscale_factor, int) or self.upscale_factor < 1:
            raise PolicyError(f"ICNR: upscale_factor is an integer, got {self.upscale_factor!r}")

    def resolve(self, context: Context) -> "ICNR":
        """Replace words in the inner initializer by the numbers of a site."""
        return ICNR(_builtin(self.inner).resolve(context), self.upscale_factor)

    def scaled(self, factor: float) -> "ICNR":
        """Return the initializer with the inner one scaled."""
        return ICNR(_builtin(self.inner).scaled(factor), self.upscale_factor)

    def spread(self, shape: Sequence[int], axes: Layout) -> Spreads | None:
        """Say what the numbers will be, each being there `upscale_factor^2` times."""
        spread = _builtin(self.inner).spread(*self._patches(shape, axes))
        if not isinstance(spread, Spread):
            return spread
        kurtosis = 1 + self.upscale_factor**2 * (spread.kurtosis - 1)
        return Spread(spread.mean, spread.std, spread.low, spread.high, kurtosis)

    def _patches(self, shape: Sequence[int], axes: Layout) -> tuple[tuple[int, ...], Axes]:
        """Return shape and axes of the smaller convolution."""
        layout = fitting(self, shape, axes)
        if len(layout.outputs) != 1 or layout.blocks:
            raise PolicyError(f"{self} needs one output axis without packed blocks, got {layout}")
        axis, repeats = layout.outputs[0], self.upscale_factor**2
        if shape[axis] % repeats:
            raise PolicyError(
                f"{self} needs a multiple of {repeats} output channels, got {shape[axis]}"
            )
        patches = (*shape[:axis], shape[axis] // repeats, *shape[axis + 1 :])
        return patches, fitting(self, patches, layout)

    def build(self, shape: Sequence[int], axes: Layout, normal: Normals) -> Tensor:
        """Return the whole tensor."""
        patches, layout = self._patches(shape, axes)
        kernels = _built(self.inner, patches, layout, normal)
        return kernels.repeat_interleave(self.upscale_factor**2, layout.outputs[0])

    __call__ = write_whole_


@dataclass(frozen=True, slots=True)
class Blocks:
    """Give each packed block of a tensor an initializer of its own.

    Args:
        initializers: One per block, in their order along the packed axis.

    Examples:
        The bias of an LSTM's gates, with an open forget gate:

        >>> gates = Axes(inputs=(), outputs=(0,), blocks=(2, 2, 2, 2))
        >>> bias = torch.empty(8)
        >>> Blocks((Zeros(), Ones(), Zeros(), Zeros()))(bias, gates)
        >>> bias.tolist()
        [0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """

    initializers: tuple[Initializer, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "initializers", tuple(self.initializers))
        if not self.initializers:
            raise PolicyError("Blocks needs an initializer for each block, got none")
        for inner in self.initializers:
            if isinstance(inner, Blocks):
                raise PolicyError(f"Blocks: a block has no blocks of its own, got {inner}")
            _builtin(inner)

    def resolve(self, context: Context) -> "Blocks":
        """Replace words in the inner initializers by the numbers of a site."""
        return Blocks(tuple(_builtin(inner).resolve(context) for inner in self.initializers))

    def scaled(self, factor: float) -> "Blocks":
        """Return the initializer with all inner ones scaled."""
        return Blocks(tuple(_builtin(inner).scaled(factor) for inner in self.initializers))

    def _parts(
        self, shape: Sequence[int], axes: Layout
    ) -> Iterator[tuple[Initializer, tuple[int, ...], Axes]]:
        """Yield each inner initializer with the shape and axes of its block."""
        packed = 0 if axes is None else len(axes.blocks)
        if axes is None or packed != len(self.initializers):
            raise PolicyError(
                f"{self} has {counted(len(self.initializers), 'initializer')} for "
                f"{counted(packed, 'packed block')} in a tensor of shape {tuple(shape)}; "
                "pass Axes(..., blocks=...)"
            )
        blocks = parts(shape, fitting(self, shape, axes))
        for inner, (block_shape, block_axes) in zip(self.initializers, blocks, strict=True):
            yield inner, block_shape, block_axes

    def draws(self, shape: Sequence[int], axes: Layout) -> tuple[Draw, ...]:
        """Return the distribution of each packed block, where all are element-wise."""
        return tuple(
            cast("Elementwise", inner).draws(block_shape, block_axes)[0]
            for inner, block_shape, block_axes in self._parts(shape, axes)
        )

    def spread(self, shape: Sequence[int], axes: Layout) -> Spreads | None:
        """Say what the numbers will be; None where a variance says nothing of some block."""
        spreads = [
            _builtin(inner).spread(block_shape, block_axes)
            for inner, block_shape, block_axes in self._parts(shape, axes)
        ]
        found = [spread for spread in spreads if isinstance(spread, Spread)]
        return alike(found) if len(found) == len(spreads) else None

    def build(self, shape: Sequence[int], axes: Layout, normal: Normals) -> Tensor:
        """Return the whole tensor."""
        blocks = [
            _built(inner, block_shape, block_axes, normal)
            for inner, block_shape, block_axes in self._parts(shape, axes)
        ]
        return joined(shape, cast("Axes", axes), blocks)

    fill_ = fill_

    def __call__(
        self, tensor: Tensor, axes: Layout = None, *, generator: torch.Generator | None = None
    ) -> None:
        """Fill `tensor` in place; see the inner initializers."""
        if is_elementwise(self):
            write_(self, tensor, axes, generator=generator)
        else:
            write_whole_(self, tensor, axes, generator=generator)


@dataclass(frozen=True, slots=True)
class BranchScaled:
    """Make an initializer smaller in models of many residual branches.

    Its numbers are multiplied by `branches ** exponent`, where `branches` counts all residual
    branches of the model. What it is applied to is the choice of a rule. The factor is 1 where the
    model has no branches.

    Args:
        inner: What is made smaller.
        exponent: A number, or `"fixup"` for `-1 / (2 * depth - 2)` with the number `depth` of
            weights in the branch; a branch of a single weight is then left as it is.

    Reference:
        Radford et al., *Language Models are Unsupervised Multitask Learners* (GPT-2), 2019,
        section 2.3 (`exponent=-0.5`); Zhang, Dauphin and Ma, *Fixup Initialization*, 2019,
        arXiv:1901.09321, section 3, rule 2.

    Examples:
        >>> BranchScaled(Normal(0.02)).resolve(Context(residual_branches=4))
        Normal(std=0.01, mean=0.0)
    """

    inner: Initializer
    exponent: float | Literal["fixup"] = -0.5

    def __post_init__(self) -> None:
        _builtin(self.inner)
        if isinstance(self.exponent, str):
            require_word(self, "exponent", self.exponent, ("fixup",))
        else:
            require_number(self, "exponent", self.exponent)

    def _factor(self, context: Context) -> float:
        exponent = self.exponent
        if isinstance(exponent, str):
            exponent = -1 / (2 * context.branch_depth - 2) if context.branch_depth > 1 else 0.0
        return float(max(context.residual_branches, 1) ** exponent)

    def resolve(self, context: Context) -> Initializer:
        """Return the inner initializer, made smaller by the numbers of a site."""
        inner = _builtin(_builtin(self.inner).resolve(context))
        return inner.scaled(self._factor(context))

    def scaled(self, factor: float) -> "BranchScaled":
        """Return the initializer with the inner one scaled."""
        return BranchScaled(_builtin(self.inner).scaled(factor), self.exponent)

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        """Raise: the branches are known in a plan only."""
        raise PolicyError(
            f"{self} is known in a plan, where the residual branches have been counted; "
            "call resolve(Context(residual_branches=...)) first"
        )

    draws = spread = build = fill_ = __call__ = _refuse


#
# What is not ours to draw
#


@dataclass(frozen=True, slots=True)
class Keep:
    """Leave the tensor as it is: the constructor's value, or whatever has been loaded.

    Examples:
        >>> weight = torch.ones(2)
        >>> Keep()(weight)
        >>> weight
        tensor([1., 1.])
    """

    def resolve(self, context: Context) -> "Keep":
        """Return the initializer itself."""
        return self

    def spread(self, shape: Sequence[int], axes: Layout) -> None:
        """Say nothing: the numbers are not known."""

    def __call__(
        self, tensor: Tensor, axes: Layout = None, *, generator: torch.Generator | None = None
    ) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True, init=False, repr=False)
class From:
    """Fill a tensor by any function that writes its argument, such as those of `torch.nn.init`.

    A generator reaches the function even where it takes none: torch's own generators are seeded
    from it for the call, and put back afterwards.

    Args:
        function: Called with the tensor; fills it in place. What it returns is not used.
        **arguments: Passed on by name.

    Examples:
        >>> From(torch.nn.init.constant_, val=3.0)
        From(torch.nn.init.constant_, val=3.0)
        >>> tensor = torch.empty(2)
        >>> From(torch.nn.init.constant_, val=3.0)(tensor)
        >>> tensor.tolist()
        [3.0, 3.0]
    """

    function: Callable[..., object]
    arguments: tuple[tuple[str, object], ...]

    def __init__(self, function: Callable[..., object], **arguments: object) -> None:
        if isinstance(function, nn.Module):
            kind = type(function).__name__
            raise PolicyError(f"From needs a function that fills a tensor, got a module, {kind}")
        if not callable(function):
            raise PolicyError(f"From needs a function that fills a tensor, got {function!r}")
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "arguments", tuple(sorted(arguments.items())))

    def __repr__(self) -> str:
        """Write the call that makes it, the function by its full name."""
        module = getattr(self.function, "__module__", None)
        name = getattr(self.function, "__qualname__", None)
        words = [f"{module}.{name}" if module and name else repr(self.function)]
        return f"From({', '.join(words + [f'{key}={value!r}' for key, value in self.arguments])})"

    def resolve(self, context: Context) -> "From":
        """Return the initializer itself."""
        return self

    def spread(self, shape: Sequence[int], axes: Layout) -> None:
        """Say nothing: the function alone knows."""

    @torch.no_grad()
    def __call__(
        self, tensor: Tensor, axes: Layout = None, *, generator: torch.Generator | None = None
    ) -> None:
        """Call the function with the tensor.

        Raises:
            PolicyError: If it returned another tensor, so that nothing has been filled.
        """
        if tensor.is_meta:
            return
        if generator is None:
            result = self.function(tensor, **dict(self.arguments))
        else:
            result = self._seeded(tensor, generator)
        if isinstance(result, Tensor) and result.data_ptr() != tensor.data_ptr():
            raise PolicyError(f"{self} returned a new tensor; it must fill its argument in place")

    def _seeded(self, tensor: Tensor, generator: torch.Generator) -> object:
        """Call the function with torch's own generators seeded, and restore them."""
        arguments = dict(self.arguments)
        if "generator" in _parameters(self.function):
            arguments.setdefault("generator", generator)
        seed = torch.empty((), dtype=torch.int64, device=generator.device)
        seed.random_(generator=generator)
        is_cuda = tensor.device.type == "cuda"
        # Even functions that take a generator may draw from torch's own: `sparse_` does.
        with torch.random.fork_rng(devices=[tensor.device] if is_cuda else []):
            torch.default_generator.manual_seed(int(seed))
            if is_cuda:
                with torch.cuda.device(tensor.device):
                    torch.cuda.manual_seed(int(seed))
            return self.function(tensor, **arguments)


def _parameters(function: Callable[..., object]) -> Iterable[str]:
    """Return the names of a function's parameters; none where it cannot be inspected."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ()


#
# All of them
#

_ELEMENTWISE = (Constant, Zeros, Ones, Uniform, Normal, TruncatedNormal, VarianceScaling)
_STRUCTURED = (Orthogonal, DeltaOrthogonal, Dirac, Identity, Sparse, ICNR)

BUILTIN: tuple[type[Initializer], ...] = (
    *_ELEMENTWISE,
    *_STRUCTURED,
    Blocks,
    BranchScaled,
    Keep,
    From,
)
"""All classes of initializers, for whoever reads and writes them by name."""


def is_elementwise(initializer: Initializer) -> bool:
    """Say whether any piece of a tensor can be drawn alone: whether it is `Elementwise`.

    Args:
        initializer: Any initializer.

    Examples:
        >>> is_elementwise(Normal(0.02)), is_elementwise(Blocks((Zeros(), Orthogonal())))
        (True, False)
    """
    if isinstance(initializer, Blocks):
        return all(map(is_elementwise, initializer.initializers))
    return isinstance(initializer, _ELEMENTWISE)


def _builtin(initializer: Initializer) -> Elementwise | Structured:
    """Return an initializer that can be built upon, or raise."""
    if not isinstance(initializer, (*_ELEMENTWISE, *_STRUCTURED, Blocks, BranchScaled)):
        raise PolicyError(
            f"only built-in initializers that draw can be built upon, got {initializer!r}"
        )
    return cast("Elementwise | Structured", initializer)


def _of_normal(standard: Standard, normal: Tensor) -> Tensor:
    """Turn normals into a standard distribution; complex ones part by part."""
    if not normal.is_complex():
        return standard.of_normal(normal)
    parts = standard.of_normal(torch.view_as_real(normal) * math.sqrt(2))
    return torch.view_as_complex(parts) * math.sqrt(0.5)


def _built(initializer: Initializer, shape: Sequence[int], axes: Axes, normal: Normals) -> Tensor:
    """Build a tensor by any initializer, an element-wise one out of normals too."""
    if not is_elementwise(initializer):
        return cast("Structured", initializer).build(shape, axes, normal)
    drawn = normal(shape)
    (draw,) = cast("Elementwise", initializer).draws(shape, axes)
    return _of_normal(draw.standard, drawn) * draw.scale + draw.loc
