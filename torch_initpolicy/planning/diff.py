"""In what the outcome of some steps differs from that of others.

Knows steps, not a model.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch_initpolicy.planning.describe import extent, folded, summary
from torch_initpolicy.policy.serialize import outcome
from torch_initpolicy.steps import Step
from torch_initpolicy.tensors.base import dtype_name


@dataclass(frozen=True, slots=True)
class Difference:
    """In what the outcome of two plans differs; false where it does not.

    Attributes:
        added: Steps for sites that only the second plan has.
        removed: Steps for sites that only the first plan has.
        changed: Both steps for each site that they fill differently.
    """

    added: tuple[Step, ...] = ()
    removed: tuple[Step, ...] = ()
    changed: tuple[tuple[Step, Step], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    def __repr__(self) -> str:
        counts = (len(self.added), len(self.removed), len(self.changed))
        return "<Difference: {} added, {} removed, {} changed: print it>".format(*counts)

    def __str__(self) -> str:
        marked = {
            "+": ((step.name, (_what(step),)) for step in self.added),
            "-": ((step.name, (_what(step),)) for step in self.removed),
            "~": ((old.name, (_change(old, new),)) for old, new in self.changed),
        }
        rows = ((mark, row) for mark, found in marked.items() for row in folded(found))
        lines = [f"{mark} {name}  {what}" for mark, (name, (what,)) in rows]
        return "\n".join(lines) or "no difference"


def difference(before: Iterable[Step], after: Iterable[Step]) -> Difference:
    """Compare what steps would leave behind, whatever their reasons."""
    first, second = ({step.name: step for step in steps} for steps in (before, after))
    shared = [(step, second[name]) for name, step in first.items() if name in second]
    return Difference(
        added=tuple(step for name, step in second.items() if name not in first),
        removed=tuple(step for name, step in first.items() if name not in second),
        changed=tuple(pair for pair in shared if outcome(pair[0]) != outcome(pair[1])),
    )


def _change(old: Step, new: Step) -> str:
    """Say what becomes what; in full where few digits say the same of both."""
    if (before := _what(old)) != (after := _what(new)):
        return f"{before} -> {after}"
    return f"{_full(old)} -> {_full(new)}"


def _what(step: Step) -> str:
    filling = summary(step.initializer, step.fan_in, step.fan_out)
    return f"{extent(step.shape)} {dtype_name(step.dtype)}: {filling}"


def _full(step: Step) -> str:
    parts = (step.initializer, step.axes, f"padding {step.padding}", f"factors {step.factors}")
    return ", ".join(map(str, parts))
