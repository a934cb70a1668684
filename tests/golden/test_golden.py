"""Plans of well-known models, line by line, in the text files beside this one.

Read them as a reviewer would: each line is what the package claims about a layer.
"""

import math
import re
from pathlib import Path

import pytest

from torch_initpolicy import plan_policy
from torch_initpolicy.integrations.models import build

pytestmark = pytest.mark.zoo

FOLDER = Path(__file__).parent

MODELS = (
    *("convnext_tiny", "dm_nfnet_f0", "efficientnet_b0", "eva02_small_patch14_224", "levit_128s"),
    *("maxvit_tiny_rw_224", "resnet50", "sequencer2d_s", "swin_tiny_patch4_window7_224"),
    *("vit_base_patch16_224", "xcit_nano_12_p16_224"),
)


@pytest.mark.parametrize("name", MODELS)
def test_plan(name, request):
    """The plan of a model is, letter by letter, the one that was reviewed."""
    file = FOLDER / f"{name}.txt"
    plan = f"{plan_policy(build(f'timm:{name}'))}\n"
    command = f"pytest {Path(__file__).relative_to(request.config.rootpath)} -k {name}"
    if request.config.getoption("update_golden"):
        file.write_text(plan)
    assert file.exists(), f"there is no {file.name}; write it with: {command} --update-golden"

    assert plan == file.read_text(), f"if the new plan is right: {command} --update-golden"


@pytest.mark.parametrize("name", MODELS)
def test_totals(name):
    """The heading's counts are those of the rows added up, and of the model itself."""
    text = (FOLDER / f"{name}.txt").read_text()
    heading = re.search(r"(\d+) parameters, ([\d,]+) elements", text)
    parameters, elements = (int(number.replace(",", "")) for number in heading.groups())

    assert (parameters, elements) == added_up(text.split("\n\n", 1)[1].splitlines()[1:])
    model = build(f"timm:{name}")
    sizes = [parameter.numel() for parameter in model.parameters()]
    assert (parameters, elements) == (len(sizes), sum(sizes))


def added_up(rows):
    """Count the parameters and the elements that folded rows stand for."""
    counts = [
        (math.prod(map(folded, re.findall(r"\{([\d,-]+)\}", name))), math.prod(shape))
        for name, shape in map(name_and_shape, rows)
    ]
    return sum(count for count, _ in counts), sum(count * size for count, size in counts)


def name_and_shape(row):
    """Read the first two cells of a row."""
    name, shape, *_ = row.split()
    return name, [int(size) for size in shape.split("x")]


def folded(ranges):
    """Count the numbers that `0-2,5` stands for."""
    ends = [list(map(int, part.split("-"))) for part in ranges.split(",")]
    return sum(end[-1] - end[0] + 1 for end in ends)


def test_no_file_without_a_test():
    """Every file in the folder is compared with something."""
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(MODELS)
