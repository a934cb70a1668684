"""The undo journal: old values, kept until all of the new ones are in place.

Old values that have been written over come back from a copy alone, so that undoing costs as much
memory as what is written. The journal keeps all that may fail, which is written first, and what is
drawn in place, which cannot fail, where `ROOM` holds it.
"""

from collections.abc import Callable, Iterable, MutableMapping
from functools import partial
from typing import Any

from torch import Tensor

ROOM = 64 << 20
"""Bytes of old values that may be kept of what is drawn in place."""


def fits(tensors: Iterable[Tensor]) -> bool:
    """Tell whether there is room for the old values of all that is drawn in place."""
    return sum(tensor.nbytes for tensor in tensors) <= ROOM


class Journal:
    """What puts back the old values of tensors and attributes."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], object]] = []
        self.is_complete = True

    def write(self, tensor: Tensor, values: Tensor | float) -> None:
        """Write values, and keep the old ones."""
        self.save(tensor)
        if isinstance(values, Tensor):
            tensor.copy_(values)
        else:
            tensor.fill_(values)

    def assign(self, attributes: MutableMapping[str, Any], name: str, value: object) -> None:
        """Set an attribute, past what its owner's `__setattr__` does, and keep the old one."""
        if name in attributes:
            self._undo.append(partial(attributes.__setitem__, name, attributes[name]))
        else:
            self._undo.append(partial(attributes.pop, name))
        attributes[name] = value

    def save(self, tensor: Tensor) -> None:
        """Keep the old values of a tensor that is about to be written."""
        self._undo.append(partial(tensor.copy_, tensor.clone()))

    def undo(self) -> None:
        """Put everything back, the latest first."""
        while self._undo:
            self._undo.pop()()
