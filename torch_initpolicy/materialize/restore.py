"""What a constructor computed on the meta device: values that were never there, found again.

A model built under `torch.device("meta")` has shapes and nothing else. Its weights come from the
policy; its buffers, its constants (layer scales, temperatures) and whatever the policy keeps can
only come from the code that once computed them. That code is run again, on the CPU and without
drawing weights, and the values are read off. Knows modules and conventions of libraries, not
policies.
"""

import copy
import functools
import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from torch_initpolicy.deferred.ledger import Draw, Ledger
from torch_initpolicy.deferred.skip import recording, skip_init
from torch_initpolicy.deferred.undrawn import Pending, guard, pending_of
from torch_initpolicy.errors import MaterializeError
from torch_initpolicy.sites import canonical_modules
from torch_initpolicy.writing.streams import isolated, key

Build = Callable[[], nn.Module]
"""Builds a model once more."""


class Lost(NamedTuple):
    """A tensor on the meta device that only its module can tell the values of."""

    module: str
    owner: nn.Module
    attribute: str
    shape: torch.Size

    @property
    def name(self) -> str:
        """Its canonical name."""
        return f"{self.module}.{self.attribute}" if self.module else self.attribute


class Origin(NamedTuple):
    """What a lost tensor holds: a value, or what a constructor would have drawn."""

    value: Tensor | None
    pending: Pending | None
    source: str


class Reference(NamedTuple):
    """A module built on the CPU, to be read off in place of the one called `prefix`."""

    prefix: str
    module: nn.Module
    source: str


@functools.singledispatch
def restore(module: nn.Module) -> None:
    """Compute the buffers and constants of a module once more, as its constructor does.

    `materialize` calls this for what a model built on the meta device has lost. Register a function
    for modules of your own with `restore.register` where it cannot find out by itself; the type of
    the argument, or a class given to `register`, says for which, subclasses included. The function
    is called with a copy of the module on the CPU, whose tensors on the meta device are undefined
    there; it may write them in place or assign new ones.

    Args:
        module: The module, without its submodules' tensors being of interest.

    Raises:
        NotImplementedError: No function is registered for the module's class.

    Examples:
        >>> import math
        >>> class Rotary(nn.Module):
        ...     def __init__(self, width: int, base: float = 1e4) -> None:
        ...         super().__init__()
        ...         self.width, self.log_base = width, math.log(base)
        ...         self.register_buffer("frequencies", self.compute(), persistent=False)
        ...
        ...     def compute(self) -> Tensor:
        ...         return torch.exp(-self.log_base * torch.arange(0, self.width, 2) / self.width)
        >>> @restore.register
        ... def _(module: Rotary) -> None:
        ...     module.frequencies = module.compute()
        >>> module = Rotary(4)
        >>> restore(module)
        >>> module.frequencies
        tensor([1.0000, 0.0100])
    """
    raise NotImplementedError(f"no function is registered for {type(module).__name__}")


def origins(
    model: nn.Module, lost: Iterable[Lost], *, rebuild: Build | None = None, seed: int = 0
) -> dict[str, Origin]:
    """Find out what lost tensors should hold.

    Asked in this order: functions registered with `restore`; `rebuild`; the model's own class
    with the arguments it keeps, or the library that the model comes from, where what is built is
    the same in every module, shape and attribute; the classes of its modules; at last their
    `reset_parameters` and other methods of that kind.

    Args:
        model: The model; it is only looked at.
        lost: The tensors in question.
        rebuild: Builds the model once more, where the caller knows how.
        seed: Seeds what constructors draw otherwise than by filling a parameter.

    Returns:
        Origins by canonical name; a tensor that nobody knows of is missing.

    Raises:
        MaterializeError: A function of the caller raised.
    """
    search = _Search(model, rebuild, seed)
    search.add(lost)
    found: dict[str, Origin] = {}
    for source in (_registered, _given, _library, _classes, _conventions):
        for reference in source(search):
            for tensor, origin in _read_off(reference, search):
                found[tensor.name] = origin
                search.remove(tensor)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Search:
    """What is looked for; `left` shrinks as it is found.

    Attributes:
        model: The model.
        rebuild: As for `origins`.
        seed: As for `origins`.
        left: What is still looked for, by the name of its module.
        within: How many tensors are still looked for within each module, by name.
    """

    model: nn.Module
    rebuild: Build | None
    seed: int
    left: dict[str, list[Lost]] = field(default_factory=dict)
    within: Counter[str] = field(default_factory=Counter)

    def add(self, lost: Iterable[Lost]) -> None:
        """Look for some tensors."""
        for tensor in lost:
            self.left.setdefault(tensor.module, []).append(tensor)
            self.within.update(_around(tensor.module))

    def remove(self, found: Lost) -> None:
        """Look for a tensor no longer."""
        self.left[found.module].remove(found)
        self.within.subtract(_around(found.module))

    def owners(self) -> list[tuple[str, nn.Module]]:
        """Return the modules whose tensors are still looked for, with their names."""
        return [(name, tensors[0].owner) for name, tensors in self.left.items() if tensors]


def _around(name: str) -> Iterator[str]:
    """Yield the names of a module and of all around it; the empty one is the model's."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def _read_off(reference: Reference, search: _Search) -> Iterator[tuple[Lost, Origin]]:
    """Yield what a reference says about tensors within it."""
    for name, module in canonical_modules(reference.module, reference.prefix):
        held = dict(tensors_of(module)) if search.left.get(name) else {}
        for tensor in list(search.left.get(name, ())):
            value = held.get(tensor.attribute)
            if value is not None and value.shape == tensor.shape and not value.is_meta:
                pending = pending_of(value)
                known = None if pending else value.detach()
                drawn = pending and pending._replace(source=reference.source)
                yield tensor, Origin(known, drawn, reference.source)


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters, buffers and plain tensors that a module holds itself.

    Those in its dictionaries, lists and helper objects come last: `tables['shift']`, `cache.mask`.
    """
    held = {**vars(module), **module._parameters, **module._buffers}  # noqa: SLF001 - duplicates too
    yield from ((name, value) for name, value in held.items() if isinstance(value, Tensor))
    yield from ((name, place.tensor) for name, place in nested_of(module))


class Nested(NamedTuple):
    """A tensor within a container: `holder[key]`."""

    holder: Any
    key: Any
    tensor: Tensor


def nested_of(module: nn.Module) -> Iterator[tuple[str, Nested]]:
    """Yield the tensors within the containers and helper objects of a module."""
    for name, value in vars(module).items():
        if name not in _OF_TORCH:
            yield from _nested(name, value, _DEPTH)


_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes of every module, which hold parameters, submodules and hooks."""

_DEPTH = 3
"""Containers within containers that are looked into."""


def _nested(name: str, value: object, depth: int) -> Iterator[tuple[str, Nested]]:
    holder, title = _opened(value)
    items = holder.items() if isinstance(holder, dict) else enumerate(holder)
    for index, item in list(items):
        inner = title.format(name, index)
        if isinstance(item, Tensor):
            yield inner, Nested(holder, index, item)
        elif depth > 1:
            yield from _nested(inner, item, depth - 1)


def _opened(value: object) -> tuple[dict[Any, Any] | list[Any] | tuple[Any, ...], str]:
    """Return what a container holds, and how what is in it is called."""
    if isinstance(value, (dict, list, tuple)):
        return value, "{}[{!r}]"
    if isinstance(value, (nn.Module, Tensor, type)) or callable(value):
        return (), ""
    return getattr(value, "__dict__", ()), "{}.{}"


#
# What the caller says
#


def _registered(search: _Search) -> Iterator[Reference]:
    """Ask the functions registered with `restore`."""
    unknown = restore.dispatch(nn.Module)
    for name, module in search.owners():
        function = restore.dispatch(class_of(module))
        if function is not unknown:
            source = f"the function registered for {type(module).__name__}"
            with _told(source):
                yield Reference(name, _rerun(search, name, module, function), source)


def _given(search: _Search) -> Iterator[Reference]:
    """Build the model as the caller says."""
    if search.rebuild is not None and search.within[""]:
        with _told("rebuild"):
            yield Reference("", _built(search, "", search.rebuild), "rebuild")


@contextmanager
def _told(source: str) -> Iterator[None]:
    """Tell whose code it was that raised."""
    try:
        yield
    except Exception as error:
        raise MaterializeError(f"{source} raised {type(error).__name__}: {error}") from error


#
# The model's own class, or its library
#


def _library(search: _Search) -> Iterator[Reference]:
    """Build the whole model once more."""
    builders = (_own_constructor, _transformers, _diffusers, _timm, _torchvision)
    for source, build in (pair for builder in builders for pair in builder(search.model)):
        if search.within[""]:
            yield from _same(search, "", search.model, build, source)


def _classes(search: _Search) -> Iterator[Reference]:
    """Build modules once more, the outermost that can be."""
    for name, module in canonical_modules(search.model):
        if search.within[name]:
            for source, build in _own_constructor(module):
                yield from _same(search, name, module, build, source)


def _same(
    search: _Search, name: str, module: nn.Module, build: Build, source: str
) -> Iterator[Reference]:
    """Yield what is built where nothing tells it from the module."""
    try:
        built = _built(search, name, build)
    except Exception:  # noqa: BLE001 - a constructor that cannot be called again tells nothing
        return
    if _alike(module, built):
        yield Reference(name, built, source)


def _built(search: _Search, name: str, build: Build) -> nn.Module:
    """Build on the CPU, without drawing weights."""
    with _aside(search, name), skip_init():
        return build()


@contextmanager
def _aside(search: _Search, name: str) -> Iterator[None]:
    """Let code run on the CPU, with random numbers of its own."""
    cpu = torch.device("cpu")
    # Every call of torch passes through a default device that is set, the own one included.
    default = nullcontext() if torch.empty(0).device == cpu else cpu
    with isolated(cpu, key(search.seed, name, 0)), default:
        yield


def _own_constructor(module: nn.Module) -> Iterator[tuple[str, Build]]:
    """Call the class again, if all arguments are attributes under their own names."""
    kind = class_of(module)
    arguments = _arguments(kind, vars(module))
    if arguments is not None:
        source = f"{kind.__name__} built again with {', '.join(arguments) or 'no arguments'}"
        yield source, lambda: kind(**copy.deepcopy(arguments))


_FACTORY = ("device", "dtype")
"""Arguments that say where a module is built and change none of its values."""


def _arguments(kind: type, attributes: Mapping[str, object]) -> dict[str, object] | None:
    """Collect the arguments of a constructor; None where one is not kept."""
    parameters = list(inspect.signature(kind).parameters.values())
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY) for p in parameters):
        return None
    names = [p.name for p in parameters if not (p.name in _FACTORY and p.default is None)]
    if any(isinstance(attributes.get(name, nn.Module()), (nn.Module, Tensor)) for name in names):
        return None
    return {name: attributes[name] for name in names}


def _transformers(model: nn.Module) -> Iterator[tuple[str, Build]]:
    """Build a model of transformers from its config."""
    library = sys.modules.get("transformers")
    if library is not None and isinstance(model, library.PreTrainedModel):
        kind, config = class_of(model), copy.deepcopy(model.config)
        yield f"{kind.__name__} built again from its config", lambda: kind(config)


def _diffusers(model: nn.Module) -> Iterator[tuple[str, Build]]:
    """Build a model of diffusers from its config."""
    library = sys.modules.get("diffusers")
    if library is not None and isinstance(model, library.ConfigMixin):
        kind: Any = class_of(model)
        config = dict(model.config)
        yield f"{kind.__name__} built again from its config", lambda: kind.from_config(config)


def _timm(model: nn.Module) -> Iterator[tuple[str, Build]]:
    """Build a model of timm by the name it was built by."""
    library = sys.modules.get("timm")
    origin = vars(model).get("pretrained_cfg")
    if library is not None and isinstance(origin, dict) and "architecture" in origin:
        name = origin["architecture"]
        options = {
            key: vars(model)[key] for key in ("num_classes", "drop_rate") if key in vars(model)
        }
        yield f"timm.create_model({name!r})", lambda: library.create_model(name, **options)


def _torchvision(model: nn.Module) -> Iterator[tuple[str, Build]]:
    """Build the models of torchvision of which it could be one."""
    library, kind = sys.modules.get("torchvision.models"), class_of(model)
    if library is None or not kind.__module__.startswith(f"{library.__name__}."):
        return
    for name in library.list_models():
        builder = library.get_model_builder(name)
        if builder.__module__ == kind.__module__:
            source = f"torchvision.models.get_model({name!r})"
            yield source, functools.partial(builder, **_options(builder, model))


def _options(builder: Build, model: nn.Module) -> dict[str, int | None]:
    """Return what a builder of torchvision has to be told: no pretrained parts, the classes."""
    accepted = inspect.signature(builder).parameters
    backbone = {"weights_backbone": None} if "weights_backbone" in accepted else {}
    sizes = [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)]
    return {**backbone, **({"num_classes": sizes[-1]} if sizes and not backbone else {})}


def _alike(module: nn.Module, built: nn.Module) -> bool:
    """Say whether two modules agree in all that hold tensors: class, shapes, plain attributes."""
    ours, theirs = _holding(module), _holding(built)
    return ours.keys() == theirs.keys() and all(
        class_of(ours[name]) is class_of(theirs[name])
        and dict(_shapes(ours[name])) == dict(_shapes(theirs[name]))
        and _plain(theirs[name]).items() <= _plain(ours[name]).items()
        for name in ours
    )


def _holding(module: nn.Module) -> dict[str, nn.Module]:
    return {name: child for name, child in canonical_modules(module) if any(_shapes(child))}


def _plain(module: nn.Module) -> dict[str, object]:
    """Return the attributes that are numbers, words, or tuples of these."""
    held = vars(module).items()
    return {k: v for k, v in held if _is_plain(v) and k != "training" and not k.startswith("_")}


def _shapes(module: nn.Module) -> Iterator[tuple[str, torch.Size]]:
    return ((name, tensor.shape) for name, tensor in tensors_of(module))


def _is_plain(value: object) -> bool:
    """Say whether a value is a number, a word, or a tuple of these."""
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def class_of(module: nn.Module) -> type[nn.Module]:
    """Return the class a module was built by, before torch put another in its place."""
    kinds = type(module).__mro__
    sharding = sys.modules.get("torch.distributed.fsdp")
    if sharding is not None and isinstance(module, sharding.FSDPModule):
        return kinds[kinds.index(sharding.FSDPModule) + 1]
    return kinds[1] if parametrize.is_parametrized(module) else kinds[0]


#
# Methods that set a module's tensors once more
#

CONVENTIONS = (
    "reset_parameters",
    "_reset_parameters",
    "init_non_persistent_buffers",
    "init_buffers",
    "reset_buffers",
    "rope_init",
    "init_weights",
    "initialize_weights",
)
"""Methods without arguments by which modules set their own tensors: torch's, timm's, torchtune's
and the names most used elsewhere."""


def _conventions(search: _Search) -> Iterator[Reference]:
    """Call those methods on copies of the modules."""
    for name, module in search.owners():
        for method in filter(None, (getattr(class_of(module), m, None) for m in CONVENTIONS)):
            if search.left[name]:
                yield from _called(search, name, module, method)


def _called(
    search: _Search, name: str, module: nn.Module, method: Callable[[nn.Module], object]
) -> Iterator[Reference]:
    try:
        copied = _rerun(search, name, module, method)
    except Exception:  # noqa: BLE001 - it asks for arguments, or for values that are lost
        return
    yield Reference(name, copied, f"{type(module).__name__}.{method.__name__}")


class _Undefined(Draw):
    """Stands for values that nobody has; whoever reads them cannot go on."""

    def draw_(self, tensor: Tensor, generator: torch.Generator | None) -> None:
        """Raise."""
        raise MaterializeError("the values that are to be restored are read")


def _rerun(
    search: _Search, name: str, module: nn.Module, function: Callable[[nn.Module], object]
) -> nn.Module:
    """Call a function with a copy on the CPU; what it leaves undefined stays on meta."""
    ledger = Ledger()
    copied = _copied(module, ledger, {})
    with _aside(search, name):
        with recording(ledger):
            function(copied)
        for child in copied.modules():
            _drop_undefined(child, ledger)
        drawn = (entry for entry in ledger.close() if not isinstance(entry.draw, _Undefined))
        guard(drawn, ledger.modules)
    return copied


def _copied(module: nn.Module, ledger: Ledger, memo: dict[int, Tensor]) -> nn.Module:
    """Copy a module with undefined tensors on the CPU for those on meta."""
    kind = class_of(module)
    copied = kind.__new__(kind)
    vars(copied).update(vars(module))
    for name in ("_parameters", "_buffers"):
        held = vars(module)[name].items()
        vars(copied)[name] = {key: _defined(tensor, ledger, memo) for key, tensor in held}
    children = vars(module)["_modules"].items()
    vars(copied)["_modules"] = {
        key: child and _copied(child, ledger, memo) for key, child in children
    }
    return copied


def _defined(tensor: Tensor | None, ledger: Ledger, memo: dict[int, Tensor]) -> Tensor | None:
    """Copy a tensor; one on meta becomes undefined memory."""
    if tensor is None or id(tensor) in memo:
        return memo.get(id(tensor))
    if tensor.is_meta:
        fresh = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
        ledger.put_off(fresh, _Undefined())
    else:
        fresh = tensor.detach().clone()
    if isinstance(tensor, nn.Parameter):
        fresh = nn.Parameter(fresh, requires_grad=tensor.requires_grad)
        ledger.see(fresh)
    memo[id(tensor)] = fresh
    return fresh


def _drop_undefined(module: nn.Module, ledger: Ledger) -> None:
    """Put tensors that are still undefined back on meta."""
    for held in (vars(module)["_parameters"], vars(module)["_buffers"]):
        for name, tensor in held.items():
            entry = None if tensor is None else ledger.find(tensor)
            if entry is not None and isinstance(entry.draw, _Undefined):
                held[name] = tensor.detach().to("meta")
