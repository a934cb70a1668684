"""Measurements of an audit: one value for each operator, each parameter and each output.

A complex number counts as one: all moments are those of absolute values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """One operator's output, as it was measured.

    Attributes:
        index: Its place in the order of execution, counting all operators.
        module: Canonical name of the module it ran in.
        site: Canonical name of the weight that it applies, or None.
        activates: Whether it is an activation function.
        mean: Mean of its elements; of complex ones its absolute value.
        std: Their standard deviation; of complex ones the root of `E |z - E z| ** 2`.
        second: Their second moment, `mean ** 2 + std ** 2`; of complex ones `E |z| ** 2`.
        zeros: Fraction of a sample of them that is exactly zero.
        dead: Fraction of units that are zero for every input; None where it was not measured.
        saturated: Fraction of a sample where a bounded activation is flat (its slope is below a
            tenth of its largest), where a sine is half a turn or more from that of the next input,
            or of the rows that a softmax gives to one entry; None elsewhere.
        likeness: Mean cosine between the outputs for different inputs: 1 where the model no longer
            tells them apart; None where the batch cannot be found in the output.
        tokens: Mean cosine between the positions of one input, where there are several.
        rank: Number of directions that the outputs span, `1` to the number of inputs; or None.
        variation: Variance over inputs relative to the second moment: 0 where the output does not
            depend on the input; None where the batch cannot be found in it.
        histogram: Fractions of a sample whose absolute value lies in each half of a decade, from
            1e-8 to 1e4; what is smaller or larger counts for the first and the last.
        over: Number of elements that a softmax or a normalisation takes together, or None.
        early: What a recurrent layer remembers: the squared gradient of its last output by the
            first step that it reads, over that by the last step; None elsewhere.
        gradient: Second moment of the loss' gradient by the output; None where none arrives.
        closed_by: Where the gradient is zero because every way on leads through weights that start
            at zero, and these get a gradient themselves: their names. Training opens such a branch
            with its first step.
        source: Canonical name of the last weight before or at the operator, or None.
        leads_on: Whether a weight reads what comes of the output.
        skips: Whether it adds up two signals, as the end of a residual branch does.
        call: Which call of this operator in its module it is, counted from 1; 0 for the only one.
        line: Where the model's code calls it: `"net.py:42"`.
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
    saturated: float | None = None
    likeness: float | None = None
    tokens: float | None = None
    rank: float | None = None
    variation: float | None = None
    histogram: tuple[float, ...] = ()
    over: int | None = None
    early: float | None = None
    gradient: float | None = None
    closed_by: tuple[str, ...] = ()
    source: str | None = None
    leads_on: bool = True
    skips: bool = False
    call: int = 0
    line: str = ""

    @property
    def name(self) -> str:
        """The weight where it applies one, else `module:operator`, or `module:operator#3`."""
        number = f"#{self.call}" if self.call else ""
        return self.site or f"{self.module}:{self.op}{number}".lstrip(":")

    @property
    def length(self) -> float | None:
        """Squared length of the gradient; its mean square would count positions."""
        return None if self.gradient is None else self.gradient * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Update:
    """A parameter, and how a step of an optimizer would move it.

    Attributes:
        second: Second moment of its values; nan or inf where one of them is not finite.
        gradient: Second moment of the loss' gradient by it; None where none arrives.
        ratio: Root mean square of the gradient over that of the values; None where either is
            missing or the values are all zero.
        step: Root mean square of the first step over that of the values, or of torch's own start
            where these are smaller; None where optimizer and learning rate are not known.
        ajar: Whether it is one small number all over, as a LayerScale of 1e-5 is, which opens its
            branch in training.
    """

    site: str
    second: float
    gradient: float | None
    ratio: float | None
    step: float | None = None
    ajar: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """One floating-point tensor that the model returns.

    Attributes:
        name: Name of the point that made it.
        source: Canonical name of the last weight before it, or None.
        std: Standard deviation of its elements.
        varies: That of their deviations from the mean over inputs: what does not depend on the
            input, as a bias does not, is left out.
        classes: Length of the axis that a softmax would run over; 0 where the output is not that of
            a linear map as it is, so that it does not look like logits.
        excess: Cross entropy of that softmax against labels drawn at random, less `ln(classes)`, in
            nats; biases left out. None where there are no classes.
        scale: Canonical name of a parameter that multiplies the output by ten or more, as the
            temperature of a contrastive head does; None where there is none.
    """

    name: str
    source: str | None
    std: float
    varies: float
    classes: int = 0
    excess: float | None = None
    scale: str | None = None


FEWEST_WEIGHTS = 3
"""Weights on the way before a course over the depth can be told."""


def body_of(points: Sequence[Point]) -> Sequence[Point]:
    """Return the points from the first weight on that come to another weight: no heads.

    There are none where there are too few weights to tell a course by.
    """
    if sum(point.site is not None for point in points) < FEWEST_WEIGHTS:
        return ()
    return [point for point in points if point.source is not None and point.leads_on]


def arriving(body: Sequence[Point]) -> float:
    """Return the second moment that comes out at the end of a body, whichever way it comes.

    It is the largest from the last weight on: behind a residual branch that starts small the sum
    carries the signal. An activation counts where it ends the body: that of a gate is no signal.
    """
    last = max(place for place, point in enumerate(body) if point.site is not None)
    return max(point.second for point in body[last:] if not point.activates or point is body[-1])
