"""Looking changes nothing, whatever a forward pass does: random forwards under the verbs that look.

Each forward does some of the things below, by chance, and may then raise. What it could have
changed is described before and after by code that shares nothing with the package.
"""

import collections
import contextlib
import dataclasses
import functools
import os
import random
import time
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.attacks.interrupts import under_signals
from torch_initpolicy import audit_signal, find_symmetry, plan_policy
from torch_initpolicy.errors import InitPolicyError

MODELS = 24
"""Random models for each verb."""

TABLE: dict[str, Tensor] = {}
COUNTS = collections.Counter()
LATEST = None
SEEN = []
SCALE = (torch.ones(4),)


@functools.lru_cache
def steps(size: int, device: torch.device) -> Tensor:
    """Count, and keep the result for good."""
    return torch.arange(float(size), device=device)


class Schedule:
    """A helper that is no module."""

    shared: dict[str, Tensor] = {}  # noqa: RUF012 - shared by all is what is tried
    made = 0

    def __init__(self) -> None:
        self.steps = None
        self.nested = {"levels": [{"x": None}]}
        self.queue = collections.deque([1, 2], maxlen=3)


@dataclasses.dataclass(slots=True)
class Slotted:
    """A helper whose attributes have no dictionary."""

    last: Tensor | None = None


class Net(nn.Module):
    """A model that meddles."""

    calls = 0

    def __init__(self, deeds: tuple[Callable, ...]) -> None:
        super().__init__()
        self.deeds = deeds
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
        self.dropout, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(16)
        self.helper, self.slotted = Schedule(), Slotted()
        self.generator, self.bits = torch.Generator(), np.random.default_rng(0)
        self.own = random.Random(0)
        self.array, self.plain, self.aliases = np.zeros(3), torch.zeros(3), [self.first.weight]
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        for deed in self.deeds:
            x = deed(self, x)
        return self.last(torch.relu(self.first(x)))


def caches(net, x):
    """Keep tensors in helpers, nested containers, a class and a global."""
    TABLE["x"] = net.helper.steps = net.slotted.last = Schedule.shared["x"] = x.mean(0)
    net.helper.nested["levels"][0]["x"] = x
    net.helper.queue.append(x)
    return x


def counts(net, x):
    """Count calls in classes and globals."""
    global LATEST  # noqa: PLW0603 - what is tried
    type(net).calls += 1
    Schedule.made += 1
    COUNTS["calls"] += 1
    SEEN.append(x)
    LATEST = x
    net.steps += 1
    return x


def clips(net, x):
    """Write to parameters, by several names."""
    with torch.no_grad():
        net.first.weight.clamp_(-0.01, 0.01)
        net.aliases[0].mul_(0.5)
        net.last.bias.data[0] = 3.0
    return x


def writes(net, x):
    """Write to tensors and arrays that are no buffers."""
    net.plain += 1
    net.array[0] = 7
    SCALE[0].add_(1)
    return x


def memoises(net, x):
    """Use a function that keeps its results for good."""
    return x + steps(8, x.device).to(x.dtype)


def draws(net, x):
    """Draw from every generator there is."""
    net.own.random(), random.random(), np.random.rand(), net.bits.random(), torch.rand(1)  # noqa: NPY002 - the global one
    torch.rand(1, generator=net.generator)
    return x


def looks(net, x):
    """Decide by numbers: on meta this cannot run."""
    if not bool(torch.isfinite(x).all()):
        raise ValueError("not finite")
    return x


def trains(net, x):
    """Set flags."""
    net.train()
    net.norm.eval()
    net.first.requires_grad_(requires_grad=False)
    return x


def replaces(net, x):
    """Change hooks, parameters and modules."""
    net.first.register_forward_hook(lambda *_: None)
    net.extra = nn.Parameter(torch.zeros(2))
    net.dropout = nn.Identity()
    return x


def sets(net, x):
    """Change settings of the process."""
    torch.set_default_dtype(torch.float64)
    os.environ["MEDDLED"] = "1"
    warnings.simplefilter("ignore")
    return x


def raises(net, x):
    """Give up."""
    raise RuntimeError("half-way")


DEEDS = (caches, counts, clips, writes, memoises, draws, looks, trains, replaces, sets, raises)


def described(thing: object) -> object:
    """Describe numbers, identities and structure of what a model holds."""
    describe = next((how for kinds, how in DESCRIPTIONS if isinstance(thing, kinds)), repr)
    return describe(thing)


DESCRIPTIONS = (
    (
        Tensor,
        lambda t: (
            t.device.type,
            t.requires_grad,
            torch._C._is_cow_tensor(t),  # two threads must not write to what shares its memory
            t.is_meta or t.data_ptr(),  # numpy may look at it
            t.detach().clone().numpy().tobytes(),
        ),
    ),
    (np.ndarray, lambda array: array.tobytes()),
    (torch.Generator, lambda generator: generator.get_state().numpy().tobytes()),
    (np.random.Generator, lambda generator: str(generator.bit_generator.state)),
    (random.Random, lambda generator: generator.getstate()),
    (dict, lambda found: [(str(key), described(value)) for key, value in found.items()]),
    ((list, tuple, collections.deque), lambda items: [described(value) for value in items]),
    (Slotted, lambda helper: described(helper.last)),
    ((nn.Module, Schedule), lambda holder: (id(holder), described(vars(holder)))),
)
"""How to describe objects of each kind."""


def legacy() -> tuple:
    """Return the state of numpy's global generator."""
    return np.random.get_state()  # noqa: NPY002 - the global one


def world(net: Net) -> object:
    """Describe everything that a forward pass of these models can change."""
    return {
        "model": described(net),
        "globals": [described(x) for x in (TABLE, dict(COUNTS), LATEST, SEEN, SCALE)],
        "classes": (Net.calls, Schedule.made, described(Schedule.shared)),
        "random": [str(s) for s in (random.getstate(), legacy())],
        "torch": torch.get_rng_state().numpy().tobytes(),
        "settings": (torch.get_default_dtype(), os.environ.get("MEDDLED"), len(warnings.filters)),
        "modes": (
            torch.is_grad_enabled(),
            torch._C._len_torch_function_stack(),
            torch._C._len_torch_dispatch_stack(),
        ),
        "cached": any(steps(size, torch.device("cpu")).is_meta for size in (8, 9)),
    }


VERBS = {
    "plan_policy": lambda net, x: plan_policy(net, example_inputs=x),
    "plan_policy alone": lambda net, x: plan_policy(net),
    "find_symmetry": find_symmetry,
    "audit_signal": audit_signal,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.filterwarnings("ignore")
def test_random_forwards(verb):
    """Model, helpers, classes, globals, generators and settings are as they were, errors or not."""
    choose = random.Random(verb)
    changed = []
    for number in range(MODELS):
        deeds = tuple(choose.sample(DEEDS, choose.randint(1, 5)))
        torch.manual_seed(number)
        net = Net(deeds)
        nn.init.constant_(net.last.weight, 0.1)
        x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
        before = world(net) | {"inputs": described(x)}
        with contextlib.suppress(InitPolicyError):
            VERBS[verb](net, x)
        after = world(net) | {"inputs": described(x)}
        names = [deed.__name__ for deed in deeds]
        changed += [(names, part) for part, was in before.items() if was != after[part]]

    assert changed == []


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.filterwarnings("ignore")
def test_interrupts(tries, verb):
    """So it is where an interrupt comes at any moment, also as things are put back."""
    rng = random.Random(verb)
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    for number in tries(8):
        torch.manual_seed(number)
        net = Net(tuple(rng.sample(DEEDS, 3)))
        net.last = nn.utils.parametrizations.weight_norm(net.last)
        nn.init.constant_(net.last.bias, 0.1)

        def look(net=net):
            with contextlib.suppress(InitPolicyError):
                VERBS[verb](net, x)

        started = time.perf_counter()
        look()
        took = time.perf_counter() - started
        before = world(net)
        under_signals(look, rng.uniform(0, took))
        after = world(net)

        assert [part for part, was in before.items() if was != after[part]] == []


@pytest.fixture
def undone():
    """Undo by hand what a forward pass does outside its model."""
    filters, states = warnings.filters[:], (random.getstate(), legacy(), torch.get_rng_state())
    yield
    torch.set_default_dtype(torch.float32)
    os.environ.pop("MEDDLED", None)
    warnings.filters[:] = filters
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002 - the global one
    torch.set_rng_state(states[2])
    for found in (TABLE, SEEN, Schedule.shared):
        found.clear()


@pytest.mark.usefixtures("undone")
@pytest.mark.parametrize("deed", [d for d in DEEDS if d not in (looks, raises, memoises)])
def test_the_description_sees_each_deed(deed):
    """What a forward changes when it simply runs is seen: the test above can fail."""
    net = Net((deed,))
    before = world(net)
    with contextlib.suppress(RuntimeError):
        net(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))

    assert before != world(net)
