"""Modules that are built once more, by their own class or by the library they come from."""

import copy
import importlib
import inspect
import itertools
import sys
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from torch_initpolicy.deferred.skip import skip_init
from torch_initpolicy.materialize.held import tensors_of
from torch_initpolicy.materialize.search import Build, BuiltModule, Search
from torch_initpolicy.sites import canonical_modules


def rebuilt(search: Search) -> Iterator[BuiltModule]:
    """Build modules once more, the outermost that can be, where nothing tells them from the old."""
    libraries = importlib.import_module("torch_initpolicy.integrations.models")
    for name, module in canonical_modules(search.model):
        own = ((*pair, name != "") for pair in _own_constructor(module))
        theirs = ((*pair, False) for pair in libraries.rebuilds(module, class_of(module)))
        for source, build, is_guess in itertools.chain(own, theirs):
            built = _built_equal(search, name, module, build) if search.within[name] else None
            if built is not None:
                yield BuiltModule(name, built, source, is_guess)


def _built_equal(search: Search, name: str, module: nn.Module, build: Build) -> nn.Module | None:
    """Return what is built where it is the same in all that hold tensors."""
    try:
        built = build_aside(search, name, build)
    except Exception:  # noqa: BLE001 - a constructor that cannot be called again tells nothing
        return None
    return built if _agree(module, built) else None


def build_aside(search: Search, name: str, build: Build) -> nn.Module:
    """Build on the CPU, without drawing weights."""
    with search.aside(name), skip_init():
        return build()


def _own_constructor(module: nn.Module) -> Iterator[tuple[str, Build]]:
    """Call the class again, if all arguments are attributes under their own names."""
    kind = class_of(module)
    arguments = _kept_arguments(kind, vars(module))
    if arguments is not None:
        source = f"{kind.__name__} built again with {', '.join(arguments) or 'no arguments'}"
        yield source, lambda: kind(**copy.deepcopy(arguments))


ADAPTED = "base_layer"
"""Under which name the adapters of `peft` hold the layer that they stand for."""

_FACTORY = ("device", "dtype")
"""Arguments that say where a module is built and change none of its values."""


def _kept_arguments(kind: type, attributes: Mapping[str, object]) -> dict[str, object] | None:
    """Collect the arguments of a constructor; None where one is not kept."""
    parameters = list(inspect.signature(kind).parameters.values())
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY) for p in parameters):
        return None
    names = [p.name for p in parameters if not (p.name in _FACTORY and p.default is None)]
    if any(isinstance(attributes.get(name, nn.Module()), (nn.Module, Tensor)) for name in names):
        return None
    return {name: attributes[name] for name in names}


def _agree(module: nn.Module, built: nn.Module) -> bool:
    """Say whether two modules agree in all that hold tensors: class, shapes, plain attributes."""
    ours, theirs = _holding(module), _holding(built)
    return ours.keys() == theirs.keys() and all(
        class_of(ours[name]) is class_of(theirs[name])
        and dict(_shapes(ours[name])) == dict(_shapes(theirs[name]))
        and _simple_attributes(theirs[name]).items() <= _simple_attributes(ours[name]).items()
        for name in ours
    )


def _holding(module: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that hold tensors, by name; an adapted layer stands for its adapter."""
    named = list(canonical_modules(module))
    adapters = {name for name, child in named if ADAPTED in child._modules}  # noqa: SLF001
    inside = tuple(f"{name}." for name in adapters)
    return {
        name.removesuffix(f".{ADAPTED}"): child
        for name, child in named
        if any(_shapes(child)) and (name.endswith(f".{ADAPTED}") or not name.startswith(inside))
    }


def _shapes(module: nn.Module) -> Iterator[tuple[str, torch.Size]]:
    return ((name, tensor.shape) for name, tensor in tensors_of(module))


def _simple_attributes(module: nn.Module) -> dict[str, object]:
    """Return the attributes that are numbers, words, or tuples of these."""
    held = vars(module).items()
    return {k: v for k, v in held if _is_simple(v) and k != "training" and not k.startswith("_")}


def _is_simple(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_simple, value))
    return value is None or isinstance(value, (bool, int, float, str))


def class_of(module: nn.Module) -> type[nn.Module]:
    """Return the class a module was built by, before torch put another in its place."""
    kinds = type(module).__mro__
    sharding = sys.modules.get("torch.distributed.fsdp")
    if sharding is not None and isinstance(module, sharding.FSDPModule):
        return kinds[kinds.index(sharding.FSDPModule) + 1]
    return kinds[1] if parametrize.is_parametrized(module) else kinds[0]
