"""Sharded models hold the bits of one process, for 1 to 4 processes and every way to spread them.

The cases are in `sharded.py`; the processes of one world start once and run all of them.
"""

import functools

import pytest

pytest.importorskip("torch.distributed.tensor")

from tests import versions
from tests.writing import sharded

UNEVEN = ("fsdp_and_tensor_parallel", "fails_together", "no_seed")
"""How the cases begin that cut a parameter along two meshes."""


@functools.cache
def outcomes(world):
    """What went wrong in each case, by rank."""
    return sharded.run(world)


@pytest.mark.distributed
@pytest.mark.parametrize("case", sharded.CASES)
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_case(world, case):
    """No process of this world finds anything wrong."""
    if world == 3 and versions.OLDEST and case.startswith(UNEVEN):
        pytest.skip("FSDP of torch 2.6 cuts a tensor-parallel parameter in equal parts alone")
    failures = outcomes(world)[case]

    assert not failures, "\n".join(failures)
