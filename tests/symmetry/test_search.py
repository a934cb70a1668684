"""One way of running a model decides about its suspects, or says why it does not."""

import pytest
import torch
from torch import nn

from torch_initpolicy.sites import sites
from torch_initpolicy.symmetry.batches import Attempt, Batches
from torch_initpolicy.symmetry.findings import Report
from torch_initpolicy.symmetry.scan import suspects
from torch_initpolicy.symmetry.search import Subject, probed
from torch_initpolicy.trace.trees import Call

pytestmark = pytest.mark.usefixtures("one_thread")


def net(*, constant: str = "", width: int = 3) -> nn.Sequential:
    """Build a net of which one parameter may be constant."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2))
    for name in constant.split():
        nn.init.constant_(model.get_parameter(name), 0.1)
    return model


def subject_of(model: nn.Module) -> Subject:
    """Suspect what is equal in a model."""
    found = sites(model)
    return Subject(model, found, suspects(model, found), None)


def attempt(*shape: int, **options) -> Attempt:
    """Run on random inputs of a shape."""
    return Attempt(Batches(Call((torch.zeros(shape),))), **options)


def test_units_that_stay_equal():
    """All constant: the hidden units are tied, and the report says how that was seen."""
    report = probed(subject_of(net(constant="0.weight 0.bias 2.weight")), attempt(8, 4))

    assert isinstance(report, Report)
    assert {finding.name for finding in report.of("tied")} >= {"0.weight"}
    assert "random inputs" in str(report.note)


def test_units_that_others_tell_apart():
    """A constant layer before a random one is cleared: different gradients reach its units."""
    report = probed(subject_of(net(constant="0.weight 0.bias")), attempt(8, 4))

    assert isinstance(report, Report)
    assert not report.of("tied")


def test_what_may_only_clear_does_not_convict():
    """Such an attempt clears what separates, and decides nothing about what does not."""
    only_clears = attempt(8, 4, clears_only=True)

    assert isinstance(probed(subject_of(net(constant="0.weight 0.bias")), only_clears), Report)
    assert probed(subject_of(net(constant="0.weight 0.bias 2.weight")), only_clears) == ""


def test_an_attempt_that_cannot_run():
    """What the forward pass raises is the answer, in short, and the model is as it was."""
    model = net(constant="0.weight 0.bias 2.weight")
    before = {name: p.clone() for name, p in model.state_dict().items()}

    said = probed(subject_of(model), attempt(8, 5))

    assert isinstance(said, str)
    assert "8x5" in said
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert model.training


def test_mostly_suspect():
    """Most numbers count, not most parameters."""
    assert subject_of(net(constant="0.weight 0.bias 2.weight")).is_mostly_suspect
    assert not subject_of(net(constant="0.bias", width=30)).is_mostly_suspect
