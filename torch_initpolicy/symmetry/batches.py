"""What to run a model on: inputs like given ones, new at every step, and the sizes to try them in.

Knows inputs and their shapes; runs nothing.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from torch_initpolicy.trace.stand_ins import batch_size, vocabulary_size
from torch_initpolicy.trace.trees import Call, tensors_in

Style = Literal["fresh", "near", "given"]
"""How inputs are drawn: all numbers new, the given ones with noise of a tenth, or as given."""


@dataclass(frozen=True, slots=True)
class Batches:
    """Draws inputs like given ones; on the meta device these are shapes alone.

    `vocabulary` is the number of valid indices where the given ones do not say.
    """

    like: Call
    dtype: torch.dtype = torch.float64
    style: Style = "fresh"
    device: torch.device | str = "cpu"
    vocabulary: int = 2

    def draw(self, step: int, nudge: float = 0.0) -> Call:
        """Return the inputs of one step, larger by a nudge where they are numbers."""
        generator = torch.Generator().manual_seed(977 * step + 1)

        def one(tensor: Tensor) -> Tensor:
            drawn = self._one(tensor, generator).to(self.device)
            return drawn * (1 + nudge) if nudge and drawn.is_floating_point() else drawn

        return self.like.mapped(one)

    def _one(self, like: Tensor, generator: torch.Generator) -> Tensor:
        if like.is_complex():
            parts = self._one(torch.view_as_real(like), generator)
            return torch.view_as_complex(parts.contiguous())
        if not like.is_floating_point():
            return self._indices(like, generator)
        if like.is_meta:
            return self._normal(like.shape, generator)
        given = like.detach().to("cpu", self.dtype)
        if self.style == "given" or not bool(given.isfinite().all()) or _is_mask(given):
            return given
        if self.style == "near":
            return given * (1 + 0.1 * self._normal(given.shape, generator))
        return self._fresh(given, generator)

    def _normal(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        return torch.randn(tuple(shape), generator=generator, dtype=self.dtype)

    def _fresh(self, given: Tensor, generator: torch.Generator) -> Tensor:
        """Draw from the range of the given numbers, so that what must be positive stays so."""
        low, high = given.aminmax() if given.numel() else (given.sum(), given.sum())
        if bool(low == high):
            return low + self._normal(given.shape, generator) * (low.abs() / 3 if low else 1.0)
        if bool(low < 0):
            std, mean = torch.std_mean(given)
            return mean + std * self._normal(given.shape, generator)
        drawn = torch.rand(given.shape, generator=generator, dtype=self.dtype)
        return low + (high - low) * drawn

    def _indices(self, like: Tensor, generator: torch.Generator) -> Tensor:
        given = torch.zeros(like.shape, dtype=like.dtype) if like.is_meta else like.detach().cpu()
        if given.dtype == torch.bool:
            return given | like.is_meta
        if self.style != "fresh" or not given.numel():
            return given
        low, high = int(given.min()), int(given.max())
        if (low, high) == (0, 0):
            high = self.vocabulary - 1
        elif high in (1, low):  # a mask, or a length
            return given
        return torch.randint(low, high + 1, given.shape, generator=generator).to(given.dtype)


def _is_mask(given: Tensor) -> bool:
    return given.numel() > 1 and bool(((given == 0) | (given == 1)).all()) and bool(given.any())


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to run a model.

    Attributes:
        training: The mode to run in; None for that of the model.
        confirmed_by: Inputs of the size that is meant, where those of `batches` are smaller: what
            is tied on small inputs is tied only if one gradient on these does not contradict it.
        clears_only: Whether it can clear suspects, but not convict them.
    """

    batches: Batches
    training: bool | None = None
    confirmed_by: Batches | None = None
    clears_only: bool = False

    @property
    def is_partial(self) -> bool:
        """Whether what gets no gradient may get one from other inputs."""
        return self.clears_only or self.confirmed_by is not None

    def __str__(self) -> str:
        kinds = {"fresh": "random inputs", "near": "inputs near the given", "given": "the inputs"}
        small = "small " if self.confirmed_by is not None else ""
        return f"{small}{kinds[self.batches.style]} in {str(self.batches.dtype)[6:]}"


def attempts_with(model: nn.Module, call: Call) -> Iterator[Attempt]:
    """Yield ways to run a model on inputs like the user's."""
    first, dtypes = _like(model, call)
    styles: tuple[Style, ...] = ("fresh", "near", "given")
    for dtype, style in itertools.product(dtypes, styles):
        yield Attempt(replace(first, dtype=dtype, style=style))


def attempts(model: nn.Module, call: Call) -> Iterator[Attempt]:
    """Yield ways to run a model on inputs that were found: on little first, then on all."""
    first, dtypes = _like(model, call)
    before = batch_size(call)

    def reshaped(shape_of: Callable[[Tensor], Sequence[int] | None]) -> Batches | None:
        changed = _reshaped(call, shape_of)
        return None if changed is None else replace(first, like=changed)

    one = reshaped(lambda t: (1, *t.shape[1:]) if _is_large_sample(t, before) else None)
    many = reshaped(lambda t: (_MANY, *t.shape[1:]) if _is_small_sample(t, before) else None)
    for samples, edge in _SMALL:
        small = reshaped(lambda t, n=samples, edge=edge: _small_image(t, n, edge))  # type: ignore[misc]
        if small is not None:
            yield Attempt(small, confirmed_by=one or first)
    if one is not None:
        yield Attempt(replace(one, dtype=torch.float32), clears_only=True)
    if many is not None:
        yield Attempt(many)
    for dtype, training in itertools.product(dtypes, (None, False)):
        yield Attempt(replace(first, dtype=dtype), training)


_MOST_IN_DOUBLE = 300_000_000
"""Parameters of the largest model that is copied to float64."""


def _like(model: nn.Module, call: Call) -> tuple[Batches, Sequence[torch.dtype]]:
    """Return inputs like a call's, in the first of the precisions to try, and all of these."""
    parameters = list(model.parameters())
    device = parameters[0].device if parameters else torch.device("cpu")
    is_large = sum(p.numel() for p in parameters) > _MOST_IN_DOUBLE
    single = is_large or any(p.device.type == "mps" for p in parameters)
    dtypes = (torch.float32,) if single else (torch.float64, torch.float32)
    return Batches(call, dtypes[0], device=device, vocabulary=vocabulary_size(model)), dtypes


_SMALL = ((4, 32), (4, 64), (1, 256))
"""Numbers of the images that are tried first, and their edges in pixels."""

_MANY = 8
"""How many other small inputs are drawn at once, so that more is generic."""


def _small_image(like: Tensor, samples: int, edge: int) -> Sequence[int] | None:
    is_larger = like.ndim == 4 and like.shape[1] <= 4 and min(like.shape[2:]) > edge
    return (samples, like.shape[1], edge, edge) if is_larger else None


def _is_large_sample(like: Tensor, batch: int) -> bool:
    return like.ndim > 1 and like.shape[0] == batch and like.numel() > batch << 14


def _is_small_sample(like: Tensor, batch: int) -> bool:
    return like.ndim > 0 and like.shape[0] == batch and like.numel() <= batch << 14


def _reshaped(call: Call, shape_of: Callable[[Tensor], Sequence[int] | None]) -> Call | None:
    """Return the call with tensors of other shapes; None where that changes nothing."""

    def one(tensor: Tensor) -> Tensor:
        shape = shape_of(tensor)
        return tensor if shape is None else tensor.new_empty(tuple(shape), device="meta")

    changed = call.mapped(one)
    before, after = (tensors_in((c.args, c.kwargs)) for c in (call, changed))
    return None if all(a is b for a, b in zip(before, after, strict=True)) else changed
