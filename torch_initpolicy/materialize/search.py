"""What is looked for: tensors that were never computed, and modules that tell their values."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from torch_initpolicy.deferred.undrawn import Pending
from torch_initpolicy.writing.streams import isolated, key

Build = Callable[[], nn.Module]
"""Builds a model once more."""


class Lost(NamedTuple):
    """A tensor on the meta device that only its module can tell the values of."""

    module: str
    owner: nn.Module
    attribute: str
    shape: torch.Size

    @property
    def name(self) -> str:
        """Its canonical name."""
        return f"{self.module}.{self.attribute}" if self.module else self.attribute


class Origin(NamedTuple):
    """What a lost tensor holds: a value, or what a constructor would have drawn.

    It is a guess where a part of the model alone was asked: what holds the part may have other
    plans for it.
    """

    value: Tensor | None
    pending: Pending | None
    source: str
    is_guess: bool = False


class BuiltModule(NamedTuple):
    """A module built on the CPU, to be read off in place of the one called `prefix`."""

    prefix: str
    module: nn.Module
    source: str
    is_guess: bool = False


class Search:
    """The tensors that are still looked for in a model.

    They are `left` by the name of their module; `within` counts them in each module and those
    inside. The `seed` is for what constructors draw otherwise than by filling a parameter.
    """

    def __init__(self, model: nn.Module, seed: int, lost: Iterable[Lost]) -> None:
        self.model = model
        self.seed = seed
        self.left: dict[str, list[Lost]] = {}
        self.within: Counter[str] = Counter()
        for tensor in lost:
            self.left.setdefault(tensor.module, []).append(tensor)
            self.within.update(_enclosing(tensor.module))

    def remove(self, found: Lost) -> None:
        """Look for a tensor no longer."""
        self.left[found.module].remove(found)
        self.within.subtract(_enclosing(found.module))

    def owners(self) -> list[tuple[str, nn.Module]]:
        """Return the modules whose tensors are still looked for, with their names."""
        return [(name, tensors[0].owner) for name, tensors in self.left.items() if tensors]

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Let code run on the CPU, with random numbers that the name of its module decides."""
        cpu = torch.device("cpu")
        # Every call of torch passes through a default device that is set, the own one included.
        default = nullcontext() if torch.empty(0).device == cpu else cpu
        with isolated(cpu, key(self.seed, name, 0)), default:
            yield


def _enclosing(name: str) -> Iterator[str]:
    """Yield the names of a module and of all around it; the empty one is the model's."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""
