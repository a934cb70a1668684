"""The examples run as they stand and show what they say."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(capsys):
    """Run an example's `main` and return what it returns and what it prints."""

    def run(name):
        result = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]()
        return result, capsys.readouterr().out

    return run


def test_all_examples_are_tested():
    """Every script in the folder has its test here, by its name."""
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}

    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested


def test_quickstart(run):
    """A real model is planned, initialised, verified, and twice the same."""
    receipt, printed = run("quickstart")

    assert receipt.seed == 0
    assert "stages.0.blocks.0.mlp.fc1.weight" in printed
    assert "another model, the same seed, the same weights: True" in printed


def test_classic_inits(run):
    """Xavier and He learn; constant starts keep one unit and do not; wrong scales do not."""
    results, printed = run("classic_inits")

    constant = {name: results[name] for name in ("zeros", "ones", "constant 0.03")}
    assert {(result.before, result.after) for result in constant.values()} == {(1, 1)}
    assert all(result.accuracy < 0.25 for result in constant.values())
    assert results["uniform [0, 1]"].signal > 1e4
    assert results["normal, std 0.01"].signal < 1e-4
    assert all(results[name].accuracy < 0.25 for name in ("uniform [0, 1]", "normal, std 0.01"))
    assert all(results[name].accuracy > 0.9 for name in ("Xavier", "He"))
    assert all(results[name].before == 64 for name in ("Xavier", "He"))
    assert "64 units stay one" in printed


def test_custom_policy(run):
    """Rules of one's own are followed, and the rest is `auto`'s."""
    model, printed = run("custom_policy")

    assert model.scores.bias.sigmoid().item() == pytest.approx(0.01, rel=1e-3)
    assert 0.008 < model.boxes.weight.std().item() < 0.012
    assert model.boxes.bias.count_nonzero() == 0
    assert "scores start at a probability of 0.010" in printed


def test_decorator(run):
    """Parent, child and a child with its own policy: only the last one is orthogonal."""
    errors, printed = run("decorator")

    assert errors["OrthogonalClassifier"] < 1e-4
    assert errors["Encoder"] == errors["Classifier"] > 0.1
    assert "a deepcopy keeps its weights" in printed


def test_as_a_script():
    """An example runs as a script, too."""
    command = [sys.executable, str(EXAMPLES / "decorator.py")]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)

    assert "OrthogonalClassifier" in finished.stdout
