"""The headline experiments run: a few steps of each, as `--smoke` takes them."""

import runpy
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parent.parent / "examples" / "experiments"
NAMES = sorted(
    path.stem for path in EXPERIMENTS.glob("*.py") if path.stem not in ("common", "structures")
)


@pytest.fixture
def smoke(monkeypatch, tmp_path, capsys):
    """Run an experiment's `main` for a few steps; return its results, output and files."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))
    monkeypatch.delitem(sys.modules, "common", raising=False)

    def run(name):
        main = runpy.run_path(str(EXPERIMENTS / f"{name}.py"))["main"]
        results = main(smoke=True, out=tmp_path)
        return results, capsys.readouterr().out, sorted(path.name for path in tmp_path.iterdir())

    yield run
    sys.modules.pop("common", None)


@pytest.mark.parametrize("name", NAMES)
def test_smoke(smoke, name):
    """Every row of every table is there, printed and in a file."""
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    pytest.importorskip("torchmortem" if name == "doctor" else "matplotlib")
    results, printed, files = smoke(name)
    assert printed.count("\n| ") >= 3
    assert len(results) >= 2
    assert any(file.endswith(".md") for file in files)
