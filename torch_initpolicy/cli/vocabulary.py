"""The words that policies are written with: presets, matchers, roles and initializers."""

import inspect
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, get_args

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from torch_initpolicy.policy import match, presets
from torch_initpolicy.tensors import initializers
from torch_initpolicy.tensors.layers import Role

Words = Mapping[str, Mapping[str, str]]
"""By kind, each word with a line that says what it is."""


def vocabulary() -> Words:
    """Collect the words of every kind, each with the first line of its docstring."""
    return MappingProxyType(
        {
            "presets": _described(presets, set(presets.__all__) - {"policy"}),
            "matchers": _described(match, dir(match)),
            "initializers": _described(initializers, initializers.__all__),
            "roles": dict.fromkeys(get_args(Role), ""),
        }
    )


def _described(module: Any, names: Iterable[str]) -> dict[str, str]:
    """Say what each function or class of a module is."""
    known = {name: getattr(module, name) for name in sorted(names)}
    return {name: _first_line(it) for name, it in known.items() if inspect.isroutine(it)} | {
        name: _first_line(it) for name, it in known.items() if inspect.isclass(it)
    }


def _first_line(it: Any) -> str:
    return (inspect.getdoc(it) or "").partition("\n")[0]


def words_table(words: Words) -> RenderableType:
    """Lay out the words, one table for each kind."""
    return Group(*(part for kind, held in words.items() for part in _section(kind, held)))


def _section(kind: str, held: Mapping[str, str]) -> Iterable[RenderableType]:
    if not any(held.values()):
        return (Text(kind, style="underline"), Text(", ".join(held)), "")
    table = Table(box=None, pad_edge=False, header_style="underline")
    for heading in (kind, "what it does"):
        table.add_column(heading, overflow="fold")
    for word, line in held.items():
        table.add_row(Text(word, style="bold"), Text(line))
    return (table, "")
