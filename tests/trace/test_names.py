"""However an operator is spelt, it has one name."""

import pytest
import torch
import torchvision

from torch_initpolicy.trace.names import op_name


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.Tensor.add_, "add"),
        (torch.Tensor.__radd__, "add"),
        (torch.Tensor.__itruediv__, "div"),
        (torch.relu_, "relu"),
        (torch.nn.functional.gelu, "gelu"),
        (torch.Tensor.T.__get__, "T"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_spellings_of_an_operator_are_one_name(function, name):
    """In-place, reflected and property spellings fold into one name."""
    assert op_name(function) == name


def test_operators_of_libraries():
    """Those of torch and torchvision go by their bare names, others by the library's as well."""
    assert op_name(torch.ops.aten.add_.Tensor) == op_name(torch.ops.aten.add) == "add"
    assert op_name(torch.ops.torchvision.nms) == op_name(torchvision.ops.nms) == "nms"
    assert op_name(torch.ops.prims.add) == "prims::add"
