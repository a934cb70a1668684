"""Results as notebooks show them: small, escaped, without a network, in the colours of the page."""

import functools
import shutil
import subprocess

import pytest
import torch
from torch import nn

from torch_initpolicy import (
    apply_policy,
    audit_model,
    audit_signal,
    compare_inits,
    find_symmetry,
    lsuv_,
    plan_policy,
)
from torch_initpolicy.notebook import LONGEST_SHOWN, asset, framed, sortable


def model(depth=3) -> nn.Sequential:
    """Build a net with two equal units."""
    layers = (layer for _ in range(depth) for layer in (nn.Linear(64, 64), nn.ReLU()))
    net = nn.Sequential(*layers, nn.Linear(64, 8))
    with torch.no_grad():
        for tensor in (net[0].weight, net[0].bias):
            tensor[1] = tensor[0]
        net[2].weight[:, 1] = net[2].weight[:, 0]
    return net


RESULTS = {
    "audit": lambda: audit_model(model(), torch.eye(64)),
    "signal": lambda: audit_signal(model(), torch.eye(64)),
    "plan": lambda: plan_policy(model()),
    "receipt": lambda: apply_policy(model(), seed=0),
    "report": lambda: find_symmetry(model(), torch.eye(64)),
    "comparison": lambda: compare_inits(model(), plan_policy(model(), "he")),
}


@functools.cache
def result(name):
    """Make a result once."""
    return REPRESENTED[name]()


@pytest.mark.parametrize("name", RESULTS)
def test_what_a_notebook_shows(name):
    """Under 200 kB, nothing to fetch, text in the colour around it, a table that folds."""
    shown = result(name)._repr_html_()

    assert len(shown) < 200_000
    assert "src=" not in shown
    assert 'href="http' not in shown
    assert "color: inherit" in shown
    assert shown.count("<details") == shown.count("<table>") == 1
    assert ".weight</td>" in shown


REPRESENTED = {
    **RESULTS,
    "verification": lambda: apply_policy(built := model(), seed=0).verify(built),
    "calibration": lambda: lsuv_(model(), torch.randn(64, 64)),
}


@pytest.mark.parametrize("name", REPRESENTED)
def test_what_a_prompt_echoes(name):
    """One short line, however large the model."""
    assert len(repr(result(name))) < 300
    assert "\n" not in repr(result(name))


def test_long_texts_end_early():
    """What is too long says how much is missing, and markup in a text is shown as it is."""
    shown = framed("", "<" * (LONGEST_SHOWN + 7))
    assert "7 more characters" in shown
    assert "<<" not in shown


def test_long_tables_end_early():
    """So do tables, by whole rows."""
    shown = framed("", "", ("name",), [("x" * 1000,)] * 100)
    assert "<summary>60 of 100 rows</summary>" in shown
    assert shown.count("<td>") == 60


def test_cells():
    """Numbers stand to the right, with four digits; texts are escaped."""
    shown = sortable("plan", ("a", "b", "c"), [("<x>", 1 / 3, (1.0, 2.0))])
    assert "<td>&lt;x&gt;</td>" in shown
    assert '<td class="number">0.3333</td>' in shown
    assert '<td class="number">1 / 2</td>' in shown


def test_the_script_is_sound():
    """It parses, and a second output of a notebook can bring it along again."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no node here")
    subprocess.run(
        [node, "--check", "-"], input=2 * asset("table.js"), text=True, check=True, timeout=60
    )
