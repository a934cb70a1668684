"""All or nothing: a model is completely old or completely new, whatever comes in between."""

import _thread
import contextlib
import ctypes
import random
import threading
import time
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from tests.attacks.interrupts import Interrupt, under_signals
from tests.writing.helpers import pairs, same, state
from torch_initpolicy import initializers, lsuv_
from torch_initpolicy.errors import ApplyError, InitPolicyError
from torch_initpolicy.tensors.initializers import From, Normal, Ones, Orthogonal, Zeros
from torch_initpolicy.writing import apply, blocks, crew, journal, parametrized
from torch_initpolicy.writing.apply import apply_steps
from torch_initpolicy.writing.drawing import Drawing
from torch_initpolicy.writing.shards import Piece

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning"),
    # What is raised at any moment may be raised in a finalizer, which Python lets nobody catch.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


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
            "cubed": nn.Linear(width, width),
            "last": nn.Linear(width, width),
        }
    )
    model["tied"] = nn.Linear(width, width)
    model["tied"].weight = model["first"].weight
    model["norm"].running_mean.normal_()
    return model


CUBED = initializers.Transformed(lambda normal: normal**3, std=15**0.5)


@dataclass(frozen=True)
class Cubed(initializers.Initializer):
    """An initializer as users write them."""

    def sampler(self, shape, axes):
        """Cube normals."""
        return initializers.Independent((initializers.Draw(CUBED),))


def chosen(model):
    """Steps of every kind for it, some of them multiplied after they have been filled."""

    def choose(site):
        if site.name.startswith("own"):
            return From(nn.init.uniform_)
        if site.name.startswith("cubed"):
            return Cubed()
        if len(site.shape) < 2:
            return Ones() if site.role == "norm_weight" else Zeros()
        structured = site.name.startswith(("orthogonal", "last"))
        return Orthogonal() if structured else Normal(0.5)

    steps = pairs(model, choose)
    return [
        (site, replace(step, factors=(0.5,) * (i % 3 % 2))) for i, (site, step) in enumerate(steps)
    ]


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
    "factors": (apply, "multiply_"),
    **{name: (Tensor, name) for name in ("copy_", "normal_", "uniform_", "fill_", "mul_", "clone")},
}


@contextlib.contextmanager
def failing(place, calls, kind=MemoryError):
    """Let some of the calls of a function fail, by their numbers; yield all that were made."""
    holder, name = PLACES[place]
    function, made = getattr(holder, name), []

    def fails(*args, **kwargs):
        number = len(made)
        made.append(number)
        if number in calls:
            raise kind("here")
        return function(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(holder, name, fails)
        yield made


@pytest.mark.parametrize("room", [journal.ROOM, 0], ids=["kept", "beyond the journal"])
@pytest.mark.parametrize("kind", [MemoryError, RuntimeError], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("place", PLACES)
def test_failures(tries, monkeypatch, place, kind, room):
    """Any one call that writing makes fails: all is written, or an error of ours and nothing.

    That holds where the old values are too large to be kept, too: what may fail is undone, and
    what is drawn in place is drawn again.
    """
    monkeypatch.setattr(journal, "ROOM", room)
    model = mixed(32)
    before = state(model)
    with failing(place, [], kind) as called:
        apply_steps(chosen(model), Drawing(0))
    after = state(model)
    rng = random.Random(0)
    for _ in tries(3):
        restore(model, before)
        steps = chosen(model)
        with failing(place, [rng.choice(called)], kind):
            try:
                apply_steps(steps, Drawing(0))
            except InitPolicyError:
                left = before
            else:
                left = after
        assert same(state(model), left)


@pytest.mark.parametrize("place", ["draws", "normal_", "copy_", "fill_", "mul_"])
def test_what_never_works(monkeypatch, place):
    """What torch cannot do with a tensor is found before the first write, whatever the size."""
    monkeypatch.setattr(journal, "ROOM", 0)
    model = nn.Linear(16, 16).double()
    steps = [
        (site, replace(step, factors=(2.0,)))
        for site, step in pairs(model, lambda site: Normal(0.5))
    ]
    before = state(model)
    with failing(place, range(10**6)), pytest.raises(ApplyError, match="nothing was written"):
        apply_steps(steps, Drawing(0))

    assert same(state(model), before)


def test_a_machine_that_breaks(monkeypatch):
    """What worked a moment ago never works again, and nothing was kept: the error says so."""
    monkeypatch.setattr(journal, "ROOM", 0)
    model = nn.Linear(16, 16)
    with failing("draws", range(2, 99)), pytest.raises(ApplyError, match="half written; apply"):
        apply_steps(pairs(model, lambda site: Normal(0.5)), Drawing(0))


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
