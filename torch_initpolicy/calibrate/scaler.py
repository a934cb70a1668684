"""What the handlers of operators share: which site to scale, and what is left, and why."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from torch_initpolicy.calibrate.copies import Copies
from torch_initpolicy.calibrate.response import Line, Response, measure
from torch_initpolicy.calibrate.scales import Scales, Target
from torch_initpolicy.planning.selection import Selection
from torch_initpolicy.sites import Site
from torch_initpolicy.trace.composed import Composed
from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.writing.ranks import Groups


class Operand(NamedTuple):
    """A tensor that an operator read, with the argument it stood in and its value."""

    slot: str
    value: int
    tensor: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Settings:
    """What holds for all forward passes of a calibration.

    Attributes:
        copies: What is scaled in place of the parameters.
        per_channel: Whether biases take up the means of the units.
        groups: The groups of processes over which inputs are spread.
        left: Why sites were not scaled, by canonical name.
    """

    scales: Scales
    copies: Copies
    selection: Selection
    per_channel: bool
    groups: Groups
    left: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Scaler:
    """Finds and scales the weights of the operator that has just run, in one forward pass.

    `flow` and `composed` tell of what this pass has read so far, `shifted` names the biases that it
    has set.
    """

    settings: Settings
    flow: Uses
    composed: Composed
    shifted: set[str] = field(default_factory=set)

    def leave(self, names: Iterable[str], reason: str) -> None:
        """Note why sites are not scaled, where no reason is known yet."""
        for name in names:
            self.settings.left.setdefault(name, reason)

    def leave_operand(self, operand: Operand, reason: str) -> None:
        """Note why the sites behind an operand are not scaled."""
        self.leave((source.site for source in self.flow.sources.get(operand.value, ())), reason)

    def site_behind(self, operand: Operand) -> Site | None:
        """Return the site to scale for an operand to grow, or note why there is none."""
        sources = self.flow.sources.get(operand.value, ())
        among = sorted(sources, key=lambda source: -source.size)
        proportional = self.composed.proportional(operand.value)
        for site in (self.settings.copies.sites[source.site] for source in among):
            reason = self._obstacle(site, grows=site.name in proportional)
            if reason is None:
                return site
            self.leave([site.name], reason)
        return None

    def _obstacle(self, site: Site, *, grows: bool) -> str | None:
        kept = self.settings.selection.kept(site)
        if kept is not None:
            return kept[1].removeprefix("kept: ")
        if site.frozen_parts and not self.settings.selection.frozen:
            return f"{', '.join(site.frozen_parts)} is frozen (requires_grad=False)"
        if site.name in self.settings.left:
            return self.settings.left[site.name]
        if not grows and site.storage == "plain":
            return "its operator applies an expression that does not grow with it"
        return None

    def parameter_of(self, operand: Operand) -> Site | None:
        """Return the site that an operand is, or None where it is an expression or a signal."""
        name = self.flow.graph.values[operand.value].parameter
        return self.settings.copies.sites.get(name or "")

    def copies_of(self, site: Site) -> tuple[Tensor, ...]:
        """Return the copies that are multiplied when a site grows: none if it is parametrised."""
        return self.settings.copies.plain(site)

    def bias_to_shift(self, bias: Operand | None, output: Tensor) -> Site | None:
        """Return the site of a bias that is to take up the means of an output, and is free to."""
        if bias is None or bias.tensor.numel() >= output.numel():
            return None  # it has no mean to take up: each of its numbers is added to one
        site = self.parameter_of(bias) if self.settings.per_channel else None
        if site is None or site.name in self.shifted:
            return None
        return site if self.settings.selection.kept(site) is None else None

    def set_bias(self, site: Site, copy: Tensor, values: Tensor) -> None:
        """Give the copy of a bias new values, once in a pass."""
        copy.copy_(values.reshape(copy.shape))
        self.shifted.add(site.name)
        self.settings.copies.changed[site.name] = None

    def measure(self, weighted: Tensor, offset: Tensor | None = None) -> Line:
        """Measure how the variance of `weighted * s + offset` depends on `s`."""
        return measure(weighted, offset, self.settings.groups)

    def settle(self, target: Target, response: Response) -> float:
        """Scale a target, and return by how much; 1 where it cannot or may no longer be scaled."""
        scale = self.settings.scales.settle(target, response)
        if isinstance(scale, str):
            self.settings.left.update(dict.fromkeys(target.sites, scale))
            return 1.0
        return scale
