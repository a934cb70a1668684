"""Layers of other libraries that are known by name."""

import pytest
from torch import nn

from torch_initpolicy.integrations.layers import LAYERS, axes_of_weight


@pytest.mark.parametrize("path", LAYERS)
def test_names_are_of_existing_classes(path):
    """The table names classes of today's libraries."""
    module, _, name = path.rpartition(".")

    assert issubclass(getattr(pytest.importorskip(module), name), nn.Module)


def test_other_layers():
    """Nothing is said of a layer that the table does not name."""
    assert axes_of_weight(nn.Linear(2, 3)) is None
