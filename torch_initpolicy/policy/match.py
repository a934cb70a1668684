"""The words that policies are written with: each makes a matcher; `&`, `|` and `~` combine them.

Knows the matchers of `torch_initpolicy.policy.matchers`, whose repr is the call that makes them.
"""

import re

from torch import nn

from torch_initpolicy.errors import PolicyError
from torch_initpolicy.policy import matchers
from torch_initpolicy.policy.matchers import Bounds, Matcher, Question
from torch_initpolicy.tensors.layers import Role

__all__ = [
    "Matcher", "anything", "closes_residual", "ends_in_norm", "ends_residual", "fan", "fed_by",
    "feeds_output", "frozen", "in_batch_norm", "in_residual", "is_summand", "kind", "meets",
    "name", "offset", "op", "predicate", "reads_input", "role", "shape", "tied", "used",
]  # fmt: skip


def __dir__() -> list[str]:
    """Return the words, and nothing that they are made with."""
    return __all__


def name(*globs: str, regex: str | None = None) -> Matcher:
    """Match sites by name; one of the patterns must fit the whole of one of the names.

    Args:
        globs: `*` stands for anything, dots included.
        regex: A regular expression for the whole name.

    Examples:
        >>> name("head.*", "*.bias")
        name('head.*', '*.bias')
    """
    return matchers.Name(globs, regex)


def kind(*classes: type[nn.Module] | str) -> Matcher:
    """Match sites by the class of the module that holds them, subclasses included.

    A tensor that several modules share is held by the first of them.

    Args:
        classes: Classes, or their names: bare, or with a package that they live under.

    Examples:
        >>> kind(nn.Conv2d, "timm.layers.LayerNorm2d")
        kind('torch.nn.Conv2d', 'timm.layers.LayerNorm2d')
    """
    return matchers.Kind(tuple(map(_class_name, classes)))


def _class_name(kind: type[nn.Module] | str) -> str:
    """Name a class; torch's own by their public path, which outlives the private one."""
    if isinstance(kind, str):
        return kind
    if not isinstance(kind, type):
        raise PolicyError(f"kind() takes classes or their names, got {kind!r}")
    name = f"{kind.__module__}.{kind.__qualname__}"
    return re.sub(r"^torch\.nn\.modules\.\w+\.", "torch.nn.", name)


def role(*roles: Role) -> Matcher:
    """Match sites by what they do: `"weight"`, `"bias"`, `"norm_weight"`, `"embedding"`, ...

    Args:
        roles: Any of those in `torch_initpolicy.tensors.layers.Role`.

    Raises:
        UnknownNameError: A role does not exist.

    Examples:
        >>> role("wieght")
        Traceback (most recent call last):
        torch_initpolicy.errors.UnknownNameError: no role is called 'wieght'; did you mean 'weight'?
    """
    return matchers.HasRole(roles)


def meets(*activations: str, biases: bool = False) -> Matcher:
    """Match weights by the first activation that their output meets.

    Args:
        activations: Names, families (`"rectifier"`, `"saturating"`) or `"nothing"`.
        biases: Whether to match the biases that are added to such outputs too.

    Examples:
        >>> kind(nn.Conv2d) & meets("relu", "silu")
        kind('torch.nn.Conv2d') & meets('relu', 'silu')
    """
    return matchers.Meets(activations, biases)


def fed_by(*activations: str) -> Matcher:
    """Match weights by the activation that their input comes from.

    Args:
        activations: Names, families, `"nothing"` or `"input"` (the model's own input).

    Examples:
        >>> fed_by("rectifier", "input")
        fed_by('rectifier', 'input')
    """
    return matchers.FedBy(activations)


def op(*names: str) -> Matcher:
    """Match sites by the operator that consumes them: `"conv2d"`, `"matmul"`, ...

    Args:
        names: Names of operators, as the plan's steps have them.

    Examples:
        >>> op("matmul", "einsum")
        op('matmul', 'einsum')
    """
    return matchers.Op(names)


def ends_residual() -> Matcher:
    """Match the last parameters of residual branches."""
    return matchers.Is("ends_residual")


def in_batch_norm() -> Matcher:
    """Match what lies in a residual branch with a batch normalisation."""
    return matchers.Is("in_batch_norm")


def ends_in_norm() -> Matcher:
    """Match what a normalisation reads before the model's output, behind all residual additions."""
    return matchers.Is("ends_in_norm")


def is_summand() -> Matcher:
    """Match what is added to another signal, with no normalisation or weight between."""
    return matchers.Is("is_summand")


def closes_residual() -> Matcher:
    """Match what closes a residual branch when it is zero: its last weight, norm or scale.

    Behind it no other parameter scales the branch, so that there is one for each branch.
    """
    return matchers.Is("closes_residual")


def in_residual() -> Matcher:
    """Match what lies inside a residual branch."""
    return matchers.Is("in_residual")


def reads_input() -> Matcher:
    """Match sites whose input is the model's own."""
    return matchers.Is("reads_input")


def feeds_output() -> Matcher:
    """Match sites whose output is the model's own, with no other weight behind them: heads."""
    return matchers.Is("feeds_output")


def used() -> Matcher:
    """Match sites that took part in the forward pass."""
    return matchers.Is("used")


def frozen() -> Matcher:
    """Match sites that are not trained (`requires_grad=False`)."""
    return matchers.Is("frozen")


def tied() -> Matcher:
    """Match tensors that the model holds under several names."""
    return matchers.Is("tied")


def offset(value: float = 1.0) -> Matcher:
    """Match parameters that the operator adds `value` to, as norms do that compute `1 + weight`.

    Args:
        value: What is added; 0 for what every other operator does.

    Examples:
        >>> role("norm_weight") & offset(1.0)
        role('norm_weight') & offset(1.0)
    """
    return matchers.Offset(value)


def fan(
    *, fan_in: float | Bounds = (None, None), fan_out: float | Bounds = (None, None)
) -> Matcher:
    """Match weights by their fans.

    Args:
        fan_in: Connections into one output unit: a number, or `(low, high)` with both included and
            None for an open side.
        fan_out: Connections out of one input unit, likewise.

    Examples:
        >>> fan(fan_in=(None, 64))
        fan(fan_in=(None, 64))
    """
    return matchers.Fan(
        *(side if isinstance(side, tuple) else (side, side) for side in (fan_in, fan_out))
    )


def shape(*sizes: int | None, ndim: int | None = None) -> Matcher:
    """Match sites by shape.

    Args:
        sizes: One per dimension, None for any size.
        ndim: The number of dimensions instead.

    Examples:
        >>> shape(None, None, 1, 1)
        shape(None, None, 1, 1)
    """
    return matchers.Shape(sizes or None, ndim)


def predicate(function: Question) -> Matcher:
    """Match where a function of your own is true. Such a policy cannot be written to a file.

    Args:
        function: Called with the `Site` and its `Facts`.

    Examples:
        >>> long = predicate(lambda site, facts: site.name.count(".") > 3)
    """
    return matchers.Predicate(function)


def anything() -> Matcher:
    """Match every site."""
    return matchers.Anything()
