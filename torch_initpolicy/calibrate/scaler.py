"""Scales weights while their operators run, on copies that stand in for the parameters.

Knows what an operator's output does when its weight grows; has never heard of policies.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, distributed

from torch_initpolicy.calibrate.search import Search
from torch_initpolicy.errors import ApplyError
from torch_initpolicy.planning.selection import Selection
from torch_initpolicy.sites import Site
from torch_initpolicy.trace.composed import Composed
from torch_initpolicy.trace.constants import Constants
from torch_initpolicy.trace.consumers import Use, Uses, advance
from torch_initpolicy.trace.functorch import is_wrapped
from torch_initpolicy.trace.operators import OpRole
from torch_initpolicy.trace.recorder import Ran
from torch_initpolicy.trace.stand_ins import copied
from torch_initpolicy.trace.trees import tensors_in
from torch_initpolicy.writing.commit import Write
from torch_initpolicy.writing.journal import Journal
from torch_initpolicy.writing.parametrized import Behind, behind, reading, store
from torch_initpolicy.writing.shards import full, multiply_, pieces

TOLERANCE = 1e-4
"""Relative deviation from the wanted standard deviation at which iterating ends."""

ROUNDING = 1e-12
"""Variances that are smaller parts of a second moment are rounding: numbers are all the same."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """A weight that was scaled.

    Attributes:
        site: Its canonical name.
        op: The operator that applies it.
        before: Standard deviation of the operator's output with the weight as it was, all earlier
            weights being scaled already.
        after: The same with the scaled weight.
        factor: What the weight was multiplied by.
        block: Which third of packed queries, keys and values it is; None for the whole weight.
    """

    site: str
    op: str
    before: float
    after: float
    factor: float
    block: int | None = None

    def __str__(self) -> str:
        return f"{self.op:>12}  std {self.before:>9.4g} -> {self.after:<9.4g} x {self.factor:.4g}"


@dataclass(frozen=True, slots=True)
class Left:
    """A weight that was left as it was.

    Attributes:
        site: Its canonical name.
        reason: Why.
    """

    site: str
    reason: str


def factors_of(scaled: Iterable[Scaled]) -> dict[str, tuple[float, ...]]:
    """Return what each weight was multiplied by in all, by canonical name.

    Returns:
        One number for each weight, or three where packed queries, keys and values have each their
        own.

    Examples:
        >>> factors_of([Scaled("w", "value", 1.0, 1.0, 2.0, block=2)])
        {'w': (1.0, 1.0, 2.0)}
    """
    found: dict[str, tuple[float, ...]] = {}
    for each in scaled:
        known = found.get(each.site, (1.0,))
        parts = known * 3 if each.block is not None and len(known) == 1 else known
        found[each.site] = tuple(
            known * each.factor if each.block in (None, number) else known
            for number, known in enumerate(parts)
        )
    return found


#
# While the model runs
#


@dataclass(frozen=True, slots=True)
class Line:
    """How the variance of an operator's output depends on the scale `s` of its weight.

    It is `weight * s ** 2 + 2 * both * s + offset`.

    Attributes:
        count: Number of elements.
        weight: Variance of what grows with the weight.
        both: Covariance of the two.
        offset: Variance of what does not grow.
    """

    count: float
    weight: float
    both: float
    offset: float

    @classmethod
    def of(cls, count: float, *sums: float) -> "Line":
        """Make one of the sums of `a`, `a ** 2`, `b`, `b ** 2` and `a * b` (offset `b`)."""
        a, aa, b, bb, ab = (total / max(count, 1.0) for total in sums)
        weight = aa - a**2
        return cls(count, 0.0 if weight <= ROUNDING * aa else weight, ab - a * b, bb - b**2)

    def __add__(self, other: "Line") -> "Line":
        """Return the line of pairs of numbers, as complex ones are: their variances add up."""
        pairs = (self.weight + other.weight, self.both + other.both, self.offset + other.offset)
        return Line(self.count, *pairs)

    def std(self, scale: float) -> float:
        """Return the standard deviation at a scale."""
        variance = self.weight * scale**2 + 2 * self.both * scale + self.offset
        return math.sqrt(max(variance, 0.0))

    def solve(self, std: float) -> float | str:
        """Return the positive scale that gives a standard deviation, or why there is none."""
        if not self.count:
            return "its operator saw no inputs"
        if not math.isfinite(self.weight + self.both + self.offset):
            return "its operator's output is not finite"
        if self.weight <= 0:
            return "its operator's output is the same for all units and inputs"
        missing = std**2 - self.offset
        if missing <= 0:
            return f"the bias alone has a standard deviation of {math.sqrt(self.offset):.3g}"
        root = math.sqrt(self.both**2 + self.weight * missing)
        return (root - self.both) / self.weight


class Response(Protocol):
    """How the standard deviation of something depends on the scale of a weight."""

    @property
    def count(self) -> float:
        """Over how many numbers it is taken."""

    def std(self, scale: float) -> float:
        """Return the standard deviation at a scale."""

    def solve(self, std: float) -> float | str:
        """Return the positive scale that gives a standard deviation, or why there is none."""


@dataclass(frozen=True, slots=True)
class Target:
    """Weights that are scaled together, or a block of one.

    Attributes:
        sites: Their canonical names.
        op: What is scaled to its standard deviation, for the report.
        parts: The tensors that are multiplied, aliases of stand-ins.
        block: Which third of packed queries, keys and values it is; None for whole weights.
    """

    sites: tuple[str, ...]
    op: str
    parts: tuple[Tensor, ...]
    block: int | None = None


@dataclass(slots=True)
class History:
    """What is remembered of one target over the passes."""

    before: float
    target: Target
    factor: float = 1.0
    used: list[tuple[float, float]] = field(default_factory=list)

    def is_settled(self, std: float) -> bool:
        """Tell whether all uses together have a standard deviation; one use has it at once."""
        return len(self.used) == 1 or abs(self.std / std - 1) < TOLERANCE

    @property
    def std(self) -> float:
        """Standard deviation over all uses of the last pass together."""
        total = sum(count for count, _ in self.used)
        return math.sqrt(sum(count * std**2 for count, std in self.used) / total)


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the caller wants.

    Attributes:
        std: The standard deviation of each operator's output.
        per_channel: Whether biases take up the means of the units.
        selection: Which sites are left alone.
    """

    std: float
    per_channel: bool
    selection: Selection


class Scaler:
    """Scales the weights of an operator that has just run, and its output with them."""

    def __init__(
        self,
        found: Iterable[Site],
        wishes: Wishes,
        handlers: Mapping[OpRole, "Handler"],
    ) -> None:
        self.sites = {site.name: site for site in found}
        self.wishes = wishes
        self.handlers = handlers
        self.groups: tuple[distributed.ProcessGroup, ...] = ()
        self.stand_ins: dict[int, Tensor] = {}
        self.histories: dict[tuple[tuple[str, ...], str], History] = {}
        self.left: dict[str, str] = {}
        self.refused: set[Key] = set()
        self.search: Search[Key] = Search()
        self.corrections: dict[Key, float] = {}
        self.changed: dict[str, Behind | None] = {}
        self.flow: Uses
        self.composed: Composed
        self.begins = True

    #
    # One pass
    #

    def begin(self) -> None:
        """Start a pass; weights with several uses are set by what the last pass saw of them all."""
        self.begins = True
        shared = {
            key: (history.factor, history.std / self.wishes.std, len(history.used))
            for key, history in self.histories.items()
            if len(history.used) > 1
        }
        self.corrections = self.search.step(shared) if shared else {}
        self.shifted: set[str] = set()
        for history in self.histories.values():
            history.used.clear()

    def has_settled(self) -> bool:
        """Say whether the weights with several uses have their standard deviation over them all."""
        return not self._unsettled_keys()

    def _unsettled_keys(self) -> list["Key"]:
        return [
            key
            for key, history in self.histories.items()
            if not history.used or not history.is_settled(self.wishes.std)
        ]

    def give_up(self) -> None:
        """Leave the weights that have not settled, or are not reached any more, as they were."""
        for key in self._unsettled_keys():
            history = self.histories.pop(key)
            self.refused.add(key)
            for name in history.target.sites:
                if history.used:
                    self.left[name] = (
                        f"no scale was found that gives its {len(history.used)} uses a standard "
                        f"deviation of {self.wishes.std:g}; the last gave {history.std:.3g}"
                    )
                self.changed.pop(name, None)
            for part in history.target.parts:
                part.data.mul_(1 / history.factor)
            for site in map(self.sites.__getitem__, history.target.sites):
                for parameter in site.parameters if site.storage != "plain" else ():
                    self.stand_ins[id(parameter)].copy_(full(parameter))

    def stand_in(self, name: str, parameter: Tensor) -> Tensor:
        """Return the copy of a parameter that is scaled in its place."""
        if id(parameter) not in self.stand_ins:
            # What is replicated is its own whole: to scale it would scale the model.
            self.stand_ins[id(parameter)] = copied(full(parameter)).detach()
        return self.stand_ins[id(parameter)]

    def end(self, results: Any) -> None:
        """Nothing is left to do when the model returns."""

    def see(self, ran: Ran) -> None:
        """Scale what an operator applies, and its output."""
        if self.begins:
            self.flow = Uses(ran.graph)
            self.composed = Composed(Constants(self.flow, {}))
            self.begins = False
        advance(self.flow, ran.node)
        self.composed.advance(ran.node)
        handler = self.handlers.get(self.flow.role(ran.node))
        if handler is not None and ran.node.index in self.flow.weighers:
            tensors = tensors_in((ran.args, ran.kwargs))
            read = zip(self.flow.slots(ran.node), tensors, strict=True)
            operands = tuple(Operand(*place, tensor) for place, tensor in read)
            if any(map(is_wrapped, (*tensors, *ran.outputs))):
                self._leave(operands, "its operator runs inside torch.vmap or torch.func.grad")
            else:
                handler(self, ran, operands)

    def _leave(self, operands: Sequence["Operand"], reason: str) -> None:
        """Note why what stands behind operands is not scaled."""
        for operand in (operand for operand in operands if operand.slot != "bias"):
            for source in self.flow.sources.get(operand.value, ()):
                self.left.setdefault(source.site, reason)

    #
    # One target
    #

    def site_behind(self, operand: "Operand") -> Site | None:
        """Return the site to scale for an operand to grow, or note why there is none."""
        sources = self.flow.sources.get(operand.value, ())
        among = sorted(sources, key=lambda source: -source.size)
        proportional = self.composed.proportional(operand.value)
        for site in (self.sites[source.site] for source in among):
            reason = self._obstacle(site, grows=site.name in proportional)
            if reason is None:
                return site
            self.left.setdefault(site.name, reason)
        return None

    def _obstacle(self, site: Site, *, grows: bool) -> str | None:
        kept = self.wishes.selection.kept(site)
        if kept is not None:
            return kept[1].removeprefix("kept: ")
        if site.frozen_parts and not self.wishes.selection.frozen:
            return f"{', '.join(site.frozen_parts)} is frozen (requires_grad=False)"
        if site.name in self.left:
            return self.left[site.name]
        if not grows and site.storage == "plain":
            return "its operator applies an expression that does not grow with it"
        return None

    def parameter_of(self, operand: "Operand") -> Site | None:
        """Return the site that an operand is, or None where it is an expression or a signal."""
        return self.sites.get(self.flow.graph.values[operand.value].parameter or "")

    def may_shift(self, bias: "Operand") -> bool:
        """Say whether a bias is to take up the means of the units, and is free to."""
        site = self.parameter_of(bias)
        return (
            self.wishes.per_channel
            and site is not None
            and site.name not in self.shifted
            and self.wishes.selection.kept(site) is None
        )

    def set_bias(self, bias: "Operand", values: Tensor) -> None:
        """Give a bias that `may_shift` new values."""
        site = self.parameter_of(bias)
        if site is not None:
            bias.tensor.copy_(values.reshape(bias.tensor.shape))
            self.shifted.add(site.name)
            self.changed[site.name] = None

    def unit_means(self, tensor: Tensor, axis: int) -> Tensor:
        """Return the mean of each unit over all processes, in a shape that broadcasts."""
        others = [dim for dim in range(tensor.ndim) if dim != axis % tensor.ndim]
        double = torch.complex128 if tensor.is_complex() else torch.float64
        total = tensor.sum(others, keepdim=True, dtype=double).flatten()
        sums = torch.cat((total, total.new_tensor([tensor.numel() / max(len(total), 1)])))
        self._reduce(sums)
        means = sums[:-1] / sums[-1].abs().clamp_min(1)
        return means.to(tensor.dtype).reshape(-1, *(1,) * (-1 - axis))

    def settle(self, target: Target, response: "Response") -> float:
        """Scale a target, and return by how much; 1 where it cannot or may no longer be scaled."""
        key = (target.sites, target.op)
        if key in self.refused:
            return 1.0
        history = self.histories.get(key)
        if history is not None and history.used:
            history.used.append((response.count, response.std(1.0)))
            return 1.0
        before = response.std(1.0) if history is None else 0.0
        scale = self.corrections.get(key) or response.solve(self.wishes.std)
        after = response.std(scale) if isinstance(scale, float) else 0.0
        reason = self._scale(target, scale) if isinstance(scale, float) else scale
        if reason is not None or not isinstance(scale, float):
            self.left.update(dict.fromkeys(target.sites, reason or ""))
            return 1.0
        history = self.histories.setdefault(key, History(before, target))
        history.factor *= scale
        history.used.append((response.count, after))
        return scale

    def _scale(self, target: Target, scale: float) -> str | None:
        """Multiply the stand-ins of a target, or say why that cannot be."""
        for name in target.sites:
            site = self.sites[name]
            if site.storage != "plain":
                found = self._behind(site, scale)
                if isinstance(found, str):
                    return found
                self.changed[name] = found
        for part in target.parts:
            part.data.mul_(scale)  # a forward that takes gradients itself may have saved it
        self.changed.update({n: None for n in target.sites if self.sites[n].storage == "plain"})
        return None

    def _behind(self, site: Site, scale: float) -> Behind | str:
        """Find what must lie behind a parametrised weight for it to grow."""
        before = self.changed.get(site.name)
        now = reading(site) if before is None else before.reading
        try:
            found = behind(site, now * scale)
        except ApplyError:
            return f"its parametrisation ({site.storage}) does not let it grow"
        for parameter, value in zip(site.parameters, found.values, strict=True):
            self.stand_ins[id(parameter)].copy_(value)
        return found

    def parts_of(self, site: Site) -> tuple[Tensor, ...]:
        """Return the stand-ins that are multiplied when a site grows."""
        plain = site.storage == "plain"
        return tuple(self.stand_ins[id(p)] for p in site.parameters) if plain else ()

    def line(self, weighted: Tensor, offset: Tensor | None) -> "Line":
        """Measure how the variance of `weighted * s + offset` depends on `s`.

        Over all inputs of all processes. The variance of complex numbers is `E |z - E z| ** 2`.
        """
        if weighted.is_complex():
            real, imaginary = (None, None) if offset is None else _parts(offset)
            return self.line(weighted.real, real) + self.line(weighted.imag, imaginary)
        sums = _sums(weighted, offset)
        self._reduce(sums)
        return Line.of(*sums.tolist())

    def _reduce(self, sums: Tensor) -> None:
        for group in self.groups:
            distributed.all_reduce(sums, group=group)

    def writes(self) -> list[Write]:
        """Return what multiplies the weights of the model, each once, and sets its biases."""
        factors = factors_of(self.scaled())
        return [
            partial(store, self.sites[name], self._grown(name, factors[name][0]))
            if changed is not None
            else partial(self._write, self.sites[name], factors.get(name))
            for name, changed in self.changed.items()
        ]

    def _grown(self, name: str, factor: float) -> Behind:
        site = self.sites[name]
        return behind(site, reading(site) * factor)

    def _write(self, site: Site, factors: tuple[float, ...] | None, journal: Journal) -> None:
        """Multiply the pieces of a weight, or copy what stands in for a bias."""
        held = pieces(site.parameters[0])
        for piece in held:
            journal.save(piece.tensor)
            if factors is None:
                piece.tensor.copy_(piece.part_of(self.stand_ins[id(site.parameters[0])]))
        if factors is not None:
            multiply_(held, factors)

    def scaled(self) -> tuple[Scaled, ...]:
        """Say what was scaled."""
        return tuple(
            Scaled(name, op, history.before, history.std, history.factor, history.target.block)
            for (names, op), history in self.histories.items()
            for name in names
        )

    def report(self) -> tuple[tuple[Scaled, ...], tuple[Left, ...]]:
        """Say what was scaled and what was left."""
        scaled = self.scaled()
        done = {entry.site for entry in scaled}
        reasons = {**dict(self._unsettled(done)), **self.left}
        left = (Left(name, why) for name, why in reasons.items() if name not in done)
        return scaled, tuple(left)

    def _unsettled(self, done: AbstractSet[str]) -> Iterator[tuple[str, str]]:
        """Say of every weight, by its type or in the data flow, why no operator was scaled by it.

        Args:
            done: Names of the sites that were scaled.
        """
        flow = [] if self.begins else self.flow.found
        uses = [use for use in flow if not self._shifts(use)]
        partners = self._partners(uses)
        for name, site in self.sites.items():
            if site.role in ("weight", "recurrent") or name in partners:
                ops = dict.fromkeys(use.node.op for use in uses if use.source.site == name)
                yield name, _why_left(ops, partners.get(name), done)

    def _shifts(self, use: Use) -> bool:
        """Say whether a parameter is only added, by its place in an operator or by its type."""
        return use.slot.startswith("bias") or self.sites[use.source.site].role == "bias"

    def _partners(self, uses: Sequence[Use]) -> dict[str, set[str]]:
        """Return, for each weight that a product applies, the weights that it applies with it."""
        products: dict[int, set[str]] = {}
        for use in uses:
            matrix = len(self.sites[use.source.site].shape) > 1
            if matrix and use.node.index in self.flow.weighers:
                products.setdefault(use.node.index, set()).add(use.source.site)
        found: dict[str, set[str]] = {}
        for together in products.values():
            for name in together:
                found.setdefault(name, set()).update(together - {name})
        return found


def _why_left(ops: Iterable[str], partners: AbstractSet[str] | None, done: AbstractSet[str]) -> str:
    """Say why an operator was not scaled by a weight, from what reads it and what is beside it."""
    read = ", ".join(ops)
    if not read:
        return "no operator applied it in this forward pass"
    if partners is None:
        return f"no product applied it: it was read by {read}"
    if instead := done & partners:
        return f"its operator, {read}, is scaled by {', '.join(sorted(instead))}"
    beside = f" by {', '.join(sorted(partners))}" if partners else ""
    return f"its operator, {read}, was to be scaled{beside}, and is not"


Key = tuple[tuple[str, ...], str]
"""Identifies a target over several uses and passes."""


class Operand(NamedTuple):
    """A tensor that an operator read, with the argument it stood in and its value."""

    slot: str
    value: int
    tensor: Tensor


Handler = Callable[[Scaler, Ran, Sequence[Operand]], None]
"""Scales what an operator applies; one for each role."""


def _parts(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return the real and the imaginary parts of a tensor; those of a real one are zero."""
    return tensor.real, tensor.imag if tensor.is_complex() else torch.zeros_like(tensor)


def _sums(tensor: Tensor, offset: Tensor | None) -> Tensor:
    """Return count, sums of both, of their squares and of their products, in float64.

    They are taken piece by piece: a copy of a large output would take as much memory as the output.
    """
    offset = tensor.new_zeros(()) if offset is None else offset
    wide = offset.double().expand_as(tensor)
    sums = tensor.new_zeros(6, dtype=torch.float64)
    for part, b in zip(_cut(tensor), _cut(wide), strict=True):
        a = part.double()
        products = a.sum(), (a * a).sum(), b.sum(), (b * b).sum(), (a * b).sum()
        sums += torch.stack((a.new_tensor(a.numel()), *products))
    return sums


_PIECE = 2**16
"""Elements that are summed at a time."""


def _cut(tensor: Tensor) -> Sequence[Tensor]:
    """Cut a tensor along its longest axis into pieces of at most about `_PIECE` elements."""
    axis = max(range(tensor.ndim), key=lambda dim: tensor.shape[dim], default=None)
    return (tensor,) if axis is None else tensor.chunk(tensor.numel() // _PIECE + 1, dim=axis)
