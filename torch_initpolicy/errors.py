"""Every exception and warning of the package.

Each is also the builtin it specialises, so that both ways of catching it work::

    InitPolicyError(Exception)
    ├── ArgumentError(ValueError)           an argument is not what it may be
    │   └── NotAModuleError(TypeError)      a model or its class is wanted, something else was given
    ├── PolicyError(ValueError)             a rule, matcher, initializer or policy file is malformed
    │   └── UnknownNameError(LookupError)   a preset, class or field that does not exist
    ├── PlanError(ValueError)               the plan would be wrong or incomplete; lists every case
    ├── TraceError(RuntimeError)            the forward pass could not be read with the given inputs
    ├── ApplyError(RuntimeError)            writing failed; the model is as it was
    ├── VerifyError(AssertionError)         a tensor is not what its step says
    ├── SkippedInitError(RuntimeError)      a model is used whose skipped weights were never filled
    ├── MaterializeError(RuntimeError)      a meta-built model could not be made real; lists all
    ├── SymmetricInitError(RuntimeError)    units are tied or dead; the caller asked to be stopped
    └── MissingExtraError(ImportError)      a feature needs an extra that is not installed

    InitPolicyWarning(UserWarning)
    ├── UnusedRuleWarning                   a rule matched nothing
    ├── UnknownOperatorWarning              the trace met operators without a known role
    ├── OverwrittenWarning                  a model is initialised that looks trained or loaded
    └── SymmetricInitWarning                units are tied or dead
"""

import difflib
import inspect
import reprlib
import warnings
from collections.abc import Iterable, Sequence

SHOWN = 10


class InitPolicyError(Exception):
    """Root of every error this package raises on purpose."""


class ArgumentError(InitPolicyError, ValueError):
    """An argument is not what it may be."""


class NotAModuleError(ArgumentError, TypeError):
    """A model, or a class of models, is wanted, and something else was given."""


class PolicyError(InitPolicyError, ValueError):
    """A rule, matcher, initializer or policy file is malformed."""


class UnknownNameError(PolicyError, LookupError):
    """A name was asked for that does not exist; the message suggests the nearest ones."""


class PlanError(InitPolicyError, ValueError):
    """A plan would be wrong or incomplete. The message lists every case."""


class TraceError(InitPolicyError, RuntimeError):
    """The forward pass could not be read with the inputs that were given."""


class ApplyError(InitPolicyError, RuntimeError):
    """Writing failed. The model is exactly as it was before the call."""


class VerifyError(InitPolicyError, AssertionError):
    """A tensor is not what its step of the plan says."""


class SkippedInitError(InitPolicyError, RuntimeError):
    """A model is used whose weights were skipped by `skip_init` and never filled."""


class MaterializeError(InitPolicyError, RuntimeError):
    """A model built on the meta device could not be made real. The message lists every case."""


class SymmetricInitError(InitPolicyError, RuntimeError):
    """Units are tied or dead, and the caller asked to be stopped."""


class MissingExtraError(InitPolicyError, ImportError):
    """A feature needs an optional dependency that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(
            f"{feature} needs the extra {extra!r}: in a clone, pip install -e '.[{extra}]'"
        )


class InitPolicyWarning(UserWarning):
    """Root of every warning this package gives."""


class UnusedRuleWarning(InitPolicyWarning):
    """A rule of a policy matched no site."""


class UnknownOperatorWarning(InitPolicyWarning):
    """The trace met operators whose role it does not know; what lies behind them is not guessed."""


class OverwrittenWarning(InitPolicyWarning):
    """A model is initialised that looks as if it had been trained, or loaded from a checkpoint."""


class SymmetricInitWarning(InitPolicyWarning):
    """Units are identical and will stay identical, or parameters can never move."""


def warn(message: str, category: type[InitPolicyWarning], *, through: Sequence[str] = ()) -> None:
    """Give a warning that points at the line which called this package, however deep within.

    `through` names other packages that are no callers: `"torch"` where a hook of torch's warns.
    """
    inner = {__name__.partition(".")[0], *through}
    level, frame = 1, inspect.currentframe()
    while frame and str(frame.f_globals.get("__name__")).partition(".")[0] in inner:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)


def listing(cases: Sequence[str]) -> str:
    """Write the first `SHOWN` cases one per line, then the count of the others."""
    lines = [f"  - {case}" for case in cases[:SHOWN]]
    if len(cases) > SHOWN:
        lines.append(f"  ... and {len(cases) - SHOWN} more")
    return "\n".join(lines)


def counted(count: int, noun: str) -> str:
    """Write how many there are of something: `"1 tensor"`, `"1,024 tensors"`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


_LONGEST = 200
"""Characters of a word that somebody may have meant, and of a value that is shown."""


def brief(value: object) -> str:
    """Write a value as `repr` does, with no more of it than can be read.

    Examples:
        >>> brief(0.5), len(brief("x" * 10**6)) < 300
        ('0.5', True)
    """
    short = reprlib.Repr()
    short.maxstring = short.maxlong = short.maxother = _LONGEST
    return short.repr(value)


def nearest(word: str, known: Iterable[str]) -> str:
    """Write what was probably meant: `"; did you mean 'relu' or 'relu6'?"`, or nothing."""
    if len(word) > _LONGEST:
        return ""
    found = difflib.get_close_matches(word, list(known), n=3)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""
