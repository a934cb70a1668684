"""Says why a forward pass could not be recorded; blames its inputs only where they are at fault."""

import textwrap

from torch import Tensor, nn

from torch_initpolicy.errors import TraceError, brief
from torch_initpolicy.tensors.base import dtype_name
from torch_initpolicy.trace.arguments import given_arguments, required_arguments
from torch_initpolicy.trace.record import plain_failure
from torch_initpolicy.trace.recorder import running_at
from torch_initpolicy.trace.runner import Refused
from torch_initpolicy.trace.trees import Call

EXPECTED = "give what forward takes: a tensor, a tuple of arguments or a dict of keyword arguments"
"""What to do where the inputs are at fault."""


def refusal(
    model: nn.Module, call: Call, error: Exception, inputs: str = "these inputs"
) -> TraceError:
    """Return the error for a forward pass that raised `error` while it was recorded."""
    name, said = type(model).__name__, in_short(error)
    if plain_failure(model, call) is None:
        return TraceError(
            f"the forward pass of {name} runs with {inputs}, but not while it is recorded: "
            f"{running_at(error)}{said}"
        )
    return TraceError(f"the forward pass of {name} raises with {inputs}: {said}; {EXPECTED}")


def in_vain(model: nn.Module, refused: Refused) -> str:
    """Say what a forward pass raised, and what each of its arguments was."""
    given = given_arguments(model, refused.call).items()
    tried = ", ".join(f"{name} {_in_words(value)}" for name, value in given)
    return f"{textwrap.shorten(in_short(refused.error), 200)} with {tried or 'no arguments'}"


def to_give(model: nn.Module, call: Call) -> str:
    """Say how to write the inputs of a forward pass that raised with a call."""
    names = dict.fromkeys((*required_arguments(model), *given_arguments(model, call)))
    written = ", ".join(f"{name}=..." for name in names)
    return f"give example_inputs=dict({written})" if len(names) > 1 else "give example_inputs="


def _in_words(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{dtype_name(value.dtype)} {tuple(value.shape)}"
    return brief(value)


def in_short(error: Exception) -> str:
    """Say what was raised in one line; a bare `assert` has no words of its own."""
    kind, (line, *_) = type(error).__name__, str(error).splitlines() or [""]
    return f"{kind}: {line}" if line else kind
