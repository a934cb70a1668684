"""Regular expressions that always come to an end.

Python's `re` tries one way after another, which takes for ever on `(a+)+$` or `a?a?a?...`. An
expression with few choices is left to it; any other one runs here on all ways at once (Thompson,
*Regular Expression Search Algorithm*, 1968), in time that grows with its size times the length of
the name. What that cannot do (references back, atomic groups) is refused there.

Python's own parser and compiler are private modules; should they change, `fullmatch` raises a
`PolicyError` for the expressions that `re` alone would not do for.
"""

import functools
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch_initpolicy.errors import PolicyError, brief

_CHOICES = 3
"""Choices up to which `re` is quick: it takes at most the length of the name to this power."""

_LONGEST = 1000
_STATES = 2000

_NAMES = ("re._parser", "re._compiler") if sys.version_info >= (3, 11) else (
    "sre_parse",
    "sre_compile",
)  # fmt: skip
_PARSER, _COMPILER = map(importlib.import_module, _NAMES)


def check(regex: str) -> None:
    """Refuse what is no regular expression, or one that cannot be matched in bounded time.

    Raises:
        PolicyError: Says which.
    """
    _compiled(regex)


def fullmatch(regex: str, text: str) -> bool:
    """Say whether a regular expression matches all of a text.

    Raises:
        PolicyError: It is no regular expression, or none that can be matched in bounded time.

    Examples:
        >>> fullmatch(r"(.*[.])?bias", "lstm.bias"), fullmatch("(a+)+b", "a" * 1000)
        (True, False)
    """
    compiled = _compiled(regex)
    if isinstance(compiled, re.Pattern):
        return compiled.fullmatch(text) is not None
    return len(text) in _ends(compiled, text, 0)


@functools.lru_cache(maxsize=256)
def _compiled(regex: str) -> "re.Pattern[str] | list[_State]":
    try:
        if len(regex) > _LONGEST:
            raise PolicyError(f"a regular expression has at most {_LONGEST} characters")
        tree = _PARSER.parse(regex)
        if _choices(tree) <= _CHOICES:
            return re.compile(regex)
        return _program(tree, tree.state.flags)
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise PolicyError(f"{brief(regex)} is no regular expression: {error}") from error


def _choices(tree: Any) -> int:
    """Count the choices of an expression, those within a repetition many times."""
    total = 0
    for kind, content in tree:
        inner = sum(map(_choices, _trees_in(content)))
        match str(kind):
            case "MAX_REPEAT" | "MIN_REPEAT" if content[1] > 1:
                total += 1 + inner * (_CHOICES + 1)
            case "BRANCH":
                total += inner + (len(content[1]) > 1)
            case "MAX_REPEAT" | "MIN_REPEAT":
                total += inner + (content[0] != content[1])
            case _:
                total += inner
    return total


def _trees_in(content: Any) -> Iterator[Any]:
    """Yield the expressions right within the content of a node."""
    if isinstance(content, _PARSER.SubPattern):
        yield content
    elif isinstance(content, (tuple, list)):
        for item in content:
            yield from _trees_in(item)


#
# All ways at once
#


class _State(NamedTuple):
    """A state of the automaton.

    Attributes:
        to: The states that follow.
        character: What one character must match on the way to them; None where none is read.
        place: What must hold at this place: an anchor, or None.
        look: The automaton of what must (not) lie ahead or behind, or None.
        behind: How many characters `look` begins behind this place; 0 looks ahead.
        wanted: Whether `look` must match.
    """

    to: tuple[int, ...]
    character: "re.Pattern[str] | None" = None
    place: "re.Pattern[str] | None" = None
    look: "list[_State] | None" = None
    behind: int = 0
    wanted: bool = True


def _program(tree: Any, flags: int) -> list[_State]:
    """Build an automaton that starts in state 0 and ends in the last one."""
    states: list[_State] = []
    _add_all(states, tree, flags)
    return [*states, _State(())]


def _add_all(states: list[_State], tree: Any, flags: int) -> None:
    for kind, content in tree:
        if len(states) > _STATES:
            raise PolicyError(
                "a regular expression that repeats this much is not matched; use globs"
            )
        _add(states, str(kind), content, flags)


def _add(states: list[_State], kind: str, content: Any, flags: int) -> None:
    """Add the states of one node; what follows it comes right behind them."""
    match kind:
        case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
            states.append(_State((len(states) + 1,), character=_alone(kind, content, flags)))
        case "AT":
            states.append(_State((len(states) + 1,), place=_alone(kind, content, flags)))
        case "SUBPATTERN":
            _, added, removed, tree = content
            _add_all(states, tree, (flags | added) & ~removed)
        case "BRANCH":
            _add_branches(states, content[1], flags)
        case "MAX_REPEAT" | "MIN_REPEAT":
            least, most, tree = content
            _add_repeat(states, (least, most), tree, flags)
        case "ASSERT" | "ASSERT_NOT":
            direction, tree = content
            look = _program(tree, flags)
            behind = tree.getwidth()[0] if direction < 0 else 0
            wanted = kind == "ASSERT"
            states.append(_State((len(states) + 1,), look=look, behind=behind, wanted=wanted))
        case _:
            raise PolicyError(
                f"a regular expression with this many choices has no {kind.lower()}; use globs"
            )


def _alone(kind: str, content: Any, flags: int) -> "re.Pattern[str]":
    """Compile one node, so that a character means here what it means to `re`."""
    state = _PARSER.State()
    state.flags, state.str = flags, ""
    node = (getattr(_PARSER, kind), content)
    compiled: re.Pattern[str] = _COMPILER.compile(_PARSER.SubPattern(state, [node]))
    return compiled


def _add_branches(states: list[_State], trees: Sequence[Any], flags: int) -> None:
    fork, starts, ends = len(states), [], []
    states.append(_State(()))
    for tree in trees:
        starts.append(len(states))
        _add_all(states, tree, flags)
        ends.append(len(states))
        states.append(_State(()))
    states[fork] = _State(tuple(starts))
    for end in ends:
        states[end] = _State((len(states),))


def _add_repeat(states: list[_State], times: tuple[int, int], tree: Any, flags: int) -> None:
    """Add as many copies as are needed, then as many as may be, or a loop."""
    least, most = times
    for _ in range(least):
        _add_all(states, tree, flags)
    forks = []
    endless = most == _PARSER.MAXREPEAT
    for _ in range(1 if endless else most - least):
        forks.append(len(states))
        states.append(_State(()))
        _add_all(states, tree, flags)
    if endless:
        states.append(_State((forks[0],)))
    for fork in forks:
        states[fork] = _State((fork + 1, len(states)))


def _ends(states: list[_State], text: str, start: int) -> set[int]:
    """Return the places at which a match that begins at `start` may end."""
    ends, here, at = set(), {0}, start
    while here:
        reached = _closure(states, here, text, at)
        if len(states) - 1 in reached:
            ends.add(at)
        here = {
            state.to[0]
            for state in map(states.__getitem__, reached)
            if state.character is not None and at < len(text) and state.character.match(text, at)
        }
        at += 1
    return ends


def _closure(states: list[_State], here: set[int], text: str, at: int) -> set[int]:
    """Return all states that are reached at a place without reading a character."""
    reached, left = set(here), list(here)
    while left:
        state = states[left.pop()]
        if state.character is None and _holds(state, text, at):
            new = set(state.to) - reached
            reached |= new
            left += new
    return reached


def _holds(state: _State, text: str, at: int) -> bool:
    """Say whether what a state asks of its place is so."""
    if state.place is not None:
        return state.place.match(text, at) is not None
    if state.look is None:
        return True
    begin = at - state.behind
    found = begin >= 0 and (
        at in _ends(state.look, text[:at], begin)
        if state.behind
        else bool(_ends(state.look, text, at))
    )
    return found == state.wanted
