"""Reads a model: records its forward pass as best it can, and says what follows for each site."""

import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torch_initpolicy.sites import Site, borrowing, canonical_modules
from torch_initpolicy.trace.facts import Evidence, Facts
from torch_initpolicy.trace.failures import in_short, refusal
from torch_initpolicy.trace.flow import Flow, flow, unknown_operators
from torch_initpolicy.trace.inputs import (
    as_call,
    candidates,
    extensions,
    small_and_real,
    vocabulary,
)
from torch_initpolicy.trace.reach import Reach
from torch_initpolicy.trace.record import capture, with_grad_if_asked
from torch_initpolicy.trace.recorder import Budget
from torch_initpolicy.trace.registration_order import ordered_facts
from torch_initpolicy.trace.shapes import SHAPE_RULES
from torch_initpolicy.trace.site_facts import facts
from torch_initpolicy.trace.stand_ins import drawn_for, is_readable
from torch_initpolicy.trace.trees import Call


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model's forward pass says.

    Attributes:
        facts: What is known about each site, by canonical name.
        evidence: How the forward pass was read.
        call: The inputs that were used; None where none were found.
        flow: The data flow; None where it could not be recorded.
        unknown_operators: Operators of unknown role, with their number.
        failure: Why the forward pass could not be read on meta tensors, or None.
        untraced: Why it could not be read at all, with what helps, or None.
    """

    facts: Mapping[str, Facts]
    evidence: Evidence
    call: Call | None = None
    flow: Flow | None = field(default=None, repr=False)
    unknown_operators: Mapping[str, int] = field(default_factory=dict)
    failure: str | None = None
    untraced: str | None = None

    @property
    def unused(self) -> AbstractSet[str]:
        """Names of the parameters that no call has used."""
        return {name for name, found in self.facts.items() if not found.used}


def read(
    model: nn.Module,
    sites: Sequence[Site],
    example_inputs: Any = None,
) -> Reading:
    """Read the data flow of a model, without touching it.

    Tried in this order: the forward pass on meta tensors; on small real tensors, without gradients
    unless the forward takes some itself; the order of registration.

    Args:
        model: Any module, wrapped or not.
        sites: Its parameters, as `sites(model)` gives them.
        example_inputs: What its forward takes: a tensor, a tuple of arguments, or a mapping of
            keyword arguments; None to look for some.

    Raises:
        TraceError: `example_inputs` were given, and the forward pass raises with them.
    """
    inner = next(module for _, module in canonical_modules(model))
    if is_scripted(inner):
        return Reading(ordered_facts(inner, sites), "order", failure=_COMPILED, untraced=_COMPILED)
    with borrowing(inner):
        attempt = _Attempt(inner, sites)
        if example_inputs is not None:
            return attempt.given(as_call(example_inputs))
        return attempt.searched() or Reading(
            ordered_facts(inner, sites),
            "order",
            failure=attempt.failure,
            untraced=_untraced(attempt.failure or "there was nothing to try"),
        )


_COMPILED = "TorchScript hides what its parameters do"


def is_scripted(model: nn.Module) -> bool:
    """Tell whether some part of a model has been compiled or traced by TorchScript."""
    return any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())


def _untraced(failure: str) -> str:
    """Say why the forward pass tells nothing, and what would help."""
    return f"no inputs found: {textwrap.shorten(failure, 200)}; give example_inputs="


_EDGES = (64, 128, 224)
"""Image sizes to run for real with, in pixels."""

_REAL = 4
"""Inputs to try for real, each with all image sizes."""

_DRAWS, _TIMES = 8, 8
"""Draws of real inputs, and how many times larger the later are: a router sends each elsewhere."""

_BASE, _SHARE = 20_000, 50
"""Operators that a search may run, and how many more for each parameter."""

_SMALL = 2**26
"""Elements of all parameters up to which a model without memory may run for real."""


def _first(readings: Iterable[Reading | None]) -> Reading | None:
    return next((reading for reading in readings if reading is not None), None)


class _Attempt:
    """Attempts to record a model's forward pass, the cheapest first."""

    def __init__(self, model: nn.Module, sites: Sequence[Site]) -> None:
        self.model = model
        self.sites = sites
        self.names = {id(p): site.name for site in sites for p in site.parameters}
        self.numbers = dict(_numbers(sites))
        self.reach = Reach(model)
        self.budget = Budget(math.inf)
        self.failure: str | None = None  # why not on meta
        self.error = Exception("nothing was tried")  # what came last

    def given(self, call: Call) -> Reading:
        """Record with the user's own inputs."""
        reading = self._on_meta(call)
        if reading is None and self._fits_in_memory():
            reading = self._record(call, "ran")
        if reading is None:
            raise refusal(self.model, call, self.error, "the given example_inputs")
        return reading

    def searched(self) -> Reading | None:
        """Record with inputs that are looked for, until every parameter is seen or no more can be.

        The search has a budget: what it takes is linear in the number of parameters.
        """
        self.budget = Budget(_BASE + _SHARE * len(self.sites))
        calls = list(candidates(self.model))
        reading = _first(self._on_meta(call, calls) for call in calls)
        if reading is None and self._fits_in_memory():
            reading = _first(self._for_real(c, edge) for edge in _EDGES for c in calls[:_REAL])
        return None if reading is None else self._extended(reading)

    def _extended(self, reading: Reading) -> Reading:
        """Add arguments that are left out, one by one, as long as more parameters are seen."""
        self.budget = Budget(_BASE + _SHARE * len(self.sites))
        while reading.unused and reading.call is not None:
            unused = [site for site in self.sites if site.name in reading.unused]
            calls = extensions(self.model, reading.call, unused)
            tried = (self._again(call, reading) for call in calls)
            better = next((r for r in tried if r and len(r.unused) < len(reading.unused)), None)
            if better is None:
                return reading
            reading = better
        return reading

    def _again(self, call: Call, reading: Reading) -> Reading | None:
        """Record another call as a reading was, and add what that alone has seen."""
        if reading.evidence == "ran":
            found = self._for_real(call, _EDGES[0])
        else:
            found = self._record(call, "traced")
        return None if found is None else _joined(found, reading)

    def _fits_in_memory(self) -> bool:
        """Say whether the model may run for real: it is real already, or small."""
        on_meta = (math.prod(site.shape) for site in self.sites if site.device.type == "meta")
        return sum(on_meta) <= _SMALL

    def _on_meta(self, call: Call, others: Sequence[Call] = ()) -> Reading | None:
        """Record in evaluation mode; what it leaves out, look for in training mode."""
        reading = self._record(call, "traced")
        if reading is None or not reading.unused:
            return reading
        attempts = (self._record(c, "traced", training=True) for c in (call, *others))
        training = next((attempt for attempt in attempts if attempt is not None), None)
        return reading if training is None else _joined(reading, training)

    def _for_real(self, call: Call, edge: int) -> Reading | None:
        """Record on small real inputs, on others too where some parameters are seen by few."""
        rows = vocabulary(self.model)
        reading = self._record(small_and_real(call, edge=edge, indices=rows), "ran")
        for seed in range(1, _DRAWS):
            if reading is None or not reading.unused:
                break
            other = small_and_real(call, edge=edge, indices=rows, seed=seed, times=_TIMES)
            again = self._record(other, "ran")
            reading = reading if again is None else _joined(reading, again)
        return reading

    def _record(self, call: Call, evidence: Evidence, *, training: bool = False) -> Reading | None:
        try:
            graph = with_grad_if_asked(
                lambda with_grad: capture(
                    self.model,
                    call,
                    names=self.names,
                    on_meta=evidence == "traced",
                    drawn=None if evidence == "traced" else drawn_for(self.sites),
                    training=training,
                    with_grad=with_grad,
                    shape_rules=SHAPE_RULES,
                    budget=self.budget,
                    reach=self.reach,
                )
            )
        except Exception as error:  # noqa: BLE001 - a forward may raise anything
            self.failure, self.error = self.failure or in_short(error), error
            return None
        found = flow(graph, parameters=self.numbers)
        return Reading(
            facts=facts(self.sites, found, evidence),
            evidence=evidence,
            call=call,
            flow=found,
            unknown_operators=unknown_operators(found),
            failure=self.failure if evidence == "ran" else None,
        )


def _joined(first: Reading, training: Reading) -> Reading:
    """Add what only training mode uses (auxiliary heads) to a reading of evaluation mode."""
    joined = {
        name: found if found.used else training.facts[name] for name, found in first.facts.items()
    }
    return Reading(
        facts=joined,
        evidence=first.evidence,
        call=first.call,
        flow=first.flow,
        unknown_operators={**training.unknown_operators, **first.unknown_operators},
    )


def _numbers(sites: Sequence[Site]) -> Iterator[tuple[str, float]]:
    """Yield the numbers in parameters of one: learnt scales, temperatures, and slopes at start."""
    for site in sites:
        if isinstance(site.owner, nn.PReLU):
            yield site.name, float(site.owner.init)
        elif _is_number(site):
            yield site.name, float(site.parameters[0].detach().flatten()[0])


def _is_number(site: Site) -> bool:
    parameter = site.parameters[0]
    numbers = site.storage == "plain" and parameter.dtype.is_floating_point
    return numbers and is_readable(site, parameter) and parameter.numel() == 1
