"""A step: what is to happen to one site, and why.

Knows facts, initializers and shapes; neither rules nor how a step is carried out.
"""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from torch_initpolicy.multipliers import Multipliers
from torch_initpolicy.tensors.axes import Axes, block_fans, conventional
from torch_initpolicy.tensors.base import Spread, dtype_name
from torch_initpolicy.tensors.initializers import Blocks, Constant, Initializer, Keep, Zeros
from torch_initpolicy.tensors.layers import Role
from torch_initpolicy.trace.facts import Evidence, Facts
from torch_initpolicy.trace.joins import SHUT_AT_ZERO

Number = float | tuple[float, ...] | None
"""One number, one for each packed block where these differ, or None where it has no meaning."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is to happen to one site, and why.

    The facts can be read off the step itself: `role`, `op`, `meets`, `fed_by`, `evidence`,
    `fan_in` and `fan_out`.

    Attributes:
        name: Canonical name of the site.
        names: All its canonical names; the others are its ties.
        shape: Its logical shape.
        dtype: Its dtype.
        owner: Class name of the module that holds it.
        facts: What is known about it.
        initializer: How it is filled, all numbers resolved.
        std: Standard deviation of what will be drawn.
        rule: The matcher that chose the initializer, as the policy writes it; where packed blocks
            come to different things, all that chose one, with `; ` between.
        reason: One sentence for people.
        factors: What is multiplied to the filled values: one number for all of them, or one for
            each of as many equal parts along the first axis (a calibration of packed queries, keys
            and values); empty where there is nothing to multiply. Of a kept site a mere record.
        torch_axes: Whether the initializer takes the axes to be torch's own, `(out, in, *kernel)`,
            whatever the facts say: a draw that a constructor of torch left out is made up for.
        multipliers: What a parametrisation such as `presets.mup` makes of it; None without one.
        frozen: Names, within the owner, of the parameters behind a parametrised site that stay as
            they are: a frozen gain, say, of which only the direction is drawn.
    """

    name: str
    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    owner: str
    facts: Facts
    initializer: Initializer
    std: Number
    rule: str
    reason: str
    factors: tuple[float, ...] = ()
    torch_axes: bool = False
    multipliers: Multipliers | None = None
    frozen: tuple[str, ...] = ()

    @property
    def role(self) -> Role:
        """What the parameter does."""
        return self.facts.role

    @property
    def op(self) -> str | None:
        """The operator that consumes the site, or None."""
        return self.facts.op

    @property
    def meets(self) -> str | None:
        """Name of the activation its output meets, the nearest of all packed blocks, or None."""
        return None if self.facts.meets is None else self.facts.meets.name

    @property
    def fed_by(self) -> str | None:
        """Name of the activation its input comes from, or None."""
        return None if self.facts.fed_by is None else self.facts.fed_by.name

    @property
    def evidence(self) -> Evidence:
        """How the facts came to be known."""
        return self.facts.evidence

    @property
    def fan_in(self) -> Number:
        """Connections into one output unit."""
        return merged(fan.fan_in for fan in block_fans(self.shape, self.facts.axes))

    @property
    def fan_out(self) -> Number:
        """Connections out of one input unit."""
        return merged(fan.fan_out for fan in block_fans(self.shape, self.facts.axes))

    @property
    def axes(self) -> Axes | None:
        """The axes that the initializer goes by; None for torch's own layout."""
        return None if self.torch_axes else self.facts.axes

    @property
    def padding(self) -> int | None:
        """The row that stays zero, or None."""
        return self.facts.padding

    @property
    def keeps(self) -> bool:
        """Whether the site is left as it is."""
        return self.initializer == Keep()

    @property
    def elements(self) -> int:
        """How many elements the site has."""
        return math.prod(self.shape)


def merged(numbers: Iterable[float]) -> Number:
    """Return one number where all packed blocks have the same, else all of them.

    Examples:
        >>> merged([3, 3]), merged([3, 4]), merged([])
        (3, (3, 4), None)
    """
    each = tuple(numbers)
    return (each[0] if len(set(each)) == 1 else each) if each else None


_FARTHEST = 6.0
"""Standard deviations out to which a distribution without bounds must be representable."""


def misfit(spreads: Iterable[Spread], dtype: torch.dtype) -> str | None:
    """Say how values are lost in a dtype, beyond its largest number or among its smallest ones.

    Examples:
        >>> misfit([Spread(1e6, 0.0)], torch.float16)
        'values up to 1e+06 do not fit into float16, which ends at 65504'
        >>> misfit([Spread(0.0, 1e-9)], torch.float16)
        'values of standard deviation 1e-09 become zero in float16, whose least step is 5.96e-08'
        >>> misfit([Spread(1e6, 0.0), Spread(0.0, 1e-9)], torch.float32)
    """
    finfo, name = torch.finfo(dtype), dtype_name(dtype)
    least = finfo.smallest_normal * finfo.eps
    for spread in spreads:
        far = _FARTHEST * spread.std
        low = spread.mean - far if spread.low is None else spread.low
        high = spread.mean + far if spread.high is None else spread.high
        reach = max(abs(low), abs(high))
        if reach > finfo.max:
            return f"values up to {reach:.6g} do not fit into {name}, which ends at {finfo.max:.6g}"
        # Half of the least step and less is rounded to zero: two thirds of a normal's numbers then.
        if reach > 0 and max(abs(spread.mean), spread.std) < least / 2:
            what = f"of standard deviation {spread.std:.6g}" if spread.std else f"{spread.mean:.6g}"
            return f"values {what} become zero in {name}, whose least step is {least:.3g}"
    return None


def calibrated(step: Step) -> Step:
    """Return a step that says of its initializer what its factors make of it.

    Nothing is known any more where they are of parts that are no blocks of the plan.
    """
    if not step.factors or step.initializer.is_opaque:
        return step
    if len(set(step.factors)) == 1:
        return replace(step, initializer=step.initializer.scaled(step.factors[0]))
    blocks = step.axes.blocks if step.axes else ()
    if len(blocks) != len(step.factors) or len(set(blocks)) > 1:
        return replace(step, initializer=Keep())
    each = enumerate(step.factors)
    parts = (step.initializer.of_block(number).scaled(factor) for number, factor in each)
    return replace(step, initializer=Blocks(tuple(parts)))


def symmetric(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Return the steps that would make the units of a hidden layer identical for ever.

    These are constant weights whose output meets none but constant weights next, and weights of
    zero before a ReLU, which lets no gradient through. A constant last layer, or last weight of a
    residual branch, is no such case: its units differ after the first steps of training. Where too
    many weights are next to tell, as on a residual stream, nothing is said.
    """
    known = {step.name: step for step in steps if step.role in _OF_UNITS}
    identical = _identical(known)
    return tuple(step for step in known.values() if step.name in identical and _is_hidden(step))


_OF_UNITS = ("weight", "recurrent", "embedding")
"""Roles of parameters that make units: random ones let the units before them differ."""


def _identical(known: Mapping[str, Step]) -> set[str]:
    """Return the names of constant weights whose units stay identical.

    A constant weight that they lead to does not, whatever becomes of it; one beside them, to which
    they are added, say, must stay identical itself.
    """
    beside = _neighbours(known)
    dead = {step.name for step in known.values() if _is_dead(step)}
    identical = dead | {
        step.name
        for step in known.values()
        if beside[step.name] and all(map(_is_constant, (step, *beside[step.name])))
    }
    while broken := {
        name
        for name in identical - dead
        if any(o.name not in identical and name in (o.facts.neighbours or ()) for o in beside[name])
    }:
        identical -= broken
    return identical


def _neighbours(known: Mapping[str, Step]) -> dict[str, list[Step]]:
    """Return the weights next to each one: by the data flow, else by the order of registration."""
    in_order = [name for name, step in known.items() if step.role != "embedding"]
    after = {name: (following,) for name, following in itertools.pairwise(in_order)}
    names = {
        name: after.get(name, ()) if step.facts.neighbours is None else step.facts.neighbours
        for name, step in known.items()
    }
    return {name: [known[o] for o in others if o in known] for name, others in names.items()}


def _is_hidden(step: Step) -> bool:
    """Tell whether a step is for a hidden layer of several units."""
    ends = step.facts.feeds_output or step.facts.ends_residual or step.role == "embedding"
    return not ends and _units(step) > 1


def _is_constant(step: Step) -> bool:
    stds = step.std if isinstance(step.std, tuple) else (step.std,)
    return step.elements > 0 and all(std == 0 for std in stds)


def _units(step: Step) -> int:
    """Count the output units of a weight, all blocks together."""
    axes = conventional(step.shape) if step.axes is None else step.axes
    return math.prod(step.shape[axis] for axis in axes.outputs)


def _is_dead(step: Step) -> bool:
    return (
        _is_constant(step)
        and step.meets in SHUT_AT_ZERO
        and step.initializer in (Zeros(), Constant(0.0))
    )
