"""`@init_policy`: a model class whose objects leave their constructor initialised by a policy.

Knows Python's construction protocol and the verb `apply_policy`; nothing of rules or tensors.

No metaclass is involved, so a decorated class mixes with any other. `__new__` is the one step of
a construction that runs first and knows the class that is really built, whatever decorators and
subclasses came later; there that class' `__init__` is wrapped, once per class. The wrapper acts
only where `type(self)` is that class, which is to say in the outermost constructor.
"""

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_initpolicy.api import apply_policy
from torch_initpolicy.errors import NotAModuleError
from torch_initpolicy.planning.selection import Options, require_known
from torch_initpolicy.policy.presets import Policyish
from torch_initpolicy.policy.presets import policy as policy_of

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["init_policy"]

ModuleClass = TypeVar("ModuleClass", bound=type[nn.Module])

_POLICY, _READY = "__init_policy__", "__init_policy_ready__"
_READYING = threading.Lock()


class _FirstForward:
    """Runs the policy of a lazy module at its first forward, before the forward itself.

    A dry run of the same forward, without gradients, lets the lazy layers take their shapes. Were
    the policy to run after the true forward, its writes would break that forward's backward.
    A state dict that is loaded first has the last word: it cancels the policy.
    """

    def __init__(self, module: nn.Module) -> None:
        self.handles = (
            module.register_forward_pre_hook(self.before_forward, with_kwargs=True),
            module.register_load_state_dict_post_hook(self.after_load),  # type: ignore[no-untyped-call]
        )

    def before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Materialise the lazy layers and apply the policy; `Any` are the forward's arguments.

        What the dry run does to running statistics and the like is undone.
        """
        devices = {parameter.device for parameter in module.parameters()}
        cuda = [device for device in devices if device.type == "cuda"]
        kept = [(buffer, buffer.clone()) for buffer in module.buffers() if not is_lazy(buffer)]
        with torch.no_grad(), torch.random.fork_rng(cuda):
            try:
                module.forward(*args, **kwargs)
            finally:
                for buffer, values in kept:
                    buffer.copy_(values)
        self.remove()
        getattr(type(module), _POLICY)(module)

    def after_load(self, module: nn.Module, incompatible_keys: object) -> None:
        self.remove()

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()


def _run_policy(module: nn.Module) -> None:
    """Apply the policy of the most derived decorated class, as soon as there is what to fill."""
    tensors = (*module.parameters(), *module.buffers())
    if all(parameter.is_meta for parameter in module.parameters()):
        return
    if any(map(is_lazy, tensors)):
        _FirstForward(module)
    else:
        getattr(type(module), _POLICY)(module)


def _parameters(module: nn.Module) -> set[nn.Parameter]:
    """Collect the parameters, also of an object whose `nn.Module.__init__` has not yet run."""
    return set(module.parameters()) if "_parameters" in vars(module) else set()


def _ending_with_policy(cls: type[nn.Module]) -> Callable[..., None]:
    """Wrap the constructor of `cls` such that the policy runs after it where it is the outermost.

    An object that comes with its parameters and gets no new ones keeps their values.
    """
    own = vars(cls).get("__init__")

    @functools.wraps(cls.__init__)
    def construct(self: nn.Module, *args: object, **kwargs: object) -> None:
        # Asked before: a constructor that parametrises itself leaves with another class.
        is_outermost = type(self) is cls
        before = _parameters(self) if is_outermost else set()
        constructor = super(cls, self).__init__ if own is None else own.__get__(self, cls)
        constructor(*args, **kwargs)
        if is_outermost and _parameters(self) - before:
            _run_policy(self)

    return construct


def _ready(cls: type[nn.Module]) -> None:
    """Wrap the constructor of `cls` once; its subclasses are wrapped on their own."""
    with _READYING:
        if _READY not in vars(cls):
            _set(cls, __init__=_ending_with_policy(cls), **{_READY: True})


def _set(cls: type[nn.Module], **attributes: object) -> None:
    for name, value in attributes.items():
        setattr(cls, name, value)


class _New:
    """`__new__` of a decorated class: readies the class that is built, then does as before.

    A descriptor, because what `inspect.signature` should show, the constructor of the class it is
    asked about, is only known when it is looked up.
    """

    def __init__(self, own: "staticmethod[..., nn.Module] | None") -> None:
        self.own = own

    def _following(self, cls: type[nn.Module]) -> Callable[..., nn.Module]:
        """Find the `__new__` that would have run: the decorated class' own, or the next in line."""
        if self.own is not None:
            return self.own.__get__(None, cls)
        # Looked up by place: a decorator that copies the class (`dataclass(slots=True)`) moves it.
        bases: tuple[type[nn.Module], ...] = cls.__mro__
        holder = next(base for base in bases if vars(base).get("__new__") is self)
        following: Callable[..., nn.Module] = super(holder, cls).__new__
        if following is object.__new__:
            return lambda built, *_, **__: object.__new__(built)  # which takes no arguments
        return following

    def __get__(self, instance: object, owner: type[nn.Module]) -> Callable[..., nn.Module]:
        @functools.wraps(owner.__init__, assigned=(), updated=())
        def new(cls: type[nn.Module], *args: object, **kwargs: object) -> nn.Module:
            built = self._following(cls)(cls, *args, **kwargs)
            if isinstance(built, cls):  # else Python calls no constructor
                _ready(type(built))
            return built

        return new


def _decorate(cls: ModuleClass, apply: Callable[[nn.Module], object]) -> ModuleClass:
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise NotAModuleError(
            f"init_policy decorates classes derived from torch.nn.Module, not {cls!r}; "
            "what a function builds is initialised by apply_policy(model)"
        )
    own = vars(cls).get("__new__")
    new = own if isinstance(own, _New) else _New(own)
    _set(cls, __new__=new, **{_POLICY: staticmethod(apply)})
    return cls


# A class could also be taken for a function that fills a tensor; a module's class never is one.
@overload
def init_policy(policy: ModuleClass, /) -> ModuleClass: ...  # type: ignore[overload-overlap]


@overload
def init_policy(
    policy: Policyish = "auto", /, **options: "Unpack[Options]"
) -> Callable[[ModuleClass], ModuleClass]: ...


def init_policy(
    policy: ModuleClass | Policyish = "auto", /, **options: "Unpack[Options]"
) -> ModuleClass | Callable[[ModuleClass], ModuleClass]:
    """Initialise every object of a model class by a policy, at the end of its construction.

    The policy runs once, after the outermost constructor: a subclass, decorated or not, is first
    built completely. Where several classes of a line are decorated, the most derived one's policy
    runs, and no other. A decorated module inside a decorated model is initialised twice; the model
    has the last word, `skip=` leaves the inner module's values.

    The class stays the class it was (`type(model) is Net`) and keeps its signature; copies, pickles
    and `torch.load` bring weights back without running the policy again. The policy with its
    options can be called as `Net.__init_policy__(model)`. It does not run where a constructor
    raises, where an object has all its parameters before (a singleton that is asked for again), and
    under `torch.device("meta")`: `materialize` gives such a model its weights later. With *lazy
    layers* it runs at the first forward: a dry run without gradients gives them their shapes, the
    policy fills them, and the forward itself computes with the new weights; a state dict that is
    loaded before cancels it.

    Args:
        policy: Name of a preset or a policy. Alone, without parentheses, the class itself:
            `@init_policy` is `@init_policy("auto")`.
        options: Keyword arguments of `apply_policy`. Without a `seed` each object takes a new one
            from torch's global generator, so that `torch.manual_seed` governs.

    Returns:
        The class that was given, or a decorator for it.

    Raises:
        NotAModuleError: What is decorated is no class derived from `torch.nn.Module`.
        UnknownNameError: There is no preset of that name; raised where the class is defined.
        TypeError: There is no option of that name; likewise.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> @init_policy("he", seed=0)
        ... class Net(nn.Sequential):
        ...     def __init__(self, width: int) -> None:
        ...         super().__init__(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 1))
        >>> bool(Net(64)[0].bias.eq(0).all())
        True
        >>> torch.equal(Net(64)[0].weight, Net(64)[0].weight)
        True
    """
    if isinstance(policy, type):
        return _decorate(policy, functools.partial(apply_policy, policy="auto"))
    require_known(options)
    apply = functools.partial(apply_policy, policy=policy_of(policy), **options)
    return lambda cls: _decorate(cls, apply)
