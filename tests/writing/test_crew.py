"""Threads that share work: all of it is done, in few places at once, and to the end."""

import threading

import pytest
import torch

from torch_initpolicy.errors import ApplyError
from torch_initpolicy.writing.crew import check_threads, crew


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
    with pytest.raises(KeyError), crew(range(3)):
        raise KeyError
    for thread in threading.enumerate():
        if thread.name == "torch-initpolicy":
            thread.join(5)

    assert not [t for t in threading.enumerate() if t.name == "torch-initpolicy"]


@pytest.mark.parametrize("threads", [0, -1, 2.0, "1", False], ids=repr)
def test_numbers_of_threads(threads):
    """A number of threads is a positive integer, or None."""
    check_threads(None)
    with pytest.raises(ApplyError, match="from 1 on"):
        check_threads(threads)
