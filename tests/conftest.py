"""What holds for every test: the package leaves the global random state alone; options; threads.

Tests build models, and constructors draw, so every test starts from the same random state and
leaves the one it found. That the *package* neither reads nor moves it is checked at the border:
each call a test makes to a public function fails where the state is another one afterwards.
"""

import argparse
import functools
import inspect
import os
import random
import re
import sys
import types
from collections.abc import Callable, Iterator

import hypothesis
import numpy as np
import pytest
import torch

import torch_initpolicy

# Every run tries the same examples, however slow the machine; with `--hypothesis-profile=default`
# each run draws others.
hypothesis.settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")


def _zoo(text: str) -> str:
    if not re.fullmatch(r"sample|all|[1-9]\d*/[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'sample' nor 'all' nor like '2/4'")
    return text


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this suite."""
    parser.addoption(
        "--zoo",
        type=_zoo,
        default="sample",
        help="models of timm and torchvision to plan: 'sample' (one of each family, the default), "
        "'all', or a share of all such as '2/4'",
    )
    parser.addoption(
        "--attacks",
        type=int,
        default=1,
        help="how many times as often to try each attack of tests/attacks; -s shows the counts",
    )
    parser.addoption(
        "--update-golden",
        action="store_true",
        help="write the golden files of the tests that run; read the diff before committing it",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Give a parallel worker one thread, and put the border guard up before tests are imported."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
    for name, function in vars(torch_initpolicy).copy().items():
        if isinstance(function, types.FunctionType):
            _guard(name, function)


def _random_state() -> tuple[object, ...]:
    numpy_state = np.random.get_state(legacy=True)  # noqa: NPY002
    return (
        torch.random.get_rng_state().numpy().tobytes(),
        random.getstate(),
        numpy_state[1].tobytes(),
        numpy_state[2:],
    )


def _guard(name: str, function: Callable[..., object]) -> None:
    """Watch a public function: put a guard in its place where it lives and is exported."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def watched(*args: object, **kwargs: object) -> object:
        before = _random_state()
        try:
            return function(*args, **kwargs)
        finally:
            # seed=None is the one promise to move it: a new seed comes from torch's generator.
            seed = signature.bind_partial(*args, **kwargs).arguments.get("seed")
            takes_seed = "seed" in signature.parameters and seed is None
            assert takes_seed or _random_state() == before, f"{name} moved the global random state"

    for module in (torch_initpolicy, sys.modules[function.__module__]):
        setattr(module, name, watched)


@pytest.fixture(autouse=True)
def _own_random_state() -> Iterator[None]:
    """Start every test from the same global random state and put the old one back after it."""
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    yield
    torch.random.set_rng_state(states[0])
    random.setstate(states[1])
    np.random.set_state(states[2])  # noqa: NPY002


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Run a module on one thread: on small networks, and in double precision, others only cost."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
