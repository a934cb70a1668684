"""What the README says is so."""

import re
from pathlib import Path

from torch import nn

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language):
    """Cut the code of a language out of the text."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_code_runs(capsys):
    """The Python of the README runs from top to bottom and prints what stands beneath it."""
    namespace = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)

    printed = without_decimals(capsys.readouterr().out)
    parts = [part for text in blocks("text") for part in text.split("...\n")]
    assert all(without_decimals(part.strip()) in printed for part in parts)
    assert namespace["receipt"].written == len(namespace["receipt"].plan)
    assert not any(parameter.is_meta for parameter in namespace["built"].parameters())


def without_decimals(text):
    """Leave out what rounding on another processor may change."""
    return re.sub(r"\.\d+", "", text)


def test_length():
    """It can be read in a minute."""
    assert len(README.splitlines()) <= 150


def test_links_lead_somewhere():
    """Whatever the README links to or shows is there."""
    targets = re.findall(r"\]\((?!http)([^)#]+)", README)

    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_warning_of_torch_is_quoted():
    """Torch's own docstring says what the first screen quotes."""
    said = " ".join(nn.TransformerEncoder.__doc__.split())
    quoted = re.search(r'warns: "(.*?)\."?', README, re.DOTALL)[1]

    assert " ".join(quoted.split()) in said


def test_commands_to_set_up():
    """Each command stands alone on a line, where `.ci/run` finds the second one."""
    lines = README.splitlines()

    assert 'pip install -e ".[zoo]" && python examples/quickstart.py' in lines
    assert 'pip install -e ".[dev]" && pytest' in lines


def test_scoreboard_is_counted():
    """The figures of the scoreboard are those of its page, losses included."""
    page = (ROOT / "docs" / "scoreboard.md").read_text()
    better, even, worse = (len(re.findall(rf"\| {word} \|$", page, re.MULTILINE)) for word in WORDS)

    assert f"[{better + even + worse} structures](docs/scoreboard.md)" in README
    assert f"better on {better}, even on {even}, worse on {worse}" in README


WORDS = ("better", "even", "worse")
