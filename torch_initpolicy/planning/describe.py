"""Plans in words: what a step does and why, and the table that people read.

Knows steps and initializers; decides nothing.
"""

import itertools
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch_initpolicy.errors import counted
from torch_initpolicy.policy.family import NUMBER
from torch_initpolicy.steps import Number, Step, symmetric
from torch_initpolicy.tensors import initializers as init
from torch_initpolicy.trace.operators import remedy


def figure(number: Number, digits: int = 6) -> str:
    """Write a number for people; numbers of packed blocks with a stroke between.

    Examples:
        >>> figure(1.4142135), figure(576), figure((768.0, 256.0)), figure(None)
        ('1.41421', '576', '768/256', '-')
    """
    if isinstance(number, tuple):
        return "/".join(figure(part, digits) for part in number)
    return "-" if number is None else f"{number:.{digits}g}"


def extent(shape: Sequence[int]) -> str:
    """Write a shape for people: `64x3x7x7`, and `1` for a single number."""
    return "x".join(map(str, shape)) or "1"


# What an initializer does


def summary(initializer: init.Initializer, fan_in: Number, fan_out: Number) -> str:
    """Say in a few words how an initializer fills a weight of these fans.

    Examples:
        >>> summary(init.VarianceScaling(2.0), 576, 64), summary(init.Normal(0.02), None, None)
        ('He normal, fan_in 576, gain 1.41421', 'normal, std 0.02')
    """
    if isinstance(initializer, init.VarianceScaling):
        return _by_fans(initializer, fan_in, fan_out)
    if isinstance(initializer, init.Blocks):
        return " | ".join(summary(inner, fan_in, fan_out) for inner in initializer.initializers)
    return _SUMMARIES.get(type(initializer), repr)(initializer)


def _by_fans(initializer: init.VarianceScaling, fan_in: Number, fan_out: Number) -> str:
    gain = initializer.scale**0.5 * float(initializer.gain)
    name, fan = {
        "fan_in": ("He" if gain != 1 else "LeCun", f"fan_in {figure(fan_in)}"),
        "fan_out": ("He", f"fan_out {figure(fan_out)}"),
        "fan_avg": ("Xavier", f"fans {figure(fan_in)} + {figure(fan_out)}"),
        "fan_geo": ("geometric", f"fans {figure(fan_in)} * {figure(fan_out)}"),
    }[initializer.mode]
    return f"{name} {initializer.distribution.replace('_', ' ')}, {fan}{_unless(1, gain=gain)}"


def _unless(usual: float, **named: float) -> str:
    """Write a number with its name, unless it is the usual one."""
    ((name, number),) = named.items()
    return "" if number == usual else f", {name} {figure(number)}"


_SUMMARIES: Mapping[type[init.Initializer], Callable[[Any], str]] = MappingProxyType({
    init.Orthogonal: lambda it: "orthogonal" + _unless(1, gain=float(it.gain)),
    init.Normal: lambda it: f"normal, std {figure(it.std)}" + _unless(0, mean=it.mean),
    init.TruncatedNormal: lambda it: (
        f"normal cut at {figure(it.cut)} std, std {figure(it.std)}" + _unless(0, mean=it.mean)
    ),
    init.Uniform: lambda it: f"uniform in [{figure(it.low)}, {figure(it.high)}]",
    init.Constant: lambda it: f"constant {figure(it.value)}",
    init.Zeros: lambda _: "zeros",
    init.Ones: lambda _: "ones",
    init.Keep: lambda _: "kept as it is",
})  # fmt: skip
"""How initializers are written whose numbers say it all; others are written as in code."""


# The table


HEADINGS = ("parameter", "shape", "std", "from", "why")


def rows(steps: Iterable[Step]) -> list[tuple[str, ...]]:
    """Write the rows of the table, one cell for each heading."""
    return [(name, *cells) for name, cells in folded((s.name, _cells(s)) for s in steps)]


def table(steps: Iterable[Step]) -> str:
    """Write steps as an aligned table, rows that say the same of numbered modules in one line."""
    return aligned([HEADINGS, *rows(steps)])


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Write lines of cells as columns.

    Examples:
        >>> print(aligned([("a", "std"), ("weight", "1")]))
        a       std
        weight  1
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cells(step: Step) -> tuple[str, ...]:
    ties = f" (tied: {', '.join(step.names[1:])})" if len(step.names) > 1 else ""
    return extent(step.shape), figure(step.std, 4), step.evidence, f"{step.reason}{ties}"


TableRow = tuple[str, tuple[str, ...]]

Sighting = tuple[int, tuple[int, ...]]
"""Where a row was seen, and the numbers in its name."""

_SLOT = "\N{NULL}"


def folded(rows: Iterable[TableRow]) -> list[TableRow]:
    """Fold rows whose names differ in one number, and whose cells do not differ, into one.

    Examples:
        >>> folded([("0.weight", ("a",)), ("0.bias", ("b",)), ("1.weight", ("a",))])
        [('{0-1}.weight', ('a',)), ('0.bias', ('b',))]
    """
    equal: dict[TableRow, list[Sighting]] = {}
    for position, (name, cells) in enumerate(rows):
        numbers = tuple(map(int, NUMBER.findall(name)))
        equal.setdefault((NUMBER.sub(_SLOT, name), cells), []).append((position, numbers))
    lines = [
        (position, (_filled(template, slots), cells))
        for (template, cells), members in equal.items()
        for position, slots in _slots(members)
    ]
    return [row for _, row in sorted(lines)]


def _slots(members: Sequence[Sighting]) -> Iterator[tuple[int, list[str]]]:
    """Yield what stands for the numbers of some names, those that differ in one place together.

    With each goes the position of the first of them.
    """
    columns = zip(*(numbers for _, numbers in members), strict=True)
    varying = [place for place, column in enumerate(columns) if len(set(column)) > 1]
    place = varying[-1] if varying else 0
    together: dict[tuple[int, ...], list[Sighting]] = {}
    for position, numbers in members:
        kept = numbers[:place] + numbers[place + 1 :]
        together.setdefault(kept, []).append((position, numbers))
    for kept, (first, *others) in together.items():
        slots = list(map(str, kept))
        if first[1]:
            slots.insert(place, ranges([numbers[place] for _, numbers in (first, *others)]))
        yield first[0], slots


def _filled(template: str, slots: Sequence[str]) -> str:
    left = iter(slots)
    return re.sub(_SLOT, lambda _: next(left), template)


def ranges(values: Sequence[int]) -> str:
    """Write whole numbers as ranges; a single one stands for itself.

    Examples:
        >>> ranges([0, 1, 2, 5]), ranges([7]), ranges([0, 2, 4, 6])
        ('{0-2,5}', '7', '{0,2,...,6}')
    """
    if len(values) == 1:
        return str(values[0])
    first, *_, last = series = sorted(values)
    step = series[1] - first
    if len(series) > 3 and step > 1 and series == list(range(first, last + 1, step)):
        return f"{{{first},{first + step},...,{last}}}"
    runs = itertools.groupby(enumerate(series), key=lambda pair: pair[1] - pair[0])
    ends = [[value for _, value in run] for _, run in runs]
    return "{" + ",".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in ends) + "}"


def header(
    steps: Sequence[Step],
    policy: str,
    unknown_operators: Mapping[str, int],
    untraced: str | None = None,
) -> str:
    """Say what a plan is about, and what it does not know."""
    elements = sum(step.elements for step in steps)
    kept = sum(step.keeps for step in steps)
    known = Counter(step.evidence for step in steps)
    unknown = folded((step.name, ()) for step in steps if step.role == "unknown")
    counts = f"{counted(len(steps), 'parameter')}, {counted(elements, 'element')}; {kept:,} kept"
    lines = [
        f"policy {policy}: {counts}",
        f"known from: {_counts(known)}" + (f" ({untraced})" if untraced else ""),
    ]
    if unknown_operators:
        lines.append(f"operators of unknown role, nothing guessed: {_counts(unknown_operators)}")
        lines.append(f"to say what one computes: {remedy(next(iter(unknown_operators)))}")
    if unknown:
        lines.append(f"parameters of unknown role: {_names(unknown)}")
    equal = folded((step.name, ()) for step in symmetric(steps))
    if equal:
        lines.append(f"hidden units left identical, so that they learn as one: {_names(equal)}")
    return "\n".join(textwrap.fill(line, 100, subsequent_indent="  ") for line in lines)


def _names(rows: Iterable[TableRow]) -> str:
    return ", ".join(name for name, _ in rows)


def _counts(counts: Mapping[Any, int]) -> str:
    return ", ".join(f"{word} {count}" for word, count in counts.items())
