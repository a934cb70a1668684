"""Results go to one stream, all else to the other; widths, quiet and Ctrl-C are respected."""

import warnings

import pytest
import typer
from rich.table import Table

from torch_initpolicy.cli.console import (
    INTERRUPTED,
    QUIET,
    WIDE,
    advise,
    open_console,
    progress,
    say,
    short_warnings,
    show,
)


@pytest.fixture
def quiet():
    """Ask for quiet within one test."""
    token = QUIET.set(True)
    yield
    QUIET.reset(token)


def table() -> Table:
    """Make a table whose last column is often empty."""
    made = Table("parameter", "why", box=None)
    made.add_row("layer.weight", "")
    made.add_row("layer.bias", "zeros")
    return made


def test_results_are_printed_without_trailing_blanks(capsys):
    """A table in a pipe has no blanks at the ends of lines; a text is printed as it is."""
    show(table())
    show("[not markup]  plain")
    out, err = capsys.readouterr()

    assert err == ""
    assert all(line == line.rstrip() for line in out.splitlines())
    assert "layer.bias" in out
    assert out.endswith("[not markup]  plain\n")


@pytest.mark.parametrize("columns", [60, 120])
def test_widths(monkeypatch, columns):
    """`COLUMNS` decides; where it says nothing, a pipe gets wide lines."""
    monkeypatch.delenv("COLUMNS", raising=False)
    assert open_console().width == WIDE
    monkeypatch.setenv("COLUMNS", str(columns))
    assert open_console().width == columns


def test_quiet_keeps_errors(capsys, quiet):
    """Advice and warnings are left out, errors and results are not."""
    say("warning", "bold", "a [word]")
    advise(guessed=True)
    say("error", "bold", "a [word]")
    show("a result")

    assert capsys.readouterr() == ("a result\n", "error: a [word]\n")


def test_advice_is_given_where_something_was_guessed(capsys):
    """It names the option."""
    advise(guessed=False)
    assert capsys.readouterr().err == ""
    advise(guessed=True)
    assert "--input" in capsys.readouterr().err


def test_warnings_are_short(capsys):
    """A warning shows its message, not the line of code; outside the block all is as before."""
    with short_warnings():
        warnings.simplefilter("always")
        warnings.warn("mind the gap", UserWarning, stacklevel=1)
    with pytest.warns(UserWarning, match="mind the gap"):
        warnings.warn("mind the gap", UserWarning, stacklevel=1)

    assert capsys.readouterr().err == "warning: mind the gap\n"


def test_progress_says_what_was_stopped(capsys):
    """Ctrl-C ends with a shell's code and a word about what was going on; a pipe sees no bar."""
    with progress("counting [1]") as update:
        update("counting [2]")
    assert capsys.readouterr() == ("", "")

    with pytest.raises(typer.Exit) as ended, progress("counting [1]"):
        raise KeyboardInterrupt
    assert ended.value.exit_code == INTERRUPTED
    assert "stopped while counting [1]; no file was written" in capsys.readouterr().err
