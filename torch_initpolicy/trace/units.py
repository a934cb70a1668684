"""Which unit of a weight each element of a value belongs to.

The output of a weight is given the numbers of its units, and the numbers are sent in its place
through the recorded operators that move or pick: the operators themselves are run, as `coordinates`
does for the elements of parameters. A tensor of numbers is expanded along every dimension in which
the unit does not change, so that it takes no more memory than the units do.
"""

import functools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.contractions import Facing, facing, unit_dims
from torch_initpolicy.trace.graph import CANNOT_RUN, Node, Value, rerun
from torch_initpolicy.trace.operators import CARRIERS, OpRole, argument

Units = int
"""Some of the units of a weight, as bits."""


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """The units of one weight in a value.

    Attributes:
        ids: The number of the unit at each position, from 1; 0 for none.
        units: All of them.
        summed: Whether elements are sums over others of their unit, as attention and means take.
    """

    ids: Tensor
    units: Units
    summed: bool = False

    def halves(self, axis: int) -> tuple[Units, Units]:
        """Return the units in the two halves along an axis."""
        lower, upper = (bits(_core(half)) for half in self.ids.chunk(2, axis))
        return lower, upper

    def along(self) -> frozenset[int]:
        """Return the dimensions along which the unit changes, counted from the last: -1, -2, ..."""
        return frozenset(dim for dim in range(-self.ids.dim(), 0) if self.ids.stride(dim))

    def spread(self, shape: Sequence[int]) -> "Shown | None":
        """Return the same at every position of another shape; None where units would move."""
        ids = self.ids
        if tuple(ids.shape) == tuple(shape):
            return self
        missing = len(shape) - ids.dim()
        sizes = (*(1,) * missing, *ids.shape)
        strides = (*(0,) * missing, *ids.stride())
        if missing < 0 or any(
            s and n != to for s, n, to in zip(strides, sizes, shape, strict=True)
        ):
            return None
        return Shown(ids.as_strided(tuple(shape), strides), self.units, self.summed)

    def is_as(self, other: "Shown") -> bool:
        """Say whether another value holds the same units at the same positions."""
        return self is other or (
            self.units == other.units
            and self.ids.stride() == other.ids.stride()
            and torch.equal(_core(self.ids), _core(other.ids))
        )


def varying(shape: tuple[int, ...]) -> frozenset[int]:
    """Return the dimensions of more than one element.

    Examples:
        >>> sorted(varying((3, 1, 4)))
        [-3, -1]
    """
    return frozenset(dim - len(shape) for dim, size in enumerate(shape) if size > 1)


def bits(numbers: Tensor) -> Units:
    """Return units as bits, of which there is one for every number from 1 on.

    Examples:
        >>> f"{bits(torch.tensor([0, 1, 4])):b}"
        '1001'
    """
    places = numbers.flatten().long()
    held = torch.zeros(int(places.max()) + 1, dtype=torch.uint8, device="cpu")
    digits = held.index_fill_(0, places, 1).flip(0).add_(ord("0"))
    return int(bytes(digits.tolist()), 2) >> 1


def _core(ids: Tensor) -> Tensor:
    """Return the numbers without the dimensions along which they are expanded."""
    return ids[tuple(slice(None) if stride else 0 for stride in ids.stride())]


def _at_first(ids: Tensor) -> Tensor:
    """Return the numbers with one position along each dimension that they are expanded along."""
    return ids[tuple(slice(None) if stride else slice(1) for stride in ids.stride())]


@dataclass(frozen=True, slots=True)
class Following:
    """Follows the outputs of weights.

    Attributes:
        shown: The units in each value, by value and by the node of their weight.
        sizes: How many units a weight has, by node.
        known: What has been found out about views, by what they show and how they lie in memory:
            the blocks of a model are alike.
    """

    uses: Uses
    shown: dict[int, Mapping[int, Shown]] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    known: dict[Any, Sequence[Shown | None]] = field(default_factory=dict)

    def along(self, value: int) -> frozenset[int]:
        """Return the dimensions, from the last, along which the units of a value lie."""
        return frozenset().union(*(shown.along() for shown in self.shown.get(value, {}).values()))

    def aggregates(self, node: Node) -> bool:
        """Say whether a product sums an operand over other dimensions than its units lie along."""
        return any(
            _is_aggregated(facing(self.uses, node, slot, self.uses.graph.values[value]), along)
            for slot, value in self.uses.slots(node)
            if (along := self.along(value))
        )

    def of_weights(self, nodes: Collection[int]) -> dict[int, dict[int, Shown]]:
        """Return what the values show that follow from some weights and are no sums."""
        found: dict[int, dict[int, Shown]] = {node: {} for node in nodes}
        for value, shown in self.shown.items():
            for node in shown.keys() & found.keys():
                if not shown[node].summed:
                    found[node][value] = shown[node]
        return found

    def enter(self, node: Node) -> None:
        """Follow one node."""
        if node.index in self.uses.weighers:
            self._start(node)
            return
        each = [
            (weight, self._through(node, value, shown))
            for value in self._followed(node)
            for weight, shown in self.shown[value].items()
        ]
        for place, output in enumerate(node.outputs if each else ()):
            self._show(output, [(weight, made[place]) for weight, made in each])

    def _show(self, output: int, each: Sequence[tuple[int, Shown | None]]) -> None:
        found: dict[int, list[Shown]] = {}
        for weight, shown in each:
            if shown is not None:
                found.setdefault(weight, []).append(shown)
        # Where pieces of one weight are added up, it is none of them that lies there.
        kept = [
            (weight, first)
            for weight, (first, *others) in found.items()
            if all(first.is_as(other) for other in others)
        ]
        if kept:
            self.shown[output] = dict(kept if len(kept) <= _MOST_SUMMANDS else kept[:1])

    def _start(self, node: Node) -> None:
        """Number the units in the output of a weight."""
        value = self.uses.graph.values[node.outputs[0]]
        shown = _numbered(value.shape, unit_dims(self.uses, node, len(value.shape)))
        if shown is not None:
            self.shown[value.index] = {node.index: shown}
            self.sizes[node.index] = shown.units.bit_length()

    def _followed(self, node: Node) -> list[int]:
        """Return the operands whose units are still units in the output."""
        role = self.uses.role(node)
        if role is OpRole.ATTENDS:
            operands = [value for slot, value in self.uses.slots(node) if slot == "value"]
        elif role in _KEEPS_UNITS:
            operands = list(dict.fromkeys(self.uses.carried(node)))
        else:
            return []
        return [v for v in operands[: 1 if node.op == "setitem" else None] if v in self.shown]

    def _through(self, node: Node, value: int, shown: Shown) -> Sequence[Shown | None]:
        """Return what the outputs of a node show of what it reads."""
        moves = self.uses.role(node) in (OpRole.MOVES, OpRole.PICKS) and node.op not in _NOT_RUN
        made = self._moved(node, value, shown) if moves else None
        if made is not None:
            return made
        shapes = tuple(self.uses.graph.values[output].shape for output in node.outputs)
        gone = self._summed(node, value, shown.ids.dim(), len(shapes[0]))
        if not gone:
            return [shown.spread(shape) for shape in shapes]
        key = (shown, gone, shapes)
        if key not in self.known:
            self.known[key] = [_without(shown, gone, shape) for shape in shapes]
        return self.known[key]

    def _summed(self, node: Node, value: int, before: int, after: int) -> tuple[int, ...]:
        """Return the dimensions of an operand that a node sums over."""
        role = self.uses.role(node)
        if role is OpRole.ATTENDS:
            return (-2,)
        if role is OpRole.CONTRACTS:
            return (-1,) if dict(self.uses.slots(node)).get("left") == value else (-2,)
        if node.op not in _REDUCES or after >= before:
            return ()
        dims = argument(node, 1, "dim", range(before))
        return (dims,) if isinstance(dims, int) else tuple(dims)

    def _moved(self, node: Node, value: int, shown: Shown) -> Sequence[Shown | None] | None:
        """Run an operator that moves elements on the numbers of their units; None: it cannot be."""
        values = self.uses.graph.values
        before, outputs = values[value], [values[output] for output in node.outputs]
        reshapes = node.op in _RESHAPES and math.prod(before.shape) == math.prod(outputs[0].shape)
        if not (reshapes or all(output.storage == before.storage for output in outputs)):
            return self._run(node, value, shown)
        lies = tuple((o.shape, o.stride, o.offset - before.offset) for o in outputs)
        key = (shown, before.shape, before.stride, lies)
        if key not in self.known:
            made = (
                [_seen(_reshaped_ids(shown.ids, output.shape), shown) for output in outputs]
                if reshapes
                else self._run(node, value, shown)
            )
            if made is None:
                return None
            self.known[key] = made
        return self.known[key]

    def _run(self, node: Node, value: int, shown: Shown) -> Sequence[Shown | None] | None:
        values = self.uses.graph.values
        outputs = [values[output] for output in node.outputs]
        made = (output for output in outputs if output.storage != values[value].storage)
        if any(math.prod(output.shape) > _LARGEST for output in made):  # views take no memory
            return None
        numbers = _at_first(shown.ids) if node.op in _WITHIN else shown.ids

        def look_up(read: Value) -> Tensor:
            if read.index == value:
                return numbers.detach()  # its shape may be changed in place
            shape_alone = torch.empty((), device="cpu").expand(read.shape)
            return shape_alone if read.held is None else read.held.cpu()

        try:
            moved = rerun(node, lambda index: look_up(values[index]))
        except CANNOT_RUN:
            return None
        if node.op in _WITHIN:
            moved = [ids.expand(shown.ids.shape) for ids in moved]
        fits = [tuple(ids.shape) for ids in moved] == [output.shape for output in outputs]
        return [_seen(ids, shown) for ids in moved] if fits else None


def _is_aggregated(faced: Facing | None, along: frozenset[int]) -> bool:
    """Say whether an operand is summed over, but along none of some dimensions."""
    summed = [] if faced is None else [dim - len(faced.shape) for dim in faced.dims("in")]
    return bool(summed) and along.isdisjoint(summed)


@functools.lru_cache(maxsize=256)
def _numbered(shape: tuple[int, ...], dims: tuple[int, ...]) -> Shown | None:
    """Number the units along some dimensions of a shape, the first outermost; None for one."""
    size = math.prod(shape[dim] for dim in dims)
    if size < 2:
        return None
    inner = size
    strides = [0] * len(shape)
    for dim in dims:
        inner //= shape[dim]
        strides[dim] = inner if shape[dim] > 1 else 0
    numbers = torch.arange(1, size + 1, dtype=torch.float32, device="cpu")
    return Shown(numbers.as_strided(shape, strides), (1 << size) - 1)


def _seen(ids: Tensor, before: Shown) -> Shown | None:
    """Return what is seen of numbers behind an operator that has moved them."""
    if not ids.numel() or ids.dtype != before.ids.dtype:
        return None
    is_view = ids.untyped_storage().data_ptr() == before.ids.untyped_storage().data_ptr()
    core = _at_first(ids)
    strides = [
        0 if n == 1 or (s and not is_view and _is_constant_along(core, dim)) else s
        for dim, (n, s) in enumerate(zip(ids.shape, ids.stride(), strict=True))
    ]
    ids = ids.as_strided(ids.shape, strides)
    as_before = is_view and core.numel() == _core(before.ids).numel()
    units = before.units if as_before else bits(_core(ids))
    return Shown(ids, units, before.summed) if units else None


def _is_constant_along(ids: Tensor, dim: int) -> bool:
    return torch.equal(ids, ids.narrow(dim, 0, 1).expand_as(ids))


def _reshaped_ids(ids: Tensor, shape: Sequence[int]) -> Tensor:
    """Reshape numbers, but for expanded dimensions that others replace as a whole."""
    before, after = list(ids.shape), list(shape)
    for old, new in _aligned(before.copy(), shape):
        if not any(ids.stride(dim) for dim in old):
            before[old.start : old.stop] = [1] * len(old)
            after[new.start : new.stop] = [1] * len(new)
    return ids[tuple(slice(size) for size in before)].reshape(after).expand(shape)


def _aligned(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[range, range]]:
    """Yield the smallest runs of dimensions of two shapes that hold as many elements."""
    i = j = 0
    while i < len(before) or j < len(after):
        old, new = i, j
        while math.prod(before[old:i]) != math.prod(after[new:j]) or old == i or new == j:
            if i < len(before) and math.prod(before[old:i]) <= math.prod(after[new:j]):
                i += 1
            elif j < len(after):
                j += 1
            else:
                break
        yield range(old, i), range(new, j)


def _without(shown: Shown, gone: Collection[int], shape: tuple[int, ...]) -> Shown | None:
    """Return units behind a sum over some dimensions; None where it is over units."""
    ndim = shown.ids.dim()
    dims = {dim % ndim for dim in gone}
    if any(shown.ids.stride(dim) for dim in dims):
        return None
    at = tuple(0 if dim in dims else slice(None) for dim in range(ndim))
    kept = shown.ids if len(shape) >= ndim else shown.ids[at]
    return Shown(kept, shown.units, summed=True).spread(shape)


_KEEPS_UNITS = CARRIERS | {OpRole.ACTIVATES, OpRole.COMPUTES, OpRole.CONTRACTS}

_REDUCES = frozenset({"sum", "mean", "nansum", "nanmean", "amax", "amin", "max", "min"})

_RESHAPES = frozenset({"reshape", "view", "flatten", "unflatten", "ravel", "reshape_as", "view_as"})

_WITHIN = frozenset({"roll", "flip", "fliplr", "flipud"})
"""Operators that move elements along dimensions, as these are."""

_NOT_RUN = frozenset({"fold", "as_strided", "tril", "triu"})
"""Operators that do more than move elements, or move them by their place in memory."""

_LARGEST = 1 << 24
"""Elements of the largest tensor of numbers that is made."""

_MOST_SUMMANDS = 3
"""Weights whose outputs are followed through one sum: an input's, a state's and one more. The sums
of residual streams are longer."""


def following(uses: Uses) -> Following:
    """Follow the outputs of all weights of a graph."""
    followed = Following(uses)
    for node in uses.graph.nodes:
        followed.enter(node)
    return followed
