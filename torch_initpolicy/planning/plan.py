"""A plan, one step for each site, and the receipt of its having been carried out.

Knows steps, and the model that they were made for; decides nothing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import nn

from torch_initpolicy.deferred.skip import opened
from torch_initpolicy.errors import (
    ArgumentError,
    InitPolicyWarning,
    PlanError,
    PolicyError,
    SymmetricInitWarning,
    UnknownNameError,
    VerifyError,
    brief,
    counted,
    listing,
    nearest,
    warn,
)
from torch_initpolicy.notebook import framed
from torch_initpolicy.planning.checks import Names, pairs_of
from torch_initpolicy.planning.describe import HEADINGS, folded, header, rows, table
from torch_initpolicy.planning.diff import Difference, difference
from torch_initpolicy.planning.groups import Grouped
from torch_initpolicy.planning.versions import Versions
from torch_initpolicy.policy import codec
from torch_initpolicy.policy.serialize import (
    PLAN_FORMAT,
    Types,
    current,
    outcome,
    read_fields,
    step_data,
    steps_of,
)
from torch_initpolicy.sites import Site, require_module, sites
from torch_initpolicy.steps import Step, symmetric
from torch_initpolicy.writing.apply import Written, apply_steps
from torch_initpolicy.writing.drawing import Drawing
from torch_initpolicy.writing.fingerprint import fingerprint, fingerprints
from torch_initpolicy.writing.ranks import process_groups, together
from torch_initpolicy.writing.shards import reshard
from torch_initpolicy.writing.verify import Verification, verify_steps


@dataclass(frozen=True, slots=True)
class Plan(Grouped):
    """What a policy would write to each parameter of a model, and why.

    Iterating yields the steps; `plan[name]` is the step of a site, by any of its names; `print`
    writes a table.

    Examples:
        >>> from torch_initpolicy import plan_policy
        >>> plan = plan_policy(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)))
        >>> plan["0.weight"].reason
        'meets relu: He normal, fan_in 8, gain 1.41421'
        >>> Plan.from_json(plan.to_json()) == plan
        True

    Attributes:
        steps: One step per site, in the order of `model.named_parameters()`.
        policy: Name of the policy.
        policy_hash: Its hash; None where it holds functions of the user's.
        unknown_operators: Operators of unknown role that the trace met, with their number.
        model: The model it was made for; None for a plan that was read from a file.
        untraced: Where the forward pass could not be read, so that the order of registration had
            to do: what it raised with the inputs that were tried, and what helps. None otherwise.
        names: Where `model` is a part of the model, what its parameters are called in the whole.
    """

    steps: tuple[Step, ...]
    policy: str = "custom"
    policy_hash: str | None = None
    unknown_operators: tuple[tuple[str, int], ...] = ()
    model: nn.Module | None = field(default=None, repr=False, compare=False)
    untraced: str | None = None
    names: Names | None = field(default=None, repr=False, compare=False)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, name: str) -> Step:
        step = next((step for step in self.steps if name in step.names), None)
        if step is None:
            known = [name for step in self.steps for name in step.names]
            raise UnknownNameError(f"the plan has no step for {name!r}{nearest(name, known)}")
        return step

    def __repr__(self) -> str:
        return f"<Plan of {counted(len(self), 'parameter')} by {self.policy!r}: print it>"

    def __str__(self) -> str:
        head = header(self.steps, self.policy, dict(self.unknown_operators), self.untraced)
        return f"{head}\n\n{table(self.steps)}"

    def _repr_html_(self) -> str:
        head, _, _ = str(self).partition("\n\n")
        return framed("", head, HEADINGS, rows(self.steps))

    @property
    def hash(self) -> str:
        """What identifies the outcome, 32 hex digits: equal for plans that do not differ."""
        return codec.digest([outcome(step) for step in self.steps])

    @property
    def symmetric(self) -> tuple[Step, ...]:
        """Steps that would make the units of a hidden layer identical for ever."""
        return symmetric(self.steps)

    def diff(self, other: "Plan") -> Difference:
        """Compare what this plan and another would leave behind, whatever their reasons."""
        if not isinstance(other, Plan):
            raise ArgumentError(f"diff takes another plan, got {other!r:.80}")
        return difference(self.steps, other.steps)

    def on(self, model: nn.Module, names: Names | None = None) -> "Plan":
        """Return this plan for another model that has the same sites, or for a part of the model.

        Args:
            model: The model; or with `names` a module that holds some of the sites alone, such as a
                pipeline stage, or this process' experts.
            names: What the parameters of a part are called in the whole model: a prefix (`""` where
                they have their full names), a mapping such as `{"layers.0": "layers.4"}`, or a
                function of a name.

        Raises:
            PlanError: The model has other sites; lists every case.

        Examples:
            >>> from torch_initpolicy import plan_policy
            >>> whole = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
            >>> stage = nn.Sequential(nn.Linear(16, 4))
            >>> [step.name for step in plan_policy(whole).on(stage, {"0": "2"})]
            ['2.weight', '2.bias']
        """
        pairs = pairs_of(self.steps, sites(require_module(model)), names)
        if names is None:
            return replace(self, model=model)
        return replace(self, model=model, names=names, steps=tuple(step for _, step in pairs))

    def pairs(self, model: nn.Module | None = None) -> tuple[tuple[Site, Step], ...]:
        """Return each site of the model, as it is now, with its step.

        Args:
            model: Another model with the same sites; None for the plan's own.

        Raises:
            PlanError: The plan is for no model, or the model has other sites.
        """
        target = _model_of(self, model)
        reshard(target)
        return pairs_of(self.steps, sites(target), self.names)

    def apply(
        self,
        model: nn.Module | None = None,
        *,
        seed: int | None = None,
        threads: int | None = None,
        draw_on: torch.device | str | None = None,
    ) -> "Receipt":
        """Write what the plan says, and return the receipt; see `apply_policy`.

        Args:
            model: Another model with the same sites; None for the plan's own.
            seed: Seed of the random streams; None takes one from torch's global generator.
            threads: Threads that draw on the CPU; None for as many as torch computes with.
            draw_on: Device that draws; None for the device that each tensor lives on.

        Raises:
            PlanError: The plan is for no model, or the model has other sites.
            ApplyError: Something cannot be written; the model is as it was.

        Warns:
            SymmetricInitWarning: Units of a hidden layer are identical and stay identical.
        """
        if seed is None and self.names is not None:
            raise PlanError("parts of one model are drawn from one seed; say which: seed=0")
        drawing, target = Drawing(seed, threads, draw_on), _model_of(self, model)
        bound = replace(self, model=target)
        with opened(target):
            with together(process_groups(target)):
                pairs = bound.pairs()
            written = apply_steps(pairs, drawing, model=target)
        warn_of_symmetry(bound)
        return Receipt.of(bound, written)

    def verify(self, model: nn.Module | None = None) -> Verification:
        """Measure every tensor of a model against its step, and return what was measured.

        Args:
            model: A model with the same sites; None for the plan's own.

        Raises:
            VerifyError: A tensor is not what its step says; lists every case.
            PlanError: The plan is for no model, or the model has other sites.
        """
        with together(process_groups(self.model if model is None else model)):
            return verify_steps(self.pairs(model))

    def to_json(self) -> str:
        """Write the plan as JSON; functions of the user's are kept as their names."""
        return codec.write_json(_plan_data(self))

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Read a plan from JSON; nothing in the text can run.

        Raises:
            UnknownNameError: A class or field does not exist.
            PolicyError: The text is no plan.
        """
        return _plan(codec.read_json(text, longest=None))


def _model_of(plan: Plan, model: nn.Module | None) -> nn.Module:
    """Return the model that is given, or that a plan was made for."""
    target = plan.model if model is None else require_module(model)
    if target is None:
        raise PlanError("a plan from a file: for which model? plan.on(model), plan.apply(model)")
    return target


def warn_of_symmetry(plan: Plan) -> None:
    """Warn where a plan that was carried out left the units of a hidden layer identical."""
    cases = [f"{step.name}: {step.reason}" for step in plan.symmetric]
    if cases:
        warn(
            f"policy {plan.policy!r} leaves hidden units that are identical and stay identical:\n"
            f"{listing(cases)}\nuse a random initializer there, e.g. apply_policy(model, 'auto')",
            SymmetricInitWarning,
        )


@dataclass(frozen=True, slots=True)
class Receipt(Grouped):
    """What was written to a model.

    Examples:
        >>> from torch_initpolicy import apply_policy
        >>> receipt = apply_policy(nn.Linear(8, 4), seed=0)
        >>> receipt.seed, receipt.written, receipt.kept
        (0, 2, 0)
        >>> Receipt.from_json(receipt.to_json()) == receipt
        True

    Attributes:
        plan: The plan that was carried out.
        seed: Seed of the random streams, also where none was given.
        devices: Types of the devices that drew.
        versions: What else the bits depend on.
        seconds: What it took, from the first check to the last write.
        fingerprints: A hash of each tensor as it was left, by canonical name.
    """

    plan: Plan
    seed: int
    devices: tuple[str, ...]
    versions: Versions
    seconds: float
    fingerprints: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, plan: Plan, written: Written) -> "Receipt":
        """Return the receipt of a plan that was carried out in this process."""
        seconds = written.seconds
        found = [] if plan.model is None else [site for site, _ in plan.pairs()]
        prints = tuple(fingerprints(found, plan.model).items())
        return cls(plan, written.seed, written.devices, Versions.here(), seconds, prints)

    @property
    def fingerprint(self) -> str:
        """Hash of the initial weights, 16 hex digits: equal in every layout of the same weights."""
        return fingerprint(dict(self.fingerprints))

    def check_bits(self, model: nn.Module) -> None:
        """Make sure that a model holds the initial weights to the last bit, in whatever layout.

        Args:
            model: A model with the same parameters; every process that holds a part must call this.

        Raises:
            VerifyError: A tensor has other bits; names it, and on other processes the rank.
        """
        with together(process_groups(model)):
            held = sites(require_module(model))
            if self.plan.names is not None:
                held = tuple(site for site, _ in self.pairs(model))
            found = fingerprints(held)
            wrong = [name for name, known in self.fingerprints if found.get(name) != known]
            if wrong:
                cases = listing(list(map(repr, wrong)))
                raise VerifyError(f"other bits than the receipt's are in:\n{cases}")

    @property
    def policy_hash(self) -> str | None:
        """Hash of the policy; None where it holds functions of the user's."""
        return self.plan.policy_hash

    @property
    def written(self) -> int:
        """How many tensors were written."""
        return len(self.plan) - self.kept

    @property
    def kept(self) -> int:
        """How many tensors were left as they were."""
        return sum(step.keeps for step in self.plan)

    @property
    def calibrated(self) -> dict[str, tuple[float, ...]]:
        """What each calibrated weight was multiplied by; three numbers for packed q, k, v."""
        return {step.name: step.factors for step in self.plan if step.factors}

    def pairs(self, model: nn.Module | None = None) -> tuple[tuple[Site, Step], ...]:
        """Return each site of the model with the step that was carried out; see `Plan.pairs`."""
        return self.plan.pairs(model)

    def verify(self, model: nn.Module | None = None) -> Verification:
        """Measure every tensor of a model against what was written; see `Plan.verify`."""
        return self.plan.verify(model)

    def reproduce(
        self,
        model: nn.Module,
        *,
        threads: int | None = None,
        draw_on: torch.device | str | None = None,
    ) -> "Receipt":
        """Write the same bits to another model that has the same parameters; return its receipt.

        What the plan kept is kept here too, with a warning: it is not part of the receipt. What was
        calibrated is multiplied by the same factors, without another look at inputs.

        Args:
            model: A model with the same parameters, spread over processes as it may be.
            threads: Threads that draw on the CPU; None for as many as torch computes with.
            draw_on: Device that draws; None: one of the type that drew the first time.

        Raises:
            PlanError: The model has other parameters; lists every case.
            ApplyError: The streams are of another version, or something cannot be written.

        Warns:
            InitPolicyWarning: Torch is another version, or computes with other instructions, so
                that the bits may be others; or the plan kept parameters, which the message lists.
        """
        self.versions.check()
        if draw_on is None and len(self.devices) == 1:
            (draw_on,) = self.devices
        receipt = self.plan.apply(model, seed=self.seed, threads=threads, draw_on=draw_on)
        _warn_of_kept(self.plan)
        return receipt

    def __repr__(self) -> str:
        return f"<Receipt: {self}>"

    def __str__(self) -> str:
        drawn = f" on {', '.join(self.devices)}" if self.devices else ""
        scaled = f", {len(self.calibrated)} calibrated" if self.calibrated else ""
        counts = f"{counted(self.written, 'tensor')} written, {self.kept} kept{scaled}"
        return (
            f"{counts}: policy {self.plan.policy!r}, "
            f"seed {self.seed}, drawn{drawn} by {self.versions.kernels} in {self.seconds:.2f} s"
        )

    def _repr_html_(self) -> str:
        return framed("", str(self), HEADINGS, rows(self.plan.steps))

    def to_json(self) -> str:
        """Write the receipt as JSON."""
        return codec.write_json(
            {
                "format": PLAN_FORMAT,
                "policy_hash": self.policy_hash,
                "written": self.written,
                "kept": self.kept,
                **{name: codec.encode(getattr(self, name), _CLASSES) for name in _OF_RECEIPTS},
                "plan": _plan_data(self.plan),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Receipt":
        """Read a receipt from JSON; nothing in the text can run.

        Raises:
            UnknownNameError: A class or field does not exist.
            PolicyError: The text is no receipt.
        """
        data = current(codec.read_json(text, longest=None), "receipt")
        return cls(_plan(data.get("plan")), **read_fields(data, "receipt", _OF_RECEIPTS, _CLASSES))


def _warn_of_kept(steps: Iterable[Step]) -> None:
    kept = folded((step.name, (step.reason,)) for step in steps if step.keeps)
    if kept:
        cases = [f"{name}: {why}" for name, (why,) in kept]
        warn(
            "not reproduced are parameters that were kept, whose values no receipt holds:\n"
            f"{listing(cases)}\nthey are as the model had them; load a state_dict to have the same",
            InitPolicyWarning,
        )


# JSON

_CLASSES: codec.Classes = MappingProxyType({"Versions": Versions})

_OF_RECEIPTS: Types = MappingProxyType(
    {
        "seed": int,
        "devices": tuple[str, ...],
        "versions": Versions,
        "seconds": float,
        "fingerprints": tuple[tuple[str, str], ...],
    }
)
_OF_PLANS: Types = MappingProxyType(
    {"policy": str, "policy_hash": str | None, "untraced": str | None}
)


def _plan_data(plan: Plan) -> codec.Data:
    return {
        "format": PLAN_FORMAT,
        "policy": plan.policy,
        "policy_hash": plan.policy_hash,
        "unknown_operators": dict(plan.unknown_operators),
        **({} if plan.untraced is None else {"untraced": plan.untraced}),
        "steps": [step_data(step) for step in plan.steps],
    }


def _plan(data: codec.Data) -> Plan:
    known = current(data, "plan")
    counts = known.get("unknown_operators", {})
    if not isinstance(counts, dict):
        raise PolicyError(f"unknown_operators is an object, got {brief(counts)}")
    return Plan(
        steps=steps_of(known, "plan"),
        unknown_operators=tuple(
            read_fields(counts, "unknown_operators", dict.fromkeys(counts, int)).items()
        ),
        **read_fields(known, "plan", _OF_PLANS),
    )
