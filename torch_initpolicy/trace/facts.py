"""Facts: what is known about a site once the data flow has been read."""

from dataclasses import dataclass
from typing import Literal

from torch_initpolicy.tensors.axes import Axes
from torch_initpolicy.tensors.gains import Activation
from torch_initpolicy.tensors.layers import Role

Reader = Literal["norm", "recurrent"]
"""What makes the scale of a signal its own business."""

Evidence = Literal["traced", "ran", "order", "type"]
"""How a fact came to be known: `traced` from the forward pass on meta tensors, `ran` from the
forward pass on small real inputs, `order` from the order of registration, `type` from the owner's
class alone, where nothing has been read. That a site takes no part in a forward pass is `traced`,
too; see `Facts.used`."""


@dataclass(frozen=True, slots=True)
class ForwardMultiplier:
    """Known constants between a weight and the function that reads its output.

    See `torch_initpolicy.trace.constants` for what counts.

    Attributes:
        weight: What the weight is multiplied by before its operator applies it.
        input: What its input is multiplied by, if no weight before takes it out.
        output: What its output is multiplied by before the next function, weight or the model's
            output; of a product of two outputs, this one's share.
    """

    weight: float = 1.0
    input: float = 1.0
    output: float = 1.0

    @property
    def total(self) -> float:
        """The product of all three."""
        return self.weight * self.input * self.output


@dataclass(frozen=True, slots=True)
class Composition:
    """How a weight in use is made of several parameters, as one of them sees it.

    Attributes:
        factors: How many parameters are multiplied with each other.
        growth: Standard deviation of the product over those of its factors.
        terms: How many such products are added up.
        fan_in: Connections into one output unit of the weight in use.
        fan_out: Connections out of one of its input units.
    """

    factors: int
    growth: float
    terms: int
    fan_in: float
    fan_out: float


@dataclass(frozen=True, slots=True)
class Facts:
    """What the trace says about a site.

    Attributes:
        role: What the parameter does.
        axes: What its axes mean; None where it is no linear map.
        op: The operator that consumes it (`"conv2d"`, `"linear"`, `"add"`); None if unused.
        meets: The activation its output meets first; None where it meets none before the next
            weight or the model's output.
        fed_by: The activation its input comes from, also where a normalisation lies between; None
            where it is the plain output of another weight or the model's own input.
        reads_input: Whether its input is the model's own, with nothing but carriers between.
        feeds_output: Whether its output is the model's own, with nothing but carriers between: a
            head.
        stopped_by: Name of an operator of unknown role behind which nothing could be seen, or None.
        ends_residual: Whether nothing but carriers lies between its output and the addition that
            ends a residual branch.
        closes_residual: Whether it ends a residual branch, and no other parameter scales the branch
            behind it: at zero it closes the branch.
        residual_branches: How many residual branches the whole model has.
        branch_depth: How many weights lie on the longest path through its own residual branch; 0
            outside any.
        neighbours: Canonical names of the weights that its output goes into next, and of those that
            make what it is added to or multiplied by on the way: while their units are alike, its
            own cannot part. Empty where there are many, or the output goes out of the model; None
            where nothing has been read, or it is no weight.
        multiplier: The known constants on the way of its numbers.
        dot_product: Where its output is multiplied and summed with another signal, as a query is
            with a key: how large the result is when all numbers are one, `d / sqrt(d)` for heads of
            size `d`. None elsewhere, and for the other one of the two.
        tied_head: Where it is looked up by index, and multiplied to a signal as well: the number
            that what comes out there is multiplied by. None elsewhere.
        is_summand: Whether its output is added, before the next weight, to a signal that does not
            come out of it.
        multiplied_by: Canonical names of the weights that make what its output is multiplied by
            before the next weight, empty where they are many; None where it is no factor.
        composition: How it makes the weight in use together with others; None where it is alone.
        reader: What makes the scale of its output its own business before the next weight: the
            nearest of a normalisation and a recurrent layer, or None.
        ends_in_norm: Whether a normalisation lies between its output and the model's; of a residual
            stream, behind all of its additions.
        in_batch_norm: Whether it lies in a residual branch with a batch normalisation.
        head_multiplier: Where it is tied to a head, or its rows are added to those of an embedding
            that is: the known constants between the head's weight and the model's output. None
            elsewhere.
        offset: The operator computes with `offset + parameter` (1.0 for Gemma's RMSNorm).
        padding: Row of a table that must stay zero, as the operator that looks up says, or None.
        used: Whether the forward pass touched it at all.
        evidence: How all this came to be known.
        blocks: The same of each packed block, where they meet different things; else empty.
    """

    role: Role
    axes: Axes | None = None
    op: str | None = None
    meets: Activation | None = None
    fed_by: Activation | None = None
    reads_input: bool = False
    feeds_output: bool = False
    stopped_by: str | None = None
    ends_residual: bool = False
    closes_residual: bool = False
    residual_branches: int = 0
    branch_depth: int = 0
    neighbours: tuple[str, ...] | None = None
    multiplier: ForwardMultiplier = ForwardMultiplier()
    dot_product: float | None = None
    tied_head: float | None = None
    is_summand: bool = False
    multiplied_by: tuple[str, ...] | None = None
    composition: Composition | None = None
    reader: Reader | None = None
    ends_in_norm: bool = False
    in_batch_norm: bool = False
    head_multiplier: float | None = None
    offset: float = 0.0
    padding: int | None = None
    used: bool = False
    evidence: Evidence = "type"
    blocks: "tuple[Facts, ...]" = ()
