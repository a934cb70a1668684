"""What an audit measured: one value for each operator, one for each parameter.

A complex number counts as one: all moments are those of absolute values.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """One operator's output, as it was measured.

    Attributes:
        index: Its place in the order of execution, counting all operators.
        module: Canonical name of the module it ran in.
        op: The operator.
        site: Canonical name of the weight that it applies, or None.
        activates: Whether it is an activation function.
        shape: Shape of the output.
        mean: Mean of its elements; of complex ones its absolute value.
        std: Their standard deviation; of complex ones the root of `E |z - E z| ** 2`.
        second: Their second moment, `mean ** 2 + std ** 2`; of complex ones `E |z| ** 2`.
        zeros: Fraction of a sample of them that is exactly zero.
        dead: Fraction of units that are zero for every input; None where it was not measured.
        likeness: Mean cosine between the outputs for different inputs: 1 where the model no longer
            tells them apart; None where the batch cannot be found in the output.
        rank: Number of directions that these outputs span, `1` to the number of inputs; or None.
        gradient: Second moment of the loss' gradient by the output; None where none arrives.
        closed_by: Where the gradient is zero because every way on leads through weights that start
            at zero, and these get a gradient themselves: their names. Training opens such a branch
            with its first step.
    """

    index: int
    module: str
    op: str
    site: str | None
    activates: bool
    shape: tuple[int, ...]
    mean: float
    std: float
    second: float
    zeros: float
    dead: float | None = None
    likeness: float | None = None
    rank: float | None = None
    gradient: float | None = None
    closed_by: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The weight where it applies one, else `module:operator`."""
        return self.site or f"{self.module}:{self.op}".lstrip(":")


@dataclass(frozen=True, slots=True)
class Update:
    """How a step of gradient descent would move one parameter.

    Attributes:
        site: Its canonical name.
        second: Second moment of its values.
        gradient: Second moment of the loss' gradient by it; None where none arrives.
        ratio: Root mean square of the gradient over that of the values; None where either is
            missing or the values are all zero.
    """

    site: str
    second: float
    gradient: float | None
    ratio: float | None
