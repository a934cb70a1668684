"""Results as notebooks show them: small, escaped, without a network, in the colours of the page."""

import pytest
import torch
from torch import nn

from torch_initpolicy import apply_policy, audit_model, audit_signal, find_symmetry, plan_policy
from torch_initpolicy.notebook import LARGEST_TEXT, framed


def model() -> nn.Sequential:
    """Build a net."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))


RESULTS = {
    "audit": lambda: audit_model(model(), torch.eye(64)),
    "signal": lambda: audit_signal(model(), torch.eye(64)),
    "plan": lambda: plan_policy(model()),
    "receipt": lambda: apply_policy(model(), seed=0),
    "report": lambda: find_symmetry(model()),
}


@pytest.mark.parametrize("make", RESULTS.values(), ids=RESULTS)
def test_what_a_notebook_shows(make):
    """Under 200 kB, nothing to fetch, text in the colour around it."""
    shown = make()._repr_html_()

    assert len(shown) < 200_000
    assert "src=" not in shown
    assert 'href="http' not in shown
    assert "color: inherit" in shown


def test_long_texts_end_early():
    """What is too long says how much is missing, and markup in a text is shown as it is."""
    shown = framed("", "<" * (LARGEST_TEXT + 7))
    assert "7 more characters" in shown
    assert "<<" not in shown
