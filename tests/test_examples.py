"""The examples run as they stand and show what they say."""

import os
import re
import runpy
import signal
import socket
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
    assert {name for name, result in results.items() if result.warned} == constant.keys()
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


def test_find_symmetry(run):
    """Four mistakes are named; a training is warned at step 1, and not after it was mended."""
    reports, printed = run("find_symmetry")
    found = {
        name: {(f.name, f.verdict) for f in r.of("tied", "dead")} for name, r in reports[0].items()
    }
    before, after = reports[1]

    assert ("0.weight", "tied") in found["constant weights"]
    assert {("a", "dead"), ("b", "dead")} == found["both factors of a product zero"]
    assert {("experts.0", "tied")} == found["copied experts under a zero router"]
    assert ("gate", "dead") in found["a gate that is zero at both ends"]
    assert "1 harmless" in printed
    assert "warned at step 1: " in printed
    assert "0 warnings" in printed
    assert before < 0.5
    assert after > 0.8


#
# Several processes
#

FSDP2 = str(EXAMPLES / "fsdp2.py")
ALONE = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(EXAMPLES.parent),
    # The name of a machine need not lead to an address on which its processes can meet.
    "GLOO_SOCKET_IFNAME": "lo",
}
ERROR = re.compile(r"Error: .*(closed by peer|reset by peer|[Bb]roken pipe|[Tt]imed out|aborted)")


def losses(ranks):
    """What the example prints under torchrun, one loss per step."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    here = "--local-addr=127.0.0.1"
    command = [*torchrun, here, f"--nproc-per-node={ranks}", FSDP2, "--steps=2"]
    finished = subprocess.run(
        command, check=False, capture_output=True, text=True, env=ALONE, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    return [float(loss) for loss in re.findall(r"loss (\S+)", finished.stdout)]


@pytest.mark.distributed
def test_fsdp2():
    """One, two and four processes start from the same loss, but for the order of a sum.

    Each averages 128 terms near 5 in float32, where 1e-6 is ten of the last bits: kernels of other
    processors add in other orders. Weights of another seed change it by about 1e-3.
    """
    alone, two, four = (losses(ranks) for ranks in (1, 2, 4))

    assert two == pytest.approx(alone, rel=1e-6)
    assert four == pytest.approx(alone, rel=1e-6)
    # log(100) + 1/2, for logits of variance 1
    assert alone[1] < alone[0] == pytest.approx(5.1, abs=0.15)


@pytest.mark.distributed
def test_fsdp2_loses_a_process():
    """When a process is killed in the middle, the other ends with an error and does not hang."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    first, second = (
        subprocess.Popen(
            [sys.executable, FSDP2, "--steps=1000000"],
            env={**ALONE, **address, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    )
    assert "step 0" in first.stdout.readline()
    second.send_signal(signal.SIGKILL)
    second.communicate()
    _, errors = first.communicate(timeout=100)

    assert first.returncode not in (0, -signal.SIGKILL)
    assert ERROR.search(errors), errors


def test_as_a_script():
    """An example runs as a script, too."""
    command = [sys.executable, str(EXAMPLES / "decorator.py")]
    finished = subprocess.run(command, check=True, capture_output=True, text=True, env=ALONE)

    assert "OrthogonalClassifier" in finished.stdout
