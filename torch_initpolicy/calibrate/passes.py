"""Scales a model's weights in forward passes: one, or as many as shared weights take to settle.

They run on copies of the parameters; the model itself is written to once, at the end.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from torch_initpolicy.calibrate.calibration import Calibration, LeftWeight, factors_of
from torch_initpolicy.calibrate.copies import Copies
from torch_initpolicy.calibrate.observer import scaled_in_one_pass
from torch_initpolicy.calibrate.scaler import Settings
from torch_initpolicy.calibrate.scales import Scales
from torch_initpolicy.calibrate.unscaled import unscaled
from torch_initpolicy.errors import ApplyError, listing
from torch_initpolicy.planning.selection import Selection
from torch_initpolicy.sites import Site, require_module, sites, unwrapped
from torch_initpolicy.writing.obstacles import obstacles, shared
from torch_initpolicy.writing.ranks import process_groups

ROUNDS = 40
"""Forward passes after which weights used several times that have not settled are left."""


def require_writable(found: Sequence[Site], selection: Selection) -> None:
    """Raise one error that lists what cannot be written, and globs that match nothing."""
    cases = [f"{site.name!r} {why}" for site in found for why in obstacles(site)]
    cases += shared(site for site in found if selection.kept(site) is None)
    cases += selection.idle(found)
    if cases:
        raise ApplyError(f"nothing was scaled:\n{listing(cases)}")


@torch.no_grad()
def scale(
    model: nn.Module,
    inputs: Any,
    selection: Selection,
    *,
    std: float = 1.0,
    per_channel: bool = False,
) -> Calibration:
    """Scale weights as `lsuv_` does, whose directions stay as they are."""
    found = sites(require_module(model))
    require_writable(found, selection)
    inner = unwrapped(model)
    copies, groups = Copies(found), process_groups(model)
    settings = Settings(Scales(std, copies), copies, selection, per_channel, groups)
    scales, passes, flow = settings.scales, 0, None
    while passes == 0 or scales.unsettled():
        if passes and passes % ROUNDS == 0:
            settings.left.update(scales.give_up())
        passes += 1
        flow = scaled_in_one_pass(inner, inputs, settings)
    scaled = scales.scaled()
    copies.write(factors_of(scaled), groups)
    done = {entry.site for entry in scaled}
    reasons = {**dict(unscaled(flow, copies.sites, done)), **settings.left}
    left = (LeftWeight(name, why) for name, why in reasons.items() if name not in done)
    return Calibration(std, scaled, tuple(left), passes)
