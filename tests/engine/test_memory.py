"""Python's garbage collector is asked to wait, and left as it was."""

import gc

import pytest

from torch_initpolicy.engine.memory import collection_paused


@pytest.fixture(autouse=True)
def collector():
    """Leave the collector on for other tests."""
    yield
    gc.enable()


def test_paused():
    """Nothing is collected within the block, and collection goes on after it."""
    with collection_paused():
        within = gc.isenabled()

    assert (within, gc.isenabled()) == (False, True)


def test_error():
    """Collection goes on where the block raises."""
    with pytest.raises(ZeroDivisionError), collection_paused():
        _ = 1 / 0

    assert gc.isenabled()


def test_off_before():
    """Somebody who has switched the collector off finds it off."""
    gc.disable()
    with collection_paused(), collection_paused():
        pass

    assert not gc.isenabled()


def test_nested():
    """An inner block does not end the pause of the outer one."""
    with collection_paused():
        with collection_paused():
            pass
        within = gc.isenabled()

    assert not within
