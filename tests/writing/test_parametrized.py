"""Parametrised weights: what lies behind them, found without touching the model."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from tests.writing.helpers import fill, same, state
from torch_initpolicy.errors import ApplyError
from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.initializers import Normal, Orthogonal, Zeros
from torch_initpolicy.writing.parametrized import reading


class Doubled(nn.Module):
    """A parametrisation with an inverse: the weight is twice the original."""

    def forward(self, original):
        return 2 * original

    def right_inverse(self, weight):
        return weight / 2


class Squared(nn.Module):
    """A parametrisation without an inverse."""

    def forward(self, original):
        return original * original


class TestParametrised:
    """Parametrised weights read as what their step says, or are refused."""

    @pytest.mark.parametrize(
        ("register", "initializer"),
        [
            pytest.param(
                lambda m: parametrize.register_parametrization(m, "weight", Doubled()),
                Normal(1.0),
                id="own",
            ),
            pytest.param(parametrizations.weight_norm, Normal(1.0), id="weight_norm"),
            pytest.param(nn.utils.weight_norm, Normal(1.0), id="legacy weight_norm"),
            pytest.param(nn.utils.weight_norm, Zeros(), id="legacy weight_norm to zero"),
            pytest.param(parametrizations.orthogonal, Orthogonal(), id="orthogonal"),
            pytest.param(parametrizations.spectral_norm, Orthogonal(), id="spectral_norm"),
            pytest.param(nn.utils.spectral_norm, Orthogonal(), id="legacy spectral_norm"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
    def test_reads(self, register, initializer):
        """The weight reads as that of a plain layer, now and in the next forward pass."""
        plain, model = nn.Linear(9, 9), nn.Linear(9, 9)
        model.load_state_dict(plain.state_dict())
        register(model)
        fill(plain, initializer, "weight")
        fill(model, initializer, "weight")
        inputs = torch.randn(2, 9)

        torch.testing.assert_close(model.weight.detach(), plain.weight.detach())
        torch.testing.assert_close(model(inputs), plain(inputs), rtol=1e-4, atol=1e-5)

    def test_originals_stay(self):
        """The parameters behind a parametrised weight stay the same objects in the same memory."""
        model = parametrizations.weight_norm(nn.Linear(4, 4))
        before = [(id(p), p.data_ptr()) for p in model.parameters()]
        fill(model, Normal(1.0))

        assert before == [(id(p), p.data_ptr()) for p in model.parameters()]

    @pytest.mark.parametrize(
        ("register", "initializer", "words"),
        [
            pytest.param(parametrizations.spectral_norm, Normal(1.0), " SpectralNorm", id="sigma"),
            pytest.param(nn.utils.spectral_norm, Normal(1.0), "spectral_norm", id="legacy sigma"),
            pytest.param(parametrizations.orthogonal, Normal(1.0), " Orthogonal", id="orthogonal"),
            pytest.param(parametrizations.weight_norm, Zeros(), " WeightNorm", id="zero"),
            pytest.param(
                lambda m: parametrize.register_parametrization(m, "weight", Squared()),
                Normal(1.0),
                "has no right_inverse",
                id="no inverse",
            ),
        ],
    )
    def test_unreachable(self, register, initializer, words):
        """A weight that cannot read as its target is refused, by the name of what forbids it."""
        model = nn.Sequential(nn.Linear(9, 9), nn.Linear(9, 9))
        register(model[1])
        before, generator = state(model), torch.random.get_rng_state()

        with pytest.raises(ApplyError, match=words) as error:
            fill(model, initializer)

        assert "before applying the parametrisation" in str(error.value)
        assert "skip=['1.weight']" in str(error.value)
        assert str(error.value).count("1.weight") == 2  # where it fails, and what to write
        assert same(before, state(model))
        assert torch.equal(generator, torch.random.get_rng_state())

    @pytest.mark.parametrize(
        "register",
        [parametrizations.spectral_norm, nn.utils.spectral_norm, parametrizations.orthogonal],
        ids=["spectral_norm", "legacy spectral_norm", "orthogonal"],
    )
    def test_reading(self, register):
        """Reading a weight gives what the layer computes with, and moves no power iteration."""
        model = register(nn.Linear(9, 9))
        before = state(model)
        (weight,) = (site for site in sites(model) if site.name == "weight")
        found = reading(weight)

        assert same(before, state(model))
        torch.testing.assert_close(found @ torch.ones(9), model(torch.ones(9)) - model.bias)
