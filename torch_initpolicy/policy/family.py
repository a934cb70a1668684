"""Two models of one family: which parameter of one stands for which of the other.

Knows names, shapes and facts of parameters; multiplies nothing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch_initpolicy.errors import PlanError, listing, nearest
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.initializers import Initializer
from torch_initpolicy.trace.facts import Facts, ForwardMultiplier


@dataclass(frozen=True, slots=True)
class Member:
    """One parameter of a base model; fields that are not here are as in `Facts`.

    Attributes:
        part: What it does, in words that do not depend on size or depth: where names are no help,
            these tell which parameter of a deeper model it stands for.
        multipliers: The known constants on the way of its numbers, and those of each packed block.
        drawn: What the policy fills it with, where that depends on its site and not on its shape
            alone; None where the shape is enough.
    """

    name: str
    shape: tuple[int, ...]
    axes: Axes | None = None
    part: tuple[str, ...] = ()
    multipliers: tuple[ForwardMultiplier, ...] = ()
    dot_product: float | None = None
    tied_head: float | None = None
    drawn: Initializer | None = None


def member_of(
    name: str, shape: tuple[int, ...], facts: Facts, drawn: Initializer | None = None
) -> Member:
    """Keep of the facts about a parameter what a parametrisation needs."""
    return Member(
        name=name,
        shape=shape,
        axes=facts.axes,
        part=part_of(facts),
        multipliers=tuple(known.multiplier for known in (facts, *facts.blocks)),
        dot_product=facts.dot_product,
        tied_head=facts.tied_head,
        drawn=drawn,
    )


def part_of(facts: Facts) -> tuple[str, ...]:
    """Say in words what a parameter does, whatever the size and depth of its model.

    Examples:
        >>> part_of(Facts("bias", op="linear"))
        ('bias', 'linear', '', '', '', '', '')
    """
    return (
        facts.role,
        facts.op or "",
        facts.meets.name if facts.meets else "",
        facts.fed_by.name if facts.fed_by else "",
        "reads the input" if facts.reads_input else "",
        "makes the output" if facts.feeds_output else "",
        "ends a residual branch" if facts.ends_residual else "",
    )


@dataclass(frozen=True, slots=True)
class Family:
    """A base model, as much of it as a parametrisation needs; None stands for what is not known."""

    members: tuple[Member, ...]
    residual_branches: int | None = None

    def counterparts(self, names: Mapping[str, Facts]) -> dict[str, Member]:
        """Find for each parameter of a model the one of the base that it stands for.

        Where all names are the same, the name says it. In a deeper model numbers in names are
        others: there a parameter of the same name but for its numbers stands for it, one that does
        the same if there is one, and of these the nearest.
        """
        by_name = {member.name: member for member in self.members}
        if by_name.keys() == names.keys():
            return by_name
        nearby = {name: self._nearest(name, facts) for name, facts in names.items()}
        found = {name: member for name, member in nearby.items() if member is not None}
        missing = [f"{name!r}{nearest(name, by_name)}" for name in names if name not in found]
        if missing:
            raise PlanError(
                f"the base has nothing that stands for these parameters:\n{listing(missing)}\n"
                "give as base a model of the same family, of another width or depth"
            )
        return found

    def _nearest(self, name: str, facts: Facts) -> Member | None:
        part = part_of(facts)

        def distance(member: Member) -> tuple[int, list[int]]:
            differs = sum(a != b for a, b in zip(part, member.part, strict=False))
            numbers = zip(_numbers(name), _numbers(member.name), strict=True)
            return differs, [abs(a - b) for a, b in numbers]

        same = (member for member in self.members if _template(member.name) == _template(name))
        return min(same, key=distance, default=None)


NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")
"""A part of a name that is a number: `3` in `blocks.3.weight`."""


def _template(name: str) -> str:
    return NUMBER.sub("#", name)


def _numbers(name: str) -> list[int]:
    return [int(number) for number in NUMBER.findall(name)]
