"""Copies stand in for parameters: the model changes when they are written back, not before."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from torch_initpolicy.calibrate.copies import Copies
from torch_initpolicy.sites import sites


def test_copies_share_nothing_with_the_model():
    """Scaling a copy leaves the parameter; asking twice gives the same copy."""
    layer = nn.Linear(3, 2)
    copies, before = Copies(sites(layer)), layer.weight.detach().clone()
    copy = copies.of(layer.weight)

    assert copies.multiply(["weight"], (copy,), 3.0) is None
    assert torch.equal(layer.weight, before)
    assert torch.equal(copy, 3 * before)
    assert copies.of(layer.weight) is copy


def test_what_was_scaled_is_written_once():
    """The weight is multiplied by its factor; a bias that was set is copied; others stay."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    copies = Copies(sites(model))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    copies.multiply(["0.weight"], (copies.of(model[0].weight),), 3.0)
    copies.of(model[0].bias).fill_(7.0)
    copies.changed["0.bias"] = None

    copies.write({"0.weight": (3.0,)}, ())

    assert torch.equal(model[0].weight, 3 * before["0.weight"])
    assert model[0].bias.tolist() == [7.0, 7.0]
    assert torch.equal(model[1].weight, before["1.weight"])


def test_thirds_of_a_packed_weight_are_written_apart():
    """Three factors go to the three blocks of rows."""
    layer = nn.Linear(2, 6, bias=False)
    copies, before = Copies(sites(layer)), layer.weight.detach().clone()
    copies.multiply(["weight"], (copies.of(layer.weight).chunk(3)[1],), 5.0)

    copies.write({"weight": (1.0, 5.0, 1.0)}, ())

    assert torch.equal(layer.weight, before * torch.tensor([1, 1, 5, 5, 1, 1])[:, None])


def test_a_parametrised_weight_grows_as_it_reads():
    """The originals behind weight norm are set so that the weight itself is a multiple."""
    layer = parametrizations.weight_norm(nn.Linear(3, 2))
    copies, before = Copies(sites(layer)), layer.weight.detach().clone()

    assert copies.multiply(["weight"], (), 2.0) is None
    assert copies.multiply(["weight"], (), 2.0) is None
    assert torch.equal(layer.weight, before)
    copies.write({"weight": (4.0,)}, ())

    assert layer.weight.detach() == pytest.approx(4 * before, rel=1e-5)


def test_a_parametrisation_that_cannot_grow_says_so():
    """Spectral norm fixes the size of a weight."""
    layer = parametrizations.spectral_norm(nn.Linear(3, 2))
    copies = Copies(sites(layer))

    assert "does not let it grow" in copies.multiply(["weight"], (), 2.0)
    assert copies.changed == {}


@pytest.mark.parametrize("norm", [False, True])
def test_restored(norm):
    """What multiplied a copy is undone, behind a parametrisation too, and nothing is written."""
    layer = nn.Linear(3, 2)
    layer = parametrizations.weight_norm(layer) if norm else layer
    copies, (site, *_) = Copies(sites(layer)), [s for s in sites(layer) if s.name == "weight"]
    parts = copies.plain(site)
    copies.multiply(["weight"], parts, 8.0)

    copies.restore(["weight"], parts, 8.0)

    assert copies.changed == {}
    assert all(torch.equal(copies.of(p), p) for p in site.parameters)
