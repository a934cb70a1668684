"""Published starts, against the numbers of their papers and codes."""

import math

import pytest
import torch
from torch import nn

from torch_initpolicy import apply_policy, plan_policy, presets
from torch_initpolicy.errors import PolicyError
from torch_initpolicy.tensors.initializers import Zeros


class Sine(nn.Module):
    """A sine of thirty times its input, as SIREN's code has it."""

    def forward(self, x):
        return torch.sin(30 * x)


def siren() -> nn.Sequential:
    """Return a SIREN of two hidden layers."""
    return nn.Sequential(nn.Linear(2, 512), Sine(), nn.Linear(512, 512), Sine(), nn.Linear(512, 3))


class TestSiren:
    """Sitzmann et al., 2020, appendix 1.5."""

    def test_bounds(self):
        """First layers within 1/n, hidden ones and the last within sqrt(6/n)/30."""
        net = siren()
        apply_policy(net, "siren", seed=0, example_inputs=torch.zeros(4, 2))
        bound = math.sqrt(6 / 512) / 30
        assert net[0].weight.abs().max().item() == pytest.approx(0.5, rel=1e-2)
        assert net[2].weight.abs().max().item() == pytest.approx(bound, rel=1e-3)
        assert net[4].weight.abs().max().item() == pytest.approx(bound, rel=1e-2)
        assert net[2].bias.abs().max().item() == pytest.approx(512**-0.5, rel=1e-2)

    def test_activations(self):
        """What goes into hidden sines is standard normal, whatever comes before (theorem 1.8)."""
        net = siren()
        apply_policy(net, "siren", seed=0, example_inputs=torch.zeros(4, 2))
        nn.init.zeros_(net[2].bias)
        inputs = 2 * torch.rand(2000, 2, generator=torch.Generator().manual_seed(0)) - 1
        into = 30 * net[:3](inputs)
        assert into.std().item() == pytest.approx(1, rel=0.1)

    def test_other_factor(self):
        """Without a factor in the code, `w0` is 1."""
        plan = plan_policy(siren(), presets.siren(w0=1.0), example_inputs=torch.zeros(4, 2))
        assert plan["2.weight"].std == pytest.approx(math.sqrt(2 / 512))
        for factor in (0.0, -1, float("nan"), "30", None):
            with pytest.raises(PolicyError, match="w0 must be a"):
                presets.siren(factor)


class TestChrono:
    """Tallec and Ollivier, 2018, eq. 16: `b_f = log U(1, T - 1)`, `b_i = -b_f`."""

    @pytest.mark.parametrize("make", [nn.LSTM, nn.LSTMCell])
    def test_lstm(self, make):
        """Forget and input gates sum to nothing, the others are zero; time scales are uniform."""
        net = make(4, 4000)
        apply_policy(net, presets.chrono(50), seed=0)
        bias = dict(net.named_parameters())
        total = next(b for n, b in bias.items() if "bias_ih" in n)
        total = total + next(b for n, b in bias.items() if "bias_hh" in n)
        inputs, forgets, *others = total.detach().chunk(4)
        scales = forgets.exp().sort().values
        assert torch.equal(inputs, -forgets)
        assert not torch.stack(others).any()
        assert torch.allclose(scales, torch.linspace(1, 49, 4000), atol=1.5)

    def test_gru(self):
        """The update gate, which keeps the state, gets the time scales; every direction its own."""
        net = nn.GRU(4, 2000, bidirectional=True)
        apply_policy(net, presets.chrono(10), seed=0)
        gates = net.bias_ih_l0.detach().chunk(3)
        assert gates[1].exp().mean().item() == pytest.approx(5, rel=0.05)
        assert not torch.cat([gates[0], gates[2], net.bias_hh_l0]).any()
        assert not torch.equal(net.bias_ih_l0, net.bias_ih_l0_reverse)

    def test_other_layers(self):
        """A plain recurrent layer has no gates, and starts as under `auto`."""
        net = nn.RNN(4, 8)
        assert plan_policy(net, "chrono").hash == plan_policy(net, "auto").hash
        with pytest.raises(PolicyError, match="t_max"):
            presets.chrono(2)


class Agent(nn.Module):
    """An actor and a critic on one trunk."""

    def __init__(self, actor="actor", critic="critic", actions=6):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.names = actor, critic
        setattr(self, actor, nn.Linear(64, actions))
        setattr(self, critic, nn.Linear(64, 1))

    def forward(self, x):
        hidden = self.trunk(x)
        return tuple(getattr(self, name)(hidden) for name in self.names)


@pytest.mark.parametrize(
    "names",
    [("actor", "critic", 6), ("pi", "vf", 1), ("mu", "value_head", 1), ("left", "right", 4)],
    ids=str,
)
def test_ppo(names):
    """Every matrix is orthogonal: gain sqrt(2), 0.01 for actions, 1 for values; biases zero."""
    net = Agent(*names)
    apply_policy(net, "ppo", seed=0, example_inputs=torch.zeros(2, 8))
    gains = {"trunk.0": 2**0.5, "trunk.2": 2**0.5, names[0]: 0.01, names[1]: 1.0}
    for name, gain in gains.items():
        singular = torch.linalg.svdvals(net.get_submodule(name).weight)
        torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-4, atol=0)
        assert net.get_submodule(name).bias.eq(0).all()


def test_ppo_of_an_agent_that_acts():
    """The weight that makes the mean of a sampled action is the head of the actor."""

    class Acting(Agent):
        def forward(self, x):
            mean, value = super().forward(x)
            actions = torch.distributions.Normal(mean, torch.ones_like(mean))
            action = actions.sample()
            return action, actions.log_prob(action), value

    plan = plan_policy(Acting(), "ppo", example_inputs=torch.zeros(2, 8))
    assert plan["actor.weight"].initializer.gain == 0.01
    assert plan["critic.weight"].initializer.gain == 1


@pytest.mark.parametrize("depth", [2, 8])
def test_deepnorm(depth):
    """Of an encoder of N layers: beta = (8 N) ** -1/4, but 1 for queries and keys."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    net = nn.Sequential(nn.TransformerEncoder(layer, depth, enable_nested_tensor=False))
    plan = plan_policy(net, "deepnorm", example_inputs=torch.zeros(2, 5, 32))
    beta, last = (8 * depth) ** -0.25, f"0.layers.{depth - 1}"
    square = math.sqrt(2 / 64)
    assert plan[f"{last}.self_attn.in_proj_weight"].std == pytest.approx(
        (square, square, beta * square)
    )
    assert plan[f"{last}.self_attn.out_proj.weight"].std == pytest.approx(beta * square)
    for name in "linear1", "linear2":
        assert plan[f"{last}.{name}.weight"].std == pytest.approx(beta * math.sqrt(2 / 96))


def test_nanochat():
    """Projections into the stream and the head are zero, rows N(0, 1), others by their aspect."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        vocab_size=50,
    )  # fmt: skip
    plan = plan_policy(transformers.LlamaForCausalLM(config), "nanochat")
    zero = {s.name.rpartition(".layers.1.")[2] for s in plan if s.initializer == Zeros()}
    assert {"self_attn.o_proj.weight", "mlp.down_proj.weight", "lm_head.weight"} <= zero
    assert plan["model.embed_tokens.weight"].std == 1
    assert plan["model.layers.0.mlp.up_proj.weight"].std == pytest.approx(32**-0.5)


@pytest.mark.parametrize("name", ["encoder.layers.0.linear1", "decoder.layers.0.linear2",
                                  "encoder.layers.0.self_attn.out_proj"])  # fmt: skip
def test_torch_default_of_a_transformer(name):
    """nn.Transformer fills the matrices of its layers again, by Xavier's uniform bounds."""
    net = nn.Transformer(64, 4, 1, 1, 128, batch_first=True)
    own = net.get_submodule(name).weight.abs().max().item()
    inputs = torch.zeros(2, 5, 64), torch.zeros(2, 4, 64)
    apply_policy(net, "torch_default", seed=0, example_inputs=inputs)
    assert net.get_submodule(name).weight.abs().max().item() == pytest.approx(own, rel=0.01)
