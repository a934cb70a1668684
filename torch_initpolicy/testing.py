"""Assertions that a test-suite of your own can call; fixtures are in `pytest_plugin`."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from torch_initpolicy.api import plan_policy
from torch_initpolicy.compare.compare import compare_inits
from torch_initpolicy.errors import listing
from torch_initpolicy.planning.plan import Plan
from torch_initpolicy.policy.presets import Policyish
from torch_initpolicy.sites import require_module
from torch_initpolicy.symmetry.find import find_symmetry

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from torch_initpolicy.planning.selection import Selecting

__all__ = ["assert_initialized", "assert_no_symmetry", "assert_same_init", "assert_untouched"]


def assert_initialized(
    model: nn.Module,
    policy: Policyish = "auto",
    *,
    example_inputs: Any = None,
    **selecting: "Unpack[Selecting]",
) -> None:
    """Assert that a model's weights look as a policy leaves them, whatever the seed.

    Each tensor's mean, standard deviation and bounds are measured against its step of the plan,
    with a tolerance that follows from its number of elements. The arguments are those of
    `plan_policy`.

    Raises:
        VerifyError: Some tensors are not what the policy draws; the message lists them.

    Examples:
        >>> from torch_initpolicy import apply_policy
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
        >>> _ = apply_policy(model, "he", seed=0)
        >>> assert_initialized(model, "he")
    """
    plan_policy(model, policy, example_inputs=example_inputs, **selecting).verify(model)


def assert_same_init(mine: nn.Module | Plan, reference: nn.Module | Plan) -> None:
    """Assert that two models start from the same distributions, whatever their seeds and names.

    Args:
        mine: A model with its initial weights, or a plan.
        reference: What it is to start like.

    Raises:
        AssertionError: Some tensors differ; the message lists them.

    Examples:
        >>> assert_same_init(nn.Linear(64, 64), nn.Linear(64, 64))
    """
    comparison = compare_inits(mine, reference)
    if not comparison.ok:
        raise AssertionError(str(comparison))


def assert_no_symmetry(
    model: nn.Module, inputs: Any = None, loss_fn: Callable[[Any], Tensor] | None = None
) -> None:
    """Assert that no units of a model are tied and no parameters dead.

    What is symmetric at the start and breaks by itself (a zero-initialised last layer) is fine.

    Args:
        model: The model, in the mode it is to be trained in.
        inputs: What its forward takes; looked for where None.
        loss_fn: From its output to a scalar; by default every output has a target of its own.

    Raises:
        AssertionError: Something is tied, dead or, between processes, diverged; or the model could
            not be run to tell. The message lists what.
        TraceError: The forward pass raises with the given inputs.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> assert_no_symmetry(model, torch.randn(16, 4))
        >>> for parameter in model.parameters():
        ...     _ = nn.init.zeros_(parameter)
        >>> assert_no_symmetry(model, torch.randn(16, 4))
        Traceback (most recent call last):
        AssertionError: 3 dead (probed: 8 steps on random inputs in float64)
        ...
    """
    report = find_symmetry(model, inputs, loss_fn)
    if not report.ok or report.of("suspect"):
        raise AssertionError(str(report.without("harmless")))


@contextmanager
def assert_untouched(model: nn.Module) -> Iterator[None]:
    """Assert that a block of code leaves a model and the random states exactly as they were.

    Compared bit for bit: parameters, their gradients, buffers and torch's and Python's global
    random states. Compared by identity: parameters, buffers, hooks and the attributes of every
    module. And the flags `training` and `requires_grad`. Tensors without memory are compared by
    identity alone.

    Args:
        model: The model.

    Raises:
        AssertionError: Something is different afterwards, also where the block itself raises; the
            message lists what.

    Examples:
        >>> model = nn.Linear(2, 2)
        >>> with assert_untouched(model):
        ...     _ = model(torch.ones(1, 2))
        >>> with assert_untouched(model):
        ...     _ = model.eval()
        Traceback (most recent call last):
        AssertionError: 1 not as before:
          - training of the model
    """
    before = dict(_state(require_module(model)))
    try:
        yield
    finally:
        after = dict(_state(model))
        changed = [label for label in before | after if not _unchanged(before, after, label)]
        if changed:
            raise AssertionError(f"{len(changed)} not as before:\n{listing(changed)}")


def _state(model: nn.Module) -> Iterator[tuple[str, object]]:
    """Yield everything that must stay, each under a name for people."""
    yield "torch's random state", torch.random.get_rng_state()
    yield "Python's random state", repr(random.getstate())
    for name, module in model.named_modules():
        place = name or "the model"
        for attribute, value in vars(module).items():
            yield f"{attribute} of {place}", _contents(value)
    for name, tensor in _tensors(model):
        yield f"requires_grad of {name}", tensor.requires_grad
        yield f"values of {name}", _bits(tensor)
        if tensor.grad is not None:
            yield f"gradient of {name}", _bits(tensor.grad)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    return ((name, tensor) for name, tensor in tensors if not (is_lazy(tensor) or tensor.is_meta))


def _contents(value: object) -> object:
    """Copy a container, so that what is put into it or taken out later can be seen."""
    if isinstance(value, Mapping):
        return (*value.keys(), *value.values())
    return tuple(value) if isinstance(value, list | set) else value


def _bits(tensor: Tensor) -> Tensor:
    """Copy a tensor's bits; bits compare equal also where values are no numbers."""
    return tensor.detach().clone().contiguous().flatten().view(torch.uint8)


def _unchanged(before: Mapping[str, object], after: Mapping[str, object], label: str) -> bool:
    if label not in before or label not in after:
        return False
    old, new = before[label], after[label]
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return old.shape == new.shape and torch.equal(old, new)
    if isinstance(old, tuple) and isinstance(new, tuple):
        return len(old) == len(new) and all(map(_is_unchanged, old, new))
    return _is_unchanged(old, new)


def _is_unchanged(old: object, new: object) -> bool:
    """Compare by identity, words and numbers by value."""
    return old is new or (isinstance(old, str | int | float) and old == new)
