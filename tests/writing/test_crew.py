"""Threads that share work: all of it is done, in few places at once, and to the end."""

import _thread
import time

import pytest
import torch

from torch_initpolicy.writing import crew as module
from torch_initpolicy.writing.crew import crew


@pytest.mark.parametrize("size", [1, 4])
def test_share(size):
    """Each task is done once, with the tool of the thread that does it."""
    done = []
    with crew(range(size)) as workers:
        tasks = [lambda tool, n=n: done.append((n, tool)) for n in range(50)]
        workers.finish(lambda: workers.share(tasks))

    assert sorted(n for n, _ in done) == list(range(50))
    assert {tool for _, tool in done} <= set(range(size))


def test_the_first_failure_is_raised():
    """What a task raises is raised where the work was asked for, and no more tasks begin."""
    done = []

    def fails(tool):
        raise KeyError("seven")

    with crew(range(3)) as workers, pytest.raises(KeyError, match="seven"):
        workers.finish(lambda: workers.share([fails, *[done.append] * 10_000]))

    assert len(done) < 10_000


def test_one_core_each():
    """Every thread computes on one core, and the caller's number of cores comes back."""
    before, seen = torch.get_num_threads(), []
    with crew(range(2)) as workers:
        tasks = [lambda tool: seen.append(torch.get_num_threads())] * 8
        workers.finish(lambda: workers.share(tasks))

    assert set(seen) == {1}
    assert torch.get_num_threads() == before


def test_threads_end():
    """No thread is left when the block ends, also where it raises."""
    before = _thread._count()
    with pytest.raises(KeyError), crew(range(3)):
        raise KeyError
    ends = time.monotonic() + 5
    while _thread._count() > before and time.monotonic() < ends:
        time.sleep(0.001)

    assert _thread._count() <= before


def test_a_thread_that_dies_at_birth(monkeypatch):
    """A thread that is killed before it begins is not waited for."""
    start, left = _thread.start_new_thread, iter(range(1))
    monkeypatch.setattr(module, "_BIRTH", 0.2)

    def starts(function, arguments):
        return start((lambda: None) if next(left, None) == 0 else function, arguments)

    monkeypatch.setattr(_thread, "start_new_thread", starts)
    done = []
    with crew(range(2)) as workers:
        workers.finish(lambda: workers.share([done.append] * 3))

    assert done == [1, 1, 1]
