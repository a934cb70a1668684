"""A step: what is to happen to one site, and why.

Knows initializers and shapes; has never heard of rules, or of how a step is carried out.
"""

import math
from dataclasses import dataclass

import torch

from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.initializers import Initializer, Keep
from torch_initpolicy.tensors.layers import Role
from torch_initpolicy.trace.facts import Evidence

Number = float | tuple[float, ...] | None
"""One number, one for each packed block where these differ, or None where it has no meaning."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is to happen to one site, and why.

    Attributes:
        name: Canonical name of the site.
        names: All its canonical names; the others are its ties.
        shape: Its logical shape.
        dtype: Its dtype.
        owner: Class name of the module that holds it.
        role: What the parameter does.
        op: The operator that consumes it, or None.
        meets: Name of the activation its output meets, or None.
        fed_by: Name of the activation its input comes from, or None.
        fan_in: Connections into one output unit.
        fan_out: Connections out of one input unit.
        initializer: How it is filled, all numbers resolved.
        std: Standard deviation of what will be drawn.
        rule: The matcher that chose the initializer, as the policy writes it.
        evidence: How the facts came to be known.
        reason: One sentence for people.
        axes: What its axes mean, or None.
        padding: Row that stays zero, or None.
        feeds_output: Whether its output is the model's own, with no weight behind it.
        ends_residual: Whether it is the last weight of a residual branch.
    """

    name: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    owner: str
    role: Role
    op: str | None
    meets: str | None
    fed_by: str | None
    fan_in: Number
    fan_out: Number
    initializer: Initializer
    std: Number
    rule: str
    evidence: Evidence
    reason: str
    axes: Axes | None = None
    padding: int | None = None
    feeds_output: bool = False
    ends_residual: bool = False

    @property
    def keeps(self) -> bool:
        """Whether the site is left as it is."""
        return isinstance(self.initializer, Keep)

    @property
    def elements(self) -> int:
        """How many elements the site has."""
        return math.prod(self.shape)
