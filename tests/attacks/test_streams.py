"""Random numbers: a user's initializer has its own, whatever the rest of the process draws."""

import asyncio
import inspect
import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # torch's own name for it
from torch.utils.data import DataLoader, Dataset

from torch_initpolicy import InitPolicy, Rule, apply_policy, match, plan_policy


def _sparse(tensor):
    nn.init.sparse_(tensor, 0.5)


DRAWS = {
    "randn": lambda t: t.copy_(torch.randn(t.shape) + torch.rand_like(t)),
    "normal_": lambda t: t.normal_().add_(torch.randint(1, 3, t.shape)),
    "randperm": lambda t: t.copy_(torch.randperm(t.numel()).view(t.shape)),
    "distribution": lambda t: t.copy_(torch.distributions.Gamma(2.0, 1.0).sample(t.shape)),
    "multinomial": lambda t: t.fill_(float(torch.multinomial(torch.ones(9999), 1))),
    "bernoulli": lambda t: t.copy_(torch.bernoulli(torch.full(t.shape, 0.5))),
    "dropout": lambda t: t.copy_(F.dropout(torch.ones(t.shape))),
    "init": nn.init.xavier_uniform_,
    "orthogonal": nn.init.orthogonal_,
    "sparse": _sparse,
    "seeds": lambda t: (torch.manual_seed(7), t.normal_())[1],
}


@pytest.fixture(autouse=True)
def _eager_switches():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def model():
    """Matrices only, which every initializer takes."""
    return nn.Sequential(*[nn.Linear(40, 40, bias=False) for _ in range(3)])


@pytest.mark.parametrize("name", DRAWS)
def test_own_initializers_in_threads(tries, name):
    """In several threads, while another one draws: the bits of one thread, and nothing moves."""
    policy = InitPolicy([Rule(match.anything(), DRAWS[name])])
    reference, plain = model(), inspect.unwrap(apply_policy)  # others draw from the generator
    apply_policy(reference, policy, seed=0)
    for _ in tries(3):
        models = [model() for _ in range(4)]
        torch.manual_seed(3)
        expected = [torch.rand(5) for _ in range(200)]
        torch.manual_seed(3)
        with ThreadPoolExecutor(5) as pool:
            others = pool.submit(lambda: [torch.rand(5) for _ in range(200)])
            list(pool.map(lambda each: plain(each, policy, seed=0), models))
        for each in models:
            assert all(map(torch.equal, reference.parameters(), each.parameters()))
        if name != "seeds":
            assert all(map(torch.equal, expected, others.result()))


@pytest.mark.parametrize("name", DRAWS)
def test_the_global_generator_stays(name):
    """Nothing an initializer draws, or seeds, moves the global generator."""
    policy = InitPolicy([Rule(match.anything(), DRAWS[name])])
    filled = model()
    before = torch.get_rng_state()
    apply_policy(filled, policy, seed=0)

    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks processes")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_forks_while_planning(tries):
    """A child that is forked while another thread plans can plan too, with whole models."""
    rng = random.Random(0)
    large = nn.Sequential(*[nn.Linear(8, 8) for _ in range(60)])
    stop = threading.Event()

    def plans():
        while not stop.is_set():
            plan_policy(large)

    thread = threading.Thread(target=plans)
    thread.start()
    codes = []
    try:
        for _ in tries(4):
            time.sleep(rng.uniform(0, 0.1))
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(20)
                apply_policy(nn.Linear(4, 4), seed=0)
                os._exit(int(any(parameter.is_meta for parameter in large.parameters())))
            codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    finally:
        stop.set()
        thread.join()
    assert not any(codes)


class Initialised(Dataset):
    """A data set whose samples are the first weights of a model, made where they are asked for."""

    def __len__(self):
        """Return how many there are."""
        return 4

    def __getitem__(self, seed):
        """Return a matrix that a policy has written from a seed."""
        net = model()
        apply_policy(net, "he", seed=seed)
        return net[0].weight.detach()


@pytest.mark.skipif(sys.platform == "win32", reason="workers are not forked there")
def test_workers_of_a_data_loader():
    """Processes that load data, forked after threads have drawn here, leave the same bits."""
    data = Initialised()
    here = torch.stack([data[seed] for seed in range(4)])
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork")

    assert torch.equal(torch.cat(list(loader)), here)


def test_tasks_of_an_event_loop():
    """Coroutines that write in turns and in the loop's threads leave the same bits."""
    expected, plain = [Initialised()[seed] for seed in range(4)], inspect.unwrap(apply_policy)
    nets = [(model(), model()) for _ in range(4)]

    async def write(seed):
        await asyncio.sleep(0)
        plain(nets[seed][0], "he", seed=seed)
        await asyncio.to_thread(plain, nets[seed][1], "he", seed=seed)

    async def everything():
        await asyncio.gather(*map(write, range(4)))

    before = torch.get_rng_state()
    asyncio.run(everything())

    assert torch.equal(torch.get_rng_state(), before)
    for written, wanted in zip(nets, expected, strict=True):
        assert all(torch.equal(net[0].weight.detach(), wanted) for net in written)
