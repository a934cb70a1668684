"""What a constructor would have drawn, written down instead of drawn.

A storage is the bytes behind a tensor, so that all aliases of a parameter (`p.data`, `p.view(-1)`)
share one entry.
"""

import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy

from torch_initpolicy.tensors import initializers
from torch_initpolicy.tensors.aliases import storage_of
from torch_initpolicy.tensors.base import known
from torch_initpolicy.tensors.initializer import Initializer
from torch_initpolicy.tensors.standards import truncation

NEGLIGIBLE = 1e-9
"""Probability beyond a clamp's bounds below which it only repeats the bounds of the draw."""

UNBOUNDED = 8.0
"""Standard deviations beyond which a bound cuts nothing off (one value in 10^15)."""

# Distributions


class DeferredDraw(Protocol):
    """A random fill that has been put off; what it does not know how to become is None."""

    def draw_(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        """Fill `tensor` now, by the function of torch that the constructor called."""

    def scaled(self, factor: float) -> "DeferredDraw | None":
        """Return the distribution of `factor * x`."""
        return None

    def shifted(self, offset: float) -> "DeferredDraw | None":
        """Return the distribution of `x + offset`."""
        return None

    def erfinv(self) -> "DeferredDraw | None":
        """Return the distribution of `erfinv(x)`."""
        return None

    def clamped(self, low: float, high: float) -> "DeferredDraw | None":
        """Return the distribution of `clamp(x, low, high)`."""
        return None

    def rejected(self, low: float, high: float) -> "DeferredDraw | None":
        """Return the distribution of `x`, redrawn until it lies within `[low, high]`."""
        return None

    @property
    def initializer(self) -> Initializer | None:
        """The initializer that draws from it; None where there is none."""
        return None


@dataclass(frozen=True)
class UniformDraw(DeferredDraw):
    """A uniform draw from `[low, high)`."""

    low: float = 0.0
    high: float = 1.0

    def draw_(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        tensor.uniform_(self.low, self.high, generator=generator)

    def scaled(self, factor: float) -> "UniformDraw":
        return UniformDraw(*sorted((self.low * factor, self.high * factor)))

    def shifted(self, offset: float) -> "UniformDraw":
        return UniformDraw(self.low + offset, self.high + offset)

    def erfinv(self) -> "NormalDraw | None":
        """Turn into the normal of variance 1/2 between the images of the bounds."""
        if self.low < -1 or self.high > 1:
            return None
        return NormalDraw(0.0, math.sqrt(0.5), _erfinv(self.low), _erfinv(self.high))

    @property
    def initializer(self) -> Initializer:
        return initializers.Uniform(_tidy(self.low), _tidy(self.high))


@dataclass(frozen=True)
class NormalDraw(DeferredDraw):
    """A normal draw of `mean` and `std`, redrawn until it lies within `[low, high]`."""

    mean: float = 0.0
    std: float = 1.0
    low: float = -math.inf
    high: float = math.inf

    def draw_(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        if min(self.cuts) >= UNBOUNDED:
            tensor.normal_(self.mean, self.std, generator=generator)
            return
        reach = 2 * UNBOUNDED * self.std
        low, high = max(self.low, self.mean - reach), min(self.high, self.mean + reach)
        nn.init.trunc_normal_(tensor, self.mean, self.std, low, high, generator=generator)

    def scaled(self, factor: float) -> "NormalDraw | None":
        if factor == 0:
            return None
        low, high = sorted((self.low * factor, self.high * factor))
        return NormalDraw(self.mean * factor, self.std * abs(factor), low, high)

    def shifted(self, offset: float) -> "NormalDraw":
        return NormalDraw(self.mean + offset, self.std, self.low + offset, self.high + offset)

    def clamped(self, low: float, high: float) -> "NormalDraw | None":
        """Take over bounds that only repeat those of the draw, as timm's truncated normal does."""
        below, above = NormalDist(self.mean, self.std).cdf, NormalDist(-self.mean, self.std).cdf
        lost = max(below(low) - below(self.low), above(-high) - above(-self.high))
        return self.rejected(low, high) if lost <= NEGLIGIBLE else None

    def rejected(self, low: float, high: float) -> "NormalDraw":
        return replace(self, low=max(low, self.low), high=min(high, self.high))

    @property
    def cuts(self) -> tuple[float, float]:
        """Distances of the two bounds from the mean, in standard deviations."""
        return (self.mean - self.low) / self.std, (self.high - self.mean) / self.std

    @property
    def initializer(self) -> Initializer | None:
        """The normal or truncated normal initializer; None where the bounds are lopsided."""
        mean, (low, high) = _tidy(self.mean), self.cuts
        if min(low, high) >= UNBOUNDED:
            return initializers.Normal(std=_tidy(self.std), mean=mean)
        if not math.isclose(low, high, rel_tol=1e-6):
            return None
        std = _tidy(self.std * truncation(low))
        return initializers.TruncatedNormal(std=std, mean=mean, cut=float(f"{low:.6g}"))


@dataclass(frozen=True)
class MatrixDraw(DeferredDraw):
    """A matrix that torch draws at once, orthogonal or sparse; its negative is no other draw."""

    matrix: Initializer

    def draw_(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        if isinstance(self.matrix, initializers.Sparse):
            share, std = self.matrix.sparsity, self.matrix.std
            nn.init.sparse_(tensor, share, std, generator=generator)
        elif isinstance(self.matrix, initializers.Orthogonal):
            nn.init.orthogonal_(tensor, known(self.matrix.gain), generator=generator)

    def scaled(self, factor: float) -> "MatrixDraw":
        return MatrixDraw(self.matrix.scaled(abs(factor)))

    @property
    def initializer(self) -> Initializer:
        return self.matrix


def _tidy(value: float) -> float:
    """Drop the digits that arithmetic left behind: `0.1 * 0.2` is 0.02."""
    return float(f"{value:.12g}")


def _erfinv(value: float) -> float:
    """Invert the error function on `[-1, 1]`."""
    if abs(value) >= 1:
        return math.copysign(math.inf, value)
    return NormalDist().inv_cdf((1 + value) / 2) / math.sqrt(2)


# Storages


@dataclass
class DeferredFill:
    """One storage whose fill has been put off.

    The tensor that was to be filled has a `shape` and a `dtype`, and covers the storage; neither
    that nor the `parameters` seen there are kept alive. `padding` is the row that was zeroed since.
    """

    draw: DeferredDraw
    generator: torch.Generator | None
    shape: torch.Size
    dtype: torch.dtype
    storage: StorageWeakRef
    parameters: Sequence[weakref.ref[nn.Parameter]]
    padding: int | None = None

    @property
    def living(self) -> list[nn.Parameter]:
        """The parameters that still exist and still live there."""
        found = [p for reference in self.parameters if (p := reference()) is not None]
        return [p for p in found if storage_of(p) == self.storage.cdata]

    def fits(self, parameter: nn.Parameter) -> bool:
        """Say whether `parameter` is just what the draw was meant to fill."""
        rows_agree = parameter.shape[:1] == self.shape[:1] or isinstance(
            self.draw, (UniformDraw, NormalDraw)
        )
        return type(parameter) is nn.Parameter and covers_storage(parameter) and rows_agree

    def row(self, view: Tensor) -> int | None:
        """Return which row of the filled tensor a view is, or None where it is something else."""
        size = self.shape[1:].numel()
        is_row = view.dtype == self.dtype and view.is_contiguous() and view.numel() == size
        row, rest = divmod(int(view.storage_offset()), size)
        return row if is_row and len(self.shape) > 1 and rest == 0 else None

    @torch.no_grad()
    def settle(self) -> None:
        """Fill the storage now, if anybody still holds it."""
        storage: torch.UntypedStorage | None = _revived(self.storage)
        if storage is None:
            return
        tensor = torch.empty(0, dtype=self.dtype, device=storage.device)
        tensor.set_(storage, 0, self.shape)  # type: ignore[call-overload]  # untyped in the stubs
        self.draw.draw_(tensor, self.generator)
        if self.padding is not None:
            tensor[self.padding] = 0


class Ledger:
    """All fills that have been put off and not yet been drawn or overwritten."""

    def __init__(self) -> None:
        self.modules: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self._entries: dict[int, DeferredFill] = {}
        self._homes: dict[int, list[weakref.ref[nn.Parameter]]] = {}

    def find(self, tensor: Tensor) -> DeferredFill | None:
        """Return the entry of the storage behind `tensor`, if it has one."""
        if not self._entries or not _has_storage(tensor):
            return None
        return self._entries.get(storage_of(tensor))

    def put_off(
        self, tensor: Tensor, draw: DeferredDraw, generator: torch.Generator | None = None
    ) -> None:
        """Note that `tensor`, which covers its storage, should have been filled by `draw`."""
        self.see(tensor)
        home = self._homes.setdefault(storage_of(tensor), [])
        storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        entry = DeferredFill(draw, generator, tensor.shape, tensor.dtype, storage, home)
        self._entries[storage_of(tensor)] = entry

    def see(self, tensor: Tensor) -> None:
        """Note where a parameter lives."""
        if not isinstance(tensor, nn.Parameter) or not _has_storage(tensor):
            return
        home = self._homes.setdefault(storage_of(tensor), [])
        if all(reference() is not tensor for reference in home):
            home.append(weakref.ref(tensor))

    def forget(self, tensor: Tensor) -> None:
        """Drop the entry: all of the storage is about to be overwritten."""
        if self.find(tensor) is not None:
            del self._entries[storage_of(tensor)]

    def settle(self, tensor: Tensor) -> None:
        """Fill the storage behind `tensor` now: somebody is about to read it."""
        entry = self.find(tensor)
        if entry is not None:
            del self._entries[storage_of(tensor)]
            entry.settle()

    def take(self, tensors: Iterable[Tensor]) -> Iterator[DeferredFill]:
        """Hand out the entries of some tensors and drop them."""
        for tensor in tensors:
            self.see(tensor)
            entry = self.find(tensor)
            if entry is not None:
                self.forget(tensor)
                yield entry

    def close(self) -> Iterator[DeferredFill]:
        """Hand out all entries, in the order in which they were put off, and drop them."""
        while self._entries:
            yield self._entries.pop(next(iter(self._entries)))


def _has_storage(tensor: Tensor) -> bool:
    """Say whether a tensor has a storage to speak of: a lazy one waits for its own."""
    return tensor.layout is torch.strided and not is_lazy(tensor)


def covers_storage(tensor: Tensor) -> bool:
    """Say whether a tensor is all of its storage, in order."""
    return (
        tensor.is_contiguous()
        and tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    )


def same_storage(tensor: Tensor, other: Tensor) -> bool:
    """Say whether two tensors are views of the same bytes."""
    return storage_of(tensor) == storage_of(other)


# Storages have no public weak references; `torch.multiprocessing` keeps its own books by the same.


def _revived(reference: StorageWeakRef) -> torch.UntypedStorage | None:
    return torch.UntypedStorage._new_with_weak_ptr(reference.cdata)  # noqa: SLF001
