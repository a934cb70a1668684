"""Known numbers: which values are numbers, and by which of them an operator multiplies another."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.graph import CANNOT_RUN, Graph, Node, Value, rerun
from torch_initpolicy.trace.operators import OPS, UNKNOWN, OpRole, argument


@dataclass(frozen=True, slots=True)
class Scalars:
    """The known numbers of a graph: values of which every element is the number."""

    uses: Uses
    numbers: Mapping[int, float]

    def factor(self, node: Node, value: int) -> float:
        """Return the known number by which a node multiplies one of its operands, without sign."""
        role = self.uses.role(node)
        if role is OpRole.MULTIPLIES:
            return abs(self._multiplied(node, value))
        if role is OpRole.CONTRACTS or (role is OpRole.ADDS and _is(value, *node.args[1:2])):
            return abs(float(node.kwargs.get("alpha", 1.0)))
        return 1.0

    def _multiplied(self, node: Node, value: int) -> float:
        operands = [*node.args, *(node.kwargs[key] for key in ("other",) if key in node.kwargs)]
        numbers = (self._number(each) for each in operands if not _is(value, each))
        product = math.prod(number for number in numbers if number is not None)
        if "div" not in node.op:
            return product
        return 1 / product if _is(value, operands[0]) and product else 1.0

    def _number(self, given: Any) -> float | None:
        if isinstance(given, Value):
            return self.numbers.get(given.index)
        return float(given) if isinstance(given, (int, float)) else None


def _is(value: int, given: Any = None) -> bool:
    """Tell whether an argument is a value."""
    return isinstance(given, Value) and given.index == value


def numbers(graph: Graph) -> dict[int, float]:
    """Return the values that are known numbers, in every element, whatever the parameters."""
    found = {v.index: v.constant for v in graph.values if v.constant is not None}
    for node in graph.nodes:
        if len(node.outputs) == 1 and node.outputs[0] not in found:
            number = _number_made(node, found)
            if number is not None:
                found[node.outputs[0]] = number
    return found


_FILLED: Mapping[str, float | None] = MappingProxyType({
    "zeros": 0.0, "new_zeros": 0.0, "zeros_like": 0.0, "ones": 1.0, "new_ones": 1.0,
    "ones_like": 1.0, "full": None, "new_full": None, "full_like": None,
})  # fmt: skip
"""What operators that make tensors of one number fill them with; None: their second argument."""


def _number_made(node: Node, known: Mapping[int, float]) -> float | None:
    if node.op in _FILLED:
        filled = argument(node, 1, "fill_value", None) if "full" in node.op else _FILLED[node.op]
        return float(filled) if isinstance(filled, (int, float)) else None
    if not node.inputs or any(value not in known for value in node.inputs):
        return None
    role = OPS.get(node.op, UNKNOWN).role
    if role in (OpRole.CASTS, OpRole.MOVES):
        return known[node.inputs[0]]
    is_arithmetic = role in (OpRole.MULTIPLIES, OpRole.ADDS, OpRole.COMPUTES)
    return _evaluated(node, known) if is_arithmetic else None


def _evaluated(node: Node, known: Mapping[int, float]) -> float | None:
    try:
        with torch.device("cpu"):
            return float(rerun(node, lambda value: torch.tensor(known[value]))[0])
    except CANNOT_RUN:
        return None  # it takes its number in a way of its own, such as `out=`
