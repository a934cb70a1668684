"""The public surface is typed as users write it."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

WRONG = {
    "policy": ("apply_policy(nn.Linear(1, 1), 3)", "arg-type"),
    "seed": ('apply_policy(nn.Linear(1, 1), seed="0")', "arg-type"),
    "initializer": ('Rule(match.name("a"), "zeros")', "arg-type"),
    "decorated": ('init_policy("he")(int)', "type-var"),
    "decorator keeps the class": ("x: int = init_policy(nn.Linear)(1, 1)", "assignment"),
}


def mypy(path):
    """Type-check one file strictly; return the exit code and what was printed of it."""
    options = ("--strict", "--no-error-summary", "--follow-imports=silent")
    command = [sys.executable, "-m", "mypy", *options, str(path)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return finished.returncode, finished.stdout + finished.stderr


@pytest.mark.timeout(300)
class TestTyping:
    """mypy accepts what is right, and says where something is wrong."""

    def test_ordinary_uses(self):
        """Uses as in the README pass the strict checker."""
        assert mypy(ROOT / "tests" / "typing_api.py") == (0, "")

    def test_wrong_uses(self, tmp_path):
        """Each wrong use is reported, and nothing else."""
        code = "\n".join(
            [
                "from torch import nn",
                "from torch_initpolicy import Rule, apply_policy, init_policy, match",
                *(line for line, _ in WRONG.values()),
            ]
        )
        (tmp_path / "wrong.py").write_text(code)

        status, printed = mypy(tmp_path / "wrong.py")

        assert status == 1
        errors = [line for line in printed.splitlines() if ": error:" in line]
        found = [(int(line.split(":")[-3]), line.rpartition("[")[2].rstrip("]")) for line in errors]
        assert found == [(n, code) for n, (_, code) in enumerate(WRONG.values(), start=3)]
