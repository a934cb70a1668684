"""What the README says is so."""

import re
import shlex
from pathlib import Path

import pytest

from torch_initpolicy import InitPolicy, Rule, initializers, match, presets
from torch_initpolicy.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    """Cut the code of a language out of the text."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_code_runs():
    """The Python of the README runs from top to bottom."""
    namespace = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)

    assert namespace["plan"]["blocks.0.mlp.fc1.weight"].meets == "gelu"
    assert namespace["plan"]["blocks.0.mlp.fc1.weight"].std == pytest.approx(0.0553, abs=5e-5)
    assert namespace["receipt"].seed == 0
    assert namespace["resnet"].fc.weight.count_nonzero() == 0
    assert namespace["repair"].recommended.call == "apply_policy(model)"
    shown, printed = next(b for b in blocks("text") if "repairs it" in b), str(namespace["repair"])
    parts = map(str.strip, shown.split("...\n"))
    assert all(without_decimals(part) in without_decimals(printed) for part in parts)


def without_decimals(text):
    """Leave out what rounding on another processor may change."""
    return re.sub(r"\.\d+", "", text)


def test_policy_file_loads(tmp_path):
    """The policy written by hand is read: its rule first, then the preset."""
    (text,) = blocks("toml")
    (tmp_path / "policy.toml").write_text(text)
    policy = InitPolicy.load(tmp_path / "policy.toml")

    assert policy.rules[0] == Rule(match.name("fc.*"), initializers.TruncatedNormal(0.02))
    assert policy.rules[1:] == presets.he(mode="fan_out").rules


def test_plan_is_the_reviewed_one():
    """The printed plan is the golden one, letter by letter."""
    golden = (ROOT / "tests" / "golden" / "vit_base_patch16_224.txt").read_text()

    assert golden in blocks("text")


def test_presets_are_listed():
    """Every preset is named, and nothing else is."""
    (listed,) = re.findall(r"each citing its paper: ((?:`\w+`[,.\s]+(?:and )?)+)", README)

    assert set(re.findall(r"`(\w+)`", listed)) == set(presets.__all__) - {"auto", "policy"}


COMMANDS = [
    line.removeprefix("torch-initpolicy ")
    for block in blocks("sh")
    for line in block.splitlines()
    if line.startswith("torch-initpolicy")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, tmp_path, monkeypatch, capsys):
    """Each command line ends well, with the files it speaks of in the working directory."""
    presets.orthogonal().save(tmp_path / "policy.toml")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").write_text(
        "from torch.nn import LSTM\n\ndef build(): return LSTM(2, 3)\n"
    )
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command))

    assert ended.value.code == 0
    assert capsys.readouterr().err == ""


def test_command_to_test():
    """The command that runs the tests stands alone on a line, where `.ci/run` finds it."""
    assert 'pip install -e ".[dev]" && pytest' in README.splitlines()
