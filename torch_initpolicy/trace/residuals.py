"""Residual branches: additions one side of which is the other's ancestor.

Sets of nodes are bits of one integer, so that the ancestors of every value cost one `|` an edge.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import CARRIERS, OpRole


@dataclass(frozen=True, slots=True)
class Branch:
    """A residual branch.

    Attributes:
        node: The addition that ends it.
        value: What the branch adds.
        inside: Nodes inside the branch, as bits.
        depth: Weights on its longest path.
    """

    node: int
    value: int
    inside: int
    depth: int


@dataclass(frozen=True, slots=True)
class Residuals:
    """The residual branches of a graph.

    Attributes:
        branches: All of them, in order of execution.
        ending: Values whose numbers reach the end of a branch through carriers alone.
        closing: Those of them that no parameter scales on the way.
        depths: Depth of the innermost branch around a node, by node.
        ancestors: The nodes that each value comes from, as bits, by value.
    """

    branches: tuple[Branch, ...]
    ending: frozenset[int]
    closing: frozenset[int]
    depths: Mapping[int, int]
    ancestors: Mapping[int, int]

    def skips(self, uses: Uses) -> dict[int, int]:
        """Return the value that each branch is added to, by the addition."""
        nodes = ((branch, uses.graph.nodes[branch.node]) for branch in self.branches)
        return {
            node.index: next(value for value in uses.carried(node) if value != branch.value)
            for branch, node in nodes
        }

    def depth_around(self, node: int) -> int:
        """Return the depth of the innermost branch around a node; 0 outside any."""
        return self.depths.get(node, 0)


def residuals(uses: Uses) -> Residuals:
    """Find the residual branches of a graph."""
    ancestry = _Ancestry(uses)
    found = {
        branch.node: branch
        for node in uses.graph.nodes
        if (branch := ancestry.branch_ending_at(node)) is not None
    }
    ending, closing = (frozenset(_ending(uses, found, over)) for over in (_carries, _only_moves))
    branches = tuple(found.values())
    return Residuals(branches, ending, closing, dict(_depths(branches)), ancestry.ancestors)


def _depths(branches: Sequence[Branch]) -> Iterator[tuple[int, int]]:
    """Yield each node inside some branch, with the depth of the innermost one."""
    taken = 0
    for branch in sorted(branches, key=lambda branch: branch.inside.bit_count()):
        yield from ((node, branch.depth) for node in indices(branch.inside & ~taken))
        taken |= branch.inside


class _Ancestry:
    """For every value: the nodes it comes from, and the one whose output it still is."""

    def __init__(self, uses: Uses) -> None:
        self.uses = uses
        self.weighers = sum(1 << index for index in uses.weighers)
        self.ancestors: dict[int, int] = {}
        self.identity: dict[int, int] = {}
        self.depth: dict[int, int] = {}
        beyond = len(uses.graph.nodes)  # inputs have no node: they get the bits behind the last
        for value in uses.graph.values:
            if value.is_input:
                self.ancestors[value.index] = self.identity[value.index] = 1 << beyond
                beyond += 1
        for node in uses.graph.nodes:
            self._enter(node)

    def _enter(self, node: Node) -> None:
        bit = 1 << node.index
        ancestors, identity, depth = bit, bit, 0
        carries = self.uses.role(node) in CARRIERS
        for value in self.uses.carried(node):
            ancestors |= self.ancestors.get(value, 0)
            depth = max(depth, self.depth.get(value, 0))
            if carries:
                identity |= self.identity.get(value, 0)
        for output in node.outputs:
            self.ancestors[output] = ancestors
            self.identity[output] = identity
            self.depth[output] = depth + (node.index in self.uses.weighers)

    def branch_ending_at(self, node: Node) -> Branch | None:
        """Return the branch that an addition ends, or None where it ends none."""
        summands = self.uses.carried(node)
        if self.uses.role(node) is not OpRole.ADDS or len(set(summands)) != 2:
            return None
        for skip, value in (summands, summands[::-1]):
            if self._is_identity(skip, value) or self._is_projection(skip, value):
                inside = self.ancestors[value] & ~self.ancestors[skip]
                return Branch(node.index, value, inside, self._depth(skip, value))
        return None

    def _is_identity(self, skip: int, value: int) -> bool:
        """The skip is an ancestor of the branch, and there are weights between.

        A modulation `scale * weight(x) + shift` of one origin is no branch: its weight reads
        something else.
        """
        shared = self.identity[skip] & self.ancestors[value]
        return bool(shared) and any(
            self.ancestors[self.uses.graph.nodes[index].outputs[0]] & shared
            for index in indices(self._beyond(value, skip))
        )

    def _is_projection(self, skip: int, value: int) -> bool:
        """The skip is one weight away from an ancestor of the branch, which has more."""
        common = self.ancestors[skip] & self.ancestors[value]
        return bool(common) and self._weights_beyond(skip, value) == 1 < self._weights_beyond(
            value, skip
        )

    def _weights_beyond(self, value: int, other: int) -> int:
        return self._beyond(value, other).bit_count()

    def _beyond(self, value: int, other: int) -> int:
        """Return the weights that a value comes from and another does not, as bits."""
        return self.ancestors[value] & ~self.ancestors[other] & self.weighers

    def _depth(self, skip: int, value: int) -> int:
        shared = self.ancestors[skip] & self.ancestors[value] & self.weighers
        entry = shared.bit_length() - 1  # the last weight that both have in common
        before = 0 if entry < 0 else self.depth[self.uses.graph.nodes[entry].outputs[0]]
        return self.depth[value] - before


def indices(bits: int) -> Iterator[int]:
    """Yield the positions of the bits that are set, the last first."""
    while bits:
        index = bits.bit_length() - 1
        yield index
        bits ^= 1 << index


def _carries(uses: Uses, node: Node) -> bool:
    return uses.role(node) in CARRIERS


def _only_moves(uses: Uses, node: Node) -> bool:
    """Say whether a node carries the signal on, and no parameter scales it there."""
    if uses.role(node) not in (OpRole.MULTIPLIES, OpRole.NORMALISES):
        return _carries(uses, node)
    return not any(
        value in uses.sources and not any(source.gated for source in uses.sources[value])
        for slot, value in uses.slots(node)
        if slot != "bias"
    )


def _ending(
    uses: Uses, found: Mapping[int, Branch], passes: Callable[[Uses, Node], bool]
) -> Iterator[int]:
    """Yield the values whose numbers reach the end of a branch through nodes that pass them."""
    ending: set[int] = set()
    for value in reversed(uses.graph.values):
        for index in uses.graph.consumers[value.index]:
            node = uses.graph.nodes[index]
            if index in found:
                reaches = found[index].value == value.index
            else:
                goes_on = not ending.isdisjoint(node.outputs) and passes(uses, node)
                reaches = goes_on and value.index in uses.carried(node)
            if reaches:
                ending.add(value.index)
                break
    yield from ending
