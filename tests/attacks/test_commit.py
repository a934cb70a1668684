"""All or nothing: a model is completely old or completely new, whatever comes in between."""

import _thread
import contextlib
import ctypes
import random
import signal
import threading
import time

import pytest
import torch
from torch import nn

from tests.writing.helpers import pairs, same, state
from torch_initpolicy import lsuv_
from torch_initpolicy.errors import ApplyError, InitPolicyError
from torch_initpolicy.tensors.initializers import From, Normal, Ones, Orthogonal, Zeros
from torch_initpolicy.writing import blocks, crew, journal, parametrized
from torch_initpolicy.writing.apply import apply_steps
from torch_initpolicy.writing.drawing import Drawing
from torch_initpolicy.writing.shards import Piece

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning"),
    # What is raised at any moment may be raised in a finalizer, which Python lets nobody catch.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Interrupt(BaseException):
    """Stands for Ctrl-C: nothing that catches an `Exception` sees it."""


def mixed(width=64):
    """Every way to be written: in place, aside, through a parametrisation, statistics, ties."""
    model = nn.ModuleDict(
        {
            "first": nn.Linear(width, width),
            "norm": nn.BatchNorm1d(width),
            "hooked": nn.utils.weight_norm(nn.Linear(width, width)),
            "parametrized": nn.utils.parametrizations.weight_norm(nn.Linear(width, width)),
            "orthogonal": nn.utils.parametrizations.orthogonal(nn.Linear(width, width)),
            "table": nn.Embedding(4 * width, width, padding_idx=1),
            "narrow": nn.Linear(width, width, dtype=torch.bfloat16),
            "own": nn.Linear(width, width),
            "last": nn.Linear(width, width),
        }
    )
    model["tied"] = nn.Linear(width, width)
    model["tied"].weight = model["first"].weight
    model["norm"].running_mean.normal_()
    return model


def chosen(model):
    """Steps of every kind for it."""

    def choose(site):
        if site.name.startswith("own"):
            return From(nn.init.uniform_)
        if len(site.shape) < 2:
            return Ones() if site.role == "norm_weight" else Zeros()
        structured = site.name.startswith(("orthogonal", "last"))
        return Orthogonal() if structured else Normal(0.5)

    return pairs(model, choose)


def outcomes(model):
    """The state of a model before and after it is written without interruption."""
    before = state(model)
    apply_steps(chosen(model), Drawing(0))
    return before, state(model)


def restore(model, values):
    """Give a model a state back."""
    model.load_state_dict(values)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("burst", [1, 3])
def test_signals(tries, threads, burst):
    """A signal whose handler raises, or several at once, at any moment."""
    rng = random.Random(threads + burst)
    model = mixed(256)
    before, after = outcomes(model)
    started = time.perf_counter()
    apply_steps(chosen(model), Drawing(0, threads=threads))
    took = time.perf_counter() - started

    for _ in tries(12):
        restore(model, before)
        steps = chosen(model)
        under_signals(
            lambda steps=steps: apply_steps(steps, Drawing(0, threads=threads)),
            rng.uniform(0, took),
            burst,
        )
        found = state(model)

        assert same(found, before) or same(found, after)


def under_signals(action, after, count=1):
    """Run something, and raise an interrupt in it by each of several signals after some seconds."""

    def raises(number, frame):
        while frame is not None and frame.f_code is not action.__code__:
            frame = frame.f_back
        if frame is not None:
            raise Interrupt

    kinds = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGIO][:count]
    handlers = {kind: signal.signal(kind, raises) for kind in kinds}
    timer = threading.Timer(after, lambda: [signal.raise_signal(kind) for kind in kinds])
    timer.start()
    with contextlib.suppress(Interrupt):
        action()
    timer.join()
    for kind, handler in handlers.items():
        signal.signal(kind, handler)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_asynchronous_exceptions(tries, monkeypatch):
    """An exception that another thread raises in the one that writes, as task runners do.

    One that comes while that thread starts another may kill the newborn one: nothing hangs.
    """
    monkeypatch.setattr(crew, "_BIRTH", 0.5)
    rng = random.Random(1)
    model = mixed(256)
    before, after = outcomes(model)
    for _ in tries(12):
        restore(model, before)
        thread = threading.Thread(target=_suppressed, args=(chosen(model),))
        thread.start()
        time.sleep(rng.uniform(0, 0.03))
        kind = ctypes.py_object(Interrupt)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), kind)
        thread.join()
        found = state(model)

        assert same(found, before) or same(found, after)


def _suppressed(steps):
    with contextlib.suppress(Interrupt, ApplyError):
        apply_steps(steps, Drawing(0))


PLACES = {
    "draws": (blocks, "fill_with"),
    "pieces": (Piece, "put"),
    "journal": (journal.Journal, "save"),
    "attributes": (journal.Journal, "assign"),
    "parametrisations": (parametrized, "pieces"),
    "fills": (blocks, "_fill_all"),
}


@pytest.mark.parametrize("kind", [MemoryError, RuntimeError], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("place", PLACES)
def test_failures(tries, monkeypatch, place, kind):
    """Something fails at any of the calls that writing makes: an error of ours, nothing written."""
    model = mixed(32)
    before, after = outcomes(model)
    holder, name = PLACES[place]
    function = getattr(holder, name)
    failed = 0
    for number in tries(12):
        restore(model, before)
        calls = iter(range(number, -1, -1))

        def fails(*args, calls=calls, **kwargs):
            if next(calls, 1) == 0:
                raise kind("here")
            return function(*args, **kwargs)

        steps = chosen(model)
        monkeypatch.setattr(holder, name, fails)
        try:
            apply_steps(steps, Drawing(0))
        except InitPolicyError:
            failed += 1
            assert same(state(model), before)
        else:
            assert same(state(model), after)
        finally:
            monkeypatch.setattr(holder, name, function)
    assert failed


@pytest.mark.parametrize(
    ("place", "times", "outcome"),
    [("journal", 1, "before"), ("draws", 1, "after"), ("draws", 99, "half written")],
)
def test_failures_beyond_the_journal(monkeypatch, place, times, outcome):
    """Of a model too large for the journal what may fail is undone; what may not is done again."""
    model = nn.Sequential(nn.Linear(4200, 4200), nn.Linear(16, 16))
    assert model[0].weight.nbytes > journal.ROOM
    steps = pairs(model, lambda site: Orthogonal() if site.shape == (16, 16) else Normal(0.5))
    before = state(model)
    apply_steps(steps, Drawing(0))
    after = state(model)
    restore(model, before)
    holder, name = PLACES[place]
    function, left = getattr(holder, name), iter(range(times))

    def fails(*args, **kwargs):
        if next(left, None) is not None:
            raise MemoryError("here")
        return function(*args, **kwargs)

    monkeypatch.setattr(holder, name, fails)
    expected = contextlib.nullcontext() if outcome == "after" else pytest.raises(ApplyError)
    with expected as raised:
        apply_steps(steps, Drawing(0))

    if outcome == "half written":
        assert "half written; apply the policy again" in str(raised.value)
    else:
        assert same(state(model), {"before": before, "after": after}[outcome])


def test_no_thread_starts(monkeypatch):
    """Where the machine starts no thread, or only some, nothing hangs and nothing is lost."""
    model = mixed(32)
    before, after = outcomes(model)
    start = _thread.start_new_thread
    for allowed in (0, 1, 2):
        restore(model, before)
        left = iter(range(allowed))

        def starts(function, arguments, left=left):
            if next(left, None) is None:
                raise RuntimeError("can't start new thread")
            return start(function, arguments)

        monkeypatch.setattr(_thread, "start_new_thread", starts)
        expected = pytest.raises(ApplyError, match="no thread starts")
        with contextlib.nullcontext() if allowed else expected:
            apply_steps(chosen(model), Drawing(0, threads=3))
        monkeypatch.setattr(_thread, "start_new_thread", start)

        assert same(state(model), after if allowed else before)


@pytest.mark.parametrize(
    "weight",
    [
        pytest.param(torch.randn(6, 6, dtype=torch.cfloat).conj(), id="conjugate"),
        pytest.param(torch.randn(6, 6, dtype=torch.cfloat).conj().imag, id="negative"),
        pytest.param(torch.randn(6, 6, dtype=torch.cfloat).t().conj(), id="transposed conjugate"),
    ],
)
def test_lazy_views(weight):
    """A view that negates or conjugates what lies in memory reads as what was drawn."""
    model, plain = nn.Module(), nn.Module()
    model.phase = nn.Parameter(weight)
    plain.phase = nn.Parameter(weight.resolve_conj().resolve_neg().contiguous())
    for each in (model, plain):
        apply_steps(pairs(each, lambda site: Normal(1.0)), Drawing(0))

    assert torch.equal(model.phase.detach(), plain.phase.detach())


class Locked(nn.Linear):
    """A layer that refuses attributes once it is locked."""

    def __setattr__(self, name, value):
        """Refuse what the test forbids."""
        if "lock" in self.__dict__:
            raise RuntimeError("locked")
        super().__setattr__(name, value)


def test_own_setattr():
    """An owner's `__setattr__` is not asked: values are written, not attributes."""
    model = nn.Sequential(nn.Linear(8, 8), nn.utils.weight_norm(Locked(8, 8)))
    vars(model[1])["lock"] = True
    before = state(model)
    apply_steps(pairs(model, lambda site: Normal(1.0)), Drawing(0))

    assert not any(torch.equal(value, before[name]) for name, value in state(model).items())


def test_sparse_statistics():
    """Statistics that cannot be reset keep the weights from being written."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].running_var = torch.ones(4).to_sparse()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ApplyError, match="nothing was written"):
        apply_steps(pairs(model, lambda site: Normal(1.0)), Drawing(0), model=model)

    assert all(map(torch.equal, before, model.parameters()))


def test_names_of_any_characters():
    """A name that no encoding takes is drawn like any other."""
    model = nn.Module()
    model.register_parameter("w\udc80", nn.Parameter(torch.zeros(4)))
    apply_steps(pairs(model, lambda site: Normal(1.0)), Drawing(0))

    assert model.get_parameter("w\udc80").count_nonzero() == 4


def test_interrupted_calibration(tries):
    """`lsuv_` is all or nothing too, its orthogonal start included."""
    rng = random.Random(2)
    model = nn.Sequential(*[nn.Linear(96, 96) for _ in range(6)])
    batch = torch.randn(64, 96)
    before = state(model)
    lsuv_(model, batch)
    after = state(model)

    for _ in tries(10):
        restore(model, before)
        under_signals(lambda: lsuv_(model, batch), rng.uniform(0, 0.04))
        found = state(model)

        assert same(found, before) or same(found, after)
