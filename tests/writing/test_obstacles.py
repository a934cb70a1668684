"""What cannot be written is named before anything is, with what helps."""

import pytest
import torch
from torch import nn

from torch_initpolicy.sites import sites
from torch_initpolicy.writing.obstacles import obstacles, shared


def _inference_model():
    with torch.inference_mode():
        return nn.Linear(2, 3)


def _expanded_model():
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(1, 3).expand(2, 3))
    return model


def _repeating_model():
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(6).as_strided((3, 4), (1, 1)))
    return model


class TestObstacles:
    """What keeps memory from being written is said in words, with the remedy."""

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            pytest.param(lambda: nn.Linear(2, 3, device="meta"), "materialize", id="meta"),
            pytest.param(_inference_model, "inference_mode", id="inference"),
            pytest.param(_expanded_model, "clone it first", id="expanded"),
            pytest.param(_repeating_model, "clone it first", id="strides that meet"),
            pytest.param(lambda: nn.LazyLinear(3), "run one forward pass first", id="lazy"),
        ],
    )
    def test_found(self, make, words):
        """Each parameter that cannot be written names its reason once."""
        for site in sites(make()):
            (reason,) = obstacles(site)
            assert words in reason

    def test_none(self):
        """Ordinary parameters, empty ones included, have none."""
        model = nn.ModuleList([nn.Linear(2, 3), nn.Embedding(0, 4)])

        assert not [reason for site in sites(model) for reason in obstacles(site)]


def _viewed(*views):
    """Hold some views of one flat buffer as parameters."""
    flat = torch.zeros(8, 6)
    model = nn.Module()
    for number, view in enumerate(views):
        model.register_parameter(f"part{number}", nn.Parameter(view(flat)))
    return model


class TestShared:
    """Parameters that are different but live in the same elements are told from ties and slices."""

    @pytest.mark.parametrize(
        "view",
        [
            pytest.param(lambda flat: flat.t(), id="transposed"),
            pytest.param(lambda flat: flat, id="same view"),
            pytest.param(lambda flat: flat[3:5, 1], id="part"),
        ],
    )
    def test_found(self, view):
        """Both names are said, and what helps."""
        (reason,) = shared(sites(_viewed(lambda flat: flat, view)))

        assert reason.startswith("'part0' and 'part1' share memory")
        assert "skip=" in reason

    @pytest.mark.parametrize(
        "views",
        [
            pytest.param((lambda flat: flat[:4], lambda flat: flat[4:]), id="rows"),
            pytest.param((lambda flat: flat[:, :3], lambda flat: flat[:, 3:]), id="columns"),
            pytest.param((lambda flat: flat[::2], lambda flat: flat[1::2]), id="interleaved"),
            pytest.param((lambda flat: flat, lambda flat: flat[8:]), id="empty"),
        ],
    )
    def test_apart(self, views):
        """Slices of one flat buffer are as good as tensors of their own."""
        assert not list(shared(sites(_viewed(*views))))

    def test_ties(self):
        """One parameter under two names is one site, which shares with nobody."""
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight

        assert not list(shared(sites(model)))

    @pytest.mark.parametrize("device", ["cpu", "meta"])
    def test_without_memory(self, device):
        """What is lazy or on the meta device has no memory to share."""
        model = nn.ModuleList([nn.LazyLinear(3, device=device), nn.LazyLinear(3, device=device)])
        model.append(_viewed(lambda flat: flat, lambda flat: flat).to("meta"))

        assert not list(shared(sites(model)))
