"""Rules that presets share: what they say of biases, normalisations and raw parameters."""

import pytest
import torch
from torch import nn

from tests.policy.hand import facts, site
from torch_initpolicy.policy import presets
from torch_initpolicy.policy.match import role
from torch_initpolicy.policy.presets.parts import KEPT, REST, everywhere, layers, rule
from torch_initpolicy.tensors.initializers import Keep, Normal, Zeros


def chosen(where):
    """Return what `auto` has for a site, by the rules that it shares."""
    return presets.auto().first(where, facts(where)).initializer


LSTMS = {
    "layers and directions": nn.LSTM(3, 5, num_layers=2, bidirectional=True),
    "projection": nn.LSTM(3, 5, proj_size=2),
    "cell": nn.LSTMCell(3, 5),
}


class TestForgetGate:
    """One in total, for every layer and direction (D6)."""

    @pytest.mark.parametrize("layer", LSTMS.values(), ids=LSTMS)
    @pytest.mark.parametrize("prefix", ["", "encoder.lstm"])
    def test_sum_of_both_biases(self, layer, prefix):
        """Torch adds both biases: their sum is one for the forget gate and zero elsewhere."""
        expected = torch.tensor([0.0] * 5 + [1.0] * 5 + [0.0] * 10)
        sums = {}
        for name, parameter in layer.named_parameters():
            if "bias" in name:
                where = site(layer, name, prefix)
                values = torch.full_like(parameter, float("nan"))
                chosen(where)(values, where.axes)
                key = name.replace("_ih", "").replace("_hh", "")
                sums[key] = sums.get(key, 0) + values

        assert len(sums) == sum("bias_ih" in name for name, _ in layer.named_parameters())
        assert all(torch.equal(total, expected) for total in sums.values())

    @pytest.mark.parametrize(
        "layer", [nn.GRU(3, 4), nn.RNN(3, 4), nn.GRUCell(3, 4), nn.RNNCell(3, 4)], ids=repr
    )
    def test_other_recurrent_layers(self, layer):
        """They have no forget gate."""
        for name, _ in layer.named_parameters():
            if "bias" in name:
                assert chosen(site(layer, name)) == Zeros()

    def test_a_name_is_not_enough(self):
        """A layer that is merely called so is no LSTM."""
        named = site(nn.Linear(3, 4), "bias", "bias_ih_l0")

        assert chosen(named) == Zeros()


def test_layers():
    """The shared rules come first, so that no rule for weights is asked of a bias."""
    own = rule(role("weight"), Normal(0.1))
    policy = layers(own)

    assert policy.rules[: len(REST)] == REST
    assert policy.rules[-2:] == (KEPT, own)
    assert KEPT.initializer == Keep()


@pytest.mark.parametrize("keeps_meant", [True, False])
def test_everywhere(keeps_meant):
    """All rules of a preset let stay what was meant, or none does."""
    policy = everywhere(Normal(0.1), keeps_meant=keeps_meant)

    assert {each.keeps_meant for each in policy} == {keeps_meant}
    assert all(each.optional for each in policy)
