"""Which hooks of a model take part in what it computes, and which only look on."""

import dis
import itertools
import types
from typing import Any

from torch import nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_COMPUTING = (WeightNorm, SpectralNorm, BasePruningMethod, nn.Module)


def takes_part(hook: Any) -> bool:
    """Say whether a forward hook may change what its module returns.

    Only such a hook can: one that returns something, sets an attribute, or writes in place. All
    others look on, and do not run where nobody is to be told. Hooks of sharding take no part in
    a forward pass on whole tensors.

    Examples:
        >>> takes_part(lambda module, args, output: output * 2)
        True
        >>> def note(module, args, output):
        ...     print(output.std())
        >>> takes_part(note)
        False
    """
    origin = str(getattr(hook, "__module__", ""))
    if isinstance(hook, _COMPUTING) or origin.startswith("transformers."):
        return True  # transformers collects so what its backbones return
    if origin.startswith("torch.distributed"):
        return False
    code = _code_of(hook)
    return code is None or _changes_something(code) or _returns_something(code)


def _code_of(hook: Any) -> types.CodeType | None:
    """Return the code of a hook, or None where it is not written in Python."""
    if isinstance(hook, types.MethodType):
        hook = hook.__func__
    if not isinstance(hook, types.FunctionType):
        hook = getattr(type(hook), "__call__", None)  # noqa: B004 - its code is wanted
    return hook.__code__ if isinstance(hook, types.FunctionType) else None


def _changes_something(code: types.CodeType) -> bool:
    """Say whether code sets an attribute or calls a method or function that writes in place."""
    in_place = any(name.endswith("_") and not name.startswith("_") for name in code.co_names)
    sets = any(instruction.opname == "STORE_ATTR" for instruction in dis.get_instructions(code))
    return in_place or sets or "setattr" in code.co_names


def _returns_something(code: types.CodeType) -> bool:
    """Say whether code may return another thing than None."""
    if code.co_name == "<lambda>" and not _RETURN_NONE.isdisjoint(code.co_names):
        return False
    steps = list(dis.get_instructions(code))
    returned = (
        before if step.opname == "RETURN_VALUE" else step
        for before, step in itertools.pairwise(steps)
        if step.opname.startswith("RETURN")
    )
    return any(not (step.opname.endswith("CONST") and step.argval is None) for step in returned)


_RETURN_NONE = frozenset({"append", "appendleft", "extend", "print", "put", "add_scalar"})
"""What the hooks that are lambdas call and return, to note something."""
