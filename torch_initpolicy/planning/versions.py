"""Versions: what the bits depend on besides a plan and a seed."""

import platform
from dataclasses import dataclass
from importlib import metadata

import torch

from torch_initpolicy.errors import ApplyError, InitPolicyWarning, warn
from torch_initpolicy.writing.streams import CONTRACT


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
            torch_initpolicy=__version__,
            streams=CONTRACT,
            torch=str(torch.__version__),
            capability=torch.backends.cpu.get_cpu_capability(),
            python=platform.python_version(),
        )

    @property
    def kernels(self) -> str:
        """What turns random bits into numbers: `torch 2.14.1 (AVX2)`."""
        return f"torch {self.torch} ({self.capability})"

    def check(self) -> None:
        """Make sure that this process draws the bits that were drawn under these versions.

        Warns:
            InitPolicyWarning: Its torch is another version, or computes with other instructions.
        """
        here = Versions.here()
        if self.streams != here.streams:
            raise ApplyError(
                f"the receipt was drawn from random streams v{self.streams}, this version of "
                f"torch-initpolicy knows v{here.streams}; install torch-initpolicy "
                f"{self.torch_initpolicy}"
            )
        if self.kernels != here.kernels:
            what = f"drawn with {self.kernels}, this is {here.kernels}: the bits may differ"
            warn(what, InitPolicyWarning)


def installed(package: str) -> str:
    """Return the version of a package; "not installed" where it is imported from its source."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


__version__ = installed("torch-initpolicy")
"""The version of this package."""
