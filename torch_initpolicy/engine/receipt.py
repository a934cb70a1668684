"""A receipt: what was written, with which seed, by which versions; enough to do it again.

Knows plans and how they are carried out; decides nothing.
"""

import platform
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from torch_initpolicy.engine.apply import Written, apply_steps
from torch_initpolicy.engine.plan import Plan
from torch_initpolicy.engine.streams import CONTRACT
from torch_initpolicy.errors import ApplyError, InitPolicyWarning, PolicyError
from torch_initpolicy.policy import codec

FORMAT = 1
"""Version of the layout of a receipt's JSON."""


@dataclass(frozen=True, slots=True)
class Versions:
    """What the bits depend on besides the plan and the seed.

    Attributes:
        torch_initpolicy: Version of this package.
        streams: Version of the contract of its random streams.
        torch: Version of torch, whose kernels turn random bits into numbers.
        capability: Vector instructions that those kernels use on the CPU.
        python: Version of Python; of no influence.
    """

    torch_initpolicy: str
    streams: int
    torch: str
    capability: str
    python: str

    @classmethod
    def here(cls) -> "Versions":
        """Return the versions of this process."""
        return cls(
            torch_initpolicy=_installed("torch-initpolicy"),
            streams=CONTRACT,
            torch=str(torch.__version__),
            capability=torch.backends.cpu.get_cpu_capability(),
            python=platform.python_version(),
        )


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


@dataclass(frozen=True, slots=True)
class Receipt:
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
    """

    plan: Plan
    seed: int
    devices: tuple[str, ...]
    versions: Versions
    seconds: float

    @classmethod
    def of(cls, plan: Plan, written: Written) -> "Receipt":
        """Return the receipt of a plan that was carried out in this process."""
        seconds = written.staging + written.writing
        return cls(plan, written.seed, written.devices, Versions.here(), seconds)

    @property
    def policy_hash(self) -> str | None:
        """Hash of the policy; None where it holds functions of the user's."""
        return self.plan.policy_hash

    @property
    def written(self) -> int:
        """How many tensors were written."""
        return sum(not step.keeps for step in self.plan)

    @property
    def kept(self) -> int:
        """How many tensors were left as they were."""
        return sum(step.keeps for step in self.plan)

    def reproduce(
        self,
        model: nn.Module,
        *,
        threads: int | None = None,
        draw_on: torch.device | str | None = None,
    ) -> "Receipt":
        """Write the same bits to another model that has the same parameters.

        What the plan kept is kept here too: it is not part of the receipt.

        Args:
            model: A model with the same parameters, spread over processes as it may be.
            threads: As for `apply_policy`.
            draw_on: Device that draws; None: one of the type that drew the first time.

        Returns:
            The receipt of the second time.

        Raises:
            PlanError: The model has other parameters; lists every case.
            ApplyError: The streams are of another version of their contract, or something cannot be
                written.

        Warns:
            InitPolicyWarning: Torch is another version, or computes with other instructions, so
                that the bits may be others.
        """
        self._compare(Versions.here())
        bound = self.plan.on(model)
        drawn_on = self.devices[0] if len(self.devices) == 1 else None
        written = apply_steps(
            bound.pairs(), self.seed, threads=threads, draw_on=draw_on or drawn_on
        )
        return Receipt.of(bound, written)

    def _compare(self, here: Versions) -> None:
        if self.versions.streams != here.streams:
            raise ApplyError(
                f"the receipt was drawn from random streams v{self.versions.streams}, this "
                f"version of torch-initpolicy knows v{here.streams}; install torch-initpolicy "
                f"{self.versions.torch_initpolicy}"
            )
        then, now = (_kernels(versions) for versions in (self.versions, here))
        if then != now:
            warnings.warn(
                f"drawn with {then}, this is {now}: the bits may differ",
                InitPolicyWarning,
                stacklevel=3,
            )

    def __str__(self) -> str:
        drawn = f" on {', '.join(self.devices)}" if self.devices else ""
        return (
            f"{self.written} tensors written, {self.kept} kept: policy {self.plan.policy!r}, "
            f"seed {self.seed}, drawn{drawn} by {_kernels(self.versions)} in {self.seconds:.2f} s"
        )

    def to_json(self) -> str:
        """Write the receipt as JSON."""
        return codec.write_json(
            {
                "format": FORMAT,
                "policy_hash": self.policy_hash,
                "written": self.written,
                "kept": self.kept,
                **{name: codec.encode(getattr(self, name), _CLASSES) for name in _FIELDS},
                "plan": codec.read_json(self.plan.to_json()),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "Receipt":
        """Read a receipt from JSON; nothing in the text can run.

        Raises:
            UnknownNameError: A class or field does not exist.
            PolicyError: The text is no receipt.
        """
        data = codec.read_json(text)
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise PolicyError(f"this is no receipt of format = {FORMAT}")
        plan = Plan.from_json(codec.write_json(data.get("plan")))
        return cls(plan, **{name: _read(name, data.get(name)) for name in _FIELDS})


_CLASSES: codec.Classes = MappingProxyType({"Versions": Versions})

_FIELDS: Mapping[str, Any] = MappingProxyType(
    {"seed": int, "devices": tuple[str, ...], "versions": Versions, "seconds": float}
)
"""What a receipt holds beside its plan, and of which type."""


def _read(name: str, data: codec.Data) -> Any:
    value = codec.decode(data, _CLASSES, f"receipt.{name}")
    if not codec.fits(value, _FIELDS[name]):
        raise PolicyError(f"receipt.{name} must be {_FIELDS[name]}, got {data!r}")
    return value


def _kernels(versions: Versions) -> str:
    return f"torch {versions.torch} ({versions.capability})"
