"""Finds units that start equal and stay equal, and parameters that can never move.

The one verb of this file scans the weights, probes a replica where something is suspected, and
reports.
"""

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from torch_initpolicy.errors import TraceError
from torch_initpolicy.locks import BORROWING
from torch_initpolicy.sites import Site, require_module, sites, unwrapped
from torch_initpolicy.symmetry.batches import Attempt, attempts, attempts_with
from torch_initpolicy.symmetry.findings import Finding, Report, sort
from torch_initpolicy.symmetry.replica import Loss
from torch_initpolicy.symmetry.scan import FAR, EqualUnits, Suspects, suspects
from torch_initpolicy.symmetry.search import Subject, probed
from torch_initpolicy.symmetry.shards import shard_findings
from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.trace.failures import EXPECTED
from torch_initpolicy.trace.inputs import as_call
from torch_initpolicy.trace.read import Reading, read
from torch_initpolicy.trace.real_inputs import require_values
from torch_initpolicy.trace.trees import Call
from torch_initpolicy.writing.shards import is_sharded


def find_symmetry(
    model: nn.Module, example_inputs: Any = None, loss_fn: Loss | None = None
) -> Report:
    """Find units that are identical and will stay identical, and parameters that cannot move.

    Equal values alone mean little: zero-initialised last layers, LoRA's B, adaLN-zero, norms and
    identity kernels break by themselves. So the weights are scanned for equal units first; only
    where there are any, copies of the parameters are trained for a few steps of gradient descent
    on generic inputs, in float64, and what is then still equal is `tied`, what never got a
    gradient though another start would give it one is `dead`, and the rest `harmless`. The model
    itself, its buffers, gradients, hooks and the random states are untouched.

    Args:
        model: Any module, wrapped or not, in the mode it is to be trained in: dropout can tell
            units apart.
        example_inputs: What its forward takes: a tensor, a tuple of arguments, or a mapping of
            keyword arguments. New numbers like these are drawn at every step. None to look for
            inputs; where none are found, what is equal is only `suspect`.
        loss_fn: From the model's output to a scalar. By default every element of every output
            has a random weight of its own, as if it had a target of its own.

    Returns:
        The report: `report.ok`, `report.findings`, and a table as its text.

    Raises:
        NotAModuleError: `model` is no module.
        TraceError: The forward pass raises with the given inputs, the loss is no scalar, or
            parameters have no values: on the meta device, or lazy before their first batch.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> find_symmetry(model).ok
        True
        >>> for parameter in model.parameters():
        ...     _ = nn.init.constant_(parameter, 0.1)
        >>> [(f.name, f.along) for f in find_symmetry(model).of("tied")]
        [('0.weight', 'outputs'), ('0.bias', 'entries'), ('2.weight', 'inputs')]
    """
    with BORROWING:
        return _found(require_module(model), example_inputs, loss_fn)


def _found(model: nn.Module, example_inputs: Any, loss_fn: Loss | None) -> Report:
    inner = unwrapped(model)
    found = sites(model)
    require_values(found)
    spread = tuple(shard_findings(found))
    asked = example_inputs is not None
    subject = Subject(inner, found, suspects(inner, found, asked=asked), loss_fn)
    if not subject.suspects:
        return replace(_NOTHING, findings=spread, note="" if spread else _NOTHING.note)
    if broken := tuple(_broken_findings(found)):
        return Report((*spread, *broken), "scanned", "where nan is, nothing else can be told")
    report = _with_inputs(subject, as_call(example_inputs)) if asked else _with_found(subject)
    named = {finding.name for finding in spread}
    others = (finding for finding in report.findings if finding.name not in named)
    return replace(report, findings=sort((*spread, *others)))


def _broken_findings(found: Iterable[Site]) -> Iterator[Finding]:
    """Yield a finding for each parameter that holds nan or inf, by its first axis."""
    for site in found:
        values = site.parameters[0].detach()
        if is_sharded(values) or values.isfinite().all():
            continue
        rows = (~values.isfinite()).flatten(1).any(1) if values.ndim > 1 else ~values.isfinite()
        units = tuple(rows.reshape(-1).nonzero().flatten().tolist())
        remedy = f"apply_policy(model, only=[{site.name!r}])"
        yield Finding(site.name, (units,), "dead", "not finite: no gradient is", remedy=remedy)


_NOTHING = Report((), "scanned", "no weight holds equal units")


def _with_inputs(subject: Subject, call: Call) -> Report:
    """Probe with inputs like the user's."""
    with contextlib.suppress(TraceError):  # whether the inputs are at fault a run finds out
        subject = _informed(subject, read(subject.model, subject.sites, call), asked=True)
    if not subject.suspects:
        return _NOTHING
    report, failures = _first_report(subject, attempts_with(subject.model, call))
    if report is not None:
        return report
    raise TraceError(
        f"the forward and backward pass of {type(subject.model).__name__} raises with the given "
        f"example_inputs: {failures[0]}; {EXPECTED}"
        + ("" if subject.loss is None else ", and a loss_fn for what it returns")
    )


def _with_found(subject: Subject) -> Report:
    """Probe with inputs that are looked for; where there are none, suspect only."""
    reading = read(subject.model, subject.sites)
    subject = _informed(subject, reading, asked=False)
    if not subject.suspects:
        return _NOTHING
    if reading.call is None:
        return _unprobed(subject.suspects, reading.failure or "no inputs were found")
    report, failures = _first_report(subject, attempts(subject.model, reading.call))
    return report or _unprobed(subject.suspects, failures[0])


def _first_report(subject: Subject, ways: Iterable[Attempt]) -> tuple[Report | None, Sequence[str]]:
    """Return the report of the first attempt that decides, and why those before it did not."""
    failures: list[str] = []
    for attempt in ways:
        result = probed(subject, attempt)
        if isinstance(result, Report):
            return result, failures
        failures += [result] if result else []
    return None, failures


def _unprobed(suspected: Suspects, failure: str) -> Report:
    reason = f"units are equal at the start; {failure}"
    equal_units = {like.site.name: like for like in reversed(suspected.equal_units)}
    rows = (
        Finding(name, like.groups(), "suspect", reason, along=like.view.along)
        for name, like in reversed(equal_units.items())
    )
    modules = (
        Finding(copies.names[0], (copies.names,), "suspect", reason, along="modules")
        for copies in suspected.equal_modules
    )
    return Report((*rows, *modules), "scanned", failure)


def _informed(subject: Subject, reading: Reading, *, asked: bool) -> Subject:
    """Look again at raw parameters and at biases, now that their use is known."""
    used = {name: facts for name, facts in reading.facts.items() if facts.used}
    alone = (s for s in subject.sites if s.axes is None and len(s.parameters) == 1)
    raw = {site.name for site in alone if site.role == "unknown"} & used.keys()
    equal_units, copies = subject.suspects
    fine = {like.site.name for like in equal_units if _is_fine(like, used)}
    if not raw | fine:
        return subject
    known = [_with_use(s, used[s.name]) if s.name in raw else s for s in subject.sites]
    again = suspects(subject.model, known, among=raw, asked=asked).equal_units
    others = (like for like in equal_units if like.site.name not in raw | fine)
    return replace(subject, sites=known, suspects=Suspects((*others, *again), copies))


_SMOOTH = ("sigmoid", "softmax", "log_softmax", "tanh")


def _is_fine(like: EqualUnits, used: Mapping[str, Facts]) -> bool:
    """Whether a constant bias meets nothing that it could switch off: focal loss' prior."""
    facts = used.get(like.site.name)
    if facts is None or like.site.role != "bias" or not like.is_vector:
        return False
    is_smooth = facts.meets is None or facts.meets.name in _SMOOTH
    return is_smooth and abs(like.value) <= FAR


def _with_use(site: Site, facts: Facts) -> Site:
    """Return a raw parameter with what its use says; a number that is only added is a bias."""
    is_added = facts.op in ("add", "sub") and facts.role in ("scale", "gate", "unknown")
    axes = facts.axes and _with_stacks(facts.axes, site.shape, facts.op or "")
    return replace(site, axes=axes, role="bias" if is_added else facts.role)


def _with_stacks(axes: Axes, shape: Sequence[int], op: str) -> Axes:
    """Return axes with those that are named nowhere as copies; only convolutions have kernels."""
    named = (*axes.inputs, *axes.outputs, *axes.copies)
    rest = (axis for axis in range(len(axes.view or shape)) if axis not in named)
    return axes if "conv" in op else replace(axes, copies=(*axes.copies, *rest))
