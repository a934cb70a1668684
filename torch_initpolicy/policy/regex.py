"""Regular expressions that come to an end on every name.

Python's `re` tries one way of laying an expression over a name after another, which takes for ever
on `(a+)+$` or `a?a?a?...`. A policy may come from somebody else's file, so its ways are counted
first, and an expression with too many is refused: one that repeats what repeats, or has five parts
that may each be of any length. Globs say the same better. (An engine that follows all ways at once,
as Thompson's of 1968, would refuse none, and be five times as long as this.)

Python's own parser is a private module, `re._parser`; should it change, every expression is refused
with a `PolicyError`.
"""

import functools
import importlib
import math
import re
import sys
from collections.abc import Iterator
from typing import Any

from torch_initpolicy.errors import PolicyError, brief

_PARSER = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

_LONGEST = 1000
"""Characters of an expression."""

_LETTERS = 64
"""Letters of the name on which ways are counted."""

_MOST = _LETTERS**4
"""Ways up to which an expression is matched: four repetitions of any length."""


@functools.lru_cache(maxsize=256)
def compiled(regex: str) -> "re.Pattern[str]":
    """Return a regular expression that can be matched in bounded time."""
    try:
        if len(regex) > _LONGEST:
            raise PolicyError(f"a regular expression has at most {_LONGEST} characters")
        ways = _ways(_PARSER.parse(regex))
        pattern = re.compile(regex)
    except (re.error, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise PolicyError(f"{brief(regex)} is no regular expression: {error}") from error
    if ways > _MOST:
        raise PolicyError(
            f"{brief(regex)} could be matched in too many ways, which may take for ever: repeat "
            "nothing that repeats, and at most four things without bound; or use globs"
        )
    return pattern


def _ways(tree: Any) -> int:
    """Count the ways of laying an expression over a name, each of its parts on its own."""
    return _bounded(math.prod(_ways_of(str(kind), content) for kind, content in tree))


def _ways_of(kind: str, content: Any) -> int:
    """Count the ways of one node: a repetition has one for each number of times, and its parts."""
    inner = [_ways(tree) for tree in _trees_in(content)]
    if kind == "BRANCH":
        return sum(inner)
    if not kind.endswith("_REPEAT"):
        return math.prod(inner)
    least, most = (min(int(times), _LETTERS) for times in content[:2])
    return (most - least + 1) * _bounded(math.prod(inner) ** most)


def _bounded(ways: int) -> int:
    """Return a number, or one above the most: powers of powers would fill the memory."""
    return min(ways, _MOST + 1)


def _trees_in(content: Any) -> Iterator[Any]:
    """Yield the expressions right within the content of a node."""
    if isinstance(content, _PARSER.SubPattern):
        yield content
    elif isinstance(content, (tuple, list)):
        for item in content:
            yield from _trees_in(item)
