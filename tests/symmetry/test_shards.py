"""Models that are spread over processes are searched as a whole; the cases are in `spread.py`."""

import pytest

from tests.symmetry import spread
from tests.versions import needs_fsdp_on_cpu

pytestmark = pytest.mark.distributed

FORWARD = ("model_is_untouched", "watched_fsdp")
"""The cases that run a sharded model."""

PAIRS = [
    pytest.param(world, case, marks=[needs_fsdp_on_cpu] if case in FORWARD else [])
    for world, cases in spread.CASES.items()
    for case in cases
]


@pytest.fixture(scope="module")
def outcomes() -> dict[int, dict[str, list[str]]]:
    """Run each world once; the tests read what came of it."""
    return {}


@pytest.mark.parametrize(("world", "case"), PAIRS)
def test_spread(world, case, outcomes):
    """Every case of `spread.py` holds in every process; its docstring says what that is."""
    if world not in outcomes:
        outcomes[world] = spread.run(world)

    assert outcomes[world][case] == []
