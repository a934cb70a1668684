"""`@init_policy`: once, after the outermost constructor, whatever Python does around it."""

import abc
import copy
import dataclasses
import inspect
import io
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from torch_initpolicy import (
    InitPolicy,
    Rule,
    init_policy,
    initializers,
    match,
    materialize,
    skip_init,
)


def around(value: float) -> InitPolicy:
    """Make a policy that draws every parameter between `value - 0.5` and `value + 0.5`."""
    return InitPolicy([Rule(match.name("*"), initializers.Uniform(value - 0.5, value + 0.5))])


BASE, DERIVED = 10.0, 20.0


def authors(module: nn.Module) -> set[float]:
    """Tell which policies the parameters come from: the value each lies around, in tens."""
    real = (parameter.detach() for parameter in module.parameters() if not parameter.is_meta)
    return {round(parameter.mean().item() / 10) * 10.0 for parameter in real}


@init_policy(around(BASE), seed=0)
class Base(nn.Module):
    """A decorated class with one layer."""

    def __init__(self, width: int = 4, *, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(3, width, bias=bias)

    def forward(self, x):
        return self.first(x)


class Plain(Base):
    """An undecorated subclass that adds a layer after its parent's constructor."""

    def __init__(self, depth: int) -> None:
        super().__init__(width=depth)
        self.authors_seen_inside = authors(self)
        self.second = nn.Linear(depth, depth)

    def forward(self, x):
        return self.second(super().forward(x))


class Inheriting(Plain):
    """A subclass without a constructor of its own."""


@init_policy(around(DERIVED), seed=0)
class Decorated(Plain):
    """A decorated subclass of an undecorated subclass of a decorated class."""

    def __init__(self) -> None:
        super().__init__(depth=5)
        self.third = nn.Linear(5, 5)

    def forward(self, x):
        return self.third(super().forward(x))


class TestOrder:
    """The policy runs once, at the very end, and only the most derived one."""

    def test_runs_at_the_end_of_the_constructor(self):
        """An object of the decorated class is initialised by its policy."""
        assert authors(Base()) == {BASE}

    def test_a_subclass_is_first_built_completely(self):
        """Layers a subclass adds are covered, and nothing ran before they were there."""
        model = Plain(6)

        assert authors(model) == {BASE}
        assert model.authors_seen_inside == {0.0}

    def test_a_subclass_without_constructor(self):
        """A class that only inherits its constructor is covered like its parent."""
        assert authors(Inheriting(6)) == {BASE}

    def test_the_most_derived_policy_wins(self):
        """Of two decorated classes in one line only the last one's policy runs."""
        model = Decorated()

        assert authors(model) == {DERIVED}
        assert model.authors_seen_inside == {0.0}

    @pytest.mark.parametrize("first", [Base, Plain, Decorated], ids=lambda cls: cls.__name__)
    def test_order_of_first_use_does_not_matter(self, first):
        """Building a parent before or after its subclass changes nothing for either."""
        first() if first is not Plain else first(2)

        assert authors(Plain(3)) == {BASE}
        assert authors(Decorated()) == {DERIVED}
        assert authors(Base()) == {BASE}

    def test_runs_once(self):
        """One construction calls the policy once, however many constructors were chained."""
        calls = []

        class Counted(Decorated):
            __init_policy__ = staticmethod(calls.append)

        model = Counted()

        assert calls == [model]

    def test_a_model_speaks_after_its_parts(self):
        """A decorated model initialises its decorated parts again, by its own policy."""

        @init_policy(around(DERIVED))
        class Outer(nn.Sequential):
            def __init__(self):
                super().__init__(Base(), nn.Linear(4, 2))

        assert authors(Outer()) == {DERIVED}

    def test_a_part_keeps_its_policy_in_a_plain_model(self):
        """A decorated part is initialised on its own where nobody speaks for the whole."""
        model = nn.Sequential(Base(), nn.ReLU())

        assert authors(model) == {BASE}

    def test_the_seed_decides(self):
        """The same seed gives the same weights to every object, whatever was drawn before."""
        first = Base()
        torch.rand(7)

        assert torch.equal(first.first.weight, Base().first.weight)

    def test_without_a_seed_the_global_generator_governs(self):
        """`torch.manual_seed` decides the weights of a class that names no seed."""

        @init_policy(around(BASE))
        class Free(nn.Sequential):
            def __init__(self):
                super().__init__(nn.Linear(3, 3))

        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            drawn.append(Free()[0].weight.detach())

        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[0], drawn[2])


class TestForms:
    """With and without parentheses, and with every option."""

    def test_bare(self):
        """`@init_policy` alone means `auto`, which sets biases to zero."""

        @init_policy
        class Bare(nn.Sequential):
            def __init__(self):
                super().__init__(nn.Linear(8, 8), nn.ReLU())

        assert Bare()[0].bias.count_nonzero() == 0

    def test_empty_parentheses(self):
        """`@init_policy()` is the same as `@init_policy`."""

        @init_policy()
        class Empty(nn.Sequential):
            def __init__(self):
                super().__init__(nn.Linear(8, 8), nn.ReLU())

        assert Empty()[0].bias.count_nonzero() == 0

    def test_as_a_call_on_a_class_of_somebody_else(self):
        """`init_policy(...)(Class)` initialises objects of a subclass made on the spot."""

        class Theirs(nn.Linear):
            pass

        decorated = init_policy(around(BASE))(Theirs)

        assert decorated is Theirs
        assert authors(Theirs(2, 2)) == {BASE}
        assert authors(nn.Linear(2, 2)) == {0.0}

    def test_options_reach_the_policy(self):
        """What `skip=` names keeps its constructor's value."""

        @init_policy(around(BASE), skip=["first.bias"])
        class Skipping(Base):
            pass

        model = Skipping()

        assert authors(nn.ParameterList([model.first.weight])) == {BASE}
        assert authors(nn.ParameterList([model.first.bias])) == {0.0}

    def test_the_policy_can_be_run_again(self):
        """`Net.__init_policy__(model)` applies the class' policy with its options."""
        model = Base()
        nn.init.zeros_(model.first.weight)

        Base.__init_policy__(model)

        assert authors(model) == {BASE}

    def test_decorating_twice_takes_the_outer_one(self):
        """Of two decorators on one class the upper one, which runs last, counts."""

        @init_policy(around(DERIVED))
        @init_policy(around(BASE))
        class Twice(nn.Linear):
            pass

        assert authors(Twice(2, 2)) == {DERIVED}

    @pytest.mark.parametrize("thing", [int, lambda: nn.Linear(2, 2)], ids=["int", "function"])
    def test_only_module_classes(self, thing):
        """Anything but a class of modules is refused, with what to write instead."""
        with pytest.raises(TypeError, match=r"apply_policy\(model\)"):
            init_policy("he")(thing)

    def test_bare_on_another_class(self):
        """A class that is no module is refused without parentheses, too."""
        with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
            init_policy(int)

    def test_unknown_preset_is_refused_where_the_class_is_written(self):
        """A misspelt preset fails at the decorator, not at the first object."""
        with pytest.raises(LookupError, match="xavier"):
            init_policy("xaiver")

    def test_unknown_option(self):
        """An option that does not exist is refused where the class is defined."""
        with pytest.raises(TypeError, match=r"no argument .sead.; did you mean .seed."):
            init_policy("he", sead=0)


class TestIdentity:
    """The class stays what it was."""

    @pytest.mark.parametrize("built", [False, True], ids=["before-first-use", "after-first-use"])
    def test_signature(self, built):
        """`inspect.signature` shows the constructor of the class asked about, at any time."""

        @init_policy(around(BASE))
        class Own(nn.Module):
            def __init__(self, width: int = 4, *, bias: bool = True) -> None:
                super().__init__()
                self.layer = nn.Linear(2, width, bias=bias)

        class Mixin:
            def __init__(self, depth: str) -> None:
                super().__init__()
                self.depth = depth

        class Sub(Mixin, Own):
            pass

        if built:
            Own(), Sub("x")

        assert str(inspect.signature(Own)) == "(width: int = 4, *, bias: bool = True) -> None"
        assert str(inspect.signature(Sub)) == "(depth: str) -> None"
        assert list(inspect.signature(Own.__init__).parameters) == ["self", "width", "bias"]

    def test_type_and_metaclass(self):
        """Objects are of the very class, and the class of the very metaclass."""
        assert type(Base()) is Base
        assert type(Base) is type
        assert isinstance(Plain(2), Base)
        assert Base.__name__ == "Base"
        assert Base.__doc__ == "A decorated class with one layer."
        assert Base.__init__.__qualname__ == "Base.__init__"

    def test_mixes_with_another_metaclass(self):
        """A subclass may also be an abstract base class."""

        class Abstract(Base, abc.ABC):
            @abc.abstractmethod
            def head(self): ...

        class Concrete(Abstract):
            def head(self):
                return self.first

        assert authors(Concrete()) == {BASE}
        with pytest.raises(TypeError, match="abstract"):
            Abstract()

    def test_wrong_arguments_are_the_constructors_error(self):
        """A call that does not fit fails as it would undecorated."""
        with pytest.raises(TypeError, match="unexpected keyword argument 'depht'"):
            Base(depht=3)

    def test_state_dict_and_attributes_are_untouched(self):
        """Nothing of the decorator is kept in an object."""
        model = Base()

        assert list(model.state_dict()) == ["first.weight", "first.bias"]
        assert vars(model).keys() == vars(nn.Linear(1, 1)).keys() - {"in_features", "out_features"}


def save_and_load(model):
    """Send a whole module through `torch.save` and `torch.load`."""
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "torch.save": save_and_load,
}


class TestCopies:
    """Copying is no construction."""

    @pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
    @pytest.mark.parametrize("build", [Base, Decorated], ids=["Base", "Decorated"])
    def test_a_copy_keeps_its_weights(self, build, duplicate):
        """Trained weights survive a copy bit for bit: the policy is not run again."""
        model = build()
        with torch.no_grad():
            model.first.weight.add_(1.25)

        twin = duplicate(model)

        assert type(twin) is build
        assert twin.first.weight is not model.first.weight
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            assert torch.equal(ours, theirs)

    def test_deepcopy_of_a_parametrised_module(self):
        """`deepcopy` calls `__new__` of torch's dynamic class without arguments; that must do."""
        model = Base()
        parametrize.register_parametrization(model.first, "weight", nn.Identity())

        assert torch.equal(copy.deepcopy(model).first.weight, model.first.weight)

    def test_loading_a_state_dict_is_unchanged(self):
        """A state dict loads into a decorated model as into any other."""
        model, other = Base(), Base()
        nn.init.ones_(other.first.weight)

        model.load_state_dict(other.state_dict())

        assert torch.equal(model.first.weight, other.first.weight)


@init_policy(around(BASE))
@dataclasses.dataclass(eq=False)
class Data(nn.Module):
    """A dataclass that builds its layers in `__post_init__`."""

    width: int = 3

    def __post_init__(self):
        super().__init__()
        self.layer = nn.Linear(2, self.width)


@dataclasses.dataclass(eq=False)
class DataSub(Data):
    """A dataclass of a decorated dataclass: its generated constructor calls no `super()`."""

    depth: int = 2

    def __post_init__(self):
        super().__post_init__()
        self.more = nn.Linear(self.width, self.depth)


@dataclasses.dataclass(eq=False)
@init_policy(around(BASE))
class Above(nn.Module):
    """The dataclass decorator above ours, which runs after it."""

    width: int = 3

    def __post_init__(self):
        super().__init__()
        self.layer = nn.Linear(2, self.width)


@init_policy(around(BASE))
@dataclasses.dataclass(eq=False)
class ByNew(nn.Module):
    """The other way to write one: `__new__` readies the module, fields hold the layers."""

    layer: nn.Module = dataclasses.field(default_factory=lambda: nn.Linear(2, 2))

    def __new__(cls, *args, **kwargs):
        self = super().__new__(cls)
        nn.Module.__init__(self)
        return self


@dataclasses.dataclass(eq=False)
class ByNewSub(ByNew):
    """A dataclass with a layer more, without any hand-written constructor."""

    more: nn.Module = dataclasses.field(default_factory=lambda: nn.Linear(2, 2))


class TestDataclasses:
    """Classes whose constructor is written by a decorator, before or after ours."""

    @pytest.mark.parametrize(
        ("build", "count"),
        [(Data, 2), (DataSub, 4), (Above, 2), (ByNew, 2), (ByNewSub, 4)],
        ids=lambda value: getattr(value, "__name__", None),
    )
    def test_is_covered(self, build, count):
        """Every parameter is initialised, whichever constructor made it."""
        model = build()

        assert len(list(model.parameters())) == count
        assert authors(model) == {BASE}

    def test_arguments_and_signature(self):
        """The generated constructor takes its fields as before."""
        assert DataSub(4, depth=1).more.weight.shape == (1, 4)
        assert list(inspect.signature(DataSub).parameters) == ["width", "depth"]
        assert list(inspect.signature(Above).parameters) == ["width"]

    def test_a_class_that_is_made_again(self):
        """A decorator that copies the class, as `dataclass(slots=True)` does, changes nothing."""
        copied = type(Base)("Copied", Base.__bases__, dict(vars(Base)) | {"__doc__": "A copy."})

        class Net(copied):
            def __init__(self):
                nn.Module.__init__(self)
                self.layer = nn.Linear(2, 2)

        assert authors(Net()) == {BASE}


class TestConstruction:
    """What constructors may do."""

    def test_an_exception_passes_and_nothing_runs(self):
        """A constructor that raises gives its own error; the next object is built normally."""
        calls = []

        class Failing(Base):
            __init_policy__ = staticmethod(calls.append)

            def __init__(self, fail):
                super().__init__()
                if fail:
                    raise RuntimeError("out of cheese")

        with pytest.raises(RuntimeError, match="out of cheese"):
            Failing(fail=True)
        assert calls == []

        Failing(fail=False)
        assert len(calls) == 1

    def test_new_with_arguments(self):
        """A `__new__` of the class itself still gets the constructor's arguments."""

        @init_policy(around(BASE))
        class Named(nn.Linear):
            def __new__(cls, *args, name):
                self = super().__new__(cls)
                object.__setattr__(self, "label", name)
                return self

            def __init__(self, *args, name):
                super().__init__(*args)

        model = Named(2, 2, name="head")

        assert model.label == "head"
        assert authors(model) == {BASE}

    def test_new_of_a_subclass(self):
        """A `__new__` further down that passes arguments on to `super()` works."""

        class Sub(Base):
            def __new__(cls, *args, **kwargs):
                return super().__new__(cls, *args, **kwargs)

        assert authors(Sub(width=2)) == {BASE}

    def test_new_that_makes_a_class_for_each_object(self):
        """An object of a class made on the spot, as `torch.fx` makes one, is covered."""

        @init_policy(around(BASE))
        class PerObject(nn.Module):
            def __new__(cls, *args):
                return super().__new__(type("Own", (cls,), {}))

            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(2, 2)

        model = PerObject()

        assert type(model) is not PerObject
        assert authors(model) == {BASE}

    def test_new_that_returns_something_else(self):
        """An object of another class is left alone, as Python does."""

        @init_policy(around(BASE))
        class Factory(nn.Module):
            def __new__(cls):
                return nn.Linear(2, 2)

        assert authors(Factory()) == {0.0}

    def test_singleton_keeps_its_weights(self):
        """Calling a singleton's class again runs its constructor, but must not wipe training."""

        @init_policy(around(BASE))
        class Single(nn.Module):
            instance = None

            def __new__(cls):
                cls.instance = cls.instance or super().__new__(cls)
                return cls.instance

            def __init__(self):
                if "_parameters" in vars(self):
                    return
                super().__init__()
                self.layer = nn.Linear(2, 2)

        model = Single()
        assert authors(model) == {BASE}
        nn.init.zeros_(model.layer.weight)
        nn.init.zeros_(model.layer.bias)

        assert Single() is model
        assert authors(model) == {0.0}

    def test_constructed_again(self):
        """`model.__init__()` makes new layers, so the policy runs on them."""
        model = Base()
        old = model.first.weight

        model.__init__()

        assert model.first.weight is not old
        assert authors(model) == {BASE}

    def test_multiple_inheritance(self):
        """Of two decorated parents the first in the method resolution order speaks."""

        @init_policy(around(DERIVED))
        class Other(nn.Module):
            def __init__(self):
                super().__init__()
                self.other = nn.Linear(2, 2)

        class Both(Other, Base):
            pass

        model = Both()

        assert {name for name, _ in model.named_children()} == {"first", "other"}
        assert authors(model) == {DERIVED}

    def test_a_constructor_that_parametrises_itself(self):
        """Registering a parametrisation on `self` changes its class; the policy still runs."""

        class Symmetric(nn.Module):
            def forward(self, x):
                return x

            def right_inverse(self, x):
                return x

        @init_policy(around(BASE))
        class Self(nn.Linear):
            def __init__(self):
                super().__init__(3, 3)
                parametrize.register_parametrization(self, "weight", Symmetric())

        model = Self()

        assert type(model) is not Self
        assert authors(model) == {BASE}

    def test_no_parameters(self):
        """A decorated class without parameters can be built; there is nothing to do."""

        @init_policy("he")
        class Empty(nn.Module):
            pass

        assert list(Empty().parameters()) == []

    def test_threads_that_build_the_first_objects(self):
        """Classes are readied once, also when many threads build their first objects at once."""
        calls = []

        @init_policy(around(BASE))
        class Shared(Base):
            pass

        Shared.__init_policy__ = staticmethod(calls.append)
        start = threading.Barrier(8)

        def build():
            start.wait()
            Shared()

        threads = [threading.Thread(target=build) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert len(calls) == 8


class TestMeta:
    """Models without memory."""

    def test_on_the_meta_device_nothing_is_written(self):
        """Construction under `torch.device("meta")` works and stays on meta."""
        with torch.device("meta"):
            model = Decorated()

        assert all(parameter.is_meta for parameter in model.parameters())

    def test_a_meta_model_can_be_given_its_policy_later(self):
        """Once it has memory, the class' policy can be applied by hand."""
        with torch.device("meta"):
            model = Base()

        Base.__init_policy__(model.to_empty(device="cpu"))

        assert authors(model) == {BASE}

    def test_materialize_has_the_last_word(self):
        """A meta-built model is made real by the policy that `materialize` is given."""
        with torch.device("meta"):
            model = Base()

        materialize(model, around(DERIVED), seed=0)

        assert authors(model) == {DERIVED}


class TestSkipInit:
    """Constructors whose own draws are skipped."""

    def test_the_policy_is_not_skipped(self):
        """Within `skip_init` the constructor's fills are skipped, the class' policy is not."""
        with skip_init():
            model = Decorated()

        assert authors(model) == {DERIVED}
        assert torch.equal(model.first.weight, Decorated().first.weight)


@init_policy(around(BASE), seed=0)
class Lazy(nn.Module):
    """Layers whose inputs are not known before the first forward, and a random one."""

    def __init__(self):
        super().__init__()
        self.first = nn.LazyLinear(4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.second = nn.LazyLinear(2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, *, shift=0.0):
        self.calls += 1
        return self.second(self.drop(self.norm(self.first(x)))) + shift


def is_waiting(module):
    """Say whether a policy still waits for the module's first forward."""
    return bool(module._forward_pre_hooks)


class TestLazy:
    """Lazy layers: the policy waits for their shapes."""

    def test_waits_for_the_first_forward(self):
        """Construction succeeds; the first forward brings the policy, and no later one."""
        model = Lazy()
        assert is_waiting(model)

        model(torch.ones(3, 5), shift=1.0)

        assert authors(model) == {BASE}
        assert not is_waiting(model)
        nn.init.zeros_(model.first.weight)
        model(torch.ones(3, 5))
        assert model.first.weight.count_nonzero() == 0

    def test_the_first_forward_uses_the_new_weights_and_can_be_trained(self):
        """The first output is already the policy's, and its backward is not disturbed."""
        model = Lazy().eval()
        x = torch.ones(3, 5)

        output = model(x)
        output.sum().backward()

        assert torch.equal(output, model(x))
        assert model.first.weight.grad is not None

    def test_the_dry_run_leaves_the_random_state(self):
        """The first forward draws its dropout masks once, as an ordinary model does."""
        model = Lazy()
        torch.manual_seed(3)
        first = model(torch.ones(3, 5))
        torch.manual_seed(3)

        assert torch.equal(first, model(torch.ones(3, 5)))

    def test_the_dry_run_leaves_buffers(self):
        """What a forward counts or averages in buffers is that of one forward, not of two."""
        model = Lazy()
        model(torch.ones(3, 5))

        assert model.norm.num_batches_tracked == 1
        assert model.calls == 1

    def test_a_failing_first_forward_changes_nothing(self):
        """A wrong first input raises its own error, and the policy still waits."""
        model = Lazy()
        with pytest.raises(TypeError):
            model(torch.ones(3, 5), shift="up")

        model(torch.ones(3, 5))

        assert authors(model) == {BASE}

    def test_loaded_weights_have_the_last_word(self):
        """A state dict loaded before the first forward cancels the policy."""
        trained = Lazy()
        trained(torch.ones(3, 5))
        nn.init.zeros_(trained.first.weight)
        model = Lazy()

        model.load_state_dict(trained.state_dict())
        model(torch.ones(3, 5))

        assert not is_waiting(model)
        assert model.first.weight.count_nonzero() == 0

    @pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
    def test_a_copy_waits_on_its_own(self, duplicate):
        """A copy made before the first forward gets its own policy at its own first forward."""
        model = Lazy()
        twin = duplicate(model)

        twin(torch.ones(3, 5))

        assert authors(twin) == {BASE}
        assert not is_waiting(twin)
        assert is_waiting(model)
        model(torch.ones(3, 5))
        assert authors(model) == {BASE}
