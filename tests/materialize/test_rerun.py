"""Methods that set a module's tensors are called again on copies, and read nothing that is lost."""

import pytest
import torch
from torch import nn

from torch_initpolicy.deferred.undrawn import pending_of
from torch_initpolicy.errors import MaterializeError
from torch_initpolicy.materialize.rerun import called_again
from torch_initpolicy.materialize.search import Search


def on_meta():
    """Build a layer without memory."""
    with torch.device("meta"):
        return nn.Linear(4, 3)


def test_a_copy_is_written():
    """What the method writes is there or pending on the copy, the rest stays on meta."""
    layer = on_meta()
    copied = called_again(Search(layer, 0, []), "", layer, lambda m: nn.init.normal_(m.weight))

    assert pending_of(copied.weight).initializer.std == 1.0
    assert copied.bias.is_meta
    assert layer.weight.is_meta


def test_what_is_lost_cannot_be_read():
    """A method that goes by values nobody has is stopped."""
    layer = on_meta()
    with pytest.raises(MaterializeError, match="are read"):
        called_again(Search(layer, 0, []), "", layer, lambda module: module.bias.sum().item())
