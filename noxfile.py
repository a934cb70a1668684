"""The core tests on the oldest supported torch and the newest: `nox`.

Not part of `.ci/run`: each session installs a torch of its own.
"""

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
