"""Results as HTML: tables that sort and filter, and the fragments that notebooks show."""

import html
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import accumulate

Cell = str | float | tuple[float | None, ...] | None

LONGEST_SHOWN = 60_000
"""Characters of a text, and of a table, that are shown; what is longer says how much is missing."""

_TEXT = "white-space: pre; overflow-x: auto; color: inherit"

# Fragments


def framed(
    picture: str, text: str, head: Sequence[str] = (), rows: Iterable[Sequence[str]] = ()
) -> str:
    """Return a fragment of HTML: an `<svg>` element or nothing, a text, a table if it has rows.

    It needs no network and has the colours of the page around it; the table folds.

    Examples:
        >>> framed("", "a < b")
        '<div><pre style="white-space: pre; overflow-x: auto; color: inherit">a &lt; b</pre></div>'
    """
    if len(text) > LONGEST_SHOWN:
        text = f"{text[:LONGEST_SHOWN]}\n... {len(text) - LONGEST_SHOWN} more characters: print it"
    shown = f'{picture}<pre style="{_TEXT}">{html.escape(text, quote=False)}</pre>'
    lines = list(rows)
    return f"<div>{shown}{_folding(head, lines) if lines else ''}</div>"


def _folding(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    sizes = accumulate(sum(map(len, line)) for line in lines)
    fitting = [line for line, size in zip(lines, sizes, strict=True) if size <= LONGEST_SHOWN]
    count = f"{len(fitting)} of {len(lines)} rows" if len(fitting) < len(lines) else "table"
    return (
        f"<style>{asset('table.css')}</style><details open><summary>{count}</summary>"
        f"{sortable(head[0], head, fitting)}</details><script>{asset('table.js')}</script>"
    )


# Tables


def asset(name: str) -> str:
    """Return the text of a style sheet or a script of this package."""
    return resources.files("torch_initpolicy").joinpath(name).read_text(encoding="utf-8")


def sortable(name: str, head: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
    """Write a table that `table.css` styles; `table.js` lets its columns sort and its rows filter.

    Examples:
        >>> sortable("plan", ["std"], [["0.5"]]).count("0.5")
        1
    """
    lines = list(rows)
    columns = "".join(
        f'<th scope="col"{_alignment(cell)}><button type="button">{html.escape(word)}</button></th>'
        for word, cell in zip(head, lines[0] if lines else head, strict=True)
    )
    body = "".join(f"<tr>{''.join(map(_cell, line))}</tr>\n" for line in lines)
    field = '<label>Show rows with <input type="search"></label> <output></output>'
    return (
        f'<div class="sortable"><p class="filter">{field}</p>\n'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
        f"<table><thead><tr>{columns}</tr></thead>\n<tbody>\n{body}</tbody></table></div></div>\n"
    )


def _alignment(value: Cell) -> str:
    return "" if isinstance(value, str) else ' class="number"'


def _cell(value: Cell) -> str:
    if isinstance(value, str):
        return f"<td>{html.escape(value)}</td>"
    numbers = value if isinstance(value, tuple) else (value,)
    shown = " / ".join("" if number is None else f"{number:.4g}" for number in numbers)
    return f'<td class="number">{shown}</td>'
