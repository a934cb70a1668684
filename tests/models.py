"""Networks that carry their own answers: what each of their parameters is, written by hand.

`answers` maps canonical names to the facts that must be found. A test only compares.
"""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Answer = dict[str, object]
"""Names of attributes of `Facts`, with their values; activations are written by name."""


class Answering(nn.Module):
    """A network that knows its facts."""

    answers: ClassVar[dict[str, Answer]]
    inputs: ClassVar[tuple[int, ...]] = (2, 8)

    def example(self) -> Tensor:
        """Return an input of the right shape, on meta."""
        return torch.empty(self.inputs, device="meta")


class Functional(Answering):
    """Activations called as functions, at a distance behind carriers."""

    answers: ClassVar = {
        "first.weight": {"meets": "relu", "fed_by": None, "reads_input": True, "op": "linear"},
        "second.weight": {"meets": "tanh", "fed_by": "relu"},
        "third.weight": {"meets": None, "fed_by": "tanh", "feeds_output": True},
    }

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.dropout(self.norm(self.first(x)), 0.1))
        x = torch.tanh(self.second(x).reshape(2, 2, 4).flatten(1))
        return self.third(x)


class InPlace(Answering):
    """What an in-place activation does to the tensor, later readers of the tensor see."""

    answers: ClassVar = {
        "first.weight": {"meets": "relu"},
        "second.weight": {"fed_by": "relu", "meets": None},
    }

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        F.relu_(x[:, :4])
        return self.second(x)


class Primitives(Answering):
    """Activations built of primitives, one a layer."""

    answers: ClassVar = {
        "silu.weight": {"meets": "silu"},
        "relu2.weight": {"meets": "relu2", "fed_by": "silu"},
        "mish.weight": {"meets": "mish", "fed_by": "relu2"},
        "gelu.weight": {"meets": "gelu", "fed_by": "mish"},
        "quick.weight": {"meets": "quick_gelu", "fed_by": "gelu"},
        "scaled.weight": {"meets": "gelu", "fed_by": "quick_gelu"},
        "linear.weight": {"meets": None, "fed_by": "gelu"},
    }

    def __init__(self) -> None:
        super().__init__()
        for name in self.answers:
            setattr(self, name.removesuffix(".weight"), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.silu(x)
        x = x * torch.sigmoid(x)
        x = F.relu(self.relu2(x)) ** 2
        x = self.mish(x)
        x = x * F.softplus(x).tanh()
        x = self.gelu(x)
        x = 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
        x = self.quick(x)
        x = x * torch.sigmoid(1.702 * x)
        x = F.gelu(self.scaled(x)) * 1.7
        return self.linear(x * 3 + 1)


class Gates(Answering):
    """A gate is met by the weight behind it; the weight behind the value walks on."""

    answers: ClassVar = {
        "value.weight": {"meets": None, "axes.blocks": ()},
        "gate.weight": {"meets": "sigmoid"},
        "packed.weight": {"meets": "silu", "axes.blocks": (8, 8)},
        "out.weight": {"meets": None, "fed_by": "silu"},
    }

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate, self.out = (nn.Linear(8, 8) for _ in range(3))
        self.packed = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.value(x) * torch.sigmoid(self.gate(x))
        value, gate = self.packed(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class Attention(Answering):
    """Attention written out, with rotary embeddings, grouped queries and a table of biases."""

    inputs: ClassVar = (2, 5, 16)
    answers: ClassVar = {
        "qkv.weight": {"meets": "softmax", "axes.blocks": (16, 8, 8), "axes.repeats": 1},
        "interleaved.weight": {"meets": "softmax", "axes.blocks": (4, 4, 4), "axes.repeats": 4},
        "paired.weight": {"meets": "softmax", "axes.blocks": (16, 16, 16), "axes.repeats": 1},
        "table": {"role": "table", "meets": "softmax"},
        "temperature": {"role": "scale", "meets": "softmax"},
        "out.weight": {"meets": None, "ends_residual": True},
        "out2.weight": {"meets": None, "ends_residual": True},
        "position": {"role": "position"},
        "token": {"role": "token"},
    }

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.interleaved = nn.Linear(16, 32), nn.Linear(16, 48)
        self.paired = nn.Linear(16, 48)
        self.out, self.out2 = nn.Linear(16, 16), nn.Linear(16, 16)
        self.table = nn.Parameter(torch.zeros(9, 4))
        self.temperature = nn.Parameter(torch.ones(4, 1, 1))
        self.position = nn.Parameter(torch.zeros(1, 5, 16))
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.register_buffer("index", torch.zeros(36, dtype=torch.int64))

    @staticmethod
    def rotated(x: Tensor) -> Tensor:
        cos, sin = torch.ones(x.shape[-1]), torch.zeros(x.shape[-1])
        half = torch.cat([-x[..., 2:], x[..., :2]], dim=-1)
        return x * cos.to(x.device) + half * sin.to(x.device)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(2, -1, -1), x + self.position], dim=1)
        q, k, v = self.qkv(x).split([16, 8, 8], dim=-1)
        q = self.rotated(q.view(2, 6, 4, 4).transpose(1, 2))
        k = self.rotated(k.view(2, 6, 2, 4).transpose(1, 2)).repeat_interleave(2, dim=1)
        v = v.view(2, 6, 2, 4).transpose(1, 2).repeat_interleave(2, dim=1)
        bias = self.table[self.index].view(6, 6, 4).permute(2, 0, 1)
        attention = ((q @ k.transpose(-1, -2)) * self.temperature + bias).softmax(-1)
        x = x + self.out((attention @ v).transpose(1, 2).reshape(2, 6, 16))
        q, k, v = self.interleaved(x).view(2, 6, 4, 12).permute(0, 2, 1, 3).chunk(3, dim=-1)
        x = x + self.out2(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        q, k, v = self.paired(x).chunk(3, dim=-1)
        return F.scaled_dot_product_attention(self.turned(q), self.turned(k), v).mean(1)

    @staticmethod
    def turned(x: Tensor) -> Tensor:
        even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((even - odd, even + odd), dim=-1).flatten(-2)


class Norms(Answering):
    """Norms written out; what multiplies a normalised signal is a norm's weight."""

    answers: ClassVar = {
        "weight": {"role": "norm_weight", "offset": 0.0},
        "shifted": {"role": "norm_weight", "offset": 1.0},
        "norm_bias": {"role": "norm_bias"},
        "layer_scale": {"role": "scale"},
        "gate": {"role": "gate"},
        "linear.weight": {"meets": None, "fed_by": "relu"},
        "response": {"role": "scale"},
    }

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        for name in ("weight", "shifted", "norm_bias", "layer_scale", "gate", "response"):
            setattr(self, name, nn.Parameter(torch.ones(8)))

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight
        centred = x - x.mean(-1, keepdim=True)
        x = centred / torch.sqrt(centred.var(-1, keepdim=True) + 1e-6)
        x = x * (1 + self.shifted) + self.norm_bias
        x = x + self.linear(F.relu(x)) * self.layer_scale * torch.sigmoid(self.gate)
        spread = x.norm(dim=-1, keepdim=True)
        return x + self.response * (x * (spread / (spread.mean() + 1e-6)))


class RawOperands(Answering):
    """Raw parameters: their axes come from the operator that consumes them."""

    answers: ClassVar = {
        "columns": {"axes.inputs": (0,), "axes.outputs": (1,), "role": "weight", "meets": "relu"},
        "rows": {"axes.inputs": (1,), "axes.outputs": (0,), "role": "weight"},
        "transposed": {"axes.inputs": (1,), "axes.outputs": (0,), "role": "weight"},
        "heads": {"axes.inputs": (0,), "axes.outputs": (1, 2), "role": "weight"},
        "experts": {
            "axes.copies": (0,), "axes.inputs": (1,), "axes.outputs": (2,), "role": "weight",
        },
        "kernel": {"axes.inputs": (1,), "axes.outputs": (0,), "axes.groups": 2, "role": "weight"},
        "up": {
            "axes.inputs": (0,), "axes.outputs": (1,), "axes.stride": 4, "axes.transposed": True,
        },
        "bias": {"role": "bias"},
    }  # fmt: skip

    def __init__(self) -> None:
        super().__init__()
        shapes = {
            "columns": (8, 6), "rows": (4, 6), "transposed": (8, 4), "heads": (8, 2, 3),
            "experts": (2, 3, 4), "kernel": (4, 1, 3, 3), "up": (4, 3, 2, 2), "bias": (6,),
        }  # fmt: skip
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(torch.addmm(self.bias, x, self.columns))
        x = torch.mm(self.rows, x.t()).t() @ self.transposed.t()
        x = torch.einsum("bd,dhe->hbe", x, self.heads)
        x = torch.bmm(x, self.experts).permute(1, 2, 0).reshape(2, 4, 2, 1)[:, :2]
        x = F.conv2d(x, self.kernel, None, 1, 1, 1, 2)
        return F.conv_transpose2d(x, self.up, stride=2)


class Standardised(Answering):
    """A weight is followed through standardisation; what only scales it is a scale."""

    inputs: ClassVar = (2, 3, 8, 8)
    answers: ClassVar = {
        "weight": {"role": "weight", "op": "conv2d", "meets": "relu", "axes.inputs": (1,)},
        "gain": {"role": "scale", "op": "conv2d"},
        "normed.weight": {"role": "weight", "meets": None, "fed_by": "relu"},
    }

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
        self.gain = nn.Parameter(torch.ones(4, 1, 1, 1))
        self.normed = parametrizations.weight_norm(nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, 4, -1), None, None, weight=self.gain.view(-1), training=True
        ).reshape_as(self.weight)
        return self.normed(F.relu(F.conv2d(x, weight)))


class LowRank(Answering):
    """Both factors of a product are weights, and know which of their axes faces what."""

    answers: ClassVar = {
        "base.weight": {"role": "weight", "axes.inputs": (1,), "axes.outputs": (0,)},
        "a": {"role": "weight", "axes.inputs": (1,), "axes.outputs": (0,)},
        "b": {"role": "weight", "axes.inputs": (1,), "axes.outputs": (0,)},
    }

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(8, 6)
        self.a, self.b = nn.Parameter(torch.zeros(2, 8)), nn.Parameter(torch.zeros(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.base.weight + self.b @ self.a, self.base.bias)


class Residual(Answering):
    """Identity, projected and parallel branches, with squeeze-and-excite in one of them."""

    inputs: ClassVar = (2, 4, 8, 8)
    answers: ClassVar = {
        "stem.weight": {"ends_residual": False, "branch_depth": 0, "residual_branches": 4},
        "conv1.weight": {"ends_residual": False, "branch_depth": 2, "meets": "relu"},
        "conv2.weight": {"ends_residual": True, "branch_depth": 2, "meets": "relu"},
        "bn.weight": {"ends_residual": True, "role": "norm_weight"},
        "project.weight": {"ends_residual": False, "meets": "relu"},
        "conv3.weight": {"ends_residual": False},
        "conv4.weight": {"ends_residual": True},
        "squeeze.weight": {"meets": "relu", "ends_residual": False},
        "excite.weight": {"meets": "hardsigmoid", "ends_residual": False},
        "left.weight": {"ends_residual": True, "branch_depth": 1, "meets": None},
        "right.weight": {"ends_residual": True, "branch_depth": 1, "meets": None},
        "head.weight": {"ends_residual": False, "feeds_output": True},
    }

    def __init__(self) -> None:
        super().__init__()
        for name in ("stem", "conv1", "conv2", "left", "right"):
            setattr(self, name, nn.Conv2d(4, 4, 3, padding=1))
        self.bn = nn.BatchNorm2d(4)
        self.project, self.conv3 = nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 3, padding=1)
        self.conv4 = nn.Conv2d(8, 8, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(8, 2, 1), nn.Conv2d(2, 8, 1)
        self.narrow = nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.bn(self.conv2(F.relu(self.conv1(x)))))
        y = self.conv4(F.relu(self.conv3(x)))
        y = y * F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        x = self.narrow(F.relu(self.project(x) + y))
        x = x + self.left(x) + self.right(x)
        return self.head(x.mean((2, 3)))


class Recurrent(Answering):
    """Recurrent layers and cells meet their own activation."""

    inputs: ClassVar = (5, 2, 8)
    answers: ClassVar = {
        "lstm.weight_ih_l0": {"meets": "tanh", "role": "weight", "axes.blocks": (6,) * 4},
        "lstm.weight_hh_l1_reverse": {"meets": "tanh", "role": "recurrent"},
        "gru.weight_ih_l0": {"meets": "tanh", "axes.blocks": (4,) * 3},
        "rnn.weight_hh_l0": {"meets": "relu", "role": "recurrent", "axes.blocks": ()},
        "cell.weight_ih": {"meets": "tanh", "role": "weight"},
    }

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, num_layers=2, bidirectional=True, proj_size=3)
        self.gru = nn.GRU(6, 4)
        self.rnn = nn.RNN(4, 4, nonlinearity="relu")
        self.cell = nn.LSTMCell(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rnn(self.gru(self.lstm(x)[0])[0])[0]
        return self.cell(x[-1])[0]


class Multihead(Answering):
    """The projections inside `nn.MultiheadAttention`, packed and separate."""

    inputs: ClassVar = (5, 2, 8)
    answers: ClassVar = {
        "packed.in_proj_weight": {"meets": "softmax", "axes.blocks": (8, 8, 8)},
        "packed.out_proj.weight": {"meets": "gelu"},
        "separate.q_proj_weight": {"meets": "softmax"},
        "separate.v_proj_weight": {"meets": None},
        "separate.out_proj.weight": {"meets": None},
    }

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.MultiheadAttention(8, 2)
        self.separate = nn.MultiheadAttention(8, 2, kdim=4, vdim=6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.packed(x, x, x)[0])
        return self.separate(x, x[..., :4], x[..., :6])[0]


class Tied(Answering):
    """A tied head is what it is first: an embedding."""

    inputs: ClassVar = (2, 5)
    answers: ClassVar = {
        "embed.weight": {"role": "embedding", "axes.outputs": (1,), "op": "embedding"},
        "mix.weight": {"meets": "selu"},
    }

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(10, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight

    def example(self) -> Tensor:
        return torch.zeros(self.inputs, dtype=torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.selu(self.mix(self.embed(x))))


class Piecewise(Answering):
    """Activations that choose between numbers, and one that only contains one that saturates."""

    answers: ClassVar = {
        "leaky.weight": {"meets": "leaky_relu", "meets.parameter": 0.1},
        "least.weight": {"meets": "relu", "fed_by": "leaky_relu"},
        "masked.weight": {"meets": "relu"},
        "swinging.weight": {"meets": "custom", "fed_by": "relu"},
        "chosen.weight": {"meets": "tanh"},
    }

    def __init__(self) -> None:
        super().__init__()
        self.leaky, self.least, self.masked, self.swinging, self.chosen = (
            nn.Linear(8, 8) for _ in range(5)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.leaky(x)
        x = self.least(torch.where(x > 0, x, 0.1 * x))
        x = self.masked(torch.maximum(x, torch.zeros_like(x)))
        x = self.swinging(x * (x > 0))
        x = self.chosen(x + torch.sin(x) ** 2)
        return torch.tanh(torch.where(x > 0, x, torch.rand_like(x)))


class GatedUnit(Answering):
    """The two halves of a gated linear unit are two matrices, one under the other."""

    answers: ClassVar = {
        "dense.weight": {"meets": "sigmoid", "axes.blocks": (6, 6)},
        "convolution.weight": {"meets": "sigmoid", "axes.blocks": (4, 4)},
    }

    def __init__(self) -> None:
        super().__init__()
        self.dense, self.convolution = nn.Linear(8, 12), nn.Conv1d(1, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.convolution(F.glu(self.dense(x)).unsqueeze(1)), dim=1)


class Cell(Answering):
    """An LSTM cell by hand: both of its matrices are four, and what is added to them is a bias."""

    answers: ClassVar = {
        "of_input": {"role": "weight", "axes.blocks": (4, 4, 4, 4), "meets": "sigmoid"},
        "of_state": {"role": "weight", "axes.blocks": (4, 4, 4, 4), "meets": "sigmoid"},
        "bias": {"role": "bias"},
    }

    def __init__(self) -> None:
        super().__init__()
        self.of_input, self.of_state = (nn.Parameter(torch.rand(n, 16)) for n in (4, 4))
        self.bias = nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        x, state = x.chunk(2, 1)
        gates = (x @ self.of_input + state @ self.of_state + self.bias).chunk(4, 1)
        opened, kept, told = (gate.sigmoid() for gate in (gates[0], gates[1], gates[3]))
        return told * torch.tanh(kept * state + opened * gates[2].tanh())


class StandardisedByHand(Answering):
    """What keeps a division from zero is not added to the weight."""

    answers: ClassVar = {"weight": {"role": "weight", "meets": "relu", "offset": 0.0}}

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6, 8))

    def forward(self, x: Tensor) -> Tensor:
        centred = self.weight - self.weight.mean(1, keepdim=True)
        return F.relu(F.linear(x, centred / (self.weight.std(1, keepdim=True) + 1e-5)))


class Modulated(Answering):
    """A feature-wise modulation adds a shift of the same origin as its scale: that is no skip."""

    answers: ClassVar = {
        "main.weight": {"ends_residual": False, "meets": "relu"},
        "modulation.weight": {"ends_residual": False},
        "branch.weight": {"ends_residual": True, "residual_branches": 1},
    }

    def __init__(self) -> None:
        super().__init__()
        self.main, self.branch = nn.Linear(8, 8), nn.Linear(8, 8)
        self.modulation = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.modulation(x).chunk(2, 1)
        x = F.relu(self.main(x) * scale + shift)
        return x + self.branch(x)


ANSWERING: tuple[type[Answering], ...] = (
    Functional, InPlace, Primitives, Gates, Attention, Norms, RawOperands, Standardised, LowRank,
    Residual, Recurrent, Multihead, Tied, Piecewise, GatedUnit, Cell, StandardisedByHand,
    Modulated,
)  # fmt: skip
"""All networks that know their facts."""
