"""The command line: what it prints where, and how it ends."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, load_model, save_model

from torch_initpolicy import InitPolicy, Plan, Receipt, apply_policy, match, presets
from torch_initpolicy.cli import main
from torch_initpolicy.cli.commands import app
from torch_initpolicy.integrations.models import build
from torch_initpolicy.integrations.safetensors import receipt_in
from torch_initpolicy.symmetry.find import find_symmetry

ROOT = Path(__file__).parents[2]
SMALL = "timm:test_resnet"


@pytest.fixture
def run(capsys):
    """Run the command; return its exit code and what it printed to both outputs."""

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return run


class TestPlan:
    """`plan` prints and writes nothing."""

    def test_table(self, run):
        """The table names parameters, what they meet and what they get."""
        code, out, err = run("plan", SMALL)

        assert code == 0
        assert err == ""
        assert "policy auto" in out
        assert "meets relu: He normal" in out
        assert "fc.weight" in out

    def test_json(self, run):
        """With `--json` standard output is one JSON value, which is the plan."""
        code, out, err = run("plan", SMALL, "--json")

        assert (code, err) == (0, "")
        assert json.loads(out)["policy"] == "auto"
        assert Plan.from_json(out)["fc.weight"].shape == (1000, 96)

    @pytest.mark.parametrize("suffix", ["json", "toml"])
    def test_policy_file(self, run, tmp_path, suffix):
        """A policy is read from a file as well as by its name."""
        file = tmp_path / f"mine.{suffix}"
        presets.orthogonal().save(file)

        code, out, _ = run("plan", SMALL, "-p", str(file))

        assert code == 0
        assert "orthogonal" in out
        assert InitPolicy.load(file) == presets.orthogonal()

    def test_only_and_skip(self, run):
        """Filters can be repeated, and what they leave out is kept."""
        _, out, _ = run(
            "plan", SMALL, "--only", "fc.*", "--only", "bn*", "--skip", "*bias", "--json"
        )
        written = {s.name for s in Plan.from_json(out) if not s.reason.startswith("kept")}

        assert "fc.weight" in written
        assert "bn1.weight" in written
        assert not any(name.endswith("bias") or "conv" in name for name in written)


def in_a_process(*arguments):
    """Run Python in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=env
    )


class TestApply:
    """`apply` initialises, saves and reports."""

    def test_report(self, run):
        """The table ends with what was written, with which seed."""
        code, out, err = run("apply", SMALL, "--seed", "3")

        assert (code, err) == (0, "")
        assert "43 tensors written, 4 kept" in out
        assert "seed 3" in out

    def test_keep(self, run):
        """What the constructor meant stays, unless `--keep nothing` overwrites it."""
        _, out, _ = run("apply", SMALL, "--keep", "nothing")

        assert "47 tensors written, 0 kept" in out

    def test_json(self, run):
        """With `--json` standard output is the receipt."""
        code, out, err = run("apply", SMALL, "--json")

        assert (code, err) == (0, "")
        assert Receipt.from_json(out).seed == 0

    def test_out(self, run, tmp_path):
        """The file holds the weights that Python would have got, and the receipt."""
        file = tmp_path / "weights.safetensors"
        code, _, err = run("apply", SMALL, "-p", "he", "--seed", "5", "--out", str(file))
        expected, loaded = build(SMALL), build(SMALL)
        receipt = apply_policy(expected, "he", seed=5)
        load_model(loaded, str(file))

        assert (code, err) == (0, "")
        assert receipt_in(file).plan == receipt.plan
        assert load_file(file).keys() == expected.state_dict().keys()
        for name, tensor in expected.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name])
        assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]

    def test_calibrated(self, run, tmp_path):
        """With `--calibrate` the weights are those that `calibrate=` makes of the inputs."""
        file = tmp_path / "weights.safetensors"
        code, out, err = run(
            "apply", SMALL, "--calibrate", "-i", "4,3,64,64", "--out", str(file), "--json"
        )
        expected, loaded = build(SMALL), build(SMALL)
        batch = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        apply_policy(expected, seed=0, calibrate=batch)
        load_model(loaded, str(file))

        assert (code, err) == (0, "")
        assert "conv1.0.weight" in Receipt.from_json(out).calibrated
        for name, tensor in expected.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name])

    def test_calibrated_on_inputs_that_are_found(self, run, tmp_path):
        """Without `--input` there are still inputs, and the receipt still verifies the weights."""
        file = tmp_path / "weights.safetensors"
        code, out, err = run("apply", SMALL, "--calibrate", "--out", str(file), "--json")
        loaded = build(SMALL)
        load_model(loaded, str(file))

        assert (code, err) == (0, "")
        assert Receipt.from_json(out).calibrated
        assert receipt_in(file).verify(loaded).ok

    @pytest.mark.filterwarnings("default")
    def test_a_symmetric_start_is_warned_of(self, run):
        """A policy of constants warns on standard error, in one paragraph, and is carried out."""
        code, out, err = run("apply", SMALL, "-p", "zeros")

        assert code == 0
        assert err.startswith("warning: policy 'zeros' leaves hidden units that are identical")
        assert "cli.py" not in err
        assert "warning" not in out


OWN = """
from torch import nn

def broken():
    raise RuntimeError("no such dataset")

def odd():
    return nn.Linear(2, 2)

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.layer = nn.Linear(4, 4)

    def forward(self, numbers, *, ids):
        return numbers.view(7, 4) @ self.layer(self.table(ids)).relu().view(4, 5)

class Tied(Odd):
    def __init__(self):
        super().__init__()
        nn.init.constant_(self.layer.weight, 0.1)
        nn.init.constant_(self.layer.bias, 0.1)
        nn.init.constant_(self.table.weight, 0.1)
"""

ERRORS = {
    "model": (["plan", "timm:resnet05"], 2, "did you mean 'resnet50"),
    "address": (["plan", "resnet50"], 2, "write timm:resnet50"),
    "preset": (["plan", SMALL, "-p", "hee"], 2, "did you mean 'he'"),
    "policy file": (["plan", SMALL, "-p", "none.toml"], 2, "'none.toml' cannot be read"),
    "glob": (["plan", SMALL, "--only", "fx.*"], 2, "did you mean 'fc.*'"),
    "globs": (
        ["apply", SMALL, "--only", "nope*", "--skip", "none*"],
        2,
        "- only='nope*' matches nothing - skip='none*' matches nothing",
    ),
    "own module": (["plan", "no_module:fn"], 2, "no module 'no_module'"),
    "own name": (["plan", "own_cli:od"], 2, "did you mean 'odd'"),
    "own code": (
        ["plan", "own_cli:broken"],
        1,
        "RuntimeError: no such dataset (own_cli.py, line 5)",
    ),
    "nothing to do": (["plan", "torch.nn:ReLU"], 1, "the model has no parameters"),
    "suffix": (["apply", SMALL, "--out", "x.pt"], 2, "does not end with .safetensors"),
    "folder": (["apply", SMALL, "--out", "no/x.safetensors"], 2, "there is no folder no"),
    "option": (["plan", SMALL, "--jsn"], 2, "No such option"),
    "weights": (["check", SMALL, "--weights", "none.safetensors"], 2, "does not exist"),
    "seed": (["apply", SMALL, "--seed", "x"], 2, "Invalid value for '--seed'"),
    "large seed": (["apply", SMALL, "--seed", str(2**64)], 2, "does not fit into 64 bits"),
    "suggestion": (["audit", SMALL, "--suggest", "hee"], 2, "did you mean 'he'"),
    "input": (["plan", SMALL, "--input", "3x64"], 2, "'3x64' is no input; write [NAME=][KIND:]"),
    "kind of input": (["check", SMALL, "--input", "flot:3,64"], 2, "did you mean 'float'"),
    "inputs of one name": (["audit", SMALL, "-i", "x=2,3", "-i", "x=3"], 2, "are named 'x'"),
    "input of another shape": (["plan", SMALL, "-i", "2,4,64,64"], 1, "give inputs by --input"),
    "no input to be found": (["audit", "own_cli:Odd"], 1, "give inputs by --input [NAME=][KIND:]"),
    "command": (["paln"], 2, "No such command"),
}


SYMMETRIC = """
from torch import nn
def fixed():
    return Fixed()
class Fixed(nn.Linear):
    def __init__(self):
        super().__init__(6, 4)
        self.example_input_array = __import__("torch").randn(3, 6)
    def forward(self, x):
        return super().forward(x.view(3, 6))
def constant():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.1)
    return model
def random():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
def silent():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    nn.init.constant_(model[0].bias, -50.0)
    return model
"""


class TestCheck:
    """`check` finds symmetric starts; it fails where training would not mend them."""

    @pytest.fixture(autouse=True)
    def _here(self, tmp_path, monkeypatch):
        """Work in a folder with two models, and forget them afterwards."""
        (tmp_path / "own_symmetric.py").write_text(SYMMETRIC)
        monkeypatch.chdir(tmp_path)
        yield
        sys.modules.pop("own_symmetric", None)

    def test_a_model_that_is_fine(self, run):
        """Zero-initialised residual branches are named, and are no reason to fail."""
        code, out, err = run("check", SMALL)

        assert (code, err) == (0, "")
        assert "harmless" in out.splitlines()[0]

    def test_a_symmetric_model(self, run):
        """What is tied is named with its units and the remedy, and the exit code says so."""
        code, out, err = run("check", "own_symmetric:constant")

        assert (code, err) == (1, "")
        assert "3 tied" in out.splitlines()[0]
        assert "outputs 0-5" in out
        assert out.count("apply_policy(model, only=") == 1

    def test_the_remedy_is_what_has_been_tried(self, run):
        """What a bias keeps dead is repaired by writing that bias, and the repair is checked."""
        code, out, _ = run("check", "own_symmetric:silent", "--json")
        remedy = json.loads(out)["findings"][0]["remedy"]
        model = build("own_symmetric:silent")
        eval(remedy, {"apply_policy": apply_policy, "model": model})

        assert code == 1
        assert find_symmetry(model).ok

    def test_json(self, run):
        """With `--json` standard output is the report."""
        code, out, _ = run("check", "own_symmetric:constant", "--json")

        assert code == 1
        assert json.loads(out)["ok"] is False
        assert json.loads(out)["findings"][0]["units"] == [[0, 1, 2, 3, 4, 5]]

    def test_weights_from_a_file(self, run, tmp_path):
        """A file's weights are checked in place of the constructor's."""
        file = tmp_path / "weights.safetensors"
        save_model(build("own_symmetric:constant"), str(file))

        assert run("check", "own_symmetric:random")[0] == 0
        assert run("check", "own_symmetric:random", "--weights", str(file))[0] == 1

    @pytest.mark.filterwarnings("default")
    def test_a_policy_starts_the_model(self, run):
        """With `--policy` it is the policy's weights that are looked at."""
        assert run("check", "own_symmetric:constant", "-p", "he")[0] == 0
        code, out, err = run("check", "own_symmetric:random", "--policy", "ones", "--seed", "3")

        assert code == 1
        assert "tied" in out.splitlines()[0]
        assert "leaves hidden units that are identical" in " ".join(err.split())

    def test_two_kinds_of_weights(self, run, tmp_path, monkeypatch):
        """Weights of a file and those of a policy exclude each other, before anything is built."""
        monkeypatch.setattr(
            "torch_initpolicy.cli.commands.build", lambda _: pytest.fail("was built")
        )
        file = tmp_path / "weights.safetensors"
        file.touch()
        code, out, err = run(
            "check", "own_symmetric:random", "--weights", str(file), "--policy", "he"
        )

        assert (code, out) == (2, "")
        assert "--weights and --policy" in err

    def test_calibrating_a_model_of_one_batch_size(self, run):
        """Inputs that are found for a model which takes three at a time are three."""
        code, out, err = run("apply", "own_symmetric:fixed", "--calibrate")

        assert (code, err) == (0, "")
        assert "to calibrate" in " ".join(out.split())  # cells wrap in narrow terminals

    def test_weights_of_another_model(self, run, tmp_path):
        """A file that does not fit is refused in one line."""
        file = tmp_path / "weights.safetensors"
        save_model(build("torch.nn:Identity"), str(file))
        code, out, err = run("check", "own_symmetric:random", "--weights", str(file))

        assert (code, out) == (1, "")
        assert "holds no weights for this Sequential:" in err
        assert "4 tensors missing from it:" in err


class TestAudit:
    """`audit` follows the signal of a constructor's start, or of a policy's."""

    DEEP = """
from torch import nn
def deep():
    layers = [layer for _ in range(20) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(64, 10))
"""

    @pytest.fixture(autouse=True)
    def _here(self, tmp_path, monkeypatch):
        """Work in a folder with a deep model, and forget it afterwards."""
        (tmp_path / "own_deep.py").write_text(self.DEEP)
        monkeypatch.chdir(tmp_path)
        yield
        sys.modules.pop("own_deep", None)

    def test_the_first_step(self, run):
        """With an optimizer and its learning rate the first step is judged; neither goes alone."""
        code, out, _ = run("audit", SMALL, "--optimizer", "adam", "--lr", "10", "--budget", "0")
        assert code == 1
        assert "the first step is too large" in out
        assert run("audit", SMALL, "--lr", "10")[0] == 2
        assert run("audit", SMALL, "--optimizer", "adan", "--lr", "1")[0] == 2

    @pytest.mark.parametrize(("policy", "code"), [("he", 0), ("normal", 1)])
    def test_a_policy_starts_the_model(self, run, tmp_path, policy, code):
        """The verdict is that of the policy's start; the page shows its receipt."""
        page = tmp_path / "report.html"
        ended, out, _ = run(
            "audit", "own_deep:deep", "-p", policy, "--seed", "5", "--html", str(page), "--json"
        )
        expected = build("own_deep:deep")
        apply_policy(expected, policy, seed=5)
        shown = page.read_text()
        receipt = shown.partition("<summary>JSON</summary><pre>")[2].partition("</pre>")[0]
        written = Receipt.from_json(html.unescape(receipt))

        assert ended == code
        assert f"Audit of own_deep:deep under {policy}" in shown
        assert written.verify(expected).ok
        assert written.seed == 5
        second = {update["site"]: update["second"] for update in json.loads(out)["updates"]}
        for name, parameter in expected.named_parameters():
            assert second[name] == pytest.approx(parameter.square().mean().item(), rel=1e-5)

    def test_a_seed_alone_is_the_constructors(self, run):
        """The same seed gives the same audit, another another; the global state stays."""
        before = torch.get_rng_state()
        one, two, other = (
            run("audit", "own_deep:deep", "--seed", seed, "--json", "--budget", "0")[1]
            for seed in ("1", "1", "2")
        )
        torch.manual_seed(1)
        expected = build("own_deep:deep")[0].weight
        torch.set_rng_state(before)
        points, again, others = (json.loads(out)["points"] for out in (one, two, other))

        assert points == again
        assert points != others
        assert json.loads(one)["updates"][0]["second"] == pytest.approx(
            expected.square().mean().item(), rel=1e-5
        )
        assert torch.equal(torch.get_rng_state(), before)


class TestInput:
    """`--input` says what a model takes where nobody could guess it."""

    GIVEN = ("--input", "7,2,2", "-i", "ids=int:5")

    @pytest.fixture(autouse=True)
    def _here(self, tmp_path, monkeypatch):
        """Work in a folder with such a model, and forget it afterwards."""
        (tmp_path / "own_cli.py").write_text(OWN)
        monkeypatch.chdir(tmp_path)
        sys.modules.pop("own_cli", None)
        yield
        sys.modules.pop("own_cli", None)

    @pytest.mark.parametrize("command", ["plan", "apply"])
    def test_the_flow_is_read(self, run, command):
        """What a layer meets is seen with the inputs, and only guessed without them."""
        _, without, advice = run(command, "own_cli:Odd", "--json")
        code, out, err = run(command, "own_cli:Odd", *self.GIVEN, "--json")

        def evidence(text):
            read = json.loads(text)
            return {step["evidence"] for step in read.get("plan", read)["steps"]}

        assert (code, err) == (0, "")
        assert evidence(without) == {"order"}
        assert advice.startswith("advice: give inputs by --input ")
        assert evidence(out) == {"traced"}

    def test_the_signal_is_followed(self, run):
        """The audit follows a model that it cannot run otherwise."""
        code, out, err = run("audit", "own_cli:Odd", *self.GIVEN)

        assert (code, err) == (0, "")
        assert "layer" in out

    def test_units_are_told_apart(self, run):
        """What is equal is only suspect without inputs; with them it is known to stay equal."""
        verdicts = [
            {finding["verdict"] for finding in json.loads(out)["findings"]}
            for _, out, _ in (
                run("check", "own_cli:Tied", "--json"),
                run("check", "own_cli:Tied", *self.GIVEN, "--json"),
            )
        ]

        assert verdicts == [{"suspect"}, {"tied"}]

    @pytest.mark.parametrize("command", ["plan", "apply", "audit", "check"])
    def test_the_help_names_it(self, run, command):
        """The notation is where one looks for it."""
        _, out, _ = run(command, "--help")

        assert "--input" in out
        assert "[NAME=][KIND:]SHAPE" in out


class TestBeforeTheWork:
    """What can be known before a model is built is not told after it."""

    @pytest.mark.parametrize(
        "options",
        [
            ("plan", "--policy", "hee"),
            ("audit", "--suggest", "he", "--suggest", "hee"),
            ("apply", "--seed", str(-(2**63) - 1)),
            ("check", "--input", "0,3"),
            ("audit", "--policy", "hee"),
            ("check", "--seed", str(2**64)),
        ],
        ids=" ".join,
    )
    def test_no_model_is_built(self, run, monkeypatch, options):
        """The command ends before it asks for the model."""
        monkeypatch.setattr(
            "torch_initpolicy.cli.commands.build", lambda _: pytest.fail("was built")
        )

        assert run(options[0], SMALL, *options[1:])[0] == 2


class TestErrors:
    """Each error is short, says what to write, and has its exit code."""

    @pytest.mark.parametrize(("arguments", "code", "message"), ERRORS.values(), ids=ERRORS)
    def test_error(self, run, tmp_path, monkeypatch, arguments, code, message):
        """The message goes to standard error; nothing is printed to standard output."""
        (tmp_path / "own_cli.py").write_text(OWN)
        monkeypatch.chdir(tmp_path)

        ended, out, err = run(*arguments)

        assert ended == code
        assert out == ""
        assert message in " ".join(err.replace("│", "").split())
        assert "Traceback" not in err

    def test_an_interrupted_write_leaves_the_old_file(self, run, tmp_path, monkeypatch):
        """Where writing fails the file that was there stays, and no half of a new one."""

        def fail(*_, **__):
            raise OSError("no space left on device")

        file = tmp_path / "weights.safetensors"
        file.write_text("old")
        monkeypatch.setattr("torch_initpolicy.integrations.safetensors.save_model", fail)

        code, _, err = run("apply", SMALL, "--out", str(file))

        assert code == 1
        assert "no space left on device" in err
        assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


class TestEntry:
    """How it starts."""

    def test_no_arguments_print_the_help(self, run):
        """Without arguments the commands are listed."""
        code, out, err = run()

        assert code in {0, 2}
        assert "plan" in out + err
        assert "apply" in out + err

    @pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
    def test_seeds_of_64_bits(self, run, seed):
        """Every seed that the streams take is taken, signed or not."""
        code, out, _ = run("apply", SMALL, "--seed", str(seed))

        assert code == 0
        assert f"seed {seed}" in out

    def test_version(self, run):
        """The version is printed alone, and with it what the bits depend on."""
        code, out, err = run("--version")

        assert (code, err) == (0, "")
        assert out.startswith("torch-initpolicy ")
        assert torch.__version__ in out
        assert len(out.splitlines()) == 1

    def test_as_a_module(self):
        """`python -m torch_initpolicy` is the same command."""
        finished = in_a_process("-m", "torch_initpolicy", "plan", SMALL, "--seed", "1")
        shown = in_a_process("-m", "torch_initpolicy", "--version")

        assert finished.returncode == 2
        assert "torch-initpolicy plan" in finished.stderr
        assert (shown.returncode, shown.stderr) == (0, "")

    def test_without_the_extra(self):
        """Without typer or rich one line names the extra, with exit code 1."""
        code = "import sys; sys.modules['typer'] = None; import torch_initpolicy.cli"
        finished = in_a_process("-c", code)

        assert finished.returncode == 1
        (line,) = finished.stderr.splitlines()
        assert line.startswith("the command torch-initpolicy needs the extra 'cli'")
        assert "pip install -e '.[cli]'" in line


class TestCompare:
    """`compare` says which tensors of two models start differently."""

    def test_models_that_differ(self, run):
        """The exit code is 1, and the JSON holds the rows."""
        code, out, _ = run("compare", SMALL, "timm:test_vit", "--json")

        assert code == 1
        assert not json.loads(out)["ok"]

    def test_models_that_start_the_same(self, run):
        """The exit code is 0, and the counts are printed."""
        code, out, _ = run("compare", SMALL, SMALL)

        assert code == 0
        assert ", 0 differ, 0 not compared" in out


@pytest.fixture
def family(monkeypatch, tmp_path):
    """A module with a model that takes a width, and its base."""
    (tmp_path / "own_family.py").write_text(
        "from torch import nn\n"
        "def net(width=64):\n"
        "    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width),\n"
        "                         nn.ReLU(), nn.Linear(width, 4))\n"
        "def base():\n"
        "    return net(16)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_family", raising=False)
    return tmp_path


class TestGroups:
    """`groups` shows who shares a learning rate and a weight decay."""

    def test_table(self, run):
        """The table names parameters and reasons."""
        code, out, err = run("groups", SMALL)

        assert (code, err) == (0, "")
        assert "weight: decayed" in out
        assert "norm weight: not decayed" in out

    @pytest.mark.parametrize("base", ["own_family:base", "base.json"])
    def test_base(self, run, family, base):
        """From a base, be it a model or the file of a plan, learning rates go with width."""
        (family / "base.json").write_text(run("plan", "own_family:base", "--json")[1])
        code, out, _ = run("groups", "own_family:net", "--base", base, "--lr", "1", "--json")
        rates = {
            name: group["lr"] for group in json.loads(out)["groups"] for name in group["names"]
        }

        assert code == 0
        assert (rates["0.weight"], rates["2.weight"]) == (1.0, 0.25)

    def test_unknown_optimizer(self, run):
        """What is no optimizer is a mistake of the command line."""
        code, _, err = run("groups", SMALL, "--optimizer", "adan")

        assert code == 2
        assert "did you mean 'adam'" in err


class TestBase:
    """`plan` and `apply` scale from a base as `groups` does."""

    def test_plan_and_apply(self, run, family):
        """At four times the width the numbers are those of muP, in the plan and in the file."""
        asked = ("own_family:net", "--base", "own_family:base")
        plan = Plan.from_json(run("plan", *asked, "--policy", "he", "--json")[1])
        code, _, _ = run("apply", *asked, "--out", str(family / "net.safetensors"))

        assert code == 0
        assert plan["2.weight"].multipliers.std == 0.5
        receipt = receipt_in(family / "net.safetensors")
        assert receipt.plan["2.weight"].multipliers.std == 0.5

    def test_without_a_base(self, run):
        """Who asks for muP alone reads which option is missing."""
        code, _, err = run("plan", SMALL, "--policy", "mup")

        assert code == 2
        assert "give --base" in err


class TestInterrupts:
    """Ctrl-C ends a command with a word about what was done."""

    @pytest.mark.parametrize("command", ["apply", "audit"])
    def test_while_working(self, run, monkeypatch, tmp_path, command):
        """What ran is named, no file is touched, and the exit code is a shell's."""
        (tmp_path / "own_slow.py").write_text(
            "from torch import nn\n"
            "class Slow(nn.Linear):\n"
            "    def forward(self, x):\n"
            "        raise KeyboardInterrupt\n"
            "def net():\n"
            "    return Slow(4, 4)\n"
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.delitem(sys.modules, "own_slow", raising=False)
        before = sorted(tmp_path.glob("*.*"))

        code, out, err = run(command, "own_slow:net")

        assert (code, out) == (130, "")
        assert "stopped while" in err
        assert "no file was written or changed" in " ".join(err.split())
        assert sorted(tmp_path.glob("*.*")) == before


class TestScaling:
    """`scaling` runs the coordinate check on what builds a model of a width."""

    @pytest.mark.usefixtures("family")
    @pytest.mark.parametrize(("policy", "expected"), [("mup", 0), ("he", 1)])
    def test_verdict(self, run, policy, expected):
        """The exit code is the verdict."""
        code, out, _ = run("scaling", "own_family:net", "-p", policy, "--widths", "16,32,64,128")

        assert code == expected
        assert "changes more in wider models" in out or policy == "mup"

    @pytest.mark.usefixtures("family")
    def test_widths(self, run):
        """Widths are numbers."""
        assert run("scaling", "own_family:net", "--widths", "small,large")[0] == 2


class TestPresets:
    """`presets` lists the words of policies."""

    def test_table(self, run):
        """Every kind of word is there, with what it is."""
        code, out, err = run("presets")

        assert (code, err) == (0, "")
        assert {"auto", "meets", "Orthogonal"} <= {line.split(" ")[0] for line in out.splitlines()}
        assert "norm_weight" in out

    def test_json(self, run):
        """The words are by kind, and all of them are there."""
        words = json.loads(run("presets", "--json")[1])

        assert words["presets"].keys() == set(presets.__all__) - {"policy"}
        assert words["matchers"].keys() == set(dir(match))
        assert "weight" in words["roles"]
        assert words["initializers"]["he_normal"].endswith(".")


class TestManners:
    """What is printed fits where it goes."""

    def test_only_what_was_asked_for(self, run):
        """With `--only` the table has the rows of these parameters and no others."""
        _, out, _ = run("plan", SMALL, "--only", "fc.*")
        _, left, _ = run("plan", SMALL, "--skip", "fc.*")

        assert [line.split()[0] for line in out.splitlines()[4:]] == ["fc.weight", "fc.bias"]
        assert "fc.weight" not in left
        assert "conv1.0.weight" in left

    @pytest.mark.parametrize("columns", [60, 200])
    def test_width_of_a_pipe(self, run, monkeypatch, columns):
        """`COLUMNS` is respected where the output is no terminal, and no line ends with blanks."""
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = [line for verb in ("plan", "audit") for line in run(verb, SMALL)[1].splitlines()]

        assert max(map(len, lines)) <= columns
        assert all(line == line.rstrip() for line in lines)

    @pytest.mark.filterwarnings("default")
    @pytest.mark.usefixtures("family")
    def test_quiet(self, run):
        """`--quiet` leaves results and errors, for this run alone."""
        command = ("apply", "own_family:base", "--policy", "ones")
        loud, quiet, again = (run(*command, *more) for more in ((), ("--quiet",), ()))

        assert "leaves hidden units that are identical" in " ".join(loud[2].split())
        assert quiet[2] == ""
        assert "policy ones" in quiet[1]
        assert again[2] == loud[2]

    def test_no_colour(self, run, monkeypatch):
        """With `NO_COLOR` even a forced terminal gets no colours."""
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("NO_COLOR", "1")
        colours = re.findall(r"\x1b\[[\d;]*3\dm", run("plan", SMALL)[1])

        assert colours == []

    def test_page_of_another_name(self, run, tmp_path):
        """A page that no browser would open is refused before a model is built."""
        code, _, err = run("audit", SMALL, "--html", str(tmp_path / "x.txt"))

        assert code == 2
        assert "does not end with .html" in " ".join(err.replace("│", "").split())

    @pytest.mark.parametrize(
        "arguments",
        [
            ("plan", SMALL),
            ("apply", SMALL),
            ("check", "own_family:base"),
            ("audit", "own_family:base"),
            ("compare", "own_family:base", "own_family:base"),
            ("groups", "own_family:base"),
            ("scaling", "own_family:net", "--widths", "16,32"),
            ("presets",),
        ],
        ids=lambda arguments: arguments[0],
    )
    @pytest.mark.usefixtures("family")
    def test_format(self, run, arguments):
        """Each command's JSON is an object that says its format."""
        assert json.loads(run(*arguments, "--json")[1])["format"] >= 1

    @pytest.mark.parametrize(
        "command", [c.name or c.callback.__name__ for c in app.registered_commands]
    )
    def test_help_has_an_example(self, run, command):
        """Every command shows a line that can be typed."""
        assert f"torch-initpolicy {command}" in " ".join(
            run(command, "--help")[1].split("Example")[1:]
        )

    def test_completion(self, run):
        """The shell can be taught the names."""
        assert "--install-completion" in run("--help")[1]
