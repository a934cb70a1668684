"""The core tests on the oldest supported torch and the newest; the wheel beside torch: `nox`.

Not part of `.ci/run`: each session installs a torch of its own.
"""

from pathlib import Path

import nox

OLDEST, NEWEST = "2.6.0", ""

CORE = (
    "tests/planning",
    "tests/policy",
    "tests/tensors",
    "tests/writing",
    "tests/test_api.py",
    "tests/test_decorator.py",
)
"""What depends on torch alone."""

nox.options.default_venv_backend = "venv"


@nox.session
@nox.parametrize("torch", [OLDEST, NEWEST])
def core(session: nox.Session, torch: str) -> None:
    """Run what needs no other library's models."""
    session.install(f"torch=={torch}" if torch else "torch", "-e", ".[cli,toml]")
    session.install("hypothesis", "numpy", "pytest", "pytest-timeout", "scipy")
    session.run("pytest", "-q", *(session.posargs or CORE))


@nox.session
def wheel(session: nox.Session) -> None:
    """Build wheel and sdist; initialise a model from the wheel where only torch is installed."""
    session.install("build", "torch")
    session.run("python", "-m", "build", "-o", session.create_tmp())
    (built,) = Path(session.create_tmp()).glob("*.whl")
    session.install(str(built))
    code = "from torch import nn; import torch_initpolicy as t; t.apply_policy(nn.Linear(2, 2))"
    session.run("python", "-c", code)
    session.run("torch-initpolicy", "presets", success_codes=[1])  # names the extra that is missing


@nox.session
def mutation(session: nox.Session) -> None:
    """Change the core modules one expression at a time, and count the changes that tests see."""
    session.install("-e", ".[mutation]")
    session.run("mutmut", "run", "--max-children", "1", *session.posargs)
    session.run("mutmut", "results")
