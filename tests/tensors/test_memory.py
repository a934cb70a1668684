"""Copies that take memory late, and what they leave behind."""

import threading

import pytest
import torch

from torch_initpolicy.tensors.memory import lazy_copy, own_memory


def shares(tensor):
    """Say whether torch will copy a tensor's memory at the next write."""
    return torch._C._is_cow_tensor(tensor)


@pytest.mark.parametrize("written", ["copy", "original"])
def test_a_copy_and_its_original_are_written_apart(written):
    """Whichever of the two is written to, the other keeps its numbers."""
    original = torch.arange(6.0)
    copy = lazy_copy(original)
    first, second = (copy, original) if written == "copy" else (original, copy)
    first.zero_()
    assert second.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("keeps", [True, False])
def test_memory_is_owned_again(keeps):
    """Afterwards nothing is shared, whether the copy still lives or not, and the original stays."""
    original = torch.arange(6.0)
    place = original.data_ptr()
    copy = lazy_copy(original)
    assert shares(original)
    if keeps:
        own_memory(copy)
    else:
        del copy
    own_memory(original)
    assert not shares(original)
    assert original.tolist() == [0, 1, 2, 3, 4, 5]
    assert original.data_ptr() == place


def test_threads_may_write_to_memory_that_is_owned():
    """Two threads that begin to write at once to what was copied neither tear nor end the process.

    Without `own_memory`, torch ends the process within some ten rounds.
    """
    for _ in range(100):
        tensor = torch.zeros(2, 1 << 12)
        lazy_copy(tensor)
        own_memory(tensor)
        barrier = threading.Barrier(2)

        def write(row, barrier=barrier):
            barrier.wait()
            row.fill_(1.0)

        threads = [threading.Thread(target=write, args=(row,)) for row in tensor]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert bool((tensor == 1).all())


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(3, device="meta"),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.ones(3, 3).to_mkldnn(),
        lambda: torch.frombuffer(bytearray(12), dtype=torch.float32),
    ],
)
def test_kinds_without_plain_memory_are_let_alone(make):
    """To own what is never shared is nothing; what cannot be copied late is copied at once."""
    tensor = make()
    own_memory(tensor)
    assert lazy_copy(tensor).shape == tensor.shape
    own_memory(tensor)
