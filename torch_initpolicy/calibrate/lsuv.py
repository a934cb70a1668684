"""Layer-sequential unit variance: scales each weight as its operator runs, in one forward pass.

Runs the model on copies of its parameters; the model itself is written to once, at the end.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from torch_initpolicy.calibrate.calibration import Calibration, Left, factors_of
from torch_initpolicy.calibrate.copies import Copies
from torch_initpolicy.calibrate.observer import ScalingObserver
from torch_initpolicy.calibrate.response import Groups
from torch_initpolicy.calibrate.scaler import Settings
from torch_initpolicy.calibrate.scales import Scales
from torch_initpolicy.calibrate.unscaled import unscaled
from torch_initpolicy.errors import ApplyError, ArgumentError, InitPolicyError, listing
from torch_initpolicy.planning.decide import make_plan
from torch_initpolicy.planning.selection import Selection
from torch_initpolicy.policy.match import anything, predicate, role
from torch_initpolicy.policy.rules import InitPolicy, Rule
from torch_initpolicy.sites import Site, canonical_modules, require_module, sites
from torch_initpolicy.tensors.base import plain_number
from torch_initpolicy.tensors.initializers import Keep, Orthogonal
from torch_initpolicy.trace.failures import refusal
from torch_initpolicy.trace.inputs import as_call
from torch_initpolicy.trace.read import read
from torch_initpolicy.trace.record import observe, with_grad_if_asked
from torch_initpolicy.writing.apply import apply_steps
from torch_initpolicy.writing.commit import commit, undone_on_error
from torch_initpolicy.writing.crew import crew
from torch_initpolicy.writing.drawing import Drawing
from torch_initpolicy.writing.journal import Journal
from torch_initpolicy.writing.ranks import process_groups
from torch_initpolicy.writing.shards import is_sharded, obstacles, shared

ROUNDS = 40
"""Forward passes after which weights used several times that have not settled are left."""


def lsuv_(
    model: nn.Module,
    inputs: Any,
    *,
    std: float = 1.0,
    per_channel: bool = False,
    orthogonal: bool = True,
    seed: int | None = 0,
    only: Sequence[str] | str | None = None,
    skip: Sequence[str] | str | None = None,
    frozen: bool = False,
) -> Calibration:
    """Scale each weight so that what its operator makes of real inputs has one standard deviation.

    The weights are scaled within a single forward pass, each when its operator runs, so that later
    ones see the corrected signal. Linear and (transposed) convolutional layers, products with raw
    parameters, attention projections, and the gates of recurrent layers are scaled. A weight shared
    by several operators gets one scale for all of them, in further passes. Dropout and
    normalisation act as in the mode the model is in. The standard deviation of complex numbers is
    the root of `E |z - E z| ** 2`.

    Where the model is a `DistributedDataParallel` or holds sharded parameters, every process calls
    this with its own inputs, and standard deviations are those of all processes' inputs together;
    sharded parameters are gathered for the time of the call.

    Args:
        model: The model.
        inputs: What its forward takes: a tensor, a tuple of arguments or a mapping of keyword
            arguments; a batch like those of the training.
        std: The standard deviation that is wanted, positive.
        per_channel: Also shift the mean of each output unit to zero, where there is a bias.
        orthogonal: Draw orthogonal weights first, as the paper does; otherwise the weights keep
            their direction.
        seed: Seed of the orthogonal weights.
        only: Globs; other sites are left alone. None for all sites, an empty sequence for none.
        skip: Globs; these sites are left alone.
        frozen: Whether parameters that require no gradient are scaled too.

    Returns:
        Each weight's standard deviation before and after, and which weights were left, and why:
        together all that are weights by their type or by what the forward pass does with them.

    Raises:
        ApplyError: A parameter cannot be written, or a glob matches nothing; lists every case. The
            model is as it was.
        TraceError: The forward pass raises with these inputs. The model is as it was.
        ArgumentError: `std` is not positive, or `model` is no module.

    Reference:
        Mishkin and Matas, *All you need is a good init*, 2015, arXiv:1511.06422, algorithm 1; here
        each scale is solved for in closed form, where the paper divides until it fits.

    Examples:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> batch = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
        >>> report = lsuv_(model, batch)
        >>> [scaled.site for scaled in report.scaled], report.worst < 1e-3
        (['0.weight', '2.weight'], True)
        >>> round(model(batch).std(correction=0).item(), 3)
        1.0
    """
    wanted = plain_number(std)
    if wanted is None or not (wanted > 0 and math.isfinite(wanted)):
        raise ArgumentError(f"std is a positive number, got {std!r}")
    for name, given in ("per_channel", per_channel), ("orthogonal", orthogonal):
        if not isinstance(given, bool):
            raise ArgumentError(f"{name} is True or False, got {given!r}")
    selection = Selection.of(only=only, skip=skip, frozen=frozen)
    if not orthogonal:
        return scale(model, inputs, selection, std=wanted, per_channel=per_channel)
    found = sites(require_module(model))
    _require_writable(found, selection)
    with undone_on_error(p for site in found if site.axes is not None for p in site.parameters):
        _orthogonalise(model, found, inputs, selection, seed)
        return scale(model, inputs, selection, std=wanted, per_channel=per_channel)


@torch.no_grad()
def scale(
    model: nn.Module,
    inputs: Any,
    selection: Selection,
    *,
    std: float = 1.0,
    per_channel: bool = False,
) -> Calibration:
    """Scale weights as `lsuv_` does, whose directions stay as they are.

    Raises:
        ApplyError: As for `lsuv_`.
        TraceError: As for `lsuv_`.
    """
    found = sites(require_module(model))
    _require_writable(found, selection)
    copies = Copies(found)
    groups = _groups(model, found)
    settings = Settings(Scales(std, copies), copies, selection, per_channel, groups)
    return _calibrate(model, inputs, settings)


_START = InitPolicy([
    Rule(
        role("weight", "recurrent") & predicate(lambda site, _: site.storage == "plain"),
        Orthogonal(),
        optional=True,
    ),
    Rule(anything(), Keep(), optional=True),
])  # fmt: skip


def _require_writable(found: Sequence[Site], selection: Selection) -> None:
    cases = [f"{site.name!r} {why}" for site in found for why in obstacles(site)]
    cases += shared(site for site in found if selection.kept(site) is None)
    cases += selection.idle(found)
    if cases:
        raise ApplyError(f"nothing was scaled:\n{listing(cases)}")


def _orthogonalise(
    model: nn.Module, found: Sequence[Site], inputs: Any, selection: Selection, seed: int | None
) -> None:
    """Write orthogonal weights; parametrised ones keep their direction."""
    facts = read(model, found, inputs).facts
    plan = make_plan(model, facts, _START, selection)
    apply_steps(plan.pairs(), Drawing(seed))


def _calibrate(model: nn.Module, inputs: Any, settings: Settings) -> Calibration:
    """Run the model until the weights that several operators share have settled too, then write."""
    inner = next(module for _, module in canonical_modules(model))
    scales, copies = settings.scales, settings.copies
    passes = 0
    while passes == 0 or scales.unsettled():
        if passes and passes % ROUNDS == 0:
            settings.left.update(scales.give_up())
        passes += 1
        observer = _run(inner, inputs, settings)
    scaled = scales.scaled()
    writes = copies.writes(factors_of(scaled))

    def write(journal: Journal) -> None:
        for each in writes:
            each(journal)

    with crew([None]) as workers:
        commit(write, process_groups(model), workers)
    done = {entry.site for entry in scaled}
    flow = observer.scaler.flow if observer.scaler else None
    reasons = {**dict(unscaled(flow, copies.sites, done)), **settings.left}
    left = (Left(name, why) for name, why in reasons.items() if name not in done)
    return Calibration(scales.std, scaled, tuple(left), passes)


def _run(model: nn.Module, inputs: Any, settings: Settings) -> ScalingObserver:
    """Run one forward pass, and return what was seen of it."""
    call = as_call(inputs)
    names = {id(p): site.name for site in settings.copies.sites.values() for p in site.parameters}

    def run(*, with_grad: bool) -> ScalingObserver:
        settings.scales.begin()
        observer = ScalingObserver(settings)
        observe(model, call, observer, names=names, with_grad=with_grad)
        return observer

    try:
        return with_grad_if_asked(run)
    except InitPolicyError:
        raise
    except Exception as error:
        raise refusal(model, call, error) from error


def _groups(model: nn.Module, found: Iterable[Site]) -> Groups:
    """Return the process groups over which inputs are spread."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return (model.process_group,)
    parameters = (parameter for site in found for parameter in site.parameters)
    sharded = next(filter(is_sharded, parameters), None)
    if sharded is None:
        return ()
    mesh = sharded.device_mesh
    return tuple(mesh.get_group(dim) for dim in range(mesh.ndim))
