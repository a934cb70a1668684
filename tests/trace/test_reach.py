"""Everything mutable that a model reaches is found, and put back as it was."""

import collections
import functools
import random

import pytest
import torch
from torch import nn

from torch_initpolicy.trace.reach import Reach


class Slotted:
    """Holds its number in a slot."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 1


class Shadowed(Slotted):
    """Hides the slot of its base behind a property that cannot be set."""

    __slots__ = ()

    number = property(lambda self: 3)

    def __init__(self) -> None:
        """Leave the slot empty."""


@functools.cache
def remembered(number: int) -> int:
    """Return what it is given, and keep it."""
    return number


class Holder(nn.Module):
    """Holds one thing, and mentions a cache."""

    def __init__(self, thing: object) -> None:
        super().__init__()
        self.thing = thing

    def forward(self) -> int:
        """Call what is cached."""
        return remembered(1)


MUTATIONS = {
    "dict": (lambda: {"a": 1}, lambda it: it.update(b=2)),
    "ordered": (lambda: collections.OrderedDict(a=1, b=2), lambda it: it.move_to_end("a")),
    "list": (lambda: [1], lambda it: it.append(2)),
    "nested": (lambda: ({"a": [1]},), lambda it: it[0]["a"].clear()),
    "set": (lambda: {1}, lambda it: it.add(2)),
    "deque": (lambda: collections.deque([1]), lambda it: it.append(2)),
    "slot": (Slotted, lambda it: setattr(it, "number", 2)),
    "tensor": (lambda: (torch.zeros(2),), lambda it: it[0].add_(1)),
    "generator": (torch.Generator, lambda it: it.manual_seed(3)),
    "random": (lambda: random.Random(0), lambda it: it.random()),
    "partial": (lambda: functools.partial(print, [1]), lambda it: it.args[0].append(2)),
}


def state(thing: object) -> object:
    """Describe what a thing holds."""
    for read in ("get_state", "getstate"):
        if callable(getattr(thing, read, None)):
            held = getattr(thing, read)()
            return held.tolist() if isinstance(held, torch.Tensor) else held
    if isinstance(thing, functools.partial):
        return repr(thing.args)
    return thing.number if isinstance(thing, Slotted) else repr(thing)


@pytest.mark.parametrize("kind", MUTATIONS)
def test_what_changes_is_put_back(kind):
    """The object stays the same one, with what it held before."""
    make, mutate = MUTATIONS[kind]
    model = Holder(thing := make())
    before, reach = state(thing), Reach(model)
    mutate(thing)
    assert state(thing) != before
    for undo in reach.undo:
        undo()

    assert model.thing is thing
    assert state(thing) == before


def test_a_slot_behind_a_property_is_left_alone():
    """What cannot be read as a slot is not written as one, and does no harm."""
    model = Holder(thing := Shadowed())
    for undo in Reach(model).undo:
        undo()

    assert model.thing is thing
    with pytest.raises(AttributeError):  # the slot is as empty as it was
        vars(Slotted)["number"].__get__(thing)


def test_caches_that_have_grown_are_emptied():
    """The code of `forward` mentions the function, which forgets what it was given meanwhile."""
    remembered.cache_clear()
    reach = Reach(Holder(None))
    remembered(7)
    for undo in reach.undo:
        undo()

    assert remembered.cache_info().currsize == 0
