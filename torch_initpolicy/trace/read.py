"""Reads a model: records its forward pass as best it can, and says what follows for each site."""

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from torch_initpolicy.sites import Site, borrowing, unwrapped
from torch_initpolicy.trace.facts import Evidence, Facts
from torch_initpolicy.trace.failures import in_short, in_vain, refusal, to_give
from torch_initpolicy.trace.flow import Flow, flow, unknown_operators
from torch_initpolicy.trace.inputs import as_call
from torch_initpolicy.trace.registration_order import ordered_facts
from torch_initpolicy.trace.runner import Recorded, Refused
from torch_initpolicy.trace.search import InputSearch, lone_parts
from torch_initpolicy.trace.site_facts import facts
from torch_initpolicy.trace.stand_ins import is_readable
from torch_initpolicy.trace.trees import Call


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model's forward pass says.

    Attributes:
        facts: What is known about each site, by canonical name.
        call: The inputs that were used; None where none were found.
        flow: The data flow; None where it could not be recorded.
        unknown_operators: Operators of unknown role, with their number.
        failure: Why the forward pass could not be read on meta tensors, or None.
        untraced: What could not be read as a whole and why, with what helps, or None.
        parts: Names of the modules that were run on their own, for nothing else reached them.
    """

    facts: Mapping[str, Facts]
    evidence: Evidence
    call: Call | None = None
    flow: Flow | None = field(default=None, repr=False)
    unknown_operators: Mapping[str, int] = field(default_factory=dict)
    failure: str | None = None
    untraced: str | None = None
    parts: tuple[str, ...] = ()

    @property
    def unused(self) -> AbstractSet[str]:
        """Names of the parameters that no call has used."""
        return {name for name, found in self.facts.items() if not found.used}


def read(model: nn.Module, sites: Sequence[Site], example_inputs: Any = None) -> Reading:
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
    inner = unwrapped(model)
    if is_scripted(inner):
        return Reading(ordered_facts(inner, sites), "order", failure=_COMPILED, untraced=_COMPILED)
    with borrowing(inner):
        search = InputSearch(inner, sites)
        if example_inputs is not None:
            return _given_inputs(search, as_call(example_inputs))
        recorded = search.found()
        if recorded is None:
            main = Reading(ordered_facts(inner, sites), "order", failure=_failure(search))
        else:
            main = _read_from(recorded, search)
        return _with_parts(main, search)


_COMPILED = "TorchScript hides what its parameters do"


def is_scripted(model: nn.Module) -> bool:
    """Tell whether some part of a model has been compiled or traced by TorchScript."""
    return any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())


def _given_inputs(search: InputSearch, call: Call) -> Reading:
    """Read with the user's own inputs."""
    outcome = search.given(call)
    if isinstance(outcome, Refused):
        raise refusal(search.runner.model, call, outcome.error, "the given example_inputs")
    return _read_from(outcome, search)


def _failure(search: InputSearch) -> str | None:
    return None if search.furthest is None else in_short(search.furthest.error)


def _read_from(recorded: Recorded, search: InputSearch) -> Reading:
    """Say what follows from recordings; the first that uses a parameter says what it meets."""
    sites = search.runner.sites
    numbers = dict(_single_numbers(sites))
    flows = [flow(graph, parameters=numbers) for graph in recorded.graphs]
    evidence: Evidence = "traced" if recorded.on_meta else "ran"
    found: dict[str, Facts] = {}
    for each in flows:
        seen = facts(sites, each, evidence)
        found = {n: f if n not in found or not found[n].used else found[n] for n, f in seen.items()}
    return Reading(
        facts=found,
        evidence=evidence,
        call=recorded.call,
        flow=flows[0],
        unknown_operators=dict(ChainMap(*map(unknown_operators, flows))),
        failure=None if recorded.on_meta else _failure(search),
    )


def _with_parts(main: Reading, search: InputSearch) -> Reading:
    """Add what modules that were not reached say when they run on their own."""
    unused = main.unused
    unseen = [site for site in search.runner.sites if site.name in unused]
    own = {name: _read_from(r, s) for name, s, r in lone_parts(search.runner.model, unseen)}
    found = {n: f for part in own.values() for n, f in part.facts.items() if f.used}
    facts = {**main.facts, **{n: replace(f, feeds_output=False) for n, f in found.items()}}
    return replace(main, facts=facts, parts=tuple(own), untraced=_untraced(main, search, own))


def _untraced(main: Reading, search: InputSearch, parts: Iterable[str]) -> str | None:
    """Say what was not read as a whole, and what would help."""
    model, said, wanted = search.runner.model, [], "give example_inputs="
    if main.evidence == "order":
        refused, why = search.furthest, "there was nothing to try"
        if refused is not None:
            why, wanted = in_vain(model, refused), to_give(model, refused.call)
        said.append(f"no inputs found: {why}")
    if parts:
        said.append(f"run on their own: {', '.join(parts)}")
    return "; ".join((*said, wanted)) if said else None


def _single_numbers(sites: Sequence[Site]) -> Iterator[tuple[str, float]]:
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
