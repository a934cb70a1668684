"""Code within the block draws from generators of its own; the global ones are not read or moved."""

import contextlib
import sys
import threading

import pytest
import torch
from torch import nn
from torch.utils import _python_dispatch
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _get_current_dispatch_mode_stack,
    is_in_torch_dispatch_mode,
)

from tests.versions import needs_traced_finally
from torch_initpolicy.tensors import isolation
from torch_initpolicy.tensors.isolation import drawing_from, passing_by

DRAWS = {
    "function": lambda: torch.randn(4),
    "method": lambda: torch.empty(4).uniform_(),
    "init": lambda: nn.init.trunc_normal_(torch.empty(4)),
    "no generator": lambda: nn.functional.dropout(torch.ones(64)),
    "permutation": lambda: torch.randperm(9),
}


def drawn(draw, seed):
    """Draw within a block that starts at a seed."""
    with drawing_from({"cpu": torch.Generator().manual_seed(seed)}):
        return draw()


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_own_generator(draw):
    """Equal seeds draw equal numbers, others draw others, and the global generator stays."""
    before = torch.get_rng_state()

    assert torch.equal(drawn(draw, 1), drawn(draw, 1))
    assert not torch.equal(drawn(draw, 1), drawn(draw, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_that_is_passed_is_used():
    """What brings a generator of its own draws from that."""
    own = torch.Generator().manual_seed(5)
    expected = torch.rand(3, generator=torch.Generator().manual_seed(5))

    assert torch.equal(drawn(lambda: torch.rand(3, generator=own), 1), expected)


def test_a_seed_that_is_set_is_put_back():
    """Code that seeds the global generator leaves it as it was."""
    before = torch.get_rng_state()
    drawn(lambda: torch.manual_seed(3), 1)

    assert torch.equal(torch.get_rng_state(), before)


def test_blocks_nest():
    """An operator that takes no generator draws in an inner block, too, and moves no global one."""
    before = torch.get_rng_state()
    with drawing_from({"cpu": torch.Generator().manual_seed(1)}):
        kept = drawn(lambda: torch.native_dropout(torch.ones(64), 0.5, train=True)[1], 2)

    assert 0 < kept.sum() < 64
    assert torch.equal(torch.get_rng_state(), before)


def test_threads_take_turns():
    """Blocks of several threads that overlap leave no mode of torch switched on."""
    ready, done = threading.Event(), threading.Event()

    def first():
        with drawing_from({}):
            ready.set()
            done.wait()

    thread = threading.Thread(target=first)
    thread.start()
    ready.wait()
    with drawing_from({}):
        done.set()
        thread.join()

    assert not is_in_torch_dispatch_mode()


@needs_traced_finally
def test_an_interrupt_on_the_way_out():
    """Ctrl-C while the block ends leaves no mode behind: what is drawn later is torch's own."""
    depth = len(_get_current_dispatch_mode_stack())
    for number in range(6):
        calls = iter(range(number, -1, -1))  # Python looks for signals where a function begins

        def interrupts(frame, event, argument, calls=calls):
            ours = frame.f_code.co_filename in (isolation.__file__, _python_dispatch.__file__)
            if ours and next(calls, 1) == 0:
                raise KeyboardInterrupt

        with contextlib.suppress(KeyboardInterrupt), drawing_from({}):
            sys.settrace(interrupts)
        sys.settrace(None)

        assert len(_get_current_dispatch_mode_stack()) == depth


def test_other_threads_are_not_concerned():
    """A thread that draws meanwhile draws from the global generator."""
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    found = []
    with drawing_from({"cpu": torch.Generator().manual_seed(1)}):
        thread = threading.Thread(target=lambda: found.append(torch.rand(2)))
        thread.start()
        thread.join()

    assert torch.equal(found[0], expected)


class Counts(TorchDispatchMode):
    """Counts operators."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


class Doubled(torch.Tensor):
    """Wraps a tensor; operators give twice the numbers."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*(arg.inner for arg in args), **(kwargs or {})) * 2


def test_operators_on_plain_tensors_pass_by_modes():
    """Modes see what comes before and after; a tensor of a class of its own works as ever."""
    tensor, doubled = torch.ones(3), Doubled(torch.ones(3))
    with Counts() as mode:
        with passing_by(tensor):
            total = tensor.sum()
        assert (total, mode.count) == (3, 0)
        with passing_by(doubled):
            assert doubled.sum() == 6
        seen = mode.count
        tensor.sum()
    assert mode.count == seen + 1
