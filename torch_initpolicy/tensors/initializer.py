"""The base of all initializers, the package's own and yours."""

import abc
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, ClassVar, TypeVar, cast, final

import torch
from torch import Tensor

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.tensors.axes import Axes, Fans, fans
from torch_initpolicy.tensors.base import (
    Context,
    Spreads,
    fitting,
    known,
    parts,
    take_number,
    working_dtype,
)
from torch_initpolicy.tensors.samplers import ByFunction, Independent, Joint, Sampler, fill_with

Class = TypeVar("Class", bound=type["Initializer"])


class Initializer(abc.ABC):
    """A frozen value that says how a tensor is filled.

    To write one, derive a frozen dataclass and say in `sampler` how its numbers are drawn. It is
    then planned (with its standard deviation), drawn in blocks, sharded and
    verified like the package's own; `register` lets files hold it. Override `resolve` where a field
    depends on the site, and name in `sizes` the fields that say how large the numbers are.

    Examples:
        Laplace's distribution of variance `gain^2 / fan_in`:

        >>> import math
        >>> from dataclasses import dataclass, replace
        >>> from torch_initpolicy import initializers
        >>> LAPLACE = initializers.Transformed(
        ...     lambda normal: -normal.sign() * torch.erfc(normal.abs() / math.sqrt(2)).log(),
        ...     std=math.sqrt(2),
        ...     kurtosis=6.0,
        ... )
        >>> @dataclass(frozen=True, slots=True)
        ... class Laplace(initializers.Initializer):
        ...     sizes = ("gain",)
        ...     gain: initializers.Gain = 1.0
        ...
        ...     def resolve(self, context):
        ...         return replace(self, gain=context.gain(self.gain))
        ...
        ...     def sampler(self, shape, axes):
        ...         widths = [self.gain / math.sqrt(2 * f.fan_in) for f in self.fans(shape, axes)]
        ...         draws = [initializers.Draw(LAPLACE, scale=width) for width in widths]
        ...         return initializers.Independent(tuple(draws))
        >>> Laplace().spread((10, 25), None).std
        0.2
    """

    __slots__ = ()

    is_opaque: ClassVar[bool] = False
    """Whether nothing is known of the numbers before they are written; nothing is built on such."""

    sizes: ClassVar[tuple[str, ...]] = ()
    """Fields that the numbers are proportional to."""

    @abc.abstractmethod
    def sampler(self, shape: Sequence[int], axes: Axes | None) -> Sampler:
        """Say how the numbers of a tensor are drawn.

        Args:
            shape: Its logical shape, whatever part of it this process holds.
            axes: What its axes mean; None for torch's own layout, `(out, in, *kernel)`.

        Returns:
            `Independent` where each element is drawn alone, else a `Joint` draw.

        Raises:
            PolicyError: The initializer does not fit the shape or its axes; so a plan finds out.
        """

    def resolve(self, context: Context) -> "Initializer":
        """Replace words (`gain="meets"`) by the numbers of a site, here in inner initializers."""
        return self.with_inner(lambda inner: inner.resolve(context))

    def scaled(self, factor: float) -> "Initializer":
        """Return the initializer whose numbers are `factor` times as large, a positive number."""
        if not self.sizes:
            return Scaled(self, factor)
        return _changed(self, {name: known(getattr(self, name)) * factor for name in self.sizes})

    def of_block(self, block: int) -> "Initializer":
        """Return what fills one packed block: the initializer itself, but for `Blocks`."""
        del block
        return self

    @final
    def with_inner(self, function: Callable[["Initializer"], "Initializer"]) -> "Initializer":
        """Return the initializer with a function applied to those that it is built of."""
        held = _inner(self)
        each = {name: function(v) for name, v in held.items() if isinstance(v, Initializer)}
        packed = {name: tuple(map(function, v)) for name, v in held.items() if name not in each}
        return _changed(self, {**each, **packed})

    @property
    @final
    def is_foreign(self) -> bool:
        """Whether code that is not this package's takes part in drawing, here or further inside."""
        if type(self).__module__.partition(".")[0] != __name__.partition(".")[0]:
            return True
        each = (v if isinstance(v, tuple) else (v,) for v in _inner(self).values())
        return any(inner.is_foreign for inner in chain.from_iterable(each))

    @final
    def spread(self, shape: Sequence[int], axes: Axes | None) -> Spreads | None:
        """Say what the numbers will be; None where a variance says nothing.

        Raises:
            PolicyError: The initializer does not fit the shape or its axes.
        """
        return self.sampler(shape, axes).spread

    @final
    def fans(self, shape: Sequence[int], axes: Axes | None) -> tuple[Fans, ...]:
        """Count the fans of each packed block of a tensor, or of the whole.

        Raises:
            PolicyError: The tensor has no inputs and outputs, or its axes do not fit.
        """
        return tuple(fans(*block) for block in parts(shape, fitting(self, shape, axes)))

    @final
    @torch.no_grad()
    def __call__(
        self, tensor: Tensor, axes: Axes | None = None, *, generator: torch.Generator | None = None
    ) -> None:
        """Fill a tensor in place.

        Args:
            tensor: Any floating-point or complex tensor. Nothing is drawn on the meta device.
            axes: What its axes mean; None for torch's own layout, `(out, in, *kernel)`.
            generator: Where random numbers come from; None for torch's own.

        Raises:
            PolicyError: The initializer fits neither the tensor's shape and axes nor its dtype.
        """
        sampler = self.sampler(tensor.shape, axes)
        if isinstance(sampler, ByFunction):
            sampler.write_(tensor, generator)
            return
        dtype = working_dtype(tensor.dtype)
        if not (tensor.is_meta or not tensor.numel()):
            _write_(sampler, tensor, axes, dtype, generator)


def _inner(initializer: Any) -> dict[str, Any]:
    """Return the fields that hold initializers, one or a tuple of them."""
    if not is_dataclass(initializer):
        return {}
    held = {f.name: getattr(initializer, f.name) for f in fields(initializer)}
    return {name: v for name, v in held.items() if isinstance(v, Initializer) or _is_packed(v)}


def _is_packed(value: object) -> bool:
    """Tell whether a field holds an initializer for each of several blocks."""
    if not isinstance(value, tuple) or not value:
        return False
    return all(isinstance(each, Initializer) for each in value)


def _changed(initializer: Any, changes: dict[str, Any]) -> Initializer:
    return cast("Initializer", replace(initializer, **changes) if changes else initializer)


def _write_(
    sampler: Independent | Joint,
    tensor: Tensor,
    axes: Axes | None,
    dtype: torch.dtype,
    generator: torch.Generator | None,
) -> None:
    """Draw in the working dtype, in place where the tensor is of it and contiguous."""
    if isinstance(sampler, Joint):
        normals = partial(torch.randn, dtype=dtype, device=tensor.device, generator=generator)
        tensor.copy_(sampler.build(normals))
    elif tensor.dtype == dtype and tensor.is_contiguous():
        flat = tensor.detach().view(-1)
        fill_with(sampler.draws, flat, tensor.shape, axes, generator=generator)
    else:
        flat = torch.empty(tensor.numel(), dtype=dtype, device=tensor.device)
        fill_with(sampler.draws, flat, tensor.shape, axes, generator=generator)
        tensor.copy_(flat.view(tensor.shape))


REGISTERED: dict[str, type] = {}
"""The initializers that files may name, by the names of their classes; `register` adds to them."""


def _is_final(kind: type) -> bool:
    """Tell whether a class is a frozen dataclass of initializers that can be made."""
    params = getattr(kind, "__dataclass_params__", None)
    is_frozen = params is not None and params.frozen
    return is_frozen and issubclass(kind, Initializer) and not kind.__abstractmethods__


def register(kind: Class) -> Class:
    """Let files of policies, plans and receipts hold an initializer of your own.

    Args:
        kind: A frozen dataclass derived from `Initializer`. Its fields are numbers, words, tuples
            of these and other initializers, with annotations; files are checked against them.

    Raises:
        PolicyError: It is no such class, or one of that name, by which files go, is registered.

    Examples:
        >>> from torch_initpolicy import InitPolicy, initializers
        >>> @register
        ... @dataclass(frozen=True, slots=True)
        ... class Halved(Initializer):
        ...     inner: Initializer
        ...
        ...     def sampler(self, shape, axes):
        ...         return self.inner.sampler(shape, axes).scaled(0.5)
        >>> policy = InitPolicy().otherwise(Halved(initializers.Normal(0.02)))
        >>> InitPolicy.from_json(policy.to_json()) == policy
        True
    """
    if not (inspect.isclass(kind) and _is_final(kind)):
        kinds = "a frozen dataclass derived from Initializer"
        raise PolicyError(f"register takes {kinds}, got {kind!r}")
    if kind.__name__ in REGISTERED:
        raise PolicyError(
            f"an initializer called {kind.__name__!r} is registered already, "
            f"{REGISTERED[kind.__name__]!r}; files go by this name, so choose another"
        )
    REGISTERED[kind.__name__] = kind
    return kind


@register
@dataclass(frozen=True, slots=True)
class Scaled(Initializer):
    """Multiply the numbers of another initializer.

    Args:
        inner: Draws the numbers.
        factor: What they are multiplied by; positive.

    Examples:
        >>> from torch_initpolicy import initializers
        >>> Scaled(initializers.he_normal(), 0.5).spread((10, 50), None).std
        0.1
    """

    sizes = ("factor",)

    inner: Initializer
    factor: float

    def __post_init__(self) -> None:
        require_transparent(self.inner)
        take_number(self, "factor", 0.0)

    def sampler(self, shape: Sequence[int], axes: Axes | None) -> Sampler:
        drawn = cast("Independent | Joint", self.inner.sampler(shape, axes))
        return drawn.scaled(self.factor)


def require_transparent(initializer: object) -> None:
    """Raise where other initializers cannot be built on something."""
    if not isinstance(initializer, Initializer) or initializer.is_opaque:
        raise PolicyError(
            f"only initializers that say what they draw can be built upon, got {initializer!r}"
        )
