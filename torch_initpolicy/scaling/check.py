"""The coordinate check: builds a model at several widths, trains each a little, and looks.

The check that people run by hand before they trust a parametrisation: whatever a few steps change
an activation by must not depend on width.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from torch_initpolicy.api import apply_policy
from torch_initpolicy.deferred.skip import skip_init
from torch_initpolicy.errors import ArgumentError, TraceError
from torch_initpolicy.policy.presets import Policyish
from torch_initpolicy.policy.presets.scaled import complete_p, mup
from torch_initpolicy.scaling.slopes import ScalingCheck, layer
from torch_initpolicy.sites import canonical_modules, sites
from torch_initpolicy.symmetry.replica import Loss
from torch_initpolicy.tensors.base import plain_number
from torch_initpolicy.tensors.initializer import Initializer
from torch_initpolicy.tensors.initializers import Keep
from torch_initpolicy.trace.real_inputs import real_inputs
from torch_initpolicy.trace.trees import Call, tensors_in

BuildAtWidth: TypeAlias = Callable[[int], nn.Module]
"""Builds the model at a width."""

Optimize: TypeAlias = Callable[[nn.Module], torch.optim.Optimizer]
"""Makes the optimizer of a model."""


_BASED: Mapping[str, Callable[..., Any]] = {"mup": mup, "complete_p": complete_p}
"""Presets that scale from a base model: here the narrowest."""

_BY_NAME: Mapping[str, type[torch.optim.Optimizer]] = {
    kind.__name__.lower(): kind
    for kind in (
        *(torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam),
        *(torch.optim.RAdam, torch.optim.Adamax, torch.optim.RMSprop, torch.optim.Adagrad),
    )
}


def check_scaling(
    build: BuildAtWidth,
    widths: Sequence[int] = (64, 128, 256, 512),
    *,
    policy: Policyish | Callable[[int], Policyish] | None = "mup",
    optimizer: str | Optimize = "adamw",
    lr: float = 1e-2,
    steps: int = 5,
    seeds: int = 3,
    example_inputs: Any = None,
    loss_fn: Loss | None = None,
    tolerance: float = 0.2,
) -> ScalingCheck:
    """Train a model for a few steps at several widths; compare how much its activations change.

    Under a parametrisation that transfers, the change of every activation is as large at every
    width: the slope of its logarithm against that of the width is 0. A head that is not rescaled, a
    learning rate that is not, a tied head show as slopes of 0.5 or 1.

    Args:
        build: Builds the model at a width. Its output must not grow with width.
        widths: The widths, at least two; the first is the base of `"mup"` and `"complete_p"`.
        policy: What initialises the models: a policy; `"mup"` or `"complete_p"`, from the narrowest
            as base; a function of the width that returns a policy; None for what the constructor
            draws.
        optimizer: Name of an optimizer of `torch.optim`, which then gets `plan.param_groups`; or a
            function of the model that makes one, to check groups of your own.
        lr: Learning rate of a named optimizer, at the narrowest width.
        steps: Steps of training, on one batch.
        seeds: How many starts to average over.
        example_inputs: What the forward pass takes; None to look for inputs and draw them.
        loss_fn: Makes a scalar of the output; None for the mean product of its first tensor
            with random numbers.
        tolerance: How far from 0 a slope may be; 0.2 is less than half of what a mistake makes.

    Returns:
        The slopes of each layer, with a verdict; print it for a table, `plot()` for a picture.

    Raises:
        ArgumentError: There are fewer than two widths, or the optimizer is not known.
        TraceError: No inputs are found, or the output holds no numbers to train.
        PlanError: The policy makes no plan of one of the models.

    Reference:
        Yang et al., *Tensor Programs V*, 2022, arXiv:2203.03466, appendix D.1 ("coordinate
        checking").

    Examples:
        >>> def build(width):
        ...     return nn.Sequential(
        ...         nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
        ...         nn.Linear(width, 4),
        ...     )
        >>> check_scaling(build, (32, 64, 128)).ok
        True
        >>> print(check_scaling(build, (32, 64, 128), policy="he").verdict)  # doctest: +ELLIPSIS
        he, adamw: widths 32, 64, 128, 5 steps
        2 of 3 layers go with width:
        ...
    """
    if not callable(build):
        raise ArgumentError(f"build is a function from a width to a model, got {build!r:.80}")
    if not all(isinstance(plain_number(width), int) for width in widths) or len(set(widths)) < 2:
        raise ArgumentError(f"widths: at least two different integers are needed, got {widths!r}")
    known = tuple(sorted({int(width) for width in widths}))
    if isinstance(optimizer, str) and optimizer not in _BY_NAME:
        raise ArgumentError(
            f"optimizer is one of {', '.join(_BY_NAME)}, or a function that makes one of a "
            f"model; got {optimizer!r}"
        )
    with torch.random.fork_rng(devices=[]):
        chosen = _policies(build, known, policy)
        trained = partial(
            _trained,
            build,
            optimizer=optimizer,
            lr=lr,
            steps=steps,
            inputs=example_inputs,
            loss=loss_fn,
        )
        runs = {
            width: [trained(width, seed, chosen(width)) for seed in range(seeds)] for width in known
        }
    layers = tuple(
        layer(
            name,
            known,
            tuple(_mean(run[name].start for run in runs[width]) for width in known),
            tuple(_mean(run[name].change for run in runs[width]) for width in known),
            tolerance,
        )
        for name in runs[known[0]][0]
        if all(name in run for of_width in runs.values() for run in of_width)
    )
    how = policy if isinstance(policy, str) else "constructor" if policy is None else "policy"
    by = optimizer if isinstance(optimizer, str) else "own optimizer"
    return ScalingCheck(layers, known, steps, f"{how}, {by}")


def _policies(
    build: BuildAtWidth,
    widths: Sequence[int],
    policy: Policyish | Callable[[int], Policyish] | None,
) -> Callable[[int], Policyish | None]:
    """Return what initialises the model of each width."""
    if isinstance(policy, str) and policy in _BASED:
        with skip_init():
            base = build(widths[0])
        policy = _BASED[policy](base=base)
    if callable(policy) and not isinstance(policy, Initializer):
        return cast("Callable[[int], Policyish | None]", policy)
    return lambda _: cast("Policyish | None", policy)


def _mean(numbers: Iterator[float]) -> float:
    """Return the geometric mean: what is averaged has no scale of its own."""
    known = list(numbers)
    if not all(number > 0 for number in known):
        return sum(known) / len(known)
    return math.exp(sum(map(math.log, known)) / len(known))


# One model


class Seen(NamedTuple):
    """Root mean squares of a module's output before the first step, and of its change after."""

    start: float
    change: float


def _trained(
    build: BuildAtWidth,
    width: int,
    seed: int,
    policy: Policyish | None,
    *,
    optimizer: str | Optimize,
    lr: float,
    steps: int,
    inputs: Any,
    loss: Loss | None,
) -> dict[str, Seen]:
    """Build, initialise and train one model; return what its modules put out before and after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = build(width)
        call = next(real_inputs(model, sites(model), inputs))
        receipt = apply_policy(
            model, Keep() if policy is None else policy, seed=seed, example_inputs=call
        )
        if isinstance(optimizer, str):
            by = _BY_NAME[optimizer](receipt.param_groups(optimizer, lr=lr))  # type: ignore[call-arg]
        else:
            by = optimizer(model)
        before = _outputs(model, call, seed)
        scalar = loss or _Cotangent(seed)
        for _ in range(steps):
            by.zero_grad()
            torch.autograd.backward(_loss(scalar, model(*call.args, **call.kwargs)))
            by.step()
        after = _outputs(model, call, seed)
    return {
        name: Seen(_size(old), _size([b - a for a, b in zip(old, after[name], strict=True)]))
        for name, old in before.items()
        if name in after
    }


def _loss(scalar: Loss, output: Any) -> Tensor:
    value = scalar(output)
    if not value.requires_grad:
        raise TraceError("no parameter reaches the loss, so nothing can be trained; give loss_fn")
    return value


@dataclass(frozen=True, slots=True)
class _Cotangent:
    """The mean product with random numbers, the same at every step and width.

    Its gradient is the same wherever the output starts, which under muP is nearer to zero in wider
    models, and it does not fade as steps are taken.
    """

    seed: int

    def __call__(self, output: Any) -> Tensor:
        found = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
        if not found:
            raise TraceError("the output holds no floating-point tensor; give loss_fn=...")
        generator = torch.Generator().manual_seed(self.seed)
        factors = torch.randn(found[0].shape, generator=generator, dtype=found[0].dtype)
        return (found[0] * factors.to(found[0].device)).mean()


@contextmanager
def _watched(model: nn.Module, seen: dict[str, list[Tensor]]) -> Iterator[None]:
    """Note what modules that hold parameters put out, before forward multipliers are applied."""

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        tensors = [tensor for tensor in tensors_in(output) if tensor.is_floating_point()]
        seen.setdefault(name, []).extend(tensor.detach().clone() for tensor in tensors[:1])

    handles = [
        module.register_forward_hook(partial(note, name), prepend=True)
        for name, module in dict(canonical_modules(model)).items()
        if next(module.parameters(recurse=False), None) is not None
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _outputs(model: nn.Module, call: Call, seed: int) -> dict[str, list[Tensor]]:
    """Run a model once; return what its modules put out, in order of execution.

    Dropout drops the same numbers in every look: only what the steps change is to show.
    """
    seen: dict[str, list[Tensor]] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _watched(model, seen):
        torch.default_generator.manual_seed(seed)
        model(*call.args, **call.kwargs)
    return seen


def _size(tensors: Sequence[Tensor]) -> float:
    squares = sum(float(tensor.double().square().sum()) for tensor in tensors)
    return math.sqrt(squares / max(sum(tensor.numel() for tensor in tensors), 1))
