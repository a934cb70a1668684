"""The verbs: the one place where planning, materializing, writing and calibrating come together."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from torch_initpolicy.calibrate.passes import scale
from torch_initpolicy.deferred.skip import opened
from torch_initpolicy.deferred.undrawn import pending_of
from torch_initpolicy.materialize.materialize import materialize_steps, revealed
from torch_initpolicy.planning.describe import figure
from torch_initpolicy.planning.model import (
    plan_model,
    warn_of_overwriting,
    warn_of_unknown_parameters,
)
from torch_initpolicy.planning.plan import Plan, Receipt, warn_of_symmetry
from torch_initpolicy.planning.selection import Selecting, Selection
from torch_initpolicy.policy.presets import Policyish
from torch_initpolicy.policy.presets import policy as policy_of
from torch_initpolicy.sites import borrowing, require_module
from torch_initpolicy.steps import Step
from torch_initpolicy.writing.apply import apply_steps
from torch_initpolicy.writing.commit import undone_on_error
from torch_initpolicy.writing.drawing import Drawing
from torch_initpolicy.writing.ranks import process_groups, together
from torch_initpolicy.writing.shards import is_sharded

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from torch_initpolicy.materialize.search import Build


def plan_policy(
    model: nn.Module,
    policy: Policyish = "auto",
    *,
    example_inputs: Any = None,
    **selecting: "Unpack[Selecting]",
) -> Plan:
    """Decide what a policy would write to each parameter of a model, and write nothing.

    Args:
        model: Any module, also one built on the meta device, under `skip_init`, sharded, or
            wrapped by DDP or `torch.compile`.
        policy: A policy, rules, one initializer for everything, the name of a preset, or the path
            of a `.json` or `.toml` file.
        example_inputs: What the forward pass takes: a tensor, a tuple of arguments or a mapping of
            keyword arguments; None to look for some. Only shapes matter, so meta tensors serve.
        selecting: Which parameters it may write: `only`, `skip`, `frozen`, `keep` and `strict`,
            as `Selecting` describes them.

    Returns:
        A plan with exactly one step per parameter tensor. Print it for a table.

    Raises:
        NotAModuleError: `model` is no module.
        PlanError: Something would be wrong or missing; the message lists every case.
        PolicyError: The policy is malformed.
        TraceError: The forward pass raises with the given `example_inputs`.

    Warns:
        UnknownOperatorWarning: The forward pass has operators of unknown role.
        UnusedRuleWarning: A rule decides about no site, and `strict` is off; or parameters are kept
            since it is unknown what they do, as in TorchScript.

    Examples:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> plan = plan_policy(model)
        >>> [(step.name, step.meets, round(step.std, 3)) for step in plan if step.std]
        [('0.weight', 'relu', 0.5), ('2.weight', None, 0.316)]
    """
    selection = Selection.of(**selecting)
    with borrowing(require_module(model)), opened(model):
        given = policy_of(policy)
        plan = plan_model(model, given, example_inputs, selection)
    warn_of_unknown_parameters(plan, given)
    return plan


def apply_policy(
    model: nn.Module,
    policy: Policyish = "auto",
    *,
    seed: int | None = None,
    example_inputs: Any = None,
    calibrate: Any = None,
    threads: int | None = None,
    draw_on: torch.device | str | None = None,
    **selecting: "Unpack[Selecting]",
) -> Receipt:
    """Initialise a model by a policy.

    Everything that can be wrong is found before the first write, and raised once. The values
    depend on the seed, the canonical names, the logical shapes, the initializers and the type of
    the device that draws, and on nothing else: not on the order of modules, threads or sharding,
    nor on the dtype beyond rounding (but for float64, which is drawn in float64).

    Args:
        model: Any module whose parameters have memory, or were skipped by `skip_init`.
        policy: A policy, rules, one initializer for everything, the name of a preset, or the path
            of a `.json` or `.toml` file.
        seed: Seed of the random streams, up to 64 bits; None takes one from torch's global
            generator, so that `torch.manual_seed` governs. Nothing else reads or moves that.
        example_inputs: What the forward pass takes: a tensor, a tuple of arguments or a mapping of
            keyword arguments; None to look for some. Only shapes matter.
        calibrate: Inputs of one batch: scale the weights so that every layer's output has unit
            standard deviation on it, after the policy has been applied, as `lsuv_` does. They also
            serve as `example_inputs` where none are given. The steps of the receipt's plan name
            the factors, so that it still verifies the model and reproduces its bits.
        threads: Threads that draw on the CPU; None for as many as torch computes with.
        draw_on: Device that draws: `"cpu"` for the same bits on every device; None for the device
            that each tensor lives on.
        selecting: Which parameters it may write: `only`, `skip`, `frozen`, `keep` and `strict`,
            as `Selecting` describes them.

    Returns:
        The receipt: the plan, the seed, versions and timings. It can be saved and reproduced.

    Raises:
        PlanError: Something would be wrong or missing; lists every case. The model is as it was.
        ApplyError: Something cannot be written; the model is as it was.

    Warns:
        SymmetricInitWarning: Units of a hidden layer are identical now, and stay identical.
        OverwrittenWarning: The model looks trained or loaded: its norms have moved.
        UnknownOperatorWarning: The forward pass has operators of unknown role.
        UnusedRuleWarning: A rule decides about no site, and `strict` is off.

    Examples:
        >>> model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))
        >>> receipt = apply_policy(model, seed=0)
        >>> abs(model[0].weight.std().item() * (784 / 2) ** 0.5 - 1) < 0.01
        True
    """
    selection = Selection.of(**selecting)
    drawing = Drawing(seed, threads, draw_on)
    with opened(require_module(model)):
        with together(process_groups(model)):
            given = policy_of(policy)
            shown = calibrate if example_inputs is None else example_inputs
            plan = plan_model(model, given, shown, selection)
            pairs = plan.pairs()
            if selection.keep == "meant":
                warn_of_overwriting(pairs)
        with undone_on_error(_held(model) if calibrate is not None else ()):
            written = apply_steps(pairs, drawing, model=model)
            if calibrate is not None:
                plan = _calibrated(plan, model, calibrate, selection)
    warn_of_unknown_parameters(plan, given)
    warn_of_symmetry(plan)
    return Receipt.of(plan, written)


def _held(model: nn.Module) -> Iterator[Tensor]:
    """Yield what writing may change and still has values of its own."""
    yield from (p for p in model.parameters() if pending_of(p) is None)
    yield from model.buffers()


def _calibrated(plan: Plan, model: nn.Module, inputs: Any, selection: Selection) -> Plan:
    """Scale the weights that a plan has filled, and return the plan that says so."""
    factors = scale(model, inputs, selection).factors
    steps = (
        replace(step, factors=found, reason=f"{step.reason}; x {figure(found, 4)} to calibrate")
        if (found := factors.get(step.name))
        else step
        for step in plan
    )
    return replace(plan, steps=tuple(steps))


def materialize(
    model: nn.Module,
    policy: Policyish = "auto",
    *,
    device: torch.device | str | None = None,
    seed: int | None = None,
    example_inputs: Any = None,
    rebuild: "Build | None" = None,
    threads: int | None = None,
    draw_on: torch.device | str | None = None,
    **selecting: "Unpack[Selecting]",
) -> Receipt:
    """Make a real model of one that was built on the meta device.

    Memory is allocated, parameters are filled by the policy, buffers that no checkpoint holds are
    computed as the constructor would have, and ties stay ties. The result has the weights of a
    model that was built for real and initialised by the same policy from the same seed. A sharded
    model (`fully_shard`, `parallelize_module`) gets the shards that this process owns.

    Args:
        model: A model built under `torch.device("meta")`.
        policy: A policy, rules, one initializer for everything, the name of a preset, or the path
            of a `.json` or `.toml` file.
        device: Where it shall live; None: on the device of its mesh if it is sharded, else on the
            CPU.
        seed: Seed of the random streams, up to 64 bits; None takes one from torch's global
            generator.
        example_inputs: What the forward pass takes, of which only shapes matter; None to look for
            some.
        rebuild: A function without arguments that builds the model once more; it is asked before
            the model's own class, its library and its modules' methods.
        threads: Threads that draw on the CPU; None for as many as torch computes with.
        draw_on: Device that draws; None for the one that each tensor lives on.
        selecting: Which parameters the policy may write, as `Selecting` describes it; the others
            get what the constructor draws.

    Returns:
        The receipt.

    Raises:
        MaterializeError: Lists every tensor whose values are not known. The model is as it was.
        PlanError: Something would be wrong or missing; lists every case. The model is as it was.
        ApplyError: Something cannot be written. The model is as it was.

    Warns:
        InitPolicyWarning: Units are identical and stay so, an operator is not known, or a rule
            decides about nothing.

    Examples:
        >>> with torch.device("meta"):
        ...     model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
        >>> receipt = materialize(model, seed=0)
        >>> model[0].weight.device.type, model[1].running_var.sum().item()
        ('cpu', 16.0)
    """
    selection = Selection.of(**selecting)
    drawing = Drawing(seed, threads, draw_on)
    with opened(require_module(model)):
        given = policy_of(policy)
        with revealed(model, drawing, rebuild=rebuild) as found:
            plan = plan_model(model, given, example_inputs, selection, found)
        steps, written = materialize_steps(plan.pairs(), model, found, drawing, device)
        plan = replace(plan, steps=steps)
        guessed = any(step.evidence == "order" for step in plan)
        if guessed and not any(map(is_sharded, model.parameters())):
            # Now that the model is real its forward pass can be run, which may show more.
            known = plan_model(model, given, example_inputs, selection, found)
            plan = replace(known, steps=tuple(_kept(step, plan[step.name]) for step in known))
            again = replace(drawing, seed=written.seed)
            written = apply_steps(plan.pairs(), again, model=model)
    warn_of_symmetry(plan)
    return Receipt.of(plan, written)


def _kept(step: Step, before: Step) -> Step:
    """Let a step that keeps its site keep what it has become before."""
    if not step.keeps:
        return step
    return replace(
        step,
        initializer=before.initializer,
        std=before.std,
        torch_axes=before.torch_axes,
        facts=replace(step.facts, padding=before.padding),
        reason=before.reason,
    )
