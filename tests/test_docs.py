"""What the pages of the documentation say is so: their code runs, and prints what stands there."""

import json
import re
import shlex
from pathlib import Path

import pytest

from torch_initpolicy import InitPolicy, initializers, presets
from torch_initpolicy.cli import main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def blocks(page, language):
    """Cut the code of a language out of a page, but for what it says to skip."""
    text = re.sub(r"<!-- skip: .*?-->\n```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


RUNNING = [page for page in PAGES if blocks((DOCS / page).read_text(), "python")]


@pytest.mark.parametrize("name", RUNNING)
def test_code_runs(name, tmp_path, monkeypatch, capsys):
    """The Python of a page runs from top to bottom, with its files, and prints its texts."""
    page = (DOCS / name).read_text()
    monkeypatch.chdir(tmp_path)
    for text in blocks(page, "toml"):
        (tmp_path / "policy.toml").write_text(text)
        InitPolicy.load(tmp_path / "policy.toml")
    namespace = {"__name__": "page"}
    for block in blocks(page, "python"):
        exec(compile(block, name, "exec", dont_inherit=True), namespace)

    printed = capsys.readouterr().out
    shown = [line.strip() for text in blocks(page, "text") for line in text.splitlines()]
    assert [line for line in shown if line not in printed] == []


COMMANDS = [
    line.removeprefix("torch-initpolicy ")
    for block in blocks((DOCS / "howto" / "command-line.md").read_text(), "sh")
    for line in block.splitlines()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, tmp_path, monkeypatch, capsys):
    """Each command line ends well, with the files it speaks of in the working directory."""
    presets.orthogonal().save(tmp_path / "policy.toml")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "module.py").write_text(
        "from torch.nn import LSTM\n\ndef build(): return LSTM(16, 3)\n"
    )
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command))

    assert ended.value.code == 0
    assert capsys.readouterr().err == ""


FIELDS = re.findall(
    r"^\| `(\w+)` \| (.+) \|$", (DOCS / "howto" / "json.md").read_text(), re.MULTILINE
)


@pytest.mark.parametrize(("command", "fields"), FIELDS, ids=[command for command, _ in FIELDS])
def test_fields_of_json(command, fields, tmp_path, monkeypatch, capsys):
    """Each field that a command is said to write is there."""
    (tmp_path / "constant.py").write_text(
        "from torch import nn\n\ndef build(width=8):\n"
        "    net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))\n"
        "    for parameter in net.parameters(): nn.init.constant_(parameter, 9.0)\n"
        "    return net\n"
    )
    monkeypatch.chdir(tmp_path)
    models = {"presets": 0, "compare": 2}.get(command, 1) * ["constant:build"]
    widths = ["--widths", "8,16", "--steps", "1"] if command == "scaling" else []
    with pytest.raises(SystemExit):
        main([command, *models, *widths, "--json"])

    data = json.loads(capsys.readouterr().out)
    assert isinstance(data["format"], int)
    said = re.findall(r"`([\w.]+)`", fields)
    assert [field for field in said if not _holds(data, *field.split("."))] == []


def _holds(data, field, *inner):
    return field in data and all(name in data[field][0] for name in inner)


def test_presets_are_listed():
    """The page of presets names each of them, and nothing else."""
    listed = re.findall(
        r"^\| `(\w+)` \|", (DOCS / "howto" / "presets.md").read_text(), re.MULTILINE
    )

    assert set(listed) == set(presets.__all__) - {"policy"}


@pytest.mark.parametrize("package", [presets, initializers])
def test_reference_is_complete(package):
    """The reference has an entry for every public name that has a docstring of its own."""
    page = (DOCS / "reference" / f"{package.__name__.rpartition('.')[2]}.md").read_text()
    entries = re.findall(r"^::: torch_initpolicy[\w.]*\.(\w+)$", page, re.MULTILINE)
    types = {"Distribution", "Gain", "Mode"}

    assert set(entries) == set(package.__all__) - types


def test_every_page_is_in_the_navigation():
    """A page that nobody can find is no page."""
    navigation = (ROOT / "mkdocs.yml").read_text()

    assert [page for page in PAGES if page not in navigation] == []


def test_links_lead_somewhere():
    """Whatever a page links to or shows is there."""
    broken = [
        (page, target)
        for page in PAGES
        for target in re.findall(r"\]\(([\w/.-]+\.(?:md|png|svg))", (DOCS / page).read_text())
        if not (DOCS / page).parent.joinpath(target).exists()
    ]

    assert broken == []


def test_gallery_shows_the_golden_plans():
    """The gallery takes in every plan that the tests hold."""
    gallery = (DOCS / "gallery.md").read_text()
    golden = sorted((ROOT / "tests" / "golden").glob("*.txt"))

    assert [p.name for p in golden if f'--8<-- "tests/golden/{p.name}"' not in gallery] == []


def test_changelog_can_be_read():
    """A release is told in at most 30 lines."""
    releases = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1:]

    assert all(len(release.rstrip().splitlines()) <= 30 for release in releases)
