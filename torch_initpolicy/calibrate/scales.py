"""The scale of each weight over the forward passes, until all of its uses have settled."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from torch_initpolicy.calibrate.calibration import ScaledWeight
from torch_initpolicy.calibrate.copies import Copies
from torch_initpolicy.calibrate.response import TOLERANCE, Response
from torch_initpolicy.calibrate.search import ScaleSearch

TargetKey = tuple[tuple[str, ...], str]
"""Identifies a target over several uses and passes."""


@dataclass(frozen=True, slots=True)
class Target:
    """Weights that are scaled together, or a block of one.

    Attributes:
        sites: Their canonical names.
        op: What is scaled to its standard deviation, for the report.
        parts: The tensors that are multiplied, aliases of copies.
        block: Which third of packed queries, keys and values it is; None for whole weights.
    """

    sites: tuple[str, ...]
    op: str
    parts: tuple[Tensor, ...]
    block: int | None = None


@dataclass(slots=True)
class History:
    """What is remembered of one target over the passes.

    Each use of the last pass has its number of elements and its standard deviation.
    """

    target: Target
    before: float
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


class Scales:
    """Solves for scales: at once for weights that are used once, over the passes for others."""

    def __init__(self, std: float, copies: Copies) -> None:
        self.std = std
        self._copies = copies
        self._histories: dict[TargetKey, History] = {}
        self._refused: set[TargetKey] = set()
        self._search: ScaleSearch[TargetKey] = ScaleSearch()
        self._corrections: dict[TargetKey, float] = {}

    def begin(self) -> None:
        """Start a pass; weights with several uses are set by what the last pass saw of them all."""
        shared = {
            key: (history.factor, history.std / self.std, len(history.used))
            for key, history in self._histories.items()
            if len(history.used) > 1
        }
        self._corrections = self._search.step(shared) if shared else {}
        for history in self._histories.values():
            history.used.clear()

    def settle(self, target: Target, response: Response) -> float | str:
        """Scale a target, and return by how much: 1 after its first use; or why it cannot be."""
        key = (target.sites, target.op)
        if key in self._refused:
            return 1.0
        history = self._histories.get(key)
        if history is not None and history.used:
            history.used.append((response.count, response.std(1.0)))
            return 1.0
        before = response.std(1.0) if history is None else history.before
        scale = self._corrections.get(key) or response.solve(self.std)
        if isinstance(scale, str):
            return scale
        after = response.std(scale)
        reason = self._copies.multiply(target.sites, target.parts, scale)
        if reason is not None:
            return reason
        history = self._histories.setdefault(key, History(target, before))
        history.factor *= scale
        history.used.append((response.count, after))
        return scale

    def unsettled(self) -> list[TargetKey]:
        """Return what lacks its standard deviation over all uses, or is not reached any more."""
        return [
            key
            for key, history in self._histories.items()
            if not history.used or not history.is_settled(self.std)
        ]

    def give_up(self) -> Iterator[tuple[str, str]]:
        """Leave what has not settled as it was; yield why, for sites that are still reached."""
        for key in self.unsettled():
            self._refused.add(key)
            history = self._histories.pop(key)
            target = history.target
            self._copies.restore(target.sites, target.parts, history.factor)
            if history.used:
                reason = (
                    f"no scale was found that gives its {len(history.used)} uses a standard "
                    f"deviation of {self.std:g}; the last gave {history.std:.3g}"
                )
                yield from ((name, reason) for name in target.sites)

    def scaled(self) -> tuple[ScaledWeight, ...]:
        """Say what was scaled."""
        return tuple(
            ScaledWeight(
                name, op, history.before, history.std, history.factor, history.target.block
            )
            for (names, op), history in self._histories.items()
            for name in names
        )
