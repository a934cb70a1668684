"""Searches for inputs that a forward pass takes, and records it with them.

Calls are tried on meta, the likeliest first. What one raises says what to try next, and the calls
that got furthest are mended first; what needs numbers then runs for real.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from torch_initpolicy.sites import Site, canonical_modules
from torch_initpolicy.trace.answers import answers
from torch_initpolicy.trace.graph import Graph
from torch_initpolicy.trace.inputs import candidates, extensions, small_and_real, vocabulary
from torch_initpolicy.trace.reach import Reach
from torch_initpolicy.trace.record import capture, with_grad_if_asked
from torch_initpolicy.trace.recorder import Budget
from torch_initpolicy.trace.shapes import SHAPE_RULES
from torch_initpolicy.trace.stand_ins import copied, drawn_for
from torch_initpolicy.trace.trees import Call

_BASE, _SHARE, _CALL = 10_000, 25, 25
"""Operators that a search may run, how many more for each parameter, and what a call costs."""

_FIRST, _ANSWERS = 16, 64
"""Calls that are tried before failures are answered, and answers that are tried in all."""

_TRIES = 32
"""Calls that are tried for one more argument."""

_REAL = 4
"""Calls that are run for real where none runs on meta."""

_EDGES = (64, 128, 224)
"""Image sizes to run for real with, in pixels."""

_DRAWS, _TIMES = 8, 8
"""Draws of real inputs, and how many times larger the later are: a router sends each elsewhere."""

_SMALL = 2**26
"""Elements of all parameters up to which a model without memory may run for real."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A call with which a forward pass ran.

    Attributes:
        call: The call.
        graphs: What was recorded: with this call first, then in other modes and with other calls.
        on_meta: Whether it ran on meta tensors, or for real.
    """

    call: Call
    graphs: tuple[Graph, ...] = field(repr=False)
    on_meta: bool

    @property
    def seen(self) -> set[str]:
        """Names of the parameters that some operator has read."""
        return {
            value.parameter
            for graph in self.graphs
            for value in graph.values
            if value.parameter is not None and graph.consumers[value.index]
        }


@dataclass(order=True, frozen=True, slots=True)
class Failed:
    """A call with which a forward pass raised.

    Attributes:
        rank: What sorts failures: how little was left to run, then the order of trying.
        call: The call.
        error: What was raised.
        answers: Calls to try instead.
    """

    rank: tuple[float, int]
    call: Call = field(compare=False)
    error: Exception = field(compare=False)
    answers: Iterator[Call] = field(compare=False)


Run = Callable[[Call], Recorded | Failed]


class Search:
    """Records the forward pass of one model, and keeps what failed on the way.

    Attributes:
        model: The model.
        sites: Its parameters, or those that are looked for.
        failed: The calls that raised, in the order of trying.
        budget: How much it may still take.
    """

    def __init__(
        self, model: nn.Module, sites: Sequence[Site], budget: Budget | None = None
    ) -> None:
        self.failed: list[Failed] = []
        self.budget = budget or Budget(_BASE + _SHARE * len(sites))
        self.model = model
        self.sites = sites
        self._wanted = {site.name for site in sites}
        self._names = {id(p): site.name for site in sites for p in site.parameters}
        self._reach = Reach(model)
        self._tried: set[str] = set()
        self._drawn: dict[int, torch.Tensor] = {}

    def given(self, call: Call) -> Recorded | None:
        """Record with the user's own inputs, however long it takes."""
        self.budget = Budget(math.inf)
        recorded = self._on_meta(call)
        if isinstance(recorded, Failed) and self._fits_in_memory():
            recorded = self._really(call)
        return None if isinstance(recorded, Failed) else recorded

    def found(self) -> Recorded | None:
        """Record with inputs that are looked for, until all parameters are seen or no more can be.

        What it takes is linear in the number of parameters.
        """
        recorded = self._first(candidates(self.model), self._on_meta)
        if recorded is None and self._fits_in_memory():
            furthest = sorted(self.failed, key=_needs_numbers)[:_REAL]
            recorded = self._first([failed.call for failed in furthest], self._for_real)
        return None if recorded is None else self._extended(recorded)

    def _extended(self, recorded: Recorded) -> Recorded:
        """Add arguments that are left out, one by one, as long as more parameters are seen."""
        run = self._on_meta if recorded.on_meta else self._for_real
        while unseen := self._wanted - recorded.seen:
            sites = [site for site in self.sites if site.name in unseen]
            ways = extensions(self.model, recorded.call, sites)
            found = (self._first(calls, run, unseen, _TRIES) for calls in ways)
            more = next(filter(None, found), None)
            if more is None:
                break
            recorded = Recorded(more.call, (*more.graphs, *recorded.graphs), recorded.on_meta)
        return recorded

    def _first(
        self,
        calls: Iterable[Call],
        run: Run,
        unseen: set[str] | None = None,
        tries: int | None = None,
    ) -> Recorded | None:
        """Return the first call that runs and sees some of what was unseen."""
        failures: list[Failed] = []
        heard: set[str] = set()
        for call in itertools.islice(_interleaved(iter(calls), failures), tries):
            if self.budget.left <= 0:
                return None
            key = f"{run.__name__} {call.mapped(_described)}"
            if key in self._tried:
                continue
            self._tried.add(key)
            outcome = run(call)
            if isinstance(outcome, Failed):
                said = f"{outcome.error} {call.mapped(torch.Tensor.dim)}"
                if said not in heard:  # another length that changes nothing leads nowhere
                    heapq.heappush(failures, outcome)
                heard.add(said)
            elif unseen is None or unseen & outcome.seen:
                return outcome
        return None

    def _fits_in_memory(self) -> bool:
        """Say whether the model may run for real: it is real already, or small."""
        on_meta = (math.prod(site.shape) for site in self.sites if site.device.type == "meta")
        return sum(on_meta) <= _SMALL

    def _on_meta(self, call: Call) -> Recorded | Failed:
        """Record in evaluation mode; what it leaves out, look for in training mode."""
        recorded = self._run(call, on_meta=True)
        if isinstance(recorded, Failed) or self._wanted <= recorded.seen:
            return recorded
        training = self._run(call, on_meta=True, training=True)
        return recorded if isinstance(training, Failed) else _both(recorded, training)

    def _for_real(self, call: Call) -> Recorded | Failed:
        """Record on small real inputs, on others too where some parameters are seen by few."""
        rows = vocabulary(self.model)
        for edge in _EDGES:
            recorded = self._really(small_and_real(call, edge=edge, indices=rows))
            if isinstance(recorded, Recorded):
                break
        else:
            return recorded
        for seed in range(1, _DRAWS):
            if self._wanted <= recorded.seen:
                break
            other = small_and_real(call, edge=edge, indices=rows, seed=seed, times=_TIMES)
            again = self._really(other)
            recorded = recorded if isinstance(again, Failed) else _both(recorded, again)
        return recorded

    def _really(self, call: Call) -> Recorded | Failed:
        if not self._drawn:
            self._drawn = drawn_for(self.sites)
        drawn = {key: copied(tensor) for key, tensor in self._drawn.items()}
        return self._run(call, on_meta=False, drawn=drawn)

    def _run(
        self,
        call: Call,
        *,
        on_meta: bool,
        training: bool = False,
        drawn: dict[int, torch.Tensor] | None = None,
    ) -> Recorded | Failed:
        self.budget.left -= _CALL
        before = self.budget.left
        try:
            graph = with_grad_if_asked(
                lambda with_grad: capture(
                    self.model,
                    call,
                    names=self._names,
                    on_meta=on_meta,
                    drawn=drawn,
                    training=training,
                    with_grad=with_grad,
                    shape_rules=SHAPE_RULES,
                    budget=self.budget,
                    reach=self._reach,
                )
            )
        except Exception as error:  # noqa: BLE001 - a forward may raise anything
            rank = (self.budget.left - before, len(self.failed))
            failed = Failed(rank, call, error, answers(self.model, call, error))
            self.failed.append(failed)
            return failed
        return Recorded(call, (graph,), on_meta)


def _interleaved(calls: Iterator[Call], failures: list[Failed]) -> Iterator[Call]:
    """Yield some calls, then answers to the failures that got furthest, then all other calls."""
    yield from itertools.islice(calls, _FIRST)
    yield from itertools.islice(_answers(failures), _ANSWERS)
    yield from calls


def _answers(failures: list[Failed]) -> Iterator[Call]:
    """Yield answers to the failure that got furthest so far: those to an answer, if it did."""
    while failures:
        answer = next(failures[0].answers, None)
        if answer is None:
            heapq.heappop(failures)
        else:
            yield answer


def _described(tensor: torch.Tensor) -> tuple[object, ...]:
    """Return what tells two inputs from one another."""
    values = () if tensor.is_meta else tuple(tensor.flatten()[:_FIRST].tolist())
    return tuple(tensor.shape), tensor.dtype, values


def _needs_numbers(failed: Failed) -> tuple[bool, tuple[float, int]]:
    """Sort calls that failed only for want of numbers before others."""
    return "meta" not in str(failed.error), failed.rank


def _both(first: Recorded, second: Recorded) -> Recorded:
    return Recorded(first.call, (*first.graphs, *second.graphs), first.on_meta)


def parts(
    model: nn.Module, unseen: Sequence[Site], budget: Budget
) -> Iterator[tuple[str, Search, Recorded]]:
    """Run the outermost modules whose parameters are all unseen on their own.

    A layer alone says nothing about what its output meets, and is left out.

    Args:
        model: The model, without wrappers.
        unseen: The parameters that nothing has read yet.
        budget: How much the searches for their inputs may take, all together.

    Yields:
        The name of a module, the search for its inputs, and what was recorded with them.
    """
    sites = {id(p): site for site in unseen for p in site.parameters}
    waiting = [(name, child) for name, child in canonical_modules(model) if name]
    done: tuple[str, ...] = ()
    for name, module in waiting:
        own = {id(p) for p in module.parameters()}
        if not own or own - sites.keys() or not _is_part(module) or name.startswith(done):
            continue
        mine = list({sites[key].name: sites[key] for key in own}.values())
        search = Search(module, mine, budget)
        recorded = search.found()
        if recorded is not None:
            done = (*done, f"{name}.")
            yield name, search, recorded


def _is_part(module: nn.Module) -> bool:
    """Say whether a module is more than one of torch's layers, and has a forward pass."""
    ours = isinstance(module, nn.Sequential) or not type(module).__module__.startswith("torch.nn.")
    return ours and type(module).forward is not nn.Module.forward
