"""Numbers the tensors of a recording, which come and go, are written to, and share storages."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torch_initpolicy.tensors.aliases import storage_of
from torch_initpolicy.trace.functorch import bare, inside, is_wrapped
from torch_initpolicy.trace.graph import Value


class Values:
    """The values that tensors have had so far, and the one that each has now.

    Attributes:
        all: All values, by index.
        current: The value of each tensor, by its `id`.
    """

    def __init__(self, *, on_meta: bool) -> None:
        self.all: list[Value] = []
        self.current: dict[int, int] = {}
        self._on_meta = on_meta
        self._alive: dict[int, object] = {}  # by id, which names a tensor only while that lives
        self._storages: dict[int, int] = {}  # serial numbers: an address is used again and again
        self._wrapped: dict[int, Tensor] = {}  # the last wrapper of each storage

    def add(self, tensor: Tensor, **known: Any) -> int:
        """Give a tensor a new value from here on, and return its index."""
        strided = tensor.layout is torch.strided
        value = Value(
            index=len(self.all),
            shape=tuple(tensor.shape),
            stride=tensor.stride() if strided else (),
            offset=int(tensor.storage_offset()) if strided else 0,
            storage=self._serial(tensor),
            dtype=tensor.dtype,
            **known,
        )
        self.all.append(value)
        self.current[id(tensor)] = value.index
        self._keep(tensor)
        if is_wrapped(tensor):
            self._wrapped[_storage_of(tensor)] = tensor
        return value.index

    def share(self, tensor: Tensor, index: int) -> None:
        """Let a tensor stand for a value that there is."""
        self.current[id(tensor)] = index
        self._alive[id(tensor)] = tensor

    def origin(self, tensor: Tensor) -> Tensor | None:
        """Return the tensor that has gone into `vmap` as this one, or come out of it so."""
        for wrapped in inside(tensor):
            if id(wrapped) in self.current:
                return wrapped
        return self._wrapped.get(_storage_of(tensor)) if self._wrapped else None

    def _keep(self, tensor: Tensor) -> None:
        """Keep a tensor alive while its id stands for it; one with memory only as the model does.

        The id of what the model lets go of is forgotten, for another tensor may get it.
        """
        key = id(tensor)
        if self._on_meta or is_wrapped(tensor):
            self._alive[key] = tensor
        else:
            self._alive[key] = weakref.ref(tensor, _forget(key, self._alive, self.current))

    def _serial(self, tensor: Tensor) -> int:
        """Number the storage behind a tensor; no two have one number, living or dead."""
        key, new = _storage_of(tensor), len(self.all)
        if not key:
            return new
        if key not in self._storages:
            self._storages[key] = new
            if not self._on_meta:  # there, every tensor stays alive, and its storage with it
                storage = bare(tensor).untyped_storage()
                self._alive[key] = weakref.ref(storage, _forget(key, self._alive, self._storages))
        return self._storages[key]


def _forget(key: int, *records: dict[int, Any]) -> Callable[[object], None]:
    """Return what drops a key from some records once what it stands for has died."""

    def forget(dead: object) -> None:
        del dead
        for record in records:
            record.pop(key, None)

    return forget


def _storage_of(tensor: Tensor) -> int:
    """Return what identifies a tensor's storage, or 0 where it has none."""
    tensor = bare(tensor)
    stored = tensor.layout is torch.strided and torch._C._has_storage(tensor)  # noqa: SLF001
    return storage_of(tensor) if stored else 0
