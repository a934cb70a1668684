"""Initializers: frozen values that say how a tensor is to be filled.

All of them are found here; those that are built of others are written here. The base of all,
`Initializer`, is open: derive from it, and `register` what files are to hold. A gain multiplies a
standard deviation, a scale a variance. The `std` of every initializer is that of the numbers drawn,
after any truncation. Calling one fills a tensor in place:

>>> import math
>>> weight = torch.empty(64, 3, 7, 7)
>>> he_normal()(weight, generator=torch.Generator().manual_seed(0))
>>> round(weight.std().item() / math.sqrt(2 / (3 * 7 * 7)), 2)
1.0
"""

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import ClassVar, Literal, NoReturn

import torch
from torch import Tensor, nn

from torch_initpolicy.errors import PolicyError, brief, counted
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.base import (
    Context,
    Distribution,
    Gain,
    Mode,
    Normals,
    Spread,
    fitting,
    joined_blocks,
    merged_spreads,
    parts,
    require_word,
    take_number,
)
from torch_initpolicy.tensors.distributions import (
    Constant,
    Normal,
    Ones,
    TruncatedNormal,
    Uniform,
    VarianceScaling,
    Zeros,
    he_normal,
    he_uniform,
    lecun_normal,
    lecun_uniform,
    xavier_normal,
    xavier_uniform,
)
from torch_initpolicy.tensors.initializer import Initializer, Scaled, register, require_transparent
from torch_initpolicy.tensors.isolation import drawing_from
from torch_initpolicy.tensors.samplers import ByFunction, Draw, Independent, Joint, Sampler, built
from torch_initpolicy.tensors.standards import Transformed
from torch_initpolicy.tensors.structured import DeltaOrthogonal, Dirac, Identity, Orthogonal, Sparse

__all__ = [
    "ICNR", "AsConstructed", "Blocks", "BranchScaled", "Chrono", "Constant", "Context",
    "DeltaOrthogonal", "Dirac", "Distribution", "Draw", "From", "Gain", "Identity", "Independent",
    "Initializer", "Joint", "Keep", "Mode", "Normal", "Ones", "Orthogonal", "Scaled", "Sparse",
    "Spread", "Transformed", "TruncatedNormal", "Uniform", "VarianceScaling", "Zeros", "he_normal",
    "he_uniform", "lecun_normal", "lecun_uniform", "register", "xavier_normal", "xavier_uniform",
]  # fmt: skip


@register
@dataclass(frozen=True, slots=True)
class ICNR(Initializer):
    """Draw a convolution before `nn.PixelShuffle` so that its output has no checkerboard.

    The kernels of the `upscale_factor^2` channels that become one patch of pixels are equal, as if
    the image were resized by nearest neighbour and then convolved. Training makes them differ,
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
        require_transparent(self.inner)
        take_number(self, "upscale_factor", 1)
        if not isinstance(self.upscale_factor, int):
            raise PolicyError(f"ICNR: upscale_factor is an integer, got {self.upscale_factor!r}")

    def scaled(self, factor: float) -> Initializer:
        return self.with_inner(lambda inner: inner.scaled(factor))

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> Joint:
        """Draw one kernel for each patch and repeat it."""
        patches, layout = self._patches(shape, axes)
        inner = self.inner.sampler(patches, layout)
        kernels, spread = partial(built, inner, patches), inner.spread
        repeats, axis = self.upscale_factor**2, layout.outputs[0]
        if isinstance(spread, Spread):  # of numbers that are there several times
            spread = replace(spread, kurtosis=1 + repeats * (spread.kurtosis - 1))
        return Joint(lambda normal: kernels(normal).repeat_interleave(repeats, axis), spread)

    def _patches(self, shape: Sequence[int], axes: Axes | None) -> tuple[tuple[int, ...], Axes]:
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


@register
@dataclass(frozen=True, slots=True)
class Blocks(Initializer):
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
            require_transparent(inner)

    def scaled(self, factor: float) -> Initializer:
        return self.with_inner(lambda inner: inner.scaled(factor))

    def of_block(self, block: int) -> Initializer:
        """Return what fills one packed block; blocks beyond the last are filled as this says."""
        return self.initializers[block] if block < len(self.initializers) else self

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> Sampler:
        """Draw each block by its own initializer, element by element where all of them do."""
        packed = 0 if axes is None else len(axes.blocks)
        if axes is None or packed != len(self.initializers):
            raise PolicyError(
                f"{self} has {counted(len(self.initializers), 'initializer')} for "
                f"{counted(packed, 'packed block')} in a tensor of shape {tuple(shape)}; "
                "pass Axes(..., blocks=...)"
            )
        sizes = parts(shape, fitting(self, shape, axes))
        each = [inner.sampler(*size) for inner, size in zip(self.initializers, sizes, strict=True)]
        independent = [sampler for sampler in each if isinstance(sampler, Independent)]
        if len(independent) == len(each):
            return Independent(tuple(draw for sampler in independent for draw in sampler.draws))

        def joint(normal: Normals) -> Tensor:
            blocks = zip(each, sizes, strict=True)
            return joined_blocks(shape, axes, [built(of, size, normal) for of, (size, _) in blocks])

        spreads = [sampler.spread for sampler in each]
        found = [spread for spread in spreads if isinstance(spread, Spread)]
        return Joint(joint, merged_spreads(found) if len(found) == len(spreads) else None)


@register
@dataclass(frozen=True, slots=True)
class Chrono(Initializer):
    """Let each unit of a recurrent layer forget at a rate of its own, within up to `t_max` steps.

    For the bias of an LSTM, whose forget gates get `log U(1, t_max - 1)` and input gates the
    opposite, and of a GRU, whose update gates get the former. The other gates get zero.

    Args:
        t_max: How many steps the longest memory is to last, at least 3.

    Reference:
        Tallec and Ollivier, *Can Recurrent Neural Networks Warp Time?*, 2018, arXiv:1804.11188,
        eq. 16.

    Examples:
        >>> bias = torch.empty(8)
        >>> Chrono(100)(bias, Axes(inputs=(), outputs=(0,), blocks=(2, 2, 2, 2)))
        >>> bool((bias[:2] == -bias[2:4]).all()), bias[4:].tolist()
        (True, [0.0, 0.0, 0.0, 0.0])
    """

    t_max: float = 100.0

    def __post_init__(self) -> None:
        take_number(self, "t_max", 3)

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> Joint:
        """Draw one time scale for each unit."""
        signs = _GATES_OF_MEMORY.get(0 if axes is None else len(axes.blocks))
        if signs is None or len(shape) != 1:
            raise PolicyError(
                f"{self} is for the bias of an LSTM (four packed gates) or of a GRU (three), got "
                f"shape {tuple(shape)} and {axes}"
            )

        def built(normal: Normals) -> Tensor:
            drawn = normal((shape[0] // len(signs),))
            uniform = torch.special.ndtr(drawn.real * (2**0.5 if drawn.is_complex() else 1.0))
            scales = (1 + (self.t_max - 2) * uniform).log().to(drawn.dtype)
            return torch.cat([sign * scales for sign in signs])

        return Joint(built)


_GATES_OF_MEMORY: Mapping[int, tuple[float, ...]] = MappingProxyType(
    {4: (-1.0, 1.0, 0.0, 0.0), 3: (0.0, 1.0, 0.0)}
)
"""Signs of the logarithms, by how many gates there are, in torch's order."""


@register
@dataclass(frozen=True, slots=True)
class BranchScaled(Initializer):
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
        require_transparent(self.inner)
        if isinstance(self.exponent, str):
            require_word(self, "exponent", self.exponent, ("fixup",))
        else:
            take_number(self, "exponent")

    def _factor(self, context: Context) -> float:
        exponent = self.exponent
        if isinstance(exponent, str):
            exponent = -1 / (2 * context.branch_depth - 2) if context.branch_depth > 1 else 0.0
        return float(max(context.residual_branches, 1) ** exponent)

    def resolve(self, context: Context) -> Initializer:
        """Return the inner initializer, made smaller by the numbers of a site."""
        return self.inner.resolve(context).scaled(self._factor(context))

    def scaled(self, factor: float) -> Initializer:
        return self.with_inner(lambda inner: inner.scaled(factor))

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> NoReturn:
        """Raise: the branches are known in a plan only."""
        raise PolicyError(
            f"{self} is known in a plan, where the residual branches have been counted; "
            "call resolve(Context(residual_branches=...)) first"
        )


@register
@dataclass(frozen=True, slots=True)
class Keep(Initializer):
    """Leave the tensor as it is: the constructor's value, or whatever has been loaded.

    Examples:
        >>> weight = torch.zeros(2)
        >>> Keep()(weight)
    """

    is_opaque: ClassVar[bool] = True

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> ByFunction:
        return ByFunction(lambda *_: None)


@register
@dataclass(frozen=True, slots=True)
class AsConstructed(Initializer):
    """Draw what the model's own constructor draws, from the random streams of this package.

    A plan puts the constructor's distribution in its place: what `skip_init` has recorded, or what
    building the model once more tells.

    Examples:
        >>> AsConstructed()
        AsConstructed()
    """

    is_opaque: ClassVar[bool] = True

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> ByFunction:
        """Leave the tensor alone: only a plan knows the constructor."""
        return ByFunction(lambda *_: None)


@register
@dataclass(frozen=True, slots=True, init=False, repr=False)
class From(Initializer):
    """Fill a tensor by any function that writes its argument, such as those of `torch.nn.init`.

    A generator reaches the function even where it takes none: what the function draws from torch's
    global generators comes from others, which are seeded from it.

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

    is_opaque: ClassVar[bool] = True

    function: Callable[..., object]
    arguments: tuple[tuple[str, object], ...]

    def __init__(self, function: Callable[..., object], **arguments: object) -> None:
        if isinstance(function, nn.Module) or not callable(function):
            got = brief(function)
            raise PolicyError(f"From needs a function that fills a tensor, got {got}")
        object.__setattr__(self, "function", function)
        object.__setattr__(self, "arguments", tuple(sorted(arguments.items())))

    def __repr__(self) -> str:
        """Write the call that makes it, the function by its full name."""
        module = getattr(self.function, "__module__", None)
        name = getattr(self.function, "__qualname__", None)
        words = [f"{module}.{name}" if module and name else repr(self.function)]
        return f"From({', '.join(words + [f'{key}={value!r}' for key, value in self.arguments])})"

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> ByFunction:
        """Call the function with the tensor, and with its axes if it takes such."""
        return ByFunction(partial(self._write_, axes))

    def _write_(self, axes: Axes | None, tensor: Tensor, generator: torch.Generator | None) -> None:
        """Call the function.

        Raises:
            PolicyError: It returned another tensor, so that nothing has been filled.
        """
        if tensor.is_meta:
            return
        taken = _taken_by(self.function)
        arguments = {"axes": axes, "generator": generator}
        if generator is None:
            del arguments["generator"]
        arguments = {name: value for name, value in arguments.items() if name in taken}
        call = partial(self.function, tensor, **{**arguments, **dict(self.arguments)})
        result = call() if generator is None else _call_seeded(call, tensor, generator)
        if isinstance(result, Tensor) and result.data_ptr() != tensor.data_ptr():
            raise PolicyError(f"{self} returned a new tensor; it must fill its argument in place")


def _call_seeded(call: Callable[[], object], tensor: Tensor, generator: torch.Generator) -> object:
    """Call a function for which generators of its own stand in for torch's global ones."""
    seed = torch.empty((), dtype=torch.int64, device=generator.device)
    seed.random_(generator=generator)
    # Even functions that take a generator may draw from torch's own: `sparse_` does.
    places = {torch.device("cpu"), tensor.device}
    own = {place.type: torch.Generator(place).manual_seed(int(seed)) for place in places}
    with drawing_from(own):
        return call()


def _taken_by(function: Callable[..., object]) -> Iterable[str]:
    """Return the names of a function's parameters; none where it cannot be inspected."""
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ()
