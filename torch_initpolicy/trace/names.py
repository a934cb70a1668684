"""The names of operators, one for all spellings of each."""

from collections.abc import Callable
from typing import Any

import torch

_OF_REFLECTED = {
    "radd": "add", "rmul": "mul", "rsub": "rsub", "rdiv": "rdiv", "rtruediv": "rdiv",
    "rpow": "rpow", "rmatmul": "matmul", "iadd": "add", "isub": "sub", "imul": "mul",
    "itruediv": "div", "idiv": "div", "truediv": "div", "ipow": "pow", "invert": "bitwise_not",
}  # fmt: skip
"""Names of Python's operators, by the operator they call."""


def op_name(function: Callable[..., Any]) -> str:
    """Name an operator, in-place and Python-operator spellings folded.

    An operator of another library than torch's goes by its full name, `"library::name"`.

    Examples:
        >>> op_name(torch.Tensor.add_), op_name(torch.Tensor.__iadd__), op_name(torch.conv2d)
        ('add', 'add', 'conv2d')
        >>> op_name(torch.Tensor.mT.__get__)
        'mT'
    """
    if isinstance(function, _REGISTERED):
        return _registered_name(function)
    name = str(getattr(function, "__name__", function))
    if name == "__get__":
        name = str(getattr(getattr(function, "__self__", None), "__name__", name))
    return _folded(name)


_REGISTERED = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)  # noqa: SLF001 - have no other name
"""What `torch.ops.library.name` and each of its overloads are."""

_TORCHS_OWN = ("aten", "torchvision")
"""Libraries whose operators are known by their bare names."""


def _registered_name(function: Callable[..., Any]) -> str:
    packet = getattr(function, "overloadpacket", function)
    qualified = str(vars(packet)["_qualified_op_name"])
    library, _, name = qualified.partition("::")
    return _folded(name) if library in _TORCHS_OWN else qualified


def _folded(name: str) -> str:
    name = name.strip("_").removeprefix("special_")
    return _OF_REFLECTED.get(name, name)
