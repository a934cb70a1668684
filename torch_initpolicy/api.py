"""The verbs: the one place where sites, trace, policy, plan and apply come together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from torch_initpolicy.calibrate.lsuv import scale
from torch_initpolicy.deferred.skip import opened
from torch_initpolicy.deferred.undrawn import pending_of
from torch_initpolicy.errors import (
    UnknownOperatorWarning,
    UnusedRuleWarning,
    listing,
    warn,
)
from torch_initpolicy.materialize.constructor import constructor_steps
from torch_initpolicy.materialize.materialize import materialize_steps, revealed
from torch_initpolicy.materialize.restore import Build
from torch_initpolicy.planning.decide import make_plan
from torch_initpolicy.planning.describe import figure
from torch_initpolicy.planning.plan import Plan, Receipt, warn_of_symmetry
from torch_initpolicy.planning.selection import Keeping, Selection
from torch_initpolicy.policy.meant import is_plain_draw, meant, values_of
from torch_initpolicy.policy.presets import Policyish
from torch_initpolicy.policy.presets import policy as policy_of
from torch_initpolicy.policy.rules import InitPolicy
from torch_initpolicy.sites import Site, borrowing, require_module, sites
from torch_initpolicy.steps import Step
from torch_initpolicy.tensors.initializers import Keep
from torch_initpolicy.trace.facts import Facts
from torch_initpolicy.trace.operators import remedy
from torch_initpolicy.trace.read import Reading, is_scripted, read
from torch_initpolicy.writing.apply import apply_steps
from torch_initpolicy.writing.commit import undone_on_error
from torch_initpolicy.writing.ranks import process_groups, together
from torch_initpolicy.writing.shards import is_sharded, require_shapes


def plan_policy(
    model: nn.Module,
    policy: Policyish = "auto",
    *,
    example_inputs: Any = None,
    only: Sequence[str] | str | None = None,
    skip: Sequence[str] | str | None = None,
    frozen: bool = False,
    keep: Keeping = "meant",
    strict: bool = True,
) -> Plan:
    """Decide what a policy would write to each parameter of a model, and write nothing.

    Args:
        model: Any module, also one built on the meta device, under `skip_init`, sharded, or
            wrapped by DDP or `torch.compile`.
        policy: A policy, rules, one initializer for everything, the name of a preset, or the path
            of a `.json` or `.toml` file.
        example_inputs: What the forward pass takes: a tensor, a tuple of arguments or a mapping of
            keyword arguments; None to look for some. Only shapes matter, so meta tensors serve.
        only: Globs of canonical names; other sites are kept. None for all sites, an empty
            sequence for none.
        skip: Globs of canonical names; these sites are kept.
        frozen: Whether parameters that require no gradient are written too.
        keep: `"meant"` lets stay what the layers' own random draws could not have left, under the
            rules of presets: zeros that close a branch or are one factor of a product, biases with
            a purpose, computed kernels, what `transformers` has loaded from a checkpoint. Of
            parameters on the meta device, behind a parametrisation or sharded nothing is known.
            `"nothing"` lets the policy overwrite them. Rules of your own are obeyed to the letter.
        strict: Whether a rule that decides about no site is an error; otherwise a warning.

    Returns:
        A plan with exactly one step per parameter tensor. Print it for a table.

    Raises:
        NotAModuleError: `model` is no module.
        PlanError: Something would be wrong or missing; the message lists every case.
        PolicyError: The policy is malformed.
        TraceError: The forward pass raises with the given `example_inputs`.

    Warns:
        UnknownOperatorWarning: The forward pass has operators of unknown role.
        UnusedRuleWarning: A rule decides about no site, and `strict` is off; or all parameters are
            kept since it is unknown what they do, as in TorchScript.

    Examples:
        >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> plan = plan_policy(model)
        >>> [(step.name, step.meets, round(step.std, 3)) for step in plan if step.std]
        [('0.weight', 'relu', 0.5), ('2.weight', None, 0.316)]
    """
    selection = Selection.of(only, skip, frozen=frozen, keep=keep, strict=strict)
    with borrowing(require_module(model)), opened(model):
        given = policy_of(policy)
        plan = _plan(model, given, example_inputs, selection)
    _warn_of_nothing(plan, given)
    return plan


def _plan(model: nn.Module, policy: InitPolicy, example_inputs: Any, selection: Selection) -> Plan:
    with borrowing(model):
        require_shapes(model)
        found = sites(model)
        reading = _reading(model, found, example_inputs)
        plan = make_plan(
            found,
            reading.facts,
            policy,
            selection,
            flow=reading.flow,
            meant=_meant(found, reading.facts) if selection.keep == "meant" else {},
            unknown_operators=reading.unknown_operators,
            untraced=reading.untraced,
        )
    if reading.unknown_operators:
        _warn_of_unknown(reading.unknown_operators)
    return replace(plan, model=model, steps=constructor_steps(plan.steps, found, model))


def _meant(found: Sequence[Site], facts: Mapping[str, Facts]) -> dict[str, str]:
    """Say what was meant, also where `skip_init` has skipped a draw."""
    pending = {site.name: pending_of(site.parameters[0]) for site in found if not site.lazy}
    skipped = {name: draw.initializer for name, draw in pending.items() if draw is not None}
    plain = {name for name, initializer in skipped.items() if is_plain_draw(initializer)}

    def look(site: Site) -> Tensor | None:
        if site.name not in skipped:
            return values_of(site)
        if site.name in plain:
            return None
        sample = torch.empty(site.shape, dtype=site.dtype)
        skipped[site.name](sample, None, generator=torch.Generator().manual_seed(0))
        return sample

    return meant(found, facts, look, plain)


def _warn_of_unknown(operators: Mapping[str, int]) -> None:
    cases = [f"{name} ({times}x): {remedy(name)}" for name, times in operators.items()]
    warn(
        f"operators of unknown role:\n{listing(cases)}\nwhat lies behind them was not seen; make "
        "each known where it is defined, by a function of torch's operators that computes the same",
        UnknownOperatorWarning,
    )


def _reading(model: nn.Module, found: Sequence[Site], example_inputs: Any) -> Reading:
    """Read the data flow, unless planning is about to say that there is nothing to plan for."""
    if not found or any(site.lazy for site in found):
        return Reading({}, "type")
    return read(model, found, example_inputs)


def apply_policy(
    model: nn.Module,
    policy: Policyish = "auto",
    *,
    seed: int | None = None,
    example_inputs: Any = None,
    only: Sequence[str] | str | None = None,
    skip: Sequence[str] | str | None = None,
    frozen: bool = False,
    keep: Keeping = "meant",
    strict: bool = True,
    calibrate: Any = None,
    threads: int | None = None,
    draw_on: torch.device | str | None = None,
) -> Receipt:
    """Initialise a model by a policy.

    Everything that can be wrong is found before the first write, and raised once. The values
    depend on the seed, the canonical names, the logical shapes, the initializers and the type of
    the device that draws, and on nothing else: not on the order of modules, threads or sharding,
    nor on the dtype beyond rounding (but for float64, which is drawn in float64).

    Args:
        model: Any module, sharded or wrapped too, whose parameters have memory or were skipped.
        policy: A policy, rules, one initializer, the name of a preset, or the path of a file.
        seed: Seed of the random streams, up to 64 bits; None takes one from torch's global
            generator, so that `torch.manual_seed` governs. Nothing else reads or moves that.
        example_inputs: What the forward pass takes, of which only shapes matter; None to look
            for some.
        only: Globs of canonical names; other sites are kept. None for all sites.
        skip: Globs of canonical names; these sites are kept.
        frozen: Whether parameters that require no gradient are written too.
        keep: `"meant"` keeps what the model's author meant, under the rules of presets;
            `"nothing"` overwrites it.
        strict: Whether a rule that decides about no site is an error; otherwise a warning.
        calibrate: Inputs of one batch: scale the weights so that every layer's output has unit
            standard deviation on it, after the policy has been applied, as `lsuv_` does. They also
            serve as `example_inputs` where none are given. The steps of the receipt's plan name
            the factors, so that it still verifies the model and reproduces its bits.
        threads: Threads that draw on the CPU; None for as many as torch computes with.
        draw_on: Device that draws: `"cpu"` for the same bits on every device; None for the device
            that each tensor lives on.

    Returns:
        The receipt: the plan, the seed, versions and timings. It can be saved and reproduced.

    Raises:
        PlanError: Something would be wrong or missing; lists every case. The model is as it was.
        ApplyError: Something cannot be written; the model is as it was.

    Warns:
        SymmetricInitWarning: Units of a hidden layer are identical now, and stay identical.
        UnknownOperatorWarning: The forward pass has operators of unknown role.
        UnusedRuleWarning: A rule decides about no site, and `strict` is off.

    Examples:
        >>> model = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))
        >>> receipt = apply_policy(model, seed=0)
        >>> abs(model[0].weight.std().item() * (784 / 2) ** 0.5 - 1) < 0.01
        True
    """
    selection = Selection.of(only, skip, frozen=frozen, keep=keep, strict=strict)
    with opened(require_module(model)):
        with together(process_groups(model)):
            given = policy_of(policy)
            shown = calibrate if example_inputs is None else example_inputs
            plan = _plan(model, given, shown, selection)
        with undone_on_error(_held(model) if calibrate is not None else ()):
            written = apply_steps(plan.pairs(), seed, threads=threads, draw_on=draw_on, model=model)
            if calibrate is not None:
                plan = _calibrated(plan, calibrate, selection)
    _warn_of_nothing(plan, given)
    warn_of_symmetry(plan)
    return Receipt.of(plan, written)


def _warn_of_nothing(plan: Plan, policy: InitPolicy) -> None:
    """Warn where a policy that writes leaves every parameter alone, unknown ones among them."""
    unknown = [step for step in plan if step.role == "unknown" and step.rule not in _ARGUMENTS]
    wanted = any(rule.initializer != Keep() for rule in policy)
    if not (unknown and wanted and all(step.keeps and not step.factors for step in plan)):
        return
    scripted = is_scripted(cast("nn.Module", plan.model))
    remedy = "initialise the module before torch.jit compiles it" if scripted else _BY_NAME
    cases = [f"{step.name!r} ({step.owner}, {step.shape})" for step in unknown]
    warn(
        f"policy {plan.policy!r} writes nothing, since it is unknown what these parameters do:\n"
        f"{listing(cases)}\n{remedy}",
        UnusedRuleWarning,
    )


_ARGUMENTS = ("only", "skip", "frozen", "keep")
"""What stands as the rule of a step that an argument has kept."""

_BY_NAME = "fill them by name: Rule(match.name(...), ...), or keep them by a policy of Keep() alone"


def _held(model: nn.Module) -> Iterator[Tensor]:
    """Yield what writing may change and still has values of its own."""
    yield from (p for p in model.parameters() if pending_of(p) is None)
    yield from model.buffers()


def _calibrated(plan: Plan, inputs: Any, selection: Selection) -> Plan:
    """Scale the weights that a plan has filled, and return the plan that says so."""
    factors = scale(cast("nn.Module", plan.model), inputs, selection).factors
    steps = (
        replace(step, factors=found, reason=f"{step.reason}; x {figure(found, 4)} to calibrate")
        if (found := factors.get(step.name))
        else step
        for step in plan
    )
    return replace(plan, steps=tuple(steps))


def _is_guessed(plan: Plan) -> bool:
    return any(step.evidence == "order" for step in plan)


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


def materialize(
    model: nn.Module,
    policy: Policyish = "auto",
    *,
    device: torch.device | str | None = None,
    seed: int | None = None,
    example_inputs: Any = None,
    rebuild: Build | None = None,
    frozen: bool = False,
    keep: Keeping = "meant",
    strict: bool = True,
    threads: int | None = None,
    draw_on: torch.device | str | None = None,
) -> Receipt:
    """Make a real model of one that was built on the meta device.

    Memory is allocated, parameters are filled by the policy, buffers that no checkpoint holds are
    computed as the constructor would have, and ties stay ties. The result has the weights of a
    model that was built for real and initialised by the same policy from the same seed. A sharded
    model (`fully_shard`, `parallelize_module`) gets the shards that this process owns.

    Args:
        model: A model built under `torch.device("meta")`.
        policy: A policy, rules, one initializer, the name of a preset, or the path of a file.
        device: Where it shall live; None: on the device of its mesh if it is sharded, else on the
            CPU.
        seed: Seed of the random streams, up to 64 bits; None takes one from torch's global
            generator.
        example_inputs: What the forward pass takes, of which only shapes matter; None to look
            for some.
        rebuild: A function without arguments that builds the model once more; it is asked only for
            tensors that nothing else can tell the values of.
        frozen: Whether parameters that require no gradient are written too.
        keep: `"meant"` keeps what the model's author meant, under the rules of presets;
            `"nothing"` overwrites it.
        strict: Whether a rule that decides about no site is an error; otherwise a warning.
        threads: Threads that draw on the CPU; None for as many as torch computes with.
        draw_on: Device that draws; None for the device that each tensor lives on.

    Returns:
        The receipt.

    Raises:
        MaterializeError: Lists every tensor whose values nothing tells. The model is as it
            was.
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
    selection = Selection.of(frozen=frozen, keep=keep, strict=strict)
    with opened(require_module(model)):
        given = policy_of(policy)
        with revealed(model, seed=seed, rebuild=rebuild) as found:
            plan = _plan(model, given, example_inputs, selection)
        steps, written = materialize_steps(
            plan.pairs(),
            model,
            found,
            device=device,
            seed=seed,
            threads=threads,
            draw_on=draw_on,
        )
        plan = replace(plan, steps=steps)
        if _is_guessed(plan) and not any(map(is_sharded, model.parameters())):
            # Now that the model is real its forward pass can be run, which may tell more.
            known = _plan(model, given, example_inputs, selection)
            plan = replace(known, steps=tuple(_kept(step, plan[step.name]) for step in known))
            written = apply_steps(
                plan.pairs(), written.seed, threads=threads, draw_on=draw_on, model=model
            )
    warn_of_symmetry(plan)
    return Receipt.of(plan, written)
