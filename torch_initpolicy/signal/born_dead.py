"""The probability that a deep narrow ReLU network is born dead, before anything is drawn.

Knows widths only. For symmetric weights and biases of zero a unit is silent for one input with
probability 1/2; where all units of a layer are silent, everything behind it is constant.
"""

import math
from collections.abc import Sequence


def born_dead(widths: Sequence[int]) -> float:
    """Return the probability that a ReLU network gives the same for every input.

    A network without biases maps the two half-lines of a one-dimensional input to two directions.
    A layer of `n` units loses each with probability `2 ** -n`, or makes them one where a single
    unit is left to both; the angle between them shrinks by the arc-cosine kernel. Inputs of more
    dimensions die a little later: at width 2 and depth 5 with probability 0.56 instead of 0.61.

    Reference:
        Lu, Shin, Su and Karniadakis, *Dying ReLU and Initialization*, 2019, arXiv:1903.06733,
        section 3 (the chain); Cho and Saul, *Kernel Methods for Deep Learning*, 2009, eq. 6.

    Examples:
        >>> [round(born_dead([2] * depth), 3) for depth in (5, 10, 20)]
        [0.611, 0.907, 0.995]
    """
    if not widths:
        return 0.0
    one = 2.0 ** (1 - widths[0])
    two = 1 - one
    angle = math.pi / 2
    for units in widths[1:]:
        both, single = (math.pi - angle) / (2 * math.pi), angle / (2 * math.pi)
        lost = both**units
        merged = 2 * ((both + single) ** units - lost) + units * lost
        one, two = one * (1 - 2.0**-units) + two * merged, two * max(1 - lost - merged, 0.0)
        cosine = (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi
        angle = math.acos(min(cosine, 1.0))
    return 1 - one - two
