"""Searches for inputs that a forward pass takes.

Calls are tried on meta, the likeliest first. What one raises says what to try next, and the calls
that got furthest are mended first; what needs numbers then runs for real.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from torch_initpolicy.sites import Site, canonical_modules
from torch_initpolicy.trace.answers import answers
from torch_initpolicy.trace.inputs import candidates, extensions
from torch_initpolicy.trace.recorder import Budget
from torch_initpolicy.trace.runner import Recorded, Refused, Runner, is_small
from torch_initpolicy.trace.trees import Call

_BASE, _SHARE = 8_000, 10
"""Operators that a search may run, and how many more for each parameter."""

_REALLY = 32_000
"""What runs for real may take at least: detectors enlarge their images, and took up to 24,200."""

_SEEDS, _ANSWERS = 16, 64
"""Calls that are tried before failures are answered, and answers that are tried in all."""

_TRIES = 32
"""Calls that are tried for one more argument."""

_REAL = 4
"""Calls that are run for real where none runs on meta."""

Runs = Callable[[Call], Recorded | Refused]


class InputSearch:
    """A search for inputs of one model, with what failed on the way.

    Attributes:
        failed: The calls that raised, in the order of trying.
    """

    def __init__(
        self, model: nn.Module, sites: Sequence[Site], budget: Budget | None = None
    ) -> None:
        self._more = 0 if budget else _REALLY  # the parts of a model share what there is
        budget = budget or Budget(_BASE + _SHARE * len(sites))
        self.runner = Runner(model, sites, budget)
        self.failed: list[Refused] = []
        self._tried: set[str] = set()

    @property
    def furthest(self) -> Refused | None:
        """The call that got furthest of those that raised."""
        return max(self.failed, key=lambda refused: refused.ran, default=None)

    def given(self, call: Call) -> Recorded | Refused:
        """Record with the user's own inputs, however long it takes."""
        self.runner.budget = Budget(math.inf)
        outcome = self.runner.on_meta(call)
        if isinstance(outcome, Recorded):
            return outcome
        self.failed.append(outcome)
        return self.runner.really(call) if self.runner.fits_in_memory else outcome

    def found(self) -> Recorded | None:
        """Record with inputs that are looked for, until all parameters are seen or no more can be.

        What it takes is linear in the number of parameters.
        """
        recorded = self._first(candidates(self.runner.model), self.runner.on_meta)
        if recorded is None and self.runner.fits_in_memory:
            small = [failed for failed in self.failed if is_small(failed.call)]
            calls = [failed.call for failed in sorted(small, key=_needs_no_numbers)[:_REAL]]
            self.runner.budget.left = max(self.runner.budget.left, self._more)
            recorded = self._first(calls, self.runner.for_real, tries=2 * _REAL)
        return None if recorded is None else self._extended(recorded)

    def _extended(self, recorded: Recorded) -> Recorded:
        """Add arguments that are left out, one by one, as long as more parameters are seen."""
        run = self.runner.on_meta if recorded.on_meta else self.runner.for_real
        while unseen := self.runner.wanted - recorded.seen:
            sites = [site for site in self.runner.sites if site.name in unseen]
            ways = extensions(self.runner.model, recorded.call, sites)
            found = (self._first(calls, run, unseen, _TRIES) for calls in ways)
            more = next(filter(None, found), None)
            if more is None:
                break
            recorded = more.and_then(recorded)
        return recorded

    def _first(
        self,
        calls: Iterable[Call],
        run: Runs,
        unseen: set[str] | None = None,
        tries: int | None = None,
    ) -> Recorded | None:
        """Return the first call that runs and sees some of what was unseen."""
        failures: list[_Answered] = []
        heard: set[str] = set()
        for call in itertools.islice(_interleaved(iter(calls), failures), tries):
            key = f"{run.__name__} {call.mapped(_distinct)}"
            if key in self._tried:
                continue
            if self.runner.budget.left <= 0:
                return None
            self._tried.add(key)
            outcome = run(call)
            if isinstance(outcome, Recorded):
                if unseen is None or unseen & outcome.seen:
                    return outcome
                continue
            self.failed.append(outcome)
            said = f"{outcome.error} {call.mapped(Tensor.dim)}"
            if said not in heard:  # another length that changes nothing leads nowhere
                heard.add(said)
                rank = (-outcome.ran, len(self.failed))
                mended = answers(self.runner.model, call, outcome.error)
                heapq.heappush(failures, _Answered(rank, mended))
        return None


class _Answered(NamedTuple):
    """A failure with calls to try instead, sorted by how far it got and when it was tried."""

    rank: tuple[float, int]
    answers: Iterator[Call]


def _interleaved(calls: Iterator[Call], failures: list[_Answered]) -> Iterator[Call]:
    """Yield some calls, then answers to the failures that got furthest, then all other calls."""
    yield from itertools.islice(calls, _SEEDS)
    yield from itertools.islice(_answers(failures), _ANSWERS)
    yield from calls


def _answers(failures: list[_Answered]) -> Iterator[Call]:
    """Yield answers to the failure that got furthest so far: those to an answer, if it did."""
    while failures:
        answer = next(failures[0].answers, None)
        if answer is None:
            heapq.heappop(failures)
        else:
            yield answer


def _distinct(tensor: Tensor) -> tuple[object, ...]:
    """Return what tells two inputs from one another."""
    values = () if tensor.is_meta else tuple(tensor.flatten()[:_SEEDS].tolist())
    return tuple(tensor.shape), tensor.dtype, values


def _needs_no_numbers(failed: Refused) -> tuple[bool, float]:
    """Sort calls that failed only for want of numbers before others, then by how far they got."""
    return "meta" not in str(failed.error), -failed.ran


def lone_parts(
    model: nn.Module, unseen: Sequence[Site]
) -> Iterator[tuple[str, InputSearch, Recorded]]:
    """Runs the outermost modules whose parameters are all unseen on their own.

    A layer alone says nothing about what its output meets, and is left out.

    Yields:
        The name of a module, the search for its inputs, and what was recorded with them.
    """
    sites = {id(p): site for site in unseen for p in site.parameters}
    budget = Budget(_BASE + _SHARE * len(unseen))
    waiting = [(name, child) for name, child in canonical_modules(model) if name and unseen]
    done: tuple[str, ...] = ()
    for name, module in waiting:
        own = {id(p) for p in module.parameters()}
        if not own or own - sites.keys() or not _stands_alone(module) or name.startswith(done):
            continue
        mine = list({sites[key].name: sites[key] for key in own}.values())
        search = InputSearch(module, mine, budget)
        recorded = search.found()
        if recorded is not None:
            done = (*done, f"{name}.")
            yield name, search, recorded


def _stands_alone(module: nn.Module) -> bool:
    """Say whether a module is more than one of torch's layers, and has a forward pass."""
    ours = isinstance(module, nn.Sequential) or not type(module).__module__.startswith("torch.nn.")
    return ours and type(module).forward is not nn.Module.forward
