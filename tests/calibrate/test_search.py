"""The search: finds the scales of systems that one fixed step diverges on."""

import math
import random

import pytest

from torch_initpolicy.calibrate.search import ScaleSearch


@pytest.mark.parametrize("size", [1, 2, 5])
def test_powers_of_several_scales(size):
    """Standard deviations that are sums of products of powers of all scales."""
    rng = random.Random(size)
    for _ in range(10):
        uses = [rng.randint(2, 8) for _ in range(size)]
        mixed = [[rng.uniform(0, 0.5) for _ in range(size)] for _ in range(size)]

        def measure(scales, uses=uses, mixed=mixed):
            other = [math.prod(s**p for s, p in zip(scales, row, strict=True)) for row in mixed]
            own = (
                sum(s**k for k in range(1, n + 1)) / n for s, n in zip(scales, uses, strict=True)
            )
            return [a * b for a, b in zip(own, other, strict=True)]

        search, scales = ScaleSearch(), [rng.uniform(0.5, 2.0) for _ in range(size)]
        for _ in range(40):
            found = measure(scales)
            each = zip(scales, found, uses, strict=True)
            steps = search.step(dict(enumerate(each)))
            scales = [scale * steps[n] for n, scale in enumerate(scales)]

        assert measure(scales) == pytest.approx([1.0] * size, rel=1e-4)


@pytest.mark.parametrize(("found", "grows"), [(0.0, True), (math.inf, False), (math.nan, False)])
def test_what_no_dtype_holds(found, grows):
    """What has vanished grows, and what has overflowed shrinks, by a bounded step."""
    step = ScaleSearch().step({"w": (1.0, found, 2)})["w"]

    assert (step > 1) == grows
    assert 0.1 < step < 10
