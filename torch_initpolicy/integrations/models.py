"""Builds untrained models: the one that a word of the command line means, or one once more."""

import copy
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from torch_initpolicy.errors import MissingExtraError, UnknownNameError, nearest

__all__ = ["build", "builder", "rebuilds"]

MODEL_NOTATION = "timm:resnet50, torchvision:resnet50 or package.module:callable"


def _timm(name: str) -> Callable[[], nn.Module]:
    try:
        import timm  # noqa: PLC0415 - only where it is asked for
    except ImportError as error:
        raise MissingExtraError(f"timm:{name}", "zoo") from error
    if not timm.is_model(name):
        raise UnknownNameError(f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    return functools.partial(timm.create_model, name)


def _torchvision(name: str) -> Callable[[], nn.Module]:
    try:
        import torchvision  # noqa: PLC0415 - only where it is asked for
    except ImportError as error:
        raise MissingExtraError(f"torchvision:{name}", "zoo") from error
    known = torchvision.models.list_models()
    if name not in known:
        raise UnknownNameError(f"torchvision has no model {name!r}{nearest(name, known)}")
    builder = torchvision.models.get_model_builder(name)
    # Both default to a download: "untrained" has to be said for the model and for its backbone.
    asked = inspect.signature(builder).parameters.keys() & {"weights", "weights_backbone"}
    return functools.partial(builder, **dict.fromkeys(asked))


def _own(module_name: str, path: str) -> Callable[..., nn.Module]:
    """Find `path` (dotted for something inside a class) in a module that can be imported here."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        found: object = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or module_name
        raise UnknownNameError(
            f"no module {missing!r} can be imported from {Path.cwd().name}/ or the environment"
        ) from error
    finally:
        sys.path.remove(here)
    for part in path.split("."):
        if part not in dir(found):
            raise UnknownNameError(f"{module_name} has no {part!r}{nearest(part, dir(found))}")
        found = getattr(found, part)
    if not callable(found) or isinstance(found, nn.Module):
        what = type(found).__name__
        raise UnknownNameError(f"{module_name}:{path} is a {what}, no callable that builds a model")
    return found


ZOOS = {"timm": _timm, "torchvision": _torchvision}


def builder(source: str) -> Callable[..., nn.Module]:
    """Find what builds a model of an address; it may take arguments, such as a width.

    Raises:
        UnknownNameError: There is no such model, module or name, and the nearest are suggested.
        MissingExtraError: The library is not installed.

    Examples:
        >>> builder("torch.nn:Linear")(4, 8)
        Linear(in_features=4, out_features=8, bias=True)
    """
    place, colon, name = source.partition(":")
    if not (colon and place and name):
        raise UnknownNameError(f"{source!r} names no model; write {MODEL_NOTATION}")
    return ZOOS[place](name) if place in ZOOS else _own(place, name)


def build(source: str) -> nn.Module:
    """Build an untrained model from its address.

    Args:
        source: `timm:NAME`, `torchvision:NAME`, or `package.module:callable`, where the callable
            takes no arguments (a class or a function) and the module is found in the working
            directory or the environment.

    Raises:
        UnknownNameError: What was found builds no `torch.nn.Module`; or as for `builder`.
        Exception: Whatever the model's own constructor raises.

    Examples:
        >>> build("torch.nn:Identity")
        Identity()
    """
    model = builder(source)()
    if not isinstance(model, nn.Module):
        raise UnknownNameError(f"{source} builds a {type(model).__name__}, not a torch.nn.Module")
    return model


def rebuilds(model: nn.Module, kind: Any) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Yield how the library that a model of class `kind` comes from would build it again.

    Only libraries that the program itself has imported are asked.
    """
    transformers, diffusers = map(sys.modules.get, ("transformers", "diffusers"))
    if transformers is not None and isinstance(model, transformers.PreTrainedModel):
        config = copy.deepcopy(model.config)
        yield f"{kind.__name__} built again from its config", lambda: kind(config)
    if diffusers is not None and isinstance(model, diffusers.ConfigMixin):
        own = dict(model.config)
        yield f"{kind.__name__} built again from its config", lambda: kind.from_config(own)
    yield from _timm_again(model)
    yield from _torchvision_again(model, kind)


def _timm_again(model: nn.Module) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Build a model by the name it was built by."""
    known = vars(model).get("pretrained_cfg")
    if "timm" in sys.modules and isinstance(known, dict) and "architecture" in known:
        name = known["architecture"]
        kept = {key: vars(model)[key] for key in ("num_classes", "drop_rate") if key in vars(model)}
        yield f"timm.create_model({name!r})", functools.partial(_timm(name), **kept)


def _torchvision_again(
    model: nn.Module, kind: type
) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Build the models of torchvision of which it could be one."""
    library = sys.modules.get("torchvision.models")
    if library is None or not kind.__module__.startswith("torchvision.models."):
        return
    sizes = [layer.out_features for layer in model.modules() if isinstance(layer, nn.Linear)]
    for name in library.list_models():
        signature = inspect.signature(library.get_model_builder(name))
        if signature.return_annotation is kind:
            has_backbone = "weights_backbone" in signature.parameters
            options = {"num_classes": sizes[-1]} if sizes and not has_backbone else {}
            again = functools.partial(_torchvision(name), **options)
            yield f"torchvision.models.get_model({name!r})", again
