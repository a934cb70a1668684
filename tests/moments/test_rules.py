"""The table of rules: what has a rule, and what is lost instead of guessed."""

import pytest
import torch

from tests.moments.probing import Probe, image, reads_of

KNOWN = {
    "cast": lambda x: x.double().float(),
    "moved": lambda x: x.mT.mT,
    "picked": lambda x: x[:, torch.arange(255, -1, -1)],
    "dropped": lambda x: torch.dropout(x, 0.5, train=True),
    "activated": torch.relu,
    "gated": lambda x: torch.nn.functional.glu(torch.cat((x, x), -1)),
    "computed": torch.sin,
    "multiplied": lambda x: 3 * x,
    "added": lambda x: x + 1,
    "normalised": lambda x: torch.nn.functional.layer_norm(x, (256,)),
    "contracted": lambda x: torch.softmax(x @ x.mT / 16, -1) @ x,
    "joined": lambda x: torch.cat((x[:, :128], 2 * x[:, :128]), -1),
}


@pytest.mark.parametrize("name", KNOWN)
def test_what_has_a_rule(name):
    """Each kind of operator is followed."""
    probe = Probe(KNOWN[name])
    found = reads_of(probe, torch.empty(probe.shape, device="meta"))["last.weight"]

    assert (found.reason, found.second is not None) == (None, True)


LOST = {
    "running sum": lambda x: x.cumsum(-1),
    "statistic": lambda x: x - x.std(),
    "log-probabilities": lambda x: x.log_softmax(-1),
    "sorted": lambda x: x.sort(-1).values,
    "random": lambda x: x * torch.rand_like(x),
}


@pytest.mark.parametrize("name", LOST)
def test_what_has_none(name):
    """A size that no rule gives is unknown, and the reason names the operator."""
    probe = Probe(LOST[name])
    found = reads_of(probe, torch.empty(probe.shape, device="meta"))["last.weight"]

    assert found.second is None
    assert "`" in found.reason


def test_numbers_beyond_floats():
    """What overflows is said to grow beyond all bounds, and nothing raises."""
    probe = image(lambda x: ((x * 1e80) * 1e80) * 1e80)
    found = reads_of(probe, torch.empty(probe.shape, device="meta"))["last.weight"]

    assert "beyond all bounds" in found.reason
