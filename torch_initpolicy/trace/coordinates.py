"""Which elements of a parameter join which inputs of an operator to which of its outputs.

Every element of a parameter is given a number, and the numbers are sent in its place through the
recorded operators between the parameter and the operator that consumes it. No table says what moves
numbers how: the operators themselves are run. Where an operator mixes elements (a sum, a Fourier
transform), the elements at a position are those that its gradient reaches.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from torch_initpolicy.trace.consumers import Source, Uses
from torch_initpolicy.trace.graph import CANNOT_RUN, Node, Value, rerun
from torch_initpolicy.trace.operators import RANDOM, OpRole

LARGEST = 1 << 26
"""Elements of the largest tensor of numbers that is made; larger parameters only through views."""

_ROWS = 256
"""Positions at which mixed elements are counted one by one; between them the mean stands."""


class Mixed(Exception):  # noqa: N818 - no error: another way is taken
    """Several elements of a parameter have become one number."""


@dataclass(frozen=True, slots=True)
class _Replay:
    """Runs what was recorded between a parameter and a value, on numbers of our own.

    Attributes:
        leaf: What stands in for the parameter.
        numbered: Whether `leaf` holds the numbers of elements, from 1, which must not be mixed.
        made: What has been made so far, by value.
    """

    uses: Uses
    site: str
    leaf: Tensor
    numbered: bool
    made: dict[int, Tensor] = field(default_factory=dict)

    def of(self, index: int) -> Tensor:
        """Return what stands for a value; `Mixed` where numbered elements do not only move."""
        if index not in self.made:
            self._make(self.uses.graph.values[index])
        if index not in self.made:
            raise Mixed  # the operator returned something else this time
        return self.made[index]

    def _make(self, value: Value) -> None:
        """Make a value: signals are zeros, other parameters what no element is numbered by."""
        if value.parameter == self.site:
            self.made[value.index] = self.leaf.view(value.shape)
        elif value.parameter is not None:
            half = torch.full(value.shape, 0.5, dtype=_wide(value.dtype))  # no number of an element
            self.made[value.index] = half
        elif value.held is not None:
            self.made[value.index] = value.held.detach().to("cpu", _wide(value.dtype))
        elif value.producer is None or value.index in self.uses.signals:
            number = value.constant or 0.0
            self.made[value.index] = torch.full(value.shape, number, dtype=_wide(value.dtype))
        else:
            self._enter(self.uses.graph.nodes[value.producer])

    def _enter(self, node: Node) -> None:
        followed = [v for v in dict.fromkeys(node.inputs) if self.uses.holds(v, self.site)]
        carried = self._carried(node, followed)
        if carried is not None:
            self.made[node.outputs[0]] = carried
            return
        try:
            self.made.update(zip(node.outputs, self._run(node, followed), strict=False))
        except Mixed:
            if followed:
                raise
        if not followed:
            self._put_constants(node)

    def _put_constants(self, node: Node) -> None:
        """Let what depends on the signal, or cannot be run again, pick what comes first."""
        for index in node.outputs:
            value = self.uses.graph.values[index]
            if index not in self.made or self.made[index].shape != value.shape:
                number = float(value.dtype.is_floating_point)
                self.made[index] = torch.full(value.shape, number, dtype=_wide(value.dtype))

    def _carried(self, node: Node, followed: Sequence[int]) -> Tensor | None:
        """Return what an element-wise operator makes: each element stays where it is.

        A weight over its own norm is itself; where a mask is zero no element is left.
        """
        values = self.uses.graph.values
        if node.op in RANDOM:
            shape = values[node.outputs[0]].shape
            return torch.ones(shape, dtype=_wide(values[node.outputs[0]].dtype))
        role = self.uses.role(node)
        sizes = [math.prod(values[v].shape) for v in followed]
        if role not in _ELEMENTWISE or not followed:
            return None
        if role is OpRole.ADDS and sizes.count(max(sizes)) > 1:
            return None
        kept = self.of(followed[sizes.index(max(sizes))])
        after = values[node.outputs[0]]
        shape = after.shape
        if not _fits(kept.shape, shape) or kept.is_complex() != after.dtype.is_complex:
            return None
        if role is OpRole.MULTIPLIES:
            for index in node.inputs:
                if index not in self.uses.sources and _has_numbers(values[index]):
                    kept = kept * (self.of(index) != 0)
        return kept.expand(shape)

    def _run(self, node: Node, followed: Sequence[int]) -> Sequence[Tensor]:
        """Run an operator, and see to it that it only moves elements where these are numbered."""
        outputs = self._called(node, followed, lambda tensor: tensor)
        if not (self.numbered and followed) or _is_view(self.uses, node, followed[0]):
            return outputs
        renumbered = _renumbering(self.leaf.numel())
        again = self._called(node, followed, lambda ids: _renumber(ids, renumbered))
        return tuple(_moved(*pair, renumbered) for pair in zip(outputs, again, strict=True))

    def _called(
        self, node: Node, followed: Sequence[int], change: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, ...]:
        def look_up(index: int) -> Tensor:
            tensor = self.of(index)
            return (change(tensor) if index in followed else tensor).clone()  # it may be written to

        try:
            made = rerun(node, look_up)
        except CANNOT_RUN as error:
            raise Mixed(node.op) from error
        return tuple(tensor.to(_wide(tensor.dtype)) for tensor in made)


_ELEMENTWISE = frozenset({
    OpRole.CASTS, OpRole.ACTIVATES, OpRole.COMPUTES, OpRole.NORMALISES, OpRole.MULTIPLIES,
    OpRole.ADDS,
})  # fmt: skip
"""Roles of operators that leave each element of a weight at its place."""


def _has_numbers(value: Value) -> bool:
    """Say whether it is known what a value holds, if it is a constant."""
    return any(known is not None for known in (value.held, value.constant, value.producer))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which numbers of elements are exact."""
    if dtype.is_complex:
        return torch.complex128
    return torch.float64 if dtype.is_floating_point else dtype


def _fits(shape: Sequence[int], larger: Sequence[int]) -> bool:
    pairs = zip(reversed(shape), reversed(larger), strict=False)
    return len(shape) <= len(larger) and all(a in (1, b) for a, b in pairs)


def _is_view(uses: Uses, node: Node, read: int) -> bool:
    values = uses.graph.values
    before, after = values[read], [values[output] for output in node.outputs]
    alike = all((v.storage, v.dtype) == (before.storage, before.dtype) for v in after)
    return alike and node.op != "setitem"


@functools.lru_cache(maxsize=4)
def _renumbering(size: int) -> Tensor:
    """Return other numbers for elements, in no order: sums of these are not those of the sums."""
    generator = torch.Generator().manual_seed(size)
    other = torch.randperm(size, generator=generator).double().add_(size + 1.0)
    return torch.cat([torch.zeros(1, dtype=torch.float64), other])


def _renumber(ids: Tensor, renumbered: Tensor) -> Tensor:
    if ids.is_complex():  # an element in either part
        return torch.complex(*(renumbered[part.long()] for part in (ids.real, ids.imag)))
    return renumbered[ids.long()]


def _moved(ids: Tensor, again: Tensor, renumbered: Tensor) -> Tensor:
    """Return numbers that an operator has moved, without its own; `Mixed` where it has not."""
    if ids.is_complex():
        real, imag = (
            _moved(a, b, renumbered)
            for a, b in zip((ids.real, ids.imag), (again.real, again.imag), strict=True)
        )
        return torch.complex(real, imag)
    if not ids.is_floating_point():
        raise Mixed
    is_number = (ids >= 0) & (ids < len(renumbered)) & (ids == ids.round())
    numbers = torch.where(is_number, ids, 0).long()
    is_element = is_number & (renumbered[numbers] == again)
    if not (is_element | (ids == again)).all():
        raise Mixed
    return torch.where(is_element, ids, 0.0)


@dataclass(frozen=True, slots=True)
class Placed:
    """Where the elements of a parameter are in the weight in use.

    Attributes:
        counts: How many elements there are at each position.
        ids: The number of the element at each position, 0 for none; None where some are mixed.
        reached: Returns the numbers of all elements at some positions.
    """

    counts: Tensor
    ids: Tensor | None
    reached: Callable[[Tensor], Tensor]


def placed(uses: Uses, source: Source, value: Value, shape: tuple[int, ...]) -> Placed:
    """Send the elements of a parameter to a value, looked at in another shape."""
    numbers = torch.arange(1.0, source.size + 1, dtype=torch.float64)
    try:
        ids = _Replay(uses, source.site, numbers, numbered=True).of(value.index)
    except Mixed:
        return _mixed(uses, source, value, shape)
    parts = [part.reshape(shape) for part in ((ids.real, ids.imag) if ids.is_complex() else (ids,))]
    alone = [part for part in parts if part.any()]
    return Placed(
        sum(((part > 0).double() for part in parts), torch.zeros(shape, dtype=torch.float64)),
        alone[0] if len(alone) == 1 else None,
        lambda where: torch.cat([part[where & (part > 0)] for part in parts]).long(),
    )


def picks_once(uses: Uses, node: Node, read: int) -> bool:
    """Say whether an operator picks no element of a value twice; no, where nobody knows."""
    shape = uses.graph.values[read].shape
    if math.prod(shape) > LARGEST or not uses.signals.isdisjoint(node.inputs):
        return False
    numbers = torch.arange(1.0, math.prod(shape) + 1, dtype=torch.float64).view(shape)
    try:
        ids = _Replay(uses, "", numbers, numbered=True, made={read: numbers}).of(node.outputs[0])
    except Mixed:
        return False
    ordered = ids.flatten().sort().values
    return bool((ordered[1:] != ordered[:-1]).all())


def _mixed(uses: Uses, source: Source, value: Value, shape: tuple[int, ...]) -> Placed:
    """Find the elements that are mixed at each position, as gradients do.

    Numbers drawn say how large a sum of them is, not what a matrix exponential makes of them.
    """
    generator = torch.Generator().manual_seed(source.size)
    dtype = _wide(uses.graph.values[source.at].dtype)
    drawn = torch.rand(2, source.size, generator=generator, dtype=dtype).add(0.5)
    everywhere = torch.rand(shape, generator=generator, dtype=torch.float64).add(0.5)
    gradient, elsewhere = (_gradient_at(uses, source, value, numbers) for numbers in drawn)
    if not torch.allclose(gradient(everywhere), elsewhere(everywhere)):
        raise Mixed

    def reached(where: Tensor) -> Tensor:
        found = gradient(everywhere * where).abs()
        return (found > 1e-9 * found.max()).nonzero().flatten() + 1

    return Placed(_sampled(shape, reached), None, reached)


def _gradient_at(
    uses: Uses, source: Source, value: Value, numbers: Tensor
) -> Callable[[Tensor], Tensor]:
    """Return how a parameter that holds some numbers is reached from the positions of a value."""
    leaf = numbers.clone().requires_grad_()
    made = _Replay(uses, source.site, leaf, numbered=False).of(value.index)
    if not made.requires_grad:
        raise Mixed

    def gradient(weights: Tensor) -> Tensor:
        weights = torch.complex(weights, weights * 0.7) if made.is_complex() else weights
        cotangent = weights.view(made.shape).to(made.dtype)
        (found,) = torch.autograd.grad(made, leaf, cotangent, retain_graph=True)
        return found

    return gradient


def _sampled(shape: tuple[int, ...], reached: Callable[[Tensor], Tensor]) -> Tensor:
    """Count the elements at each position, or at some and their mean at the others."""
    positions = math.prod(shape)
    chosen = torch.linspace(0, positions - 1, min(positions, _ROWS)).round().long()
    where = torch.zeros(positions, dtype=torch.bool)
    found = []
    for position in chosen:
        where[position] = True
        found.append(len(reached(where.view(shape))))
        where[position] = False
    counted = torch.tensor(found, dtype=torch.float64)
    return (
        torch.full((positions,), counted.mean().item(), dtype=torch.float64)
        .index_copy(0, chosen, counted)
        .view(shape)
    )
