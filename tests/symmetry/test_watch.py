"""The watch warns trainings that need it, early and once, and says nothing to all others."""

import copy
import gc
import pickle
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.optim import optimizer as torch_optimizer

from tests.symmetry.cases import CASES, Case, constant, fill, mlp
from torch_initpolicy.errors import InitPolicyWarning, SymmetricInitError, SymmetricInitWarning
from torch_initpolicy.symmetry.followed import Followed
from torch_initpolicy.symmetry.watch import warn_on_symmetry

pytestmark = pytest.mark.usefixtures("one_thread")

UNSEEN = {
    "units_summed",  # nothing with parameters reads the units
    "equal_modulations",  # likewise
    "maxout_with_equal_pieces",  # likewise: the pieces meet in a maximum
    "two_towers_constant",  # likewise: the towers meet in a product
    "mlp_zero_hidden_random_bias_relu",  # half of the rows move; the others may only be unused
}
"""Cases in which gradients alone leave it open that something is wrong; `find_symmetry` knows."""

BROKEN_BY_ROUNDING = {("weight_norm_constant", True)}
"""Adam takes full steps along what is nothing but rounding, where weight norm leaves no gradient;
so in float32 these ties are gone after one."""


@pytest.fixture(autouse=True)
def _no_hooks_left() -> Iterator[None]:
    """Every test leaves torch's optimizers without hooks of ours."""
    yield
    assert not torch_optimizer._global_optimizer_pre_hooks
    assert not torch_optimizer._global_optimizer_post_hooks


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Make the plainest of optimizers."""
    return torch.optim.SGD(model.parameters(), lr=0.05)


def tied() -> nn.Sequential:
    """Build a network whose hidden units are all one."""
    return constant(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def healthy() -> nn.Sequential:
    """Build a network with a zero head, which breaks by itself."""
    model = mlp(nn.Tanh())
    fill(model[2], 0.0)
    return model


Step = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor], None]


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    """Do what every training loop does."""
    optimizer.zero_grad()
    (model(x) - y).pow(2).mean().backward()
    optimizer.step()


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    step: Step = plain_step,
    steps: int = 12,
) -> list[int]:
    """Train, and return the numbers of the steps that were warned, counted from 1."""
    optimizer = optimizer or sgd(model)
    generator = torch.Generator().manual_seed(0)
    warned = []
    for number in range(1, steps + 1):
        x, y = torch.randn(8, 5, generator=generator), torch.randn(8, 3, generator=generator)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step(model, optimizer, x, y)
        warned += [number for w in caught if issubclass(w.category, SymmetricInitWarning)]
    return warned


class TestTable:
    @pytest.mark.parametrize("adam", [False, True], ids=["sgd", "adam"])
    @pytest.mark.parametrize(
        "case", [case for case in CASES if case.name not in UNSEEN], ids=lambda case: case.name
    )
    def test_warned_if_and_only_if_something_is_wrong(self, case: Case, adam):
        """On every start of the table, in float32, by SGD and by Adam."""
        if (case.name, adam) in BROKEN_BY_ROUNDING:
            pytest.skip("rounding breaks the tie")
        torch.manual_seed(1)
        model = case.build()
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = (
            torch.optim.Adam(trained, lr=3e-3) if adam else torch.optim.SGD(trained, lr=0.05)
        )
        generator = torch.Generator().manual_seed(2)
        watch = warn_on_symmetry(model, on_symmetry="raise")
        found = ""
        try:
            for _ in range(32):
                _step_of(case, model, optimizer, generator)
        except SymmetricInitError as error:
            found = str(error)
        finally:
            watch.remove()

        assert bool(case.tied | case.dead) == bool(found), found


def _step_of(
    case: Case, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> None:
    dtype = (
        next(p.dtype for p in model.parameters() if not p.is_complex())
        if case.name != "complex_weights_constant"
        else torch.float32
    )
    batch = (x.to(dtype) if x.is_floating_point() else x for x in case.inputs(generator))
    output = model(*batch)
    values = output.values() if isinstance(output, dict) else output
    outputs = (values,) if isinstance(values, Tensor) else tuple(values)
    targets = [torch.randn(y.shape, generator=generator) for y in outputs]
    loss = (
        case.loss(output)
        if case.loss
        else sum((y - t).pow(2).mean() for y, t in zip(outputs, targets, strict=True))
    )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class _Cell(nn.Module):
    """A recurrent core with equal weights below a random head, which tells its units apart."""

    def __init__(self) -> None:
        super().__init__()
        self.core = fill(nn.RNN(5, 8, batch_first=True), 0.1)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(torch.stack([x, x.roll(1, 1), x.flip(1)], 1))[0][:, -1])


SHORT = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=1e-3),
    "sgd-tiny": lambda parameters: torch.optim.SGD(parameters, lr=1e-5),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=1e-5),
    "adam-tiny": lambda parameters: torch.optim.Adam(parameters, lr=1e-6),
}


class TestShortSteps:
    """Units that have separated move the gradients of others by no more than the step length."""

    @pytest.mark.parametrize("make", SHORT.values(), ids=SHORT)
    def test_no_warning_while_units_are_parting(self, make):
        """The recurrence's columns follow its rows by so little that one look would not tell."""
        torch.manual_seed(0)
        model = _Cell()
        with warn_on_symmetry(model):
            assert train(model, make(model.parameters()), steps=40) == []

    @pytest.mark.parametrize("make", SHORT.values(), ids=SHORT)
    def test_ties_are_found_as_soon(self, make):
        """A network that is one unit for ever is so from the second step, however short."""
        model = tied()
        with warn_on_symmetry(model):
            assert train(model, make(model.parameters())) == [2]


class TestWarning:
    def test_at_the_second_step_and_once(self):
        """One gradient could be a plateau's; two, where everything moves, are proof."""
        model = tied()
        with warn_on_symmetry(model):
            assert train(model) == [2]

    def test_says_who_which_how_many_and_what_to_write(self):
        """Names, numbers of units, their count and the remedy are in the message."""
        model = tied()
        with warn_on_symmetry(model), pytest.warns(SymmetricInitWarning) as caught:
            _train_loudly(model)

        text = str(caught[0].message)
        assert "0.weight: 6 units tied (outputs 0-5)" in text
        assert "2.weight: 6 units tied (inputs 0-5)" in text
        assert "apply_policy(model, only=['0.weight'])" in text

    def test_points_at_the_training_loop(self):
        """The warning's place is the line that took the step, not one of torch's or of ours."""
        model = tied()
        with warn_on_symmetry(model), pytest.warns(SymmetricInitWarning) as caught:
            _train_loudly(model)

        assert caught[0].filename == __file__

    def test_raise_stops_before_the_step(self):
        """In error mode the weights of the step are not written, and the watch is over."""
        model = tied()
        optimizer = sgd(model)
        x, y = torch.randn(8, 5), torch.randn(8, 3)
        warn_on_symmetry(model, on_symmetry="raise")
        plain_step(model, optimizer, x, y)
        before = copy.deepcopy(model.state_dict())

        with pytest.raises(SymmetricInitError, match=r"0\.weight"):
            plain_step(model, optimizer, x, y)

        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
        plain_step(model, optimizer, x, y)

    def test_other_words_are_refused(self):
        """There are two modes."""
        with pytest.raises(ValueError, match="ignore"):
            warn_on_symmetry(nn.Linear(2, 2), on_symmetry="ignore")

    def test_copies_are_warned_of_by_name(self):
        """Deep-copied branches are named as modules."""

        class Twice(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.left = mlp(nn.Tanh())
                self.right = copy.deepcopy(self.left)

            def forward(self, x: Tensor) -> Tensor:
                return self.left(x) + self.right(x)

        model = Twice()
        with (
            warn_on_symmetry(model),
            pytest.warns(SymmetricInitWarning, match="modules left, right"),
        ):
            _train_loudly(model)


def _train_loudly(model: nn.Module) -> None:
    optimizer = sgd(model)
    for _ in range(4):
        plain_step(model, optimizer, torch.randn(8, 5), torch.randn(8, 3))


class TestEnd:
    def test_nothing_equal_ends_at_the_first_step(self):
        """A model without equal units is looked at once."""
        model = mlp()
        warn_on_symmetry(model)
        train(model, steps=1)

        assert _hooks(model) == 0

    def test_harmless_ends_when_it_breaks(self):
        """A zero head is told apart at the first step, and the hooks are gone."""
        model = healthy()
        warn_on_symmetry(model)

        assert train(model, steps=1) == []
        assert _hooks(model) == 0

    def test_after_the_warning(self):
        """Once warned, the training is on its own."""
        model = tied()
        warn_on_symmetry(model)
        train(model, steps=2)

        assert _hooks(model) == 0

    def test_with_block(self):
        """The end of the block is the end of the watch, also by an exception."""
        model = tied()
        with pytest.raises(KeyError), warn_on_symmetry(model):
            raise KeyError

        assert _hooks(model) == 0
        assert train(model) == []

    def test_remove_twice(self):
        """Removing what has been removed is fine."""
        model = tied()
        handle = warn_on_symmetry(model)
        handle.remove()
        handle.remove()

        assert _hooks(model) == 0
        assert train(model) == []

    @pytest.mark.parametrize("make", [tied, healthy])
    @pytest.mark.parametrize("watched", [True, False], ids=["one", "all"])
    def test_the_model_is_not_kept_alive(self, make, watched):
        """Neither a watch that has ended nor one that waits holds a reference to the model."""
        model = make()
        handle = warn_on_symmetry(model if watched else None)
        train(model, steps=1)
        reference = weakref.ref(model)
        del model
        gc.collect()

        assert reference() is None
        handle.remove()

    def test_a_copy_is_not_followed(self):
        """Copies and pickles of a watched model carry no watch, and run and train as usual."""
        model = tied()
        with warn_on_symmetry(model):
            copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
            quiet = [train(copied) for copied in copies]

        assert quiet == [[], []]

    def test_an_error_of_the_watch_is_no_error_of_the_training(self, monkeypatch):
        """What goes wrong while looking ends the watch with a warning, and the step is taken."""
        model = tied()
        before = model[0].weight.detach().clone()
        monkeypatch.setattr(Followed, "look", lambda *_: 1 / 0)
        handle = warn_on_symmetry(model)
        with pytest.warns(InitPolicyWarning, match="ended: ZeroDivisionError"):
            _train_loudly(model)

        assert not torch.equal(model[0].weight, before)
        assert _hooks(model) == 0
        handle.remove()

    def test_several_threads(self):
        """Models that are trained in several threads are all judged, each once."""
        models = [tied() if n % 2 else healthy() for n in range(6)]
        x, y = torch.randn(8, 5), torch.randn(8, 3)  # drawn once: a draw elsewhere counts as noise

        def train_on_fixed_data(model: nn.Module) -> None:
            optimizer = sgd(model)
            for _ in range(4):
                plain_step(model, optimizer, x, y)

        with warnings.catch_warnings(record=True) as given, warn_on_symmetry():
            warnings.simplefilter("always")
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(train_on_fixed_data, models))

        assert len([w for w in given if w.category is SymmetricInitWarning]) == 3


def _hooks(model: nn.Module) -> int:
    ours = len(torch_optimizer._global_optimizer_pre_hooks)
    ours += len(torch_optimizer._global_optimizer_post_hooks)
    return ours + sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class TestLoops:
    """All the ways in which people train."""

    def test_gradient_accumulation(self):
        """A step's gradients may come from several batches."""

        def step(model, optimizer, x, y):
            optimizer.zero_grad()
            for part_x, part_y in zip(x.chunk(4), y.chunk(4), strict=True):
                ((model(part_x) - part_y).pow(2).mean() / 4).backward()
            optimizer.step()

        model = tied()
        with warn_on_symmetry(model):
            assert train(model, step=step) == [2]
        with warn_on_symmetry(healthy := mlp(nn.Tanh())):
            assert train(healthy, step=step) == []

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
    def test_autocast_and_gradient_scaler(self, dtype):
        """Scaled gradients are equal where unscaled ones are, rounding of halves included."""
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

        def step(model, optimizer, x, y):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype):
                loss = (model(x) - y).pow(2).mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

        model = tied()
        with warn_on_symmetry(model):
            assert train(model, step=step) == [2]
        with warn_on_symmetry(fine := healthy()):
            assert train(fine, step=step) == []

    def test_half_precision_weights(self):
        """Weights and gradients in bfloat16."""

        def step(model, optimizer, x, y):
            plain_step(model, optimizer, x.bfloat16(), y.bfloat16())

        model = tied().bfloat16()
        with warn_on_symmetry(model):
            assert train(model, step=step) == [2]

    def test_closures(self):
        """LBFGS computes its gradients within the step."""

        def step(model, optimizer, x, y):
            def closure():
                optimizer.zero_grad()
                loss = (model(x) - y).pow(2).mean()
                loss.backward()
                return loss

            optimizer.step(closure)

        model = tied()
        with warn_on_symmetry(model):
            optimizer = torch.optim.LBFGS(model.parameters(), max_iter=3)
            assert train(model, optimizer, step=step, steps=4) == [2]
        fine = healthy()
        with warn_on_symmetry(fine):
            optimizer = torch.optim.LBFGS(fine.parameters(), max_iter=3)
            assert train(fine, optimizer, step=step, steps=4) == []

    def test_several_optimizers_and_groups(self):
        """Each layer has an optimizer of its own, one with two groups."""
        model = tied()
        first = torch.optim.SGD(
            [{"params": model[0].weight}, {"params": model[0].bias, "lr": 0.1}], lr=0.05
        )
        second = torch.optim.Adam(model[2].parameters())

        def step(model, optimizer, x, y):
            model.zero_grad()
            (model(x) - y).pow(2).mean().backward()
            first.step()
            second.step()

        with warn_on_symmetry(model):
            (number,) = train(model, step=step)
        assert number <= 3

    def test_twins_with_optimizers_of_their_own(self):
        """Twin critics are compared though their gradients come one after the other."""
        critic = mlp(nn.Tanh())
        model = nn.ModuleDict({"q1": critic, "q2": copy.deepcopy(critic)})
        optimizers = [sgd(critic) for critic in model.values()]

        def step(model, optimizer, x, y):
            for critic, own in zip(model.values(), optimizers, strict=True):
                plain_step(critic, own, x, y)

        with warn_on_symmetry(model):
            assert train(model, sgd(model), step=step, steps=6) != []

    def test_a_warm_up_from_zero_does_not_count(self):
        """While the learning rate is zero, nothing can break."""
        model = nn.Sequential(
            nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)
        )
        fill(model[0], 0.3)
        fill(model[4], 0.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.0 if t < 20 else 1.0)

        def step(model, optimizer, x, y):
            plain_step(model, optimizer, x, y)
            schedule.step()

        with warn_on_symmetry(model):
            assert train(model, optimizer, step=step, steps=30) == []

    def test_frozen_and_unused_parameters(self):
        """What gets no gradient because nobody asks for one is no finding."""
        model = healthy()
        model.add_module("unused", fill(nn.Linear(4, 4), 0.0))
        model.forward = lambda x: model[2](model[1](model[0](x)))
        model[0].requires_grad_(False)
        with warn_on_symmetry(model):
            assert train(model, steps=15) == []

    def test_compiled(self):
        """A compiled model is watched from outside; its own code stays as it is."""
        model = tied()
        compiled = torch.compile(model, backend="eager")
        with warn_on_symmetry(compiled):
            assert train(compiled) != []
        fine = healthy()
        compiled = torch.compile(fine, backend="eager", fullgraph=True)
        with warn_on_symmetry(fine):
            assert train(compiled) == []

    def test_losses_that_treat_all_outputs_alike(self):
        """A smoke test's sum as a loss ties the rows of a zero head; that is the loss' affair."""

        def step(model, optimizer, x, y):
            optimizer.zero_grad()
            model(x).sum().backward()
            optimizer.step()

        model = healthy()
        with warn_on_symmetry(model):
            assert train(model, step=step) == []


class TestNoise:
    def test_dropout_on_the_units_is_waited_for(self):
        """Masks agree by accident now and then: a tie is certain only after many steps."""
        model = constant(nn.Linear(5, 2), nn.Tanh(), nn.Dropout(0.1), nn.Linear(2, 3))

        def step(model, optimizer, x, y):
            plain_step(model, optimizer, x[:1], y[:1])

        with warn_on_symmetry(model):
            assert train(model, step=step, steps=30) == []

    def test_functional_dropout_is_seen_too(self):
        """Random numbers are noticed wherever they are drawn."""

        class Functional(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                return self[1](nn.functional.dropout(self[0](x).tanh(), 0.1))

        model = fill(Functional(nn.Linear(5, 2), nn.Linear(2, 3)), 0.3)

        def step(model, optimizer, x, y):
            plain_step(model, optimizer, x[:1], y[:1])

        with warn_on_symmetry(model):
            assert train(model, step=step, steps=30) == []

    def test_dropout_elsewhere_delays_the_warning(self):
        """With dropout on the inputs the units are tied, which 25 steps make certain."""
        model = constant(nn.Dropout(0.5), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
        with warn_on_symmetry(model):
            assert train(model, steps=30) == [25]

    def test_random_data_is_no_noise(self):
        """Drawing batches moves the random state too, but not in the forward pass."""

        def step(model, optimizer, x, y):
            plain_step(model, optimizer, torch.randn(8, 5), torch.randn(8, 3))

        model = tied()
        with warn_on_symmetry(model):
            assert train(model, step=step) == [2]


class TestEveryModel:
    def test_models_are_found_by_their_optimizers(self):
        """The global form watches every model that is trained while it lasts."""
        first, second, fine = tied(), tied(), healthy()
        with warn_on_symmetry():
            assert train(first) != []
            assert train(fine) == []
            assert train(second) != []

    def test_names_are_those_of_the_outermost_module(self):
        """A part that is trained is called by its name in the outermost module that runs."""
        whole = nn.Sequential(OrderedDict(body=tied()))
        with warn_on_symmetry(), pytest.warns(SymmetricInitWarning, match=r"body\.0\.weight"):
            _train_loudly(whole)

    def test_in_error_mode(self):
        """The global form raises as well."""
        with warn_on_symmetry(on_symmetry="raise"), pytest.raises(SymmetricInitError):
            _train_loudly(tied())

    def test_ends_with_its_handle(self):
        """After `remove` nobody is watched."""
        warn_on_symmetry().remove()

        assert train(tied()) == []
