"""Scaling a model: on one process or several, and what is refused before anything is written."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from tests.calibrate.measuring import TOLERANCE, Dense, batch
from torch_initpolicy.calibrate.lsuv import lsuv_
from torch_initpolicy.errors import ApplyError


def test_meta_weights_are_refused():
    """Without memory there is nothing to scale; the message says what to call."""
    with torch.device("meta"):
        model = Dense()
    with pytest.raises(ApplyError, match="materialize"):
        lsuv_(model, batch(64, 12), orthogonal=False)


@pytest.mark.distributed
def test_spread_inputs_count_together():
    """Two processes with half a batch each find the scales of one process with the whole batch.

    The halves differ so much that a process on its own finds quite other ones.
    """
    pytest.importorskip("torch.distributed.fsdp")
    from tests.calibrate import lsuv_ranks

    for found in lsuv_ranks.run():
        assert found["ddp"] < 1e-5
        assert found["fsdp"] < 1e-5
        assert found["alone"] > 0.02


def test_weights_in_one_memory_are_refused():
    """What scaling one would do to the other is said before anything is scaled."""
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 12))
    model[2].weight = nn.Parameter(model[0].weight.detach().t())
    before = model[0].weight.clone()
    with pytest.raises(ApplyError, match="share memory"):
        lsuv_(model, batch(32, 12), orthogonal=False)

    assert torch.equal(before, model[0].weight)
    assert lsuv_(model, batch(32, 12), orthogonal=False, skip=["2.weight"]).worst < TOLERANCE


@pytest.mark.parametrize("orthogonal", [True, False])
def test_what_cannot_be_written_is_refused(orthogonal):
    """Lazy weights and those of inference mode are refused before anything runs or is written."""
    with torch.inference_mode():
        frozen = nn.Linear(3, 4)
    for model, words in (nn.LazyLinear(4), "first"), (frozen, "inference_mode"):
        with pytest.raises(ApplyError, match=words):
            lsuv_(model, batch(8, 3), orthogonal=orthogonal)


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("argument", ["only", "skip"])
def test_globs_that_match_nothing_are_refused(argument, orthogonal):
    """A misspelt name is an error that says what was probably meant, and nothing is scaled."""
    model = nn.Sequential(nn.Linear(12, 24))
    before = model[0].weight.clone()
    with pytest.raises(ApplyError, match=rf"{argument}='0\.wait' .*did you mean '0\.weight'"):
        lsuv_(model, batch(32, 12), orthogonal=orthogonal, **{argument: ["0.wait"]})

    assert torch.equal(before, model[0].weight)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_an_empty_choice_scales_nothing(orthogonal):
    """An empty `only=` leaves every weight alone, where None scales all."""
    model = nn.Sequential(nn.Linear(12, 24))
    before = model[0].weight.clone()
    report = lsuv_(model, batch(32, 12), orthogonal=orthogonal, only=[])

    assert not report.scaled
    assert torch.equal(before, model[0].weight)


LEFT = {
    "zero": (lambda m: nn.init.zeros_(m[0].weight), {}, "same for all"),
    "bias": (lambda m: nn.init.normal_(m[0].bias, std=5.0), {}, "bias alone"),
    "frozen": (lambda m: m[0].weight.requires_grad_(False), {}, "frozen"),
    "skipped": (lambda m: None, {"skip": "0.*"}, "skip="),
    "not among": (lambda m: None, {"only": ["2.*"]}, "only="),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_scaled_is_left_and_said(name):
    """The weight is bit for bit what it was, the reason names the cause, later ones are scaled."""
    change, options, reason = LEFT[name]
    model = nn.Sequential(nn.Linear(12, 16), nn.Softplus(), nn.Linear(16, 4))
    change(model)
    nn.init.zeros_(model[2].bias)
    nn.init.normal_(model[2].weight)
    before = model[0].weight.detach().clone()
    report = lsuv_(model, batch(64, 12) + torch.randn(64, 12), orthogonal=False, **options)
    assert torch.equal(model[0].weight, before)
    assert reason in next(left.reason for left in report.left if left.site == "0.weight")


def test_spectral_norm_and_lookups_are_left():
    """Neither can grow: a spectral norm divides growth away, a table's rows are not summed."""
    model = nn.Sequential(
        nn.Embedding(9, 6), parametrizations.spectral_norm(nn.Linear(6, 6)), nn.Linear(6, 3)
    )
    report = lsuv_(model, torch.arange(9), orthogonal=False)
    assert {left.site for left in report.left} == {"0.weight", "1.weight"}
    assert [scaled.site for scaled in report.scaled] == ["2.weight"]
