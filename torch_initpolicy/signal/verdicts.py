"""What can go wrong with a signal, as values and in words."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Pathology = Literal[
    "not finite", "overflows", "vanishes", "explodes", "wanders", "saturates", "dies",
    "collapses", "tokens collapse", "gradient vanishes", "gradient explodes", "gradient stops",
    "output too large", "step too large", "step too small",
]  # fmt: skip

SENTENCES: Mapping[Pathology, str] = MappingProxyType(
    {
        "not finite": "a parameter is not finite",
        "overflows": "the signal overflows",
        "vanishes": "the signal vanishes",
        "explodes": "the signal explodes",
        "wanders": "the signal wanders",
        "saturates": "activations saturate",
        "dies": "units are dead",
        "collapses": "different inputs become the same",
        "tokens collapse": "the tokens of an input become the same",
        "gradient vanishes": "the gradient vanishes",
        "gradient explodes": "the gradient explodes",
        "gradient stops": "the gradient stops",
        "output too large": "the output starts too large",
        "step too large": "the first step is too large",
        "step too small": "the first step is too small",
    }
)
"""What to say of each kind, in front of the place."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Something that goes wrong with the signal.

    Attributes:
        kind: What goes wrong.
        where: Name of the first place where it does: a weight, or `module:operator`.
        reason: One sentence with the numbers.
        advice: What to write instead.
        mild: Whether it is a warning: nets that start so may learn more slowly than they could.
        sites: Canonical names of the parameters that cause it, where these are known.
        line: Where the model's code calls the operator: `"net.py:42"`; empty where unknown.
        structural: Whether no policy can change it, so that the advice is all there is to say.
    """

    kind: Pathology
    where: str
    reason: str
    advice: str
    mild: bool = False
    sites: tuple[str, ...] = ()
    line: str = ""
    structural: bool = False

    def __str__(self) -> str:
        return f"{self.finding}; {self.advice}"

    @property
    def headline(self) -> str:
        """What goes wrong and where, in a clause."""
        return f"{SENTENCES[self.kind]} at {self.where!r}"

    @property
    def finding(self) -> str:
        """What goes wrong and where, with the numbers and without the advice."""
        place = f" ({self.line})" if self.line else ""
        return f"{self.headline}{place}: {self.reason}"


MILD = "which may slow training"
"""What a warning means."""

REPAIR = (
    'apply_policy(model, "signal") keeps second moments at 1, '
    "apply_policy(..., calibrate=batch) measures them"
)
"""Advice for a signal whose size is wrong."""


def changed(start: float, end: float) -> str:
    """Write what a number is multiplied by, as a power of ten; nothing where there is none.

    Examples:
        >>> changed(1.0, 2e-6), changed(1.0, 0.0)
        (', by 10^-5.7', '')
    """
    finite = 0 < start < math.inf and 0 < end < math.inf
    return f", by 10^{math.log10(end / start):.1f}" if finite else ""


def as_in(others: Collection[object]) -> str:
    """Say in how many later places the same goes wrong."""
    return f", as in {len(others)} later activations" if others else ""
