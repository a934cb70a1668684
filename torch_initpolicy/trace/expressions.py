"""Parameters on their way to the operator that consumes them.

A weight may be transposed, standardised, scaled, sliced or multiplied by another before it meets
the signal. What has happened to it there says what it is; where its elements have gone is for
`coordinates` to count.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch_initpolicy.trace.graph import Node, Value
from torch_initpolicy.trace.operators import Op, OpRole


@dataclass(frozen=True, slots=True)
class Source:
    """A parameter inside an expression of parameters.

    Attributes:
        site: Canonical name of the parameter.
        size: Its number of elements.
        at: The value that is the parameter itself.
        contracted: Whether it has been multiplied with another parameter and summed.
        shift: What has been added to it: 1.0 for `1 + weight`.
        gated: Whether an activation has been applied to it.
        bent: Whether any function of one number has: an activation, an exponential, a root.
        indexed: Whether rows have been picked out of it by a table of indices.
        routed: Whether whole matrices have been picked out of it by the signal.
        scales: Whether it has been multiplied with a larger parameter, element by element.
        noisy: Whether it has been multiplied by noise.
    """

    site: str
    size: int
    at: int
    contracted: bool = False
    shift: float = 0.0
    gated: bool = False
    bent: bool = False
    indexed: bool = False
    routed: bool = False
    scales: bool = False
    noisy: bool = False

    def marked(self, **marks: bool) -> "Source":
        """Return the source with more that has happened to it."""
        new: dict[str, Any] = {mark: True for mark, holds in marks.items() if holds}
        return replace(self, **new) if new else self


def whole(value: Value) -> Source:
    """Return the expression that is the parameter itself."""
    return Source(value.parameter or "", math.prod(value.shape), value.index)


def through(source: Source, node: Node, op: Op) -> Source:
    """Follow a parameter through an operator that reads parameters and constants only."""
    if op.role is OpRole.ADDS:
        return replace(source, shift=source.shift + _added_number(node))
    gates, bends = op.role is OpRole.ACTIVATES, op.role in (OpRole.ACTIVATES, OpRole.COMPUTES)
    return replace(source, gated=source.gated or gates, bent=source.bent or bends)


def _added_number(node: Node) -> float:
    numbers = [arg for arg in node.args if isinstance(arg, (int, float))]
    return float(numbers[0]) if len(numbers) == 1 else 0.0
