"""The commit: done as a whole, or undone, with an error that says which. See `tests/attacks`."""

import pytest
import torch

from torch_initpolicy.errors import ApplyError
from torch_initpolicy.writing.commit import commit, undone_on_error
from torch_initpolicy.writing.crew import crew


def _run(write, then=None):
    with crew([None]) as workers:
        commit([write], (), workers, then)


def test_what_follows():
    """What is to follow the writing follows it, and only where it went well."""
    tensor, called = torch.zeros(2), []
    _run(lambda journal: journal.write(tensor, 1.0), lambda: called.append(tensor.tolist()))

    assert called == [[1.0, 1.0]]


def test_failure():
    """What was written before the failure is undone, and nothing follows."""
    tensor, called = torch.zeros(2), []

    def write(journal):
        journal.write(tensor, 1.0)
        raise OSError("no")

    with pytest.raises(ApplyError, match=r"nothing was written, .* OSError\('no'\)"):
        _run(write, lambda: called.append(1))

    assert tensor.tolist() == [0.0, 0.0]
    assert not called


def test_values_come_back():
    """Tensors written in the block have their old values where it raises, and else the new ones."""
    tensor = torch.zeros(2)
    with undone_on_error([tensor]):
        tensor.fill_(1.0)

    def raises():
        tensor.fill_(2.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), undone_on_error([tensor]):
        raises()

    assert tensor.tolist() == [1.0, 1.0]
