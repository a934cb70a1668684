"""The command `torch-initpolicy`: parses, calls the verbs of the package, prints their results.

Results go to standard output, and with `--json` nothing else does; progress, warnings and errors
go to standard error. Exit codes: 0, all is well; 1, something failed or was found; 2, the command
line asks for something that does not exist, or is written wrongly.
"""

import contextvars
import traceback
from collections.abc import Sequence
from pathlib import Path

from torch_initpolicy.errors import InitPolicyError, MissingExtraError, PolicyError, TraceError

try:
    from torch_initpolicy.cli.commands import FAILED, app
    from torch_initpolicy.cli.console import advise, say, short_warnings
except ImportError as error:  # the first thing a script does; nobody wants a traceback there
    raise SystemExit(str(MissingExtraError("the command torch-initpolicy", "cli"))) from error

__all__ = ["main"]

USAGE = 2
"""Exit code where the command line asks for what does not exist."""

USAGE_ERRORS = (PolicyError, MissingExtraError)
"""Errors that another command line would mend; any other is a failure of the work itself."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: What was typed after `torch-initpolicy`; None takes it from the process.

    Raises:
        SystemExit: Always; 0 if all is well, 1 if something failed or was found, 2 if the command
            line asks for what does not exist.

    Examples:
        >>> main(["plan", "torch.nn:Lineal"])
        Traceback (most recent call last):
        SystemExit: 2
    """
    try:
        with short_warnings():
            contextvars.copy_context().run(app, args=arguments, prog_name="torch-initpolicy")
    except InitPolicyError as error:
        say("error", "bold red", error)
        advise(guessed=isinstance(error, TraceError))
        raise SystemExit(USAGE if isinstance(error, USAGE_ERRORS) else FAILED) from error
    except Exception as error:  # the model's own code may raise anything
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        say("error", "bold red", f"{type(error).__name__}: {error} ({where})")
        raise SystemExit(FAILED) from error
