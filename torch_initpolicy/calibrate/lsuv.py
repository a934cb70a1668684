"""Layer-sequential unit variance (LSUV): the public verb."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from torch_initpolicy.calibrate.calibration import Calibration
from torch_initpolicy.calibrate.directions import orthogonalise
from torch_initpolicy.calibrate.passes import require_writable, scale
from torch_initpolicy.errors import ArgumentError
from torch_initpolicy.planning.selection import Selection
from torch_initpolicy.sites import require_module, sites
from torch_initpolicy.tensors.base import plain_number
from torch_initpolicy.writing.commit import undone_on_error


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
        >>> import torch
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
    require_writable(found, selection)
    with undone_on_error(p for site in found if site.axes is not None for p in site.parameters):
        orthogonalise(model, found, inputs, selection, seed)
        return scale(model, inputs, selection, std=wanted, per_channel=per_channel)
