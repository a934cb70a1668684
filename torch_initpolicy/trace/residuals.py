"""Residual branches: additions one side of which is the other's ancestor."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import CARRIERS, OpRole


class Branch(NamedTuple):
    """The value that a branch adds, what this is added to, and how many weights lie in a row."""

    value: int
    skip: int
    depth: int


class Residuals(NamedTuple):
    """The residual branches of a graph.

    Attributes:
        branches: All of them, by the addition that ends each, in order of execution.
        ending: Values whose numbers reach the end of a branch through carriers alone.
        closing: Those of them that no parameter scales on the way.
        depths: Depth of the innermost branch around a node, by node.
        batch_normalised: Nodes in branches with a batch normalisation.
        derived: Pairs of operands the second of which comes out of the first, by node.
    """

    branches: Mapping[int, Branch]
    ending: frozenset[int]
    closing: frozenset[int]
    depths: Mapping[int, int]
    batch_normalised: frozenset[int]
    derived: Mapping[int, frozenset[tuple[int, int]]]


def residuals(uses: Uses) -> Residuals:
    """Find the residual branches of a graph."""
    ancestry = _Ancestry(uses)
    for node in uses.graph.nodes:
        ancestry.read(node)
    found = ancestry.branches
    ending, closing = (frozenset(_ending(uses, found, over)) for over in (_carries, _only_moves))
    normed = frozenset(ancestry.batch_normalised)
    return Residuals(found, ending, closing, ancestry.depths, normed, ancestry.derived)


class _Ancestry:
    """The nodes that values come from, and those whose outputs they still are, as bits.

    Where a single value goes on, everything before it is forgotten: whatever is compared later
    comes out of that value. So the sets stay small.
    """

    def __init__(self, uses: Uses) -> None:
        self.uses = uses
        inputs = [value.index for value in uses.graph.values if value.is_input]
        self.inputs = len(inputs)  # these have the lowest bits
        self.ancestors = {value: 1 << place for place, value in enumerate(inputs)}
        self.identity = dict(self.ancestors)
        self.base = 0  # the node with the lowest bit
        self.weights: dict[int, int] = {}  # by node: what the weights since then come from
        self.weighers = self.norms = self.inside = self.normed = 0
        self.depth: dict[int, int] = {}  # by node: weights on the longest path to it
        self.branches: dict[int, Branch] = {}
        self.streams: dict[int, int] = {}  # by the bit of an addition: what its skip comes from
        self.depths: dict[int, int] = {}
        self.batch_normalised: set[int] = set()
        self.derived: dict[int, frozenset[tuple[int, int]]] = {}

    def read(self, node: Node) -> None:
        carried = tuple(dict.fromkeys(self.uses.carried(node)))
        if len(carried) > 1:
            pairs = [(v, w) for v in carried for w in carried if v != w and self._comes_of(w, v)]
            if pairs:
                self.derived[node.index] = frozenset(pairs)
        if self.uses.role(node) is OpRole.ADDS and len(carried) == 2:
            self._end_branch(node, *carried)
        self._enter(node, carried)
        for value in {*node.inputs, *node.outputs}:
            if self.uses.graph.consumers[value][-1:] <= (node.index,):
                self.ancestors.pop(value, None)
                self.identity.pop(value, None)
        if len(self.ancestors) == 1:
            self._forget(*self.ancestors)

    def _bit(self, node: int) -> int:
        return 1 << node - self.base + self.inputs

    def _enter(self, node: Node, carried: tuple[int, ...]) -> None:
        weighs = node.index in self.uses.weighers
        ancestors = identity = bit = self._bit(node.index)
        carries = self.uses.role(node) in CARRIERS
        for value in carried:
            ancestors |= self.ancestors.get(value, 0)
            if carries:
                identity |= self.identity.get(value, 0)
        self.depth[node.index] = max(map(self._depth, carried), default=0) + weighs
        if weighs:
            self.weighers |= bit
            self.weights[node.index] = ancestors
        if node.op == "batch_norm":
            self.norms |= bit
        self.ancestors.update(dict.fromkeys(node.outputs, ancestors))
        self.identity.update(dict.fromkeys(node.outputs, identity))

    def _forget(self, value: int) -> None:
        """Begin anew at a value that alone goes on."""
        producer = self.uses.graph.values[value].producer
        if producer is not None:
            self.base, self.inside, self.normed, self.norms = producer, 0, 0, 0
            self.weighers = self._bit(producer)  # stands for all weights before
            self.weights = {producer: self.weighers}
            self.streams.clear()
            self.ancestors[value] = self.identity[value] = self.weighers

    def _depth(self, value: int) -> int:
        return self.depth.get(self.uses.graph.values[value].producer or 0, 0)

    def _comes_of(self, value: int, other: int) -> bool:
        producer = self.uses.graph.values[other].producer
        is_known = producer is not None and producer >= self.base
        return is_known and bool(self.ancestors.get(value, 0) & self._bit(producer or 0))

    def _end_branch(self, node: Node, *summands: int) -> None:
        """Note the branch that an addition ends, if it ends one."""
        values, result = self.uses.graph.values, node.outputs[0]
        if self._is_score(result):
            return
        for skip, value in (summands, summands[::-1]):
            if values[skip].shape != values[result].shape:
                continue  # what is spread over the other summand, as masks are, is no stream
            if self._is_identity(skip, value) or self._is_projection(skip, value):
                shared = self.ancestors[skip] & self.ancestors[value] & self.weighers
                entry = shared.bit_length() - 1  # the last weight that both have in common
                before = self.depth[entry - self.inputs + self.base] if shared else 0
                branch = Branch(value, skip, self._depth(value) - before)
                self.branches[node.index] = branch
                self.streams[self._bit(node.index)] = self.ancestors[skip]
                self._enclose(self.ancestors[value] & ~self.ancestors[skip], branch.depth)
                return

    def _is_score(self, value: int) -> bool:
        """A value of which nothing but a softmax is taken: masks and biases are added to it."""
        graph = self.uses.graph
        while len(graph.consumers[value]) == 1:
            node = graph.nodes[graph.consumers[value][0]]
            if self.uses.role(node) not in CARRIERS or not node.outputs:
                return node.op == "softmax"
            value = node.outputs[0]
        return False

    def _enclose(self, inside: int, depth: int) -> None:
        """Note what lies inside a branch; those that end first are the innermost."""
        self.depths.update(dict.fromkeys(self._nodes(inside & ~self.inside), depth))
        self.inside |= inside
        if inside & self.norms:
            self.batch_normalised.update(self._nodes(inside & ~self.normed))
            self.normed |= inside

    def _nodes(self, bits: int) -> Iterator[int]:
        """Yield the nodes whose bits are set, the last first."""
        bits >>= self.inputs
        while bits:
            place = bits.bit_length() - 1
            yield place + self.base
            bits ^= 1 << place

    def _is_identity(self, skip: int, value: int) -> bool:
        """The skip is an ancestor of the branch, and there are weights between.

        A modulation `scale * weight(x) + shift` of one origin is no branch: its weight reads
        something else.
        """
        shared = self.identity[skip] & self.ancestors[value]
        between = self._beyond(value, skip) if shared else 0
        return any(self.weights[weight] & shared for weight in self._nodes(between))

    def _is_projection(self, skip: int, value: int) -> bool:
        """The skip is one weight away from where the branch begins, which has more of them.

        Nothing leads past there into the branch, neither a stream nor an input: summed skip
        connections, as in WaveNet, and time embeddings that each layer adds begin no branches.
        """
        shared = self.ancestors[skip] & self.ancestors[value]
        on_skip, on_branch = self._beyond(skip, value), self._beyond(value, skip)
        if not shared or not on_skip.bit_count() == 1 < on_branch.bit_count():
            return False
        begin, inside = 1 << shared.bit_length() - 1, self.ancestors[value] & ~shared
        streams = (stream for addition, stream in self.streams.items() if addition & inside)
        return not inside & (1 << self.inputs) - 1 and all(stream & begin for stream in streams)

    def _beyond(self, value: int, other: int) -> int:
        """Return the weights that a value comes from and another does not."""
        return self.ancestors[value] & ~self.ancestors[other] & self.weighers


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
    for node in reversed(uses.graph.nodes):
        if node.index in found:
            ending.add(found[node.index].value)
        elif not ending.isdisjoint(node.outputs) and passes(uses, node):
            ending.update(uses.carried(node))
    yield from ending
