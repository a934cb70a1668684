"""Fixtures for pytest; a suite opts in by `pytest_plugins` or `-p torch_initpolicy.pytest_plugin`.

It is no entry point on purpose: such a plugin, and torch with it, would be imported in every run of
pytest on the machine.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
from torch import nn

from torch_initpolicy import testing

__all__ = ["assert_initialized", "assert_no_symmetry", "assert_untouched"]


@pytest.fixture
def assert_initialized() -> Callable[..., None]:
    """Assert that a model's weights look as a policy leaves them: see `testing`."""
    return testing.assert_initialized


@pytest.fixture
def assert_no_symmetry() -> Callable[..., None]:
    """Assert that no units of a model are tied and no parameters dead: see `testing`."""
    return testing.assert_no_symmetry


@pytest.fixture
def assert_untouched() -> Callable[[nn.Module], AbstractContextManager[None]]:
    """Assert that a block of code leaves a model exactly as it was: see `testing`."""
    return testing.assert_untouched
