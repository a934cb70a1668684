"""What the user of the command line sees: results on one stream, all else on the other."""

import contextvars
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from torch_initpolicy.integrations.inputs import NOTATION

QUIET = contextvars.ContextVar("QUIET", default=False)
"""Whether nothing but results and errors is shown, in this run of the command."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell has it."""

WIDE = 160
"""Columns of a table in a file or a pipe, where `COLUMNS` says nothing else."""


def open_console(*, stderr: bool = False) -> Console:
    """Open a console; a file or a pipe gets wide lines, not a terminal's 80 columns."""
    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDE
    return console


@contextmanager
def progress(what: str) -> Iterator[Callable[[str], None]]:
    """Show what is being done and for how long, where somebody watches; yield what says more."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    console = open_console(stderr=True)
    silent = QUIET.get() or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=silent) as bar:
        task = bar.add_task(escape(what), total=None)
        try:
            yield lambda more: bar.update(task, description=escape(more))
        except KeyboardInterrupt as error:
            bar.stop()
            say("error", "bold red", f"stopped while {what}; no file was written or changed")
            raise typer.Exit(INTERRUPTED) from error


def show(result: RenderableType) -> None:
    """Print a result; in a file or a pipe no line ends with blanks."""
    console = open_console()
    if isinstance(result, str):
        console.out(result)
    elif console.is_terminal:
        console.print(result)
    else:
        with console.capture() as printed:
            console.print(result)
        console.out("\n".join(line.rstrip() for line in printed.get().splitlines()))


def say(kind: str, style: str, message: object) -> None:
    """Say something on standard error, unless it is no error and the user wants quiet."""
    if kind == "error" or not QUIET.get():
        open_console(stderr=True).print(f"[{style}]{kind}:[/] {escape(str(message))}")


def advise(*, guessed: bool) -> None:
    """Name the option that gives inputs, where something could only be guessed without them."""
    if guessed:
        say("advice", "bold", f"give inputs by --input {NOTATION}")


@contextmanager
def short_warnings() -> Iterator[None]:
    """Show warnings without the line of code that raised them."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say("warning", "bold yellow", message)
        yield
