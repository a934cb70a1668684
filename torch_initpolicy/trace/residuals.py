"""Residual branches: what is added to a stream, and has come out of it through weights.

A *stream* is a value that is summed up as it is: only carriers (moves, factors, norms, other sums)
lie between the sum and the *fork*, where something else reads the value. What else is summed up and
comes out of the fork through weights is a *branch*, unless it carries the fork as well: there is
none where two streams meet, nor in a modulation or a scan.

Sums of sums are read as one, in whatever order they add: each summand besides the stream is a
branch. Only summands that share a weight behind the fork are one, as gated experts are, or a weight
and its low-rank update.

A *projection shortcut* is a stream with one weight behind the fork, where the branch has more and a
function between. Sums of two paths that are no residual block (Inception, shared experts, feature
pyramids) look the same. So it counts only on a stream that goes on: where no weight lies between
its sum and the fork of another branch, or between such a sum and its own fork.

What a softmax is taken of is no stream: masks and biases are added to attention scores.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import permutations
from operator import or_
from typing import NamedTuple

from torch_initpolicy.trace.consumers import Uses
from torch_initpolicy.trace.graph import Node
from torch_initpolicy.trace.operators import CARRIERS, OpRole


class Residuals(NamedTuple):
    """The residual branches of a graph.

    Attributes:
        total: How many there are.
        skips: The stream that each addition of branches goes on with, by node.
        ending: Values whose numbers reach the end of a branch through carriers alone.
        closing: Those of them that no parameter scales on the way.
        depths: How many weights lie in a row in the innermost branch around a node, by node.
        batch_normalised: Nodes in branches with a batch normalisation.
        derived: Pairs of operands the second of which comes out of the first, by node.
    """

    total: int
    skips: Mapping[int, int]
    ending: frozenset[int]
    closing: frozenset[int]
    depths: Mapping[int, int]
    batch_normalised: frozenset[int]
    derived: Mapping[int, frozenset[tuple[int, int]]]


def residuals(uses: Uses) -> Residuals:
    """Find the residual branches of a graph."""
    history = _History(uses)
    for node in uses.graph.nodes:
        history.read(node)
    found = history.on_streams()
    ends, skips = [each.value for each in found], {each.node: each.skip for each in found}
    ended, seen, normed = (defaultdict[int, int](int) for _ in range(3))  # by where bits begin
    depths: dict[int, int] = {}
    for each in found:  # those that end first are the innermost
        inside = history.nodes(each.start, each.inside & ~seen[each.start])
        depths.update(dict.fromkeys(inside, _weights_in_a_row(each)))
        ended[each.start] |= _union(each.forks)
        seen[each.start] |= each.inside
        normed[each.start] |= each.inside if each.is_normed else 0
    carriers = [node for node in _carriers(uses) if node.index not in skips]
    moves = [node for node in carriers if _only_moves(uses, node)]
    made = frozenset(value for index in depths for value in uses.graph.nodes[index].outputs)
    return Residuals(
        total=sum(bits.bit_count() for bits in ended.values()),
        skips=skips,
        ending=uses.leading(ends, carriers) & made,
        closing=uses.leading(ends, moves) & made,
        depths=depths,
        batch_normalised=frozenset(
            n for start in normed for n in history.nodes(start, normed[start])
        ),
        derived=history.derived,
    )


class _Sum(NamedTuple):
    """An addition that may end branches; sets of nodes are bits.

    Attributes:
        node: The addition.
        skip: The stream.
        value: What is added to it.
        start: The node of the first bit.
        forks: For each branch among the summands of this, the last fork that it comes out of.
        inside: The nodes that the value comes from, and the stream does not.
        weighers: All weights so far, since the first bit.
        behind: What these and the branches come from.
        before: The last sum before the fork, if no weight has followed.
        is_normed: Whether a batch normalisation is inside.
        projects: Whether a weight lies on the stream, behind the fork.
    """

    node: int
    skip: int
    value: int
    start: int
    forks: Mapping[int, int]
    inside: int
    weighers: int
    behind: Mapping[int, int]
    before: int
    is_normed: bool
    projects: bool


def _weights_in_a_row(found: _Sum) -> int:
    """Return how many weights lie in a row on a branch."""
    rows: list[int] = []  # the weights with none before them, with one in a row, and so on
    for branch, fork in found.forks.items():
        later = _each(found.behind[branch] & found.weighers & ~(2 * fork - 1))
        for weight in reversed([each for each in later if found.behind[each] & fork]):
            behind = found.behind[weight] & ~weight
            place = next((n for n in range(len(rows), 0, -1) if rows[n - 1] & behind), 0)
            rows += [0] * (place == len(rows))
            rows[place] |= weight
    return len(rows)


class _Past(NamedTuple):
    """What a value comes from, as bits.

    Attributes:
        nodes: All of it.
        carried: The nodes whose outputs it still is, or some part of it.
        whole: The nodes whose outputs all of it still is.
        summands: The nodes whose outputs it is a sum of, times constants and parameters.
    """

    nodes: int
    carried: int
    whole: int
    summands: int


class _History:
    """What each value comes from, read in order of execution.

    Where one value alone is read later on, streams and branches both come out of it, and the bits
    begin anew: what lies before would be in all of them.
    """

    def __init__(self, uses: Uses) -> None:
        self.uses = uses
        inputs = [value.index for value in uses.graph.values if value.is_input]
        self.inputs, self.start = len(inputs), 0  # the lowest bits, and the node of the next one
        self.streams: dict[int, int] = {}  # by the bit of a sum: what its stream comes from
        self.past = {value: _Past(*(1 << place,) * 4) for place, value in enumerate(inputs)}
        self.behind: dict[int, int] = {}  # by the bit of a weight or summand: what it comes from
        self.before: dict[int, int] = {}  # by bit: the last sum, if no weight has followed
        self.weighers = self.functions = self.norms = self.branches = 0
        self.sums: list[_Sum] = []
        self.scores = _scores(uses)
        self.derived: dict[int, frozenset[tuple[int, int]]] = {}

    def read(self, node: Node) -> None:
        carried = tuple(dict.fromkeys(self.uses.carried(node)))
        pairs = permutations(carried, 2)
        derived = frozenset((v, w) for v, w in pairs if self._maker(v) & self.past[w].nodes)
        if derived:
            self.derived[node.index] = derived
        self._enter(node, carried)
        if self.uses.role(node) is OpRole.ADDS and self.scores.isdisjoint(node.outputs):
            self._add(node, carried)
        for value in {*node.inputs, *node.outputs}:
            if self.uses.graph.consumers[value][-1:] <= (node.index,):
                self.past.pop(value, None)
        if len(self.past) == 1:
            self._begin_anew(*self.past)

    def _begin_anew(self, value: int) -> None:
        """Forget what lies before the one value that is still to be read."""
        producer, maker = self.uses.graph.values[value].producer, self._maker(value)
        if producer is None or self.past[value].nodes == maker:
            return
        self.start, old = producer, maker
        bit = self._bit(producer)
        self.past = {value: _Past(*(bit,) * 4)}
        self.behind, self.streams = {bit: bit}, {}
        self.before = {bit: self.before[old]} if old in self.before else {}
        kept = (self.weighers, self.functions, self.norms, self.branches)
        now = (bit if bits & old else 0 for bits in kept)
        self.weighers, self.functions, self.norms, self.branches = now

    def on_streams(self) -> list[_Sum]:
        """Return the sums without the projections that lie on no stream."""
        before = {each.node: each.before for each in self.sums}
        found = {each.node for each in self.sums if not each.projects}
        goes_on = {-1, *(before[node] for node in found)}
        for node, earlier in before.items():
            if earlier not in goes_on:
                goes_on.add(earlier)
                found.add(node)
        kept = found | goes_on
        return [each for each in self.sums if each.node in kept]

    def nodes(self, start: int, bits: int) -> Iterator[int]:
        """Yield the nodes among some bits."""
        return (start + bit.bit_length() - 1 for bit in _each(bits >> self.inputs))

    def _bit(self, node: int) -> int:
        return 1 << node - self.start + self.inputs

    def _maker(self, value: int) -> int:
        """Return the bit of the node that made a value; 0 for an input."""
        producer = self.uses.graph.values[value].producer
        return 0 if producer is None else self._bit(producer)

    def _enter(self, node: Node, carried: Sequence[int]) -> None:
        bit, role = self._bit(node.index), self.uses.role(node)
        every = [self.past[value] for value in carried]
        kept = every if role in CARRIERS else []
        whole = kept if len(every) == 1 or role is not OpRole.JOINS else []
        summed = kept if role is OpRole.ADDS or (len(every) == 1 and role in _LINEAR) else []
        past = _Past(
            nodes=bit | _union(each.nodes for each in every),
            carried=bit | _union(each.carried for each in kept),
            whole=bit | _union(each.whole for each in whole),
            summands=_union(each.summands for each in summed) or bit,
        )
        self.past.update(dict.fromkeys(node.outputs, past))
        self.norms |= bit if node.op == "batch_norm" else 0
        if node.index in self.uses.weighers:
            self.weighers |= bit
            self.behind[bit] = past.nodes
        else:
            self.functions |= 0 if role in CARRIERS else bit
            before = (self.before.get(self._maker(value), -1) for value in carried)
            self.before[bit] = max(before, default=-1)

    def _add(self, node: Node, carried: Sequence[int]) -> None:
        """Note the branches that an addition may end."""
        factors = {value for slot, value in self.uses.slots(node) if slot == "factor"}
        added = carried if len(carried) == 2 else [v for v in carried if v not in factors]
        values, shape = self.uses.graph.values, self.uses.graph.values[node.outputs[0]].shape
        for value in added:
            self.behind[self.past[value].summands] = self.past[value].nodes
        for skip, value in permutations(added) if len(added) == 2 else ():
            if values[skip].shape != shape:
                continue  # what is spread over the other summand, as masks are, is no stream
            stream, other = self.past[skip], self.past[value]
            kept = self._forks(stream, other, stream.carried & ~other.whole)
            forks = kept or self._forks(stream, other, self._begin(stream, other))
            if forks:
                inside = other.nodes & ~stream.nodes
                found = _Sum(
                    node=node.index,
                    skip=skip,
                    value=value,
                    start=self.start,
                    forks=forks,
                    inside=inside,
                    weighers=self.weighers,
                    behind=self.behind,
                    before=self.before.get(max(forks.values()), -1),
                    is_normed=bool(inside & self.norms),
                    projects=not kept,
                )
                self.sums.append(found)
                self.branches |= _union(forks)
                self.streams[self._bit(node.index)] = stream.nodes
                self.before[self._bit(node.index)] = node.index
                return

    def _forks(self, stream: _Past, other: _Past, forks: int) -> dict[int, int]:
        """Return the summands of a value that are branches, each with its last fork."""
        found: dict[int, int] = {}
        taken = stream.nodes  # what the branches so far come from
        reads = other.nodes & forks or other.summands & self.branches
        for summand in _each(other.summands & ~stream.summands if reads else 0):
            behind = self.behind[summand]
            known = stream.carried if summand & self.branches else 0  # the value is a stream itself
            fork = _last(behind & (forks | known))
            weights = self._later(fork, behind)
            branches = (stream.summands & self.branches | _union(found)) & ~behind
            others = _each(branches if weights & taken else 0)
            shares = (each for each in others if self._reads(fork, weights & self.behind[each]))
            branch = next(shares, summand)
            if self._reads(fork, weights & ~stream.nodes):
                found.setdefault(branch, fork)
                taken |= behind
        return found

    def _later(self, fork: int, behind: int) -> int:
        """Return the weights behind something that have been applied after a fork."""
        return behind & self.weighers & ~(2 * fork - 1) if fork else 0

    def _reads(self, fork: int, weights: int) -> bool:
        """Say whether some of the weights come out of a fork."""
        return any(self.behind[weight] & fork for weight in _each(weights))

    def _begin(self, stream: _Past, other: _Past) -> int:
        """Return the fork of a stream with one weight, and a branch with more; 0 for none.

        Nothing leads past it into the branch, neither a stream nor an input: times that each layer
        adds, or the two inputs of a NASNet cell, begin no branches.
        """
        shared = stream.nodes & other.nodes
        fork, inside = _last(shared), other.nodes & ~shared
        is_one = (stream.nodes & ~shared & self.weighers).bit_count() == 1
        is_more = (inside & self.weighers).bit_count() > 1 and inside & self.functions
        if not is_one or not is_more or inside & (1 << self.inputs) - 1:
            return 0
        streams = (stream for bit, stream in self.streams.items() if bit & inside)
        return fork if all(each & fork for each in streams) else 0


def _union(sets: Iterable[int]) -> int:
    return reduce(or_, sets, 0)


def _last(bits: int) -> int:
    return 1 << bits.bit_length() - 1 if bits else 0


def _each(bits: int) -> Iterator[int]:
    """Yield the bits that are set, the last first."""
    while bits:
        yield _last(bits)
        bits ^= _last(bits)


_LINEAR = CARRIERS - {OpRole.NORMALISES}
"""Roles of operators that carry a single sum on as a sum."""


def _carriers(uses: Uses) -> list[Node]:
    return [node for node in uses.graph.nodes if uses.role(node) in CARRIERS]


def _only_moves(uses: Uses, node: Node) -> bool:
    """Say whether no parameter scales the signal at a carrier."""
    return uses.role(node) not in (OpRole.MULTIPLIES, OpRole.NORMALISES) or not any(
        value in uses.sources and not any(source.gated for source in uses.sources[value])
        for slot, value in uses.slots(node)
        if slot != "bias"
    )


def _scores(uses: Uses) -> frozenset[int]:
    """Return the masks, and what a softmax is taken of that is not the model's own output."""
    carriers = _carriers(uses)
    others = [node for node in uses.graph.nodes if uses.role(node) not in CARRIERS]
    read = uses.leading((value for node in others for value in node.inputs), carriers)
    taken = (
        value
        for node in others
        for slot, value in uses.slots(node)
        if slot == "mask" or (node.op == "softmax" and not read.isdisjoint(node.outputs))
    )
    return uses.leading(taken, carriers)
