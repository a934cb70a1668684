"""The commit: writes everything on all processes, or nothing on any."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torch_initpolicy.errors import ApplyError
from torch_initpolicy.undo import modes_kept
from torch_initpolicy.writing.crew import Crew, crew
from torch_initpolicy.writing.journal import Journal
from torch_initpolicy.writing.ranks import Groups, together

Write = Callable[[Journal], None]
"""Writes what has been computed aside, and keeps in a journal what was there."""


def commit(
    phases: Sequence[Write],
    groups: Groups,
    workers: Crew[Any] | None = None,
    then: Callable[[], None] | None = None,
) -> None:
    """Write to a model in a thread that nothing interrupts, and undo it where something fails.

    No process begins a phase before all have gone through the one before it. The first of the
    workers, or a thread of its own, calls the phases, which keep in the journal what was there
    before, and `then`, before anything can interrupt.

    Raises:
        ApplyError: Something could not be written, here or on another process.
        BaseException: What was raised in this thread meanwhile; everything is written then.
    """
    with crew([None]) if workers is None else nullcontext(workers) as threads:
        threads.finish(partial(_commit, phases, groups, then))


def _commit(phases: Sequence[Write], groups: Groups, then: Callable[[], None] | None) -> None:
    journal = Journal()
    with plainly():
        try:
            for phase in phases:
                with together(groups):
                    phase(journal)
        except Exception as error:
            if not journal.is_complete:
                raise ApplyError(
                    f"drawing failed, {error!r}, and the old values were too large to be kept: the "
                    "model is half written; apply the policy again"
                ) from error
            journal.undo()
            if isinstance(error, ApplyError):
                raise
            raise ApplyError(f"nothing was written, since writing raised {error!r}") from error
        if then is not None:
            then()


@contextmanager
def plainly() -> Iterator[None]:
    """Run torch without the modes that happen to be on: gradients, inference, `skip_init`."""
    off = torch._C.DisableTorchFunction()  # noqa: SLF001 - what torch's notes on extending name
    with modes_kept(), torch.inference_mode(mode=False), torch.no_grad(), off:
        yield


@contextmanager
def undone_on_error(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Put back the values of tensors where something raises; takes a copy of them."""
    journal = Journal()
    with torch.no_grad(), crew([None]) as workers:
        for tensor in tensors:
            journal.save(tensor.detach())
        try:
            yield
        except BaseException:
            workers.finish(journal.undo)
            raise
