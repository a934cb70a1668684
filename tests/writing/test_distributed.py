"""Sharded models hold the bits of one process, for 1 to 4 processes and every way to spread them.

The cases are in `sharded.py`; the processes of one world start once and run all of them.
"""

import functools

import pytest

pytest.importorskip("torch.distributed.tensor")

from tests.writing import sharded


@functools.cache
def outcomes(world):
    """What went wrong in each case, by rank."""
    return sharded.run(world)


@pytest.mark.distributed
@pytest.mark.parametrize("case", sharded.CASES)
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_case(world, case):
    """No process of this world finds anything wrong."""
    failures = outcomes(world)[case]

    assert not failures, "\n".join(failures)
