"""What a calibration reports: which weights were scaled, by how much, and which were left."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch_initpolicy.errors import counted


@dataclass(frozen=True, slots=True)
class ScaledWeight:
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
class LeftWeight:
    """A weight that was left as it was, and why."""

    site: str
    reason: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was scaled, and what was not.

    Attributes:
        std: The standard deviation that was wanted.
        scaled: Weights that were scaled, in order of execution.
        left: Weights that were left as they were, with the reason.
        passes: Forward passes that it took: one, unless operators share weights.
    """

    std: float
    scaled: tuple[ScaledWeight, ...]
    left: tuple[LeftWeight, ...]
    passes: int = 1

    @property
    def worst(self) -> float:
        """Largest relative deviation from what was wanted; 0 where nothing was scaled."""
        return max((abs(scaled.after / self.std - 1) for scaled in self.scaled), default=0.0)

    @property
    def factors(self) -> dict[str, tuple[float, ...]]:
        """What each weight was multiplied by, by name; three numbers for packed q, k and v."""
        return factors_of(self.scaled)

    def __repr__(self) -> str:
        return f"<Calibration: {self._counts}: print it>"

    def __str__(self) -> str:
        names = [*(scaled.site for scaled in self.scaled), *(left.site for left in self.left)]
        width = max(map(len, names), default=0)
        rows = [f"{scaled.site:{width}}  {scaled}" for scaled in self.scaled]
        rows += [f"{left.site:{width}}  left: {left.reason}" for left in self.left]
        return "\n".join((self._counts, *rows))

    @property
    def _counts(self) -> str:
        scaled = f"{counted(len(self.scaled), 'weight')} scaled to std {self.std:g}"
        return f"{scaled}, {len(self.left)} left"


def factors_of(scaled: Iterable[ScaledWeight]) -> dict[str, tuple[float, ...]]:
    """Return what each weight was multiplied by in all, by canonical name.

    Returns:
        One number for each weight, or three where packed queries, keys and values have each their
        own.

    Examples:
        >>> factors_of([ScaledWeight("w", "value", 1.0, 1.0, 2.0, block=2)])
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
