"""How often each attack is tried: little in the suite, `--attacks=N` times as often on demand."""

from collections.abc import Iterator

import pytest


class Counter:
    """Numbers the tries of an attack, and says at the end how many there were.

    Attributes:
        times: What `--attacks` says.
        tried: How many tries there were.
    """

    def __init__(self, times: int) -> None:
        self.times = times
        self.tried = 0

    def __call__(self, usual: int) -> Iterator[int]:
        """Yield the number of each try: so many of them, times `--attacks`."""
        for number in range(usual * self.times):
            self.tried += 1
            yield number


@pytest.fixture
def tries(request: pytest.FixtureRequest) -> Iterator[Counter]:
    """Count the tries of a test; all of them held where the test passes."""
    counter = Counter(request.config.getoption("--attacks"))
    yield counter
    print(f"{request.node.name}: tried {counter.tried} times")  # noqa: T201 - seen with -s
