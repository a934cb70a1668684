"""The audit of a model as one page, by function and by command."""

import copy
import json

import pytest
import torch
from torch import nn

from torch_initpolicy.audit import audit_model


def build() -> nn.Sequential:
    """Build a net whose default start vanishes; also by the command line."""
    layers = [layer for _ in range(16) for layer in (nn.Linear(32, 32), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(32, 4))


def test_the_repair_is_shown_beside_the_model():
    """The model is sick, the suggested policy is not, and the model is as it was."""
    model, x = build(), torch.randn(16, 32)
    before = copy.deepcopy(model.state_dict())
    page = audit_model(model, x)
    assert not page.signals["as it is"].ok
    assert page.signals["signal"].ok
    assert page.plan.policy == "signal"
    assert page.findings == ()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_suggestions_of_ones_own():
    """Policies that are named are shown in that order."""
    page = audit_model(build(), torch.randn(16, 32), suggest=["he", "orthogonal"])
    assert list(page.signals) == ["as it is", "he", "orthogonal"]
    assert "<strong>he</strong>" in str(page)


def test_the_command(tmp_path, capsys):
    """`audit` writes the page, prints the signal, and says by its exit code what it found."""
    pytest.importorskip("typer")
    from torch_initpolicy.cli import main

    path = tmp_path / "report.html"
    with pytest.raises(SystemExit) as exit_:
        main(["audit", "tests.test_audit:build", "--html", str(path), "--json"])
    assert exit_.value.code == 1
    assert len(json.loads(capsys.readouterr().out)["points"]) == 33
    assert "Audit of tests.test_audit:build" in path.read_text(encoding="utf-8")


def test_the_command_refuses_a_folder_that_is_not_there(tmp_path, capsys):
    """Before any work is done."""
    pytest.importorskip("typer")
    from torch_initpolicy.cli import main

    with pytest.raises(SystemExit) as exit_:
        main(["audit", "tests.test_audit:build", "--html", str(tmp_path / "no" / "report.html")])
    assert exit_.value.code == 2
