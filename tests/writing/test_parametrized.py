"""Parametrised weights: what lies behind them, found without touching the model."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from tests.writing.helpers import fill, same, state
from torch_initpolicy import Plan, Rule, apply_policy, lsuv_, match, plan_policy, presets
from torch_initpolicy.errors import ApplyError, VerifyError
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


def normalised(register=parametrizations.weight_norm):
    """Two layers, of which the second is parametrised and its first part frozen at three."""
    model = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 60, bias=False))
    register(model[2])
    gain = next(model[2].parameters())
    gain.data.fill_(3.0)
    gain.requires_grad_(requires_grad=False)
    return model, gain


class Centred(nn.Module):
    """A weight made of its mean and what is left without it."""

    def forward(self, mean, rest):
        return mean + rest

    def right_inverse(self, weight):
        return weight.mean(1, keepdim=True), weight - weight.mean(1, keepdim=True)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
class TestFrozenParts:
    """What is frozen behind a parametrised weight stays, and only the rest is drawn."""

    @pytest.mark.parametrize(
        "register", [parametrizations.weight_norm, nn.utils.weight_norm], ids=["new", "legacy"]
    )
    def test_gain(self, register):
        """A frozen gain keeps its bits; the direction is that of the plain layer's weight."""
        model, gain = normalised(register)
        plain = nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 60, bias=False))
        apply_policy(plain, seed=1)
        receipt = apply_policy(model, seed=1)
        step = receipt.plan["2.weight"]

        assert (gain == 3).all()
        torch.testing.assert_close(model[2].weight.norm(dim=1), torch.full((60,), 3.0))
        torch.testing.assert_close(
            nn.functional.normalize(model[2].weight), nn.functional.normalize(plain[2].weight)
        )
        assert len(step.frozen) == 1
        assert step.frozen[0] in dict(model[2].named_parameters())
        assert f"{step.frozen[0]} stays: frozen" in step.reason
        assert "2.weight" in receipt.verify(model).measured

    def test_found_by_verify(self):
        """A direction of another scale than the plan's is found, whatever the gain hides."""
        model, _ = normalised()
        receipt = apply_policy(model, seed=1)
        with torch.no_grad():
            model[2].parametrizations.weight.original1.mul_(2)

        with pytest.raises(VerifyError, match=r"2\.weight"):
            receipt.verify(model)

    def test_both(self):
        """With `frozen=True` both are written, and the weight reads as planned."""
        model, gain = normalised()
        receipt = apply_policy(model, seed=1, frozen=True)

        assert receipt.plan["2.weight"].frozen == ()
        assert not (gain == 3).any()
        assert "2.weight" in receipt.verify(model).measured

    def test_own_parametrisation(self):
        """A frozen part of another kind stays; what no part holds as it was drawn is unmeasured."""
        model, mean = normalised(
            lambda layer: parametrize.register_parametrization(layer, "weight", Centred())
        )
        receipt = apply_policy(model, seed=1)

        assert (mean == 3).all()
        torch.testing.assert_close(model[2].weight.mean(1), torch.full((60,), 3.0))
        assert "2.weight" in receipt.verify(model).unmeasured

    def test_zeros(self):
        """Zeros that a frozen gain does not allow are refused, and the model stays."""
        model, _ = normalised(nn.utils.weight_norm)
        before = state(model)

        with pytest.raises(ApplyError, match="zeros need another weight_g, which is frozen"):
            apply_policy(model, [Rule(match.name("2.weight"), Zeros()), *presets.auto()])
        assert same(before, state(model))

    def test_plan_from_file(self):
        """A plan that was saved keeps it as well."""
        model, gain = normalised()
        plan = Plan.from_json(plan_policy(model).to_json())
        plan.apply(model, seed=1)

        assert (gain == 3).all()

    def test_calibration(self):
        """A calibration leaves what it cannot scale, and says why."""
        model, gain = normalised()
        report = lsuv_(model, torch.randn(32, 40))

        assert (gain == 3).all()
        assert {left.site: "is frozen" in left.reason for left in report.left} == {"2.weight": True}
