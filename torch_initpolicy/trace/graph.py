"""A recorded forward pass: values, the nodes that made them, and the modules they ran in.

Knows that tensors go into operators and come out; not what an operator does.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_initpolicy.trace.trees import tensors_in


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor at one moment: an in-place operator makes a new value of the same tensor.

    Attributes:
        index: Its number; values are numbered in the order in which they came to be.
        stride: Its strides in elements.
        offset: Its offset into its storage, in elements.
        storage: Identifies the storage: two values with the same are views of one another.
        producer: The node that made it; None for parameters, buffers, inputs and constants.
        parameter: Canonical name, where the value is a parameter of the model.
        is_input: Whether it is one of the model's inputs.
        constant: The number it holds, where it is a constant of one element.
        held: The tensor that it stands for, where it is a buffer or a constant; None where no
            numbers are known.
    """

    index: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    storage: int
    dtype: torch.dtype
    producer: int | None = None
    parameter: str | None = None
    is_input: bool = False
    constant: float | None = None
    held: Tensor | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Node:
    """One call of an operator.

    Attributes:
        index: Its number, in order of execution.
        op: Name of the operator, in-place and reflected forms folded: `"conv2d"`, `"add"`.
        args: Its positional arguments, tensors replaced by values.
        kwargs: Its keyword arguments, likewise.
        inputs: Values among the arguments, in order.
        outputs: Values among the results, in order.
        module: Canonical name of the innermost module that was running.
    """

    index: int
    op: str
    function: Callable[..., Any]
    args: tuple[Any, ...] = field(repr=False)
    kwargs: Mapping[str, Any] = field(repr=False)
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    module: str


@dataclass(frozen=True, slots=True)
class Graph:
    """A recorded forward pass, or as much of it as has run, in order of execution.

    `consumers` holds the nodes that read each value.
    """

    values: Sequence[Value]
    nodes: Sequence[Node]
    results: tuple[int, ...]
    consumers: tuple[tuple[int, ...], ...] = field(repr=False)


CANNOT_RUN = (RuntimeError, TypeError, ValueError, IndexError)
"""What operators raise that cannot be run again, on numbers of another kind."""


def rerun(node: Node, look_up: Callable[[int], Tensor]) -> list[Tensor]:
    """Run an operator again on the CPU; behind its results stands what it has written items of."""

    def given(argument: Any) -> Any:
        if isinstance(argument, Value):
            return look_up(argument.index)
        return torch.device("cpu") if isinstance(argument, torch.device) else argument

    args, kwargs = _mapped(given, (node.args, dict(node.kwargs)))
    changed = args[:1] if node.op == "setitem" else ()
    return [*tensors_in(node.function(*args, **kwargs)), *changed]


def _mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Apply `function` to the leaves of nested tuples, lists and dicts."""
    if not isinstance(tree, (tuple, list, dict)):
        return function(tree)
    if isinstance(tree, dict):
        return {key: _mapped(function, item) for key, item in tree.items()}
    items = [_mapped(function, item) for item in tree]
    return items if isinstance(tree, list) else tuple(items)
