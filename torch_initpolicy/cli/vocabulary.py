"""The words that policies are written with: presets, matchers, initializers and roles."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import get_args

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
    return {
        "presets": dict(_explained(presets, set(presets.__all__) - {"policy"})),
        "matchers": dict(_explained(match, dir(match))),
        "initializers": dict(_explained(initializers, initializers.__all__)),
        "roles": dict.fromkeys(get_args(Role), ""),
    }


def _explained(module: ModuleType, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the functions of a module, then its classes, each with what it is."""
    known = [(name, vars(module).get(name)) for name in sorted(names)]
    for is_wanted in inspect.isroutine, inspect.isclass:
        for name, it in known:
            if is_wanted(it):
                yield name, (inspect.getdoc(it) or "").partition("\n")[0]


def words_table(words: Words) -> RenderableType:
    """Lay out the words, one table for each kind."""
    return Group(*(part for kind, held in words.items() for part in (_laid_out(kind, held), "")))


def _laid_out(kind: str, held: Mapping[str, str]) -> RenderableType:
    if not any(held.values()):
        return Text.assemble((kind, "underline"), "\n", ", ".join(held))
    table = Table(box=None, pad_edge=False, header_style="underline")
    for heading in (kind, "what it does"):
        table.add_column(heading, overflow="fold")
    for word, line in held.items():
        table.add_row(Text(word, style="bold"), line)
    return table
