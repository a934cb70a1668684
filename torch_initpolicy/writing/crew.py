"""Threads that draw and write, started before anything is written, and beyond interruption.

Python runs the handlers of signals in its main thread, and other asynchronous exceptions are thrown
at threads whose identity is known. Whatever must not stop half-way therefore runs in a private
thread of the crew while the caller waits, and what is raised in the caller meanwhile is raised
there once the work is done.
"""

import _thread
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

from torch_initpolicy.errors import ApplyError

Tool = TypeVar("Tool")


class Work:
    """A function that runs in a thread of the crew, once, unless it is withdrawn before."""

    def __init__(self, action: Callable[[], None]) -> None:
        self._action = action
        self._claims: dict[str, str] = {}  # `setdefault` is atomic: one side or the other wins
        self._over = threading.Lock()
        self._over.acquire()
        self._is_over = False
        self.is_interrupted = False
        self.error: BaseException | None = None

    def run(self) -> None:
        """Do the work in the thread that calls this."""
        if self._claims.setdefault("by", "worker") != "worker":
            return
        try:
            self._action()
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            self.error = error
        finally:
            self._is_over = True
            self._over.release()

    def withdraw(self) -> None:
        """Keep the work from being begun; where it has begun, wait until it is done."""
        if self._claims.setdefault("by", "caller") == "worker":
            self.wait()

    def wait(self) -> None:
        """Wait until the work is done; what is raised here meanwhile is raised at the end."""
        interrupt: BaseException | None = None
        while not self._is_over:
            try:
                self._over.acquire()
            except BaseException as error:  # noqa: BLE001, PERF203 - KeyboardInterrupt above all
                interrupt, self.is_interrupted = error, True
        if interrupt is not None:
            raise interrupt


class _Worker(Generic[Tool]):
    """A thread that does what it is given, on one core, with a tool of its own."""

    def __init__(self, tool: Tool) -> None:
        self.tool = tool
        self.inbox: SimpleQueue[Work | None] = SimpleQueue()

    def start(self) -> bool:
        """Start the thread, and say whether it lives.

        An exception that is thrown at this thread while the other is born may hit that one
        instead, in which case `threading.Thread.start` would wait for it for ever.
        """
        lives = threading.Lock()
        lives.acquire()
        self.inbox.put(Work(lives.release))
        _thread.start_new_thread(self._serve, ())
        return lives.acquire(timeout=_BIRTH)

    def _serve(self) -> None:
        # Linear algebra gives other bits on several cores, and the threads share them already.
        torch.set_num_threads(1)
        with torch.no_grad():
            for work in iter(self.inbox.get, None):
                work.run()


_BIRTH = 5.0
"""Seconds after which a thread that has not begun counts as one that does not start."""


class Crew(Generic[Tool]):
    """Threads that share work, each with a tool of its own. The first of them leads."""

    def __init__(self, workers: Sequence[_Worker[Tool]]) -> None:
        self._workers = workers
        self._current: Work

    def lead(self, tasks: Iterable[Callable[[Tool], None]]) -> None:
        """Do all tasks in the leading thread."""
        for task in tasks:
            task(self._workers[0].tool)

    def finish(self, action: Callable[[], None]) -> None:
        """Run a function in the leading thread to its end, whatever is raised in this one.

        Raises:
            BaseException: What the function raised, or what was raised in this thread meanwhile.
        """
        work = self._current = Work(action)
        # An exception may come between any two lines. Each `withdraw` outlasts any number of them
        # while it waits, and the next one takes over where one comes between its own lines.
        try:
            self._workers[0].inbox.put(work)
            work.wait()
        finally:
            try:
                work.withdraw()
            finally:
                try:
                    work.withdraw()
                finally:
                    work.withdraw()
        if work.error is not None:
            raise work.error

    def share(self, tasks: Iterable[Callable[[Tool], None]], *, stops: bool = False) -> None:
        """Do all tasks, each thread taking the next from a common list. Called in the leading one.

        No further ones are begun once one has failed, which is raised then, or, if this `stops`,
        once the caller of `finish` is interrupted.
        """
        left = iter(tasks)
        lock = threading.Lock()
        failed: list[BaseException] = []

        def take() -> Callable[[Tool], None] | None:
            with lock:
                ended = failed or (stops and self._current.is_interrupted)
                return None if ended else next(left, None)

        def work_with(tool: Tool) -> None:
            try:
                for task in iter(take, None):
                    task(tool)
            except BaseException as error:  # noqa: BLE001 - raised below
                failed.append(error)

        first, *others = self._workers
        works = [_handed(worker, work_with) for worker in others]
        work_with(first.tool)
        for work in works:
            work.wait()
        if failed:
            raise failed[0]


def _handed(worker: _Worker[Tool], function: Callable[[Tool], None]) -> Work:
    work = Work(lambda: function(worker.tool))
    worker.inbox.put(work)
    return work


@contextmanager
def crew(tools: Iterable[Tool]) -> Iterator[Crew[Tool]]:
    """Start one thread for each tool, and end them all when the block ends.

    Where the machine lets fewer threads start, those that did do the work.

    Raises:
        ApplyError: Not one thread could be started.
    """
    workers: list[_Worker[Tool]] = [_Worker(tool) for tool in tools]
    with cores_restored():
        try:
            started = _living(workers)
            torch.set_num_threads(1)
            yield Crew(started)
        finally:
            _dismiss(workers)


def _living(workers: Iterable[_Worker[Tool]]) -> list[_Worker[Tool]]:
    started: list[_Worker[Tool]] = []
    reason = "none has begun"
    try:
        for worker in workers:
            if worker.start():
                started.append(worker)  # noqa: PERF401 - keeps those before a failure
    except (RuntimeError, MemoryError) as error:
        reason = str(error)
    if not started:
        raise ApplyError(f"nothing was written: no thread starts ({reason})")
    return started


def _dismiss(workers: Iterable[_Worker[Tool]]) -> None:
    for worker in workers:
        worker.inbox.put(None)


@contextmanager
def cores_restored() -> Iterator[None]:
    """Let torch compute on as many cores as before.

    `set_num_threads` is for the thread that calls it, and also for all that start after it.
    """
    cores = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(cores)
