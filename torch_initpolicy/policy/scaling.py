"""Scaling: how a parametrisation carries what a base model is given over to another size.

Knows two models of one family by their shapes and facts; writes nothing, and fills nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, NamedTuple

from torch_initpolicy.multipliers import Like, Multipliers
from torch_initpolicy.policy.family import Family, Member
from torch_initpolicy.tensors.axes import Axes, conventional, fans, part
from torch_initpolicy.trace.facts import Facts, ForwardMultiplier

Parametrisation = Literal["mup", "complete_p", "spectral"]


@dataclass(frozen=True, slots=True)
class Part:
    """One parameter; a hook may be able to multiply what it makes, or what its head reads."""

    name: str
    shape: tuple[int, ...]
    facts: Facts
    takes_hook: bool = False


@dataclass(frozen=True, slots=True)
class Scaling:
    """How standard deviations and learning rates go with the size of a model.

    Attributes:
        kind: `"mup"`: with its width; `"complete_p"`: with its width and depth; `"spectral"`: with
            its own fans, whatever other models there are.
        family: The base model; None for `"spectral"`.
        forward_multipliers: Whether a multiplier that cannot be folded into a parameter is left to
            a hook of the forward pass.
    """

    kind: Parametrisation
    family: Family | None = None
    forward_multipliers: bool = False

    def in_base(self, facts: Facts, member: Member | None) -> Facts:
        """Return facts with the constants that the policy reckons with: those of the base model."""
        branches = self.branches(facts.residual_branches)
        if member is None or self._leaves_constants(facts):
            return replace(facts, residual_branches=branches)
        whole, *blocks = member.multipliers or (facts.multiplier,)
        parts = facts.blocks
        if len(blocks) == len(parts):
            parts = tuple(
                replace(part, multiplier=constants, residual_branches=branches)
                for part, constants in zip(parts, blocks, strict=True)
            )
        return replace(facts, multiplier=whole, blocks=parts, residual_branches=branches)

    def _leaves_constants(self, facts: Facts) -> bool:
        """Tell whether the constants behind a parameter are those of depth, which muP leaves be."""
        if self.family is None or self.kind != "mup":
            return False
        other = facts.residual_branches != self.family.residual_branches
        return other and facts.ends_residual

    def branches(self, own: int) -> int:
        """Return the residual branches to reckon with: under CompleteP, those of the base."""
        base = None if self.family is None else self.family.residual_branches
        return base if self.kind == "complete_p" and base else own

    def of(self, part: Part, member: Member | None) -> Multipliers:
        """Return what is multiplied at one parameter."""
        if member is None:
            return _spectral(part)
        width = _by_width(part, member)
        if not self._leaves_constants(part.facts):
            width = _by_constants(width, part.facts, member)
        own = part.facts.residual_branches
        depth = own / self.branches(own) if own else 1.0
        return _with_forward(_by_depth(width, part.facts, depth), part, member)


SCALINGS = (Scaling, Family, Member, Axes, ForwardMultiplier)
"""The classes that a file may hold of a policy that scales."""

# Width


def _by_width(part: Part, member: Member) -> Multipliers:
    """Apply table 8 of Tensor Programs V, without forward multipliers, to each packed block.

    A parameter is hidden where both its inputs and its outputs grow, an output where its inputs
    alone do, an input or a vector where its outputs alone do.
    """
    axes, base_axes = layouts(part.shape, part.facts, member)
    blocks = list(zip(_blocks(part.shape, axes), _blocks(member.shape, base_axes), strict=True))
    inputs, units = (
        [now[i] / then[i] if then[i] and now[i] else 1.0 for now, then in blocks] for i in (0, 1)
    )
    likes = [_like(f, w, axes) for f, w in zip(inputs, units, strict=True)]
    stds = [f ** _EXPONENT.get(like, 0.0) for like, f in zip(likes, inputs, strict=True)]
    like: Like = "hidden" if "hidden" in likes else "output" if "output" in likes else likes[0]
    return Multipliers(
        like=like,
        std=stds[0] if len(set(stds)) == 1 else tuple(stds),
        fan_in=max(inputs),
        width=min(units),
        base=member.shape,
        reason=_reason(like, max(inputs), stds) + _unknown(part, member, axes),
    )


def _unknown(part: Part, member: Member, axes: Axes | None) -> str:
    """Say where several axes grow and nothing tells which of them faces inputs."""
    is_open = axes is None or part.facts.role == "unknown"
    several = is_open and len(_growing(part.shape, member.shape)) > 1
    return ", though which of its axes faces inputs is not known" if several else ""


def _growing(shape: Sequence[int], base: Sequence[int]) -> tuple[int, ...]:
    sizes = enumerate(zip(shape, base, strict=True))
    return tuple(axis for axis, (now, then) in sizes if now != then)


_EXPONENT: Mapping[Like, float] = MappingProxyType({"hidden": -0.5, "output": -1.0})
"""How the standard deviation goes with the ratio of fans; of what is not here it stays."""


class _Block(NamedTuple):
    """Connections into one unit, and the number of units, of one packed block."""

    inputs: float
    units: int


def _blocks(shape: Sequence[int], axes: Axes | None) -> list[_Block]:
    """Count inputs and units of each packed block, or of the whole.

    Groups of a convolution lie side by side, so their units count together; stacked experts are
    copies, of which one counts. A vector has one input for each element.
    """
    if axes is None:
        return [_Block(1.0, math.prod(shape))]
    each = [part(shape, axes, block) for block in range(len(axes.blocks))]
    return [
        _Block(
            fans(sizes, layout).fan_in if layout.inputs else 1.0,
            math.prod(sizes[axis] for axis in layout.outputs),
        )
        for sizes, layout in each or [(tuple(shape), axes)]
    ]


def _like(fan_in: float, width: float, axes: Axes | None) -> Like:
    if fan_in != 1.0:
        return "hidden" if width != 1.0 else "output"
    if width == 1.0:
        return "fixed"
    return "input" if axes is not None and axes.inputs else "vector"


def layouts(shape: Sequence[int], facts: Facts, member: Member) -> tuple[Axes | None, Axes | None]:
    """Return what the axes of a parameter mean, and those of its counterpart."""
    axes = facts.axes
    if axes is None and facts.role in ("weight", "recurrent") and len(shape) > 1:
        axes = conventional(shape)
    growing = _growing(shape, member.shape) if len(member.shape) == len(shape) else ()
    if facts.role == "unknown" and len(growing) > 1:  # of what is not read: a matrix, as in `mup`
        axes = Axes(inputs=growing[-1:], outputs=growing[:1])
    if axes is None or len(member.shape) != len(shape):
        return None, None
    base = member.axes or _carried_over(axes, shape, member.shape)
    if len(base.blocks) != len(axes.blocks):
        return replace(axes, blocks=(), repeats=1), replace(base, blocks=(), repeats=1)
    return axes, base


def _carried_over(axes: Axes, shape: Sequence[int], base: Sequence[int]) -> Axes:
    """Guess the layout of a weight of which the shape alone is given: proportions stay.

    Groups of a convolution keep their width where that is the same, else their number. Blocks that
    do not stay whole are given up.
    """
    groups = axes.groups
    if groups > 1 and shape[1] == base[1]:
        groups = max(groups * base[0] // shape[0], 1)
    if axes.packed is None:
        return replace(axes, groups=groups)
    share = base[axes.packed] / shape[axes.packed]
    sizes = [size * share for size in axes.blocks]
    if not all(size.is_integer() for size in sizes):
        return replace(axes, blocks=(), repeats=1, groups=groups)
    return replace(axes, blocks=tuple(map(int, sizes)), groups=groups)


def _reason(like: Like, fan_in: float, stds: Sequence[float]) -> str:
    """Say in words why a parameter has its multipliers."""
    times, std = f"{fan_in:.4g}", "/".join(f"{number:.4g}" for number in dict.fromkeys(stds))
    said = f"std x {std}, Adam's learning rate x {1 / fan_in:.4g}"
    return {
        "hidden": f"sums {times} times as many inputs as in the base: {said}",
        "output": f"sums {times} times as many inputs into a fixed number of outputs: {said}",
        "input": "reads a fixed number of inputs, so as in the base",
        "vector": "one number for each unit, so as in the base",
        "fixed": "as large as in the base",
    }[like]


def _by_constants(found: Multipliers, facts: Facts, member: Member) -> Multipliers:
    """Fold away what the model itself multiplies by otherwise than the base does.

    An embedding times `sqrt(width)`, logits over `width`: it is the product that goes by table 8.
    Between queries and keys the constant is that of the dot product, and is looked at there.
    """
    met = facts.meets.name if facts.meets else ""
    if facts.blocks or facts.dot_product or met == "softmax" or not member.multipliers:
        return found
    there, here = (m.weight * m.output for m in (member.multipliers[0], facts.multiplier))
    if not here or not there or math.isclose(here, there):
        return found
    why = f"the model multiplies by {here:.4g}, the base by {there:.4g}: all x {there / here:.4g}"
    return replace(found, folded=there / here, reason=f"{found.reason}; {why}")


# Depth


def _by_depth(width: Multipliers, facts: Facts, depth: float) -> Multipliers:
    """Multiply residual branches by one over the ratio of their numbers (CompleteP, alpha = 1).

    The multiplier is folded into the parameters that close a branch; all in a branch see a
    gradient that is as many times as small.

    Reference:
        Dey et al., *Don't be lazy: CompleteP enables compute-efficient deep transformers*, 2025,
        arXiv:2505.01618, table 1.
    """
    if depth == 1.0 or not facts.branch_depth:
        return width
    if not facts.closes_residual:
        return replace(width, depth=depth)
    why = f"closes one of {depth:.4g} times as many residual branches: all x {1 / depth:.4g}"
    folded = width.folded / depth
    return replace(width, depth=depth, folded=folded, reason=f"{width.reason}; {why}")


# What cannot be folded


def _with_forward(found: Multipliers, part: Part, member: Member) -> Multipliers:
    """Add the forward multiplier that no single parameter can take over."""
    forward = 1.0
    if part.facts.tied_head:
        forward = (member.tied_head or part.facts.tied_head) / part.facts.tied_head / found.width
    elif part.facts.dot_product and member.dot_product:
        forward = member.dot_product / part.facts.dot_product
    if math.isclose(forward, 1.0):
        return found
    said = "the head reads" if part.facts.tied_head else "queries are"
    why = f"{said} x {forward:.4g} in the forward pass"
    return replace(found, forward=forward, reason=f"{found.reason}; {why}")


def unfoldable(scaling: Scaling, part: Part, found: Multipliers) -> Iterator[str]:
    """Yield what is in the way of a multiplier that cannot be folded, and the ways out."""
    if found.forward == 1.0:
        return
    tied = part.facts.tied_head is not None
    if scaling.forward_multipliers and part.takes_hook:
        return
    hook = f"presets.{scaling.kind}(..., forward_multipliers=True), which multiplies "
    if tied:
        why = (
            f"{part.name!r} is tied to a head: at {1 / found.forward:.4g} times the width logits "
            f"need the factor {found.forward:.4g}, which as an embedding it must not have; give "
            "the head a weight of its own (tie_word_embeddings=False), or divide logits by width"
        )
        hook += "what the head reads"
    else:
        why = (
            f"{part.name!r} makes queries whose dot products with keys are "
            f"{1 / found.forward:.4g} times as large as in the base, as heads are larger and "
            "divided by sqrt(d): keep the size of heads and take more of them, or divide by d"
        )
        hook += "queries"
    yield f"{why}, or use {hook}" if part.takes_hook else why


# Without a base


def _spectral(found: Part) -> Multipliers:
    """Keep spectral norms of weights and of their changes at sqrt(fan_out / fan_in).

    The policy's standard deviation, about 1/sqrt(fan_in), is right where there are as many outputs
    as inputs; fewer outputs ask for less.

    Reference:
        Yang, Simon and Bernstein, *A Spectral Condition for Feature Learning*, 2023,
        arXiv:2310.17813, parametrization 1.
    """
    axes = found.facts.axes
    blocks = _blocks(found.shape, axes)
    stds = [min(1.0, (b.units / b.inputs) ** 0.5) if b.inputs else 1.0 for b in blocks]
    fan_in = max(block.inputs for block in blocks) or 1.0
    width = float(min(block.units for block in blocks)) or 1.0
    is_map = axes is not None and bool(axes.inputs)
    std = "/".join(f"{number:.4g}" for number in dict.fromkeys(stds))
    return Multipliers(
        like="hidden" if is_map else "vector",
        std=stds[0] if len(set(stds)) == 1 else tuple(stds),
        fan_in=fan_in,
        width=width,
        reason=f"spectral norm sqrt({width:.4g}/{fan_in:.4g}): std x {std}, "
        f"Adam's learning rate / {fan_in:.4g}",
    )
