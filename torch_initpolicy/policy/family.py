"""Two models of one family: which parameter of one stands for which of the other.

Knows names, shapes and facts of parameters; multiplies nothing.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

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
    """Say in words what a parameter does, whatever the size and depth of its model."""
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

    def counterparts(self, members: Sequence[Member]) -> dict[str, Member]:
        """Find for each parameter of a model the one of the base that it stands for.

        Where all names are the same, the name says it. In a deeper model numbers in names are
        others: there parameters of one kind are those of the same name but for its numbers, and as
        many shapes as a kind has here it must have in the base, in the same order. Of those of the
        shape the nearest one that does the same is taken.

        Raises:
            PlanError: A parameter has no counterpart; lists every case.
        """
        by_name = {member.name: member for member in self.members}
        if by_name.keys() == {member.name for member in members}:
            return by_name
        here, there = _by_shape(members), _by_shape(self.members)
        found: dict[str, Member] = {}
        for member in members:
            for kind in _kinds(member):
                shapes, base = list(here[kind]), list(there.get(kind, {}).values())
                if len(shapes) == len(base):
                    alike = base[shapes.index(member.shape)]
                    found[member.name] = min(alike, key=partial(_distance, member))
                    break
        missing = [
            f"{member.name!r} of shape {member.shape}"
            f"{_of_its_kind(member, there) or nearest(member.name, by_name)}"
            for member in members
            if member.name not in found
        ]
        if missing:
            raise PlanError(
                f"the base has nothing that stands for these parameters:\n{listing(missing)}\n"
                "give as base a model of the same family, of another width or depth, that has a "
                "block of each kind"
            )
        return found


_Kinds: TypeAlias = Mapping[tuple[str, ...], Mapping[tuple[int, ...], list[Member]]]


def _by_shape(members: Iterable[Member]) -> _Kinds:
    """Put parameters together by kind, and those of a kind by their shapes."""
    found: dict[tuple[str, ...], dict[tuple[int, ...], list[Member]]] = {}
    for member in members:
        for kind in _kinds(member):
            found.setdefault(kind, {}).setdefault(member.shape, []).append(member)
    return found


def _of_its_kind(member: Member, base: _Kinds) -> str:
    """Say which shapes the base has where its kind of parameter has others here."""
    shapes = next((base[kind] for kind in _kinds(member) if kind in base), ())
    return f"; of its kind the base has {', '.join(map(str, shapes))}" if shapes else ""


def _kinds(member: Member) -> Iterator[tuple[str, ...]]:
    """Yield the kinds of a parameter: by names like `blocks.3.weight`, then like `weight_l3`."""
    for numbers in (NUMBER, _DIGITS):
        template = numbers.sub("#", member.name)
        yield (template,)
        yield (template, *member.part)


def _distance(member: Member, other: Member) -> tuple[int, list[int]]:
    differs = sum(a != b for a, b in zip(member.part, other.part, strict=False))
    numbers = (map(int, _DIGITS.findall(name)) for name in (member.name, other.name))
    return differs, [abs(a - b) for a, b in zip(*numbers, strict=True)]


NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")
"""A part of a name that is a number: `3` in `blocks.3.weight`."""

_DIGITS = re.compile(r"\d+")
