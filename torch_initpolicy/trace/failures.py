"""Says why a forward pass could not be recorded; blames its inputs only where they are at fault."""

from torch import nn

from torch_initpolicy.errors import TraceError
from torch_initpolicy.trace.record import plain_failure
from torch_initpolicy.trace.recorder import running_at
from torch_initpolicy.trace.trees import Call

EXPECTED = "give what forward takes: a tensor, a tuple of arguments or a dict of keyword arguments"
"""What to do where the inputs are at fault."""


def refusal(
    model: nn.Module, call: Call, error: Exception, inputs: str = "these inputs"
) -> TraceError:
    """Return the error for a forward pass that raised `error` while it was recorded.

    Args:
        model: The model, without wrappers.
        call: What it was called with.
        error: What was raised.
        inputs: What the user knows the inputs as.
    """
    name, said = type(model).__name__, in_short(error)
    if plain_failure(model, call) is None:
        return TraceError(
            f"the forward pass of {name} runs with {inputs}, but not while it is recorded: "
            f"{running_at(error)}{said}"
        )
    return TraceError(f"the forward pass of {name} raises with {inputs}: {said}; {EXPECTED}")


def in_short(error: Exception) -> str:
    """Say what was raised in one line; a bare `assert` has no words of its own."""
    kind, (line, *_) = type(error).__name__, str(error).splitlines() or [""]
    return f"{kind}: {line}" if line else kind
