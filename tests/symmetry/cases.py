# ruff: noqa: D103, D403 - the name of a case says what it is; a docstring says why it ends as it does
"""Small networks whose start is symmetric, or only looks so, with what becomes of each.

The verdicts were written down by hand and are decided by training: `oracle.py` trains every case
and the tests compare. Each case lists *all* its parameters and modules that are tied or dead;
whatever is not listed must come out clean.
"""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Inputs = Callable[[torch.Generator], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """One network and what becomes of its start.

    Attributes:
        name: The builder's name.
        build: Makes the network, in float32.
        inputs: Draws one batch.
        tied: Parameters or modules with units that stay identical.
        dead: Parameters that never move although another start would move them.
        harmless: Suspects that the report must name and clear.
        exempt: Parameters, parts of which never move from any start (the oracle checks that).
        follows: Parameters that get no gradient for reasons that lie elsewhere: others are tied, or
            their units happen to be off.
        benign: Parameters that stay tied at no loss; why is told in the case.
        loss: Loss of the output where the targets are part of the story; else every output
            element has a random target of its own.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Inputs
    tied: frozenset[str]
    dead: frozenset[str]
    harmless: frozenset[str]
    exempt: frozenset[str]
    follows: frozenset[str]
    benign: frozenset[str]
    loss: Callable[[object], Tensor] | None


CASES: list[Case] = []


def vectors(*shape: int) -> Inputs:
    """Draw one standard normal tensor."""
    return lambda generator: (torch.randn(*shape, generator=generator),)


def tokens(high: int, *shapes: tuple[int, ...]) -> Inputs:
    """Draw index tensors below `high`."""
    return lambda generator: tuple(
        torch.randint(high, shape, generator=generator) for shape in shapes
    )


def case(
    *,
    tied: str = "",
    dead: str = "",
    harmless: str = "",
    exempt: str = "",
    follows: str = "",
    benign: str = "",
    inputs: Inputs | None = None,
    loss: Callable[[object], Tensor] | None = None,
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Enter a builder into the table; names are separated by blanks."""

    def enter(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        CASES.append(
            Case(
                name=build.__name__,
                build=build,
                inputs=inputs or vectors(8, 5),
                tied=frozenset(tied.split()),
                dead=frozenset(dead.split()),
                harmless=frozenset(harmless.split()),
                exempt=frozenset(exempt.split()),
                follows=frozenset(follows.split()),
                benign=frozenset(benign.split()),
                loss=loss,
            )
        )
        return build

    return enter


#
# Helpers
#


@torch.no_grad()
def fill(module: nn.Module, value: float, bias: float | None = 0.0) -> nn.Module:
    """Give every weight of a module one value, and every bias another (None: leave it)."""
    for name, parameter in module.named_parameters():
        is_bias = name.rpartition(".")[2].startswith("bias")
        if not is_bias:
            parameter.fill_(value)
        elif bias is not None:
            parameter.fill_(bias)
    return module


def constant(*layers: nn.Module, value: float = 0.3) -> nn.Sequential:
    """Chain layers after giving those with matrices one constant and zero biases."""
    for layer in layers:
        if any(parameter.ndim > 1 for parameter in layer.parameters()):
            fill(layer, value)
    return nn.Sequential(*layers)


@torch.no_grad()
def copy_unit(
    layer: nn.Module, head: nn.Module, source: int = 1, target: int = 4, sign: float = 1.0
) -> None:
    """Make hidden unit `target` a copy of `source`: what it reads and what it feeds."""
    layer.weight[target] = sign * layer.weight[source]
    layer.bias.zero_()
    head.weight[:, target] = sign * head.weight[:, source]


class Wrap(nn.Module):
    """Modules by name and a forward given as a function of them."""

    def __init__(self, run: Callable[..., object], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> object:
        return self.run(self, *inputs)


def zeros(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def ones(*shape: int, value: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.full(shape, value))


def normal(*shape: int, std: float = 0.5) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * std)


class Sum(nn.Module):
    """Add up the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(-1)


class DropPath(nn.Module):
    """Drop whole samples, as stochastic depth does."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(len(x), 1, device=x.device) < 0.7) if self.training else x


def mlp(act: nn.Module | None = None, hidden: int = 6, out: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, hidden), act or nn.ReLU(), nn.Linear(hidden, out))


#
# Multi-layer perceptrons
#


@case(tied="0.weight 0.bias 2.weight")
def mlp_constant():
    return constant(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))


@case(tied="0.weight 0.bias 2.weight")
def mlp_constant_tanh():
    return constant(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


@case(tied="0.weight 0.bias 2.weight")
def mlp_constant_linear():
    return constant(nn.Linear(5, 6), nn.Identity(), nn.Linear(6, 3))


@case(tied="0.weight 0.bias 2.weight 2.bias 4.weight")
def mlp_constant_deep():
    layers = (nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    return constant(*layers)


@case(dead="0.weight 0.bias 2.weight")
def mlp_zeros_relu():
    return fill(mlp(), 0.0)


@case(dead="0.weight 0.bias 2.weight")
def mlp_zeros_tanh():
    return fill(mlp(nn.Tanh()), 0.0)


@case(dead="0.weight 0.bias 2.weight")
def mlp_zeros_gelu():
    return fill(mlp(nn.GELU()), 0.0)


@case(tied="0.weight 0.bias 2.weight")
def mlp_zeros_sigmoid():
    """sigmoid(0) is a half, so the head moves; its columns alike."""
    return fill(mlp(nn.Sigmoid()), 0.0)


@case(tied="0.weight 0.bias 2.weight 2.bias 4.weight")
def mlp_zeros_sigmoid_deep():
    """A chain that opens layer by layer, from the head down, and stays tied."""
    layers = (nn.Linear(5, 6), nn.Sigmoid(), nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3))
    return fill(nn.Sequential(*layers), 0.0)


@case(harmless="0.weight")
def mlp_zero_hidden_tanh():
    """tanh has slope 1 at zero, and the random head feeds each unit another gradient."""
    model = mlp(nn.Tanh())
    fill(model[0], 0.0)
    return model


@case(dead="0.weight 0.bias 2.weight")
def mlp_zero_hidden_relu():
    """relu'(0) is 0 in torch, so the head's randomness never arrives."""
    model = mlp()
    fill(model[0], 0.0)
    return model


@case(dead="0.weight")
def mlp_zero_hidden_random_bias_relu():
    """Units with a negative bias are off for every input."""
    model = mlp(hidden=8)
    fill(model[0], 0.0, bias=None)
    with torch.no_grad():
        model[0].bias.copy_(torch.linspace(-1, 0.9, 8))
    return model


@case(harmless="2.weight")
def mlp_zero_head():
    model = mlp()
    fill(model[2], 0.0)
    return model


@case(harmless="inner.weight head.weight")
def zero_branch_below_zero_head():
    """The sum keeps a way open around the zero branch, so first the head moves, then the branch."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        h = torch.tanh(m.body(x))
        return m.head(h + m.inner(h))

    return Wrap(
        run,
        body=nn.Linear(5, 6),
        inner=fill(nn.Linear(6, 6), 0.0),
        head=fill(nn.Linear(6, 3), 0.0),
    )


@case(harmless="weight")
def logistic_regression_zeros():
    """One linear map has no hidden units to confuse."""
    return fill(nn.Linear(5, 3), 0.0)


@case(harmless="weight")
def linear_constant():
    return fill(nn.Linear(5, 3), 0.5)


@case(harmless="0.weight")
def mlp_constant_hidden_random_head():
    model = mlp(nn.Tanh())
    fill(model[0], 0.3)
    return model


@case(harmless="0.weight 2.weight")
def mlp_constant_weights_random_biases():
    """Biases tell the units apart."""
    return fill(mlp(nn.Tanh()), 0.3, bias=None)


@case(tied="0.weight 0.bias 2.weight")
def mlp_random_head_frees_only_its_own_layer():
    """Equal outgoing columns preserve themselves, whatever lies above."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3))
    fill(model[0], 0.3)
    fill(model[2], 0.3)
    return model


@case(tied="0.weight 0.bias 2.weight")
def mlp_constant_behind_zero_head():
    """Nothing moves below until the head does, and the head's columns move alike."""
    model = mlp(nn.Tanh())
    fill(model[0], 0.3)
    fill(model[2], 0.0)
    return model


@case(harmless="0.weight 4.weight")
def mlp_constant_behind_random_behind_zero_head():
    """The rows part at step 2, once the head has moved."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    fill(model[0], 0.3)
    fill(model[4], 0.0)
    return model


@case(tied="0.weight 0.bias 2.weight")
def mlp_planted_pair():
    """Two of six units are copies, in what they read and in what they feed."""
    model = mlp(nn.Tanh())
    copy_unit(model[0], model[2])
    return model


@case(tied="0.weight 0.bias 2.weight")
def mlp_planted_pair_relu():
    model = mlp(hidden=8)
    copy_unit(model[0], model[2])
    return model


@case(harmless="0.weight")
def mlp_copied_rows_other_columns():
    model = mlp(nn.Tanh())
    with torch.no_grad():
        model[0].weight[4] = model[0].weight[1]
    return model


@case(harmless="2.weight")
def mlp_copied_columns_other_rows():
    model = mlp(nn.Tanh())
    with torch.no_grad():
        model[2].weight[:, 4] = model[2].weight[:, 1]
    return model


@case(harmless="0.weight 2.weight")
def mlp_doubling_trick():
    """Equal units with opposite outgoing weights: the output starts at zero, and they part."""
    model = mlp(nn.Tanh())
    with torch.no_grad():
        model[0].weight[3:] = model[0].weight[:3]
        model[0].bias[3:] = model[0].bias[:3]
        model[2].weight[:, 3:] = -model[2].weight[:, :3]
    return model


@case(tied="0.weight 0.bias 2.weight")
def mlp_sign_flipped_pair_tanh():
    """tanh is odd: a unit negated on both sides computes the same and learns the same."""
    model = mlp(nn.Tanh())
    copy_unit(model[0], model[2], sign=-1.0)
    return model


@case(harmless="0.weight 2.weight")
def mlp_looks_linear_relu():
    """relu is not odd, so negated copies see the two halves of the data."""
    model = mlp()
    with torch.no_grad():
        model[0].weight[3:] = -model[0].weight[:3]
        model[0].bias.zero_()
        model[2].weight[:, 3:] = -model[2].weight[:, :3]
    return model


@case(dead="0.weight 0.bias 2.weight")
def mlp_very_negative_bias_relu():
    """No input of ordinary size reaches these units."""
    model = mlp()
    with torch.no_grad():
        model[0].bias.fill_(-50.0)
    return model


@case(dead="0.weight 1.weight 1.bias 3.weight", exempt="0.bias")
def batch_norm_very_negative_bias_relu():
    """No normalised number comes near zero: nothing above or below ever moves."""
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), fill(nn.Linear(6, 3), 0.0))
    nn.init.constant_(model[1].bias, -12.0)
    return model


@case(tied="0.weight 0.bias 2.weight")
def mlp_nearly_constant():
    """Noise of 1e-8 on 0.5 would take thousands of steps to grow."""
    model = fill(mlp(nn.Tanh()), 0.5).double()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight += 1e-8 * torch.randn_like(layer.weight)
    return model


@case()
def mlp_noisy_constant():
    """Ten per cent of noise is generic at once."""
    model = fill(mlp(nn.Tanh()), 0.5)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight += 0.05 * torch.randn_like(layer.weight)
    return model


@case(harmless="0.weight 3.weight")
def mlp_constant_dropout_on_units():
    """A mask of their own tells tied units apart."""
    return constant(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))


@case(harmless="0.weight 3.weight")
def mlp_constant_little_dropout_on_units():
    return constant(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.1), nn.Linear(6, 3))


@case(tied="1.weight 1.bias 3.weight")
def mlp_constant_dropout_on_inputs():
    return constant(nn.Dropout(0.5), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


@case(tied="0.weight 0.bias 2.bias 2.weight 4.weight")
def mlp_identity_between_constants():
    """Units of the middle layer are tied too; its rows are equal only up to a permutation."""
    model = constant(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    nn.init.eye_(model[2].weight)
    return model


@case(tied="0.weight 0.bias 2.bias 2.weight 4.weight")
def mlp_block_copies():
    """Two copies of a small network side by side in one wide one."""
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight[3:] = model[0].weight[:3]
        model[0].bias[3:] = model[0].bias[:3]
        model[2].weight[:3, 3:] = 0
        model[2].weight[3:, :3] = 0
        model[2].weight[3:, 3:] = model[2].weight[:3, :3]
        model[2].bias[3:] = model[2].bias[:3]
        model[4].weight[:, 3:] = model[4].weight[:, :3]
    return model


@case(harmless="0")
def mlp_identity_layers():
    """A deep linear net at the identity: inputs and targets tell the units apart."""
    layers = [nn.Linear(5, 5, bias=False) for _ in range(3)]
    for layer in layers:
        nn.init.eye_(layer.weight)
    return nn.Sequential(layers[0], nn.Identity(), layers[1], nn.Identity(), layers[2])


@case(tied="hidden.weight hidden.bias")
def units_summed():
    """The sum treats all units alike."""
    hidden = fill(nn.Linear(5, 6), 0.2)
    return Wrap(lambda m, x: m.hidden(x).tanh().sum(-1), hidden=hidden)


@case()
def head_with_prior_bias():
    """Focal loss starts all classes at one per cent."""
    return Wrap(
        lambda m, x: m.head(torch.relu(m.hidden(x))).sigmoid(),
        hidden=nn.Linear(5, 6),
        head=_with_bias(nn.Linear(6, 3), -math.log(99)),
    )


def _with_bias(layer: nn.Module, value: float) -> nn.Module:
    nn.init.constant_(layer.bias, value)
    return layer


@case()
def mlp_default():
    return mlp()


@case()
def mlp_xavier_zero_biases():
    model = mlp()
    for layer in (model[0], model[2]):
        nn.init.xavier_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


@case(harmless="mean.weight log_std.weight")
def actor_with_two_zero_heads():
    """Equal heads with targets of their own."""
    return Wrap(
        lambda m, x: (m.mean(torch.tanh(m.body(x))), m.log_std(torch.tanh(m.body(x)))),
        body=nn.Linear(5, 6),
        mean=fill(nn.Linear(6, 3), 0.0),
        log_std=fill(nn.Linear(6, 3), 0.0),
    )


@case(tied="head.weight")
def frozen_constant_features():
    """The features are identical and frozen; the head's columns follow."""
    body = fill(nn.Linear(5, 6), 0.3).requires_grad_(False)
    return Wrap(lambda m, x: m.head(m.body(x).tanh()), body=body, head=fill(nn.Linear(6, 3), 0.0))


@case(harmless="0.weight", benign="2.weight 2.bias", loss=lambda y: F.cross_entropy(y, _labels(y)))
def two_class_zero_net_with_cross_entropy():
    """The two rows of a zero head move oppositely for ever; that loses nothing."""
    model = mlp(nn.Tanh(), out=2)
    fill(model[2], 0.0)
    with torch.no_grad():
        model[0].weight[4] = model[0].weight[1]
    return model


def _labels(y: Tensor) -> Tensor:
    return torch.arange(len(y), device=y.device) % y.shape[1]


#
# Norms
#


@case(tied="0.weight 1.weight 1.bias 3.weight", exempt="0.bias")
def mlp_constant_batch_norm():
    return constant(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


@case(dead="0.weight 0.bias 1.weight", tied="1.bias 3.weight")
def mlp_constant_layer_norm():
    """Layer norm of equal units is zero: only its bias can still move."""
    return constant(nn.Linear(5, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 3))


@case(dead="0.weight 0.bias 1.weight", tied="1.bias 2.weight")
def linear_constant_layer_norm():
    """Equal gradients from above are nothing to the norm, whatever lies below."""
    return constant(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))


@case()
def mlp_layer_norm():
    return nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3))


@case(exempt="0.bias", inputs=vectors(4, 3, 6, 6))
def conv_bias_before_batch_norm():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    nn.init.zeros_(model[0].bias)
    return model


@case(exempt="0.bias", harmless="4.weight", inputs=vectors(4, 3, 6, 6))
def constant_conv_bias_before_batch_norm():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )
    nn.init.constant_(model[0].bias, 0.1)
    fill(model[4], 0.0)
    return model


class Residual(nn.Module):
    """`x + norm2(conv2(relu(norm1(conv1(x)))))` and a linear head on the mean."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        return self.head(torch.relu(x + self.norm2(self.conv2(h))).mean((2, 3)))


@case(harmless="norm2.weight", inputs=vectors(4, 4, 5, 5))
def resnet_zero_gamma():
    model = Residual()
    nn.init.zeros_(model.norm2.weight)
    return model


@case(
    dead="norm1.weight norm1.bias norm2.weight conv1.weight conv2.weight",
    inputs=vectors(4, 4, 5, 5),
)
def resnet_both_gammas_zero():
    model = Residual()
    nn.init.zeros_(model.norm1.weight)
    nn.init.zeros_(model.norm2.weight)
    return model


@case(tied="0.weight 1.weight 1.bias 4.weight", follows="0.bias", inputs=vectors(4, 3, 6, 6))
def cnn_constant_group_norm():
    """While the channels of a group are equal, the norm takes their biases away."""
    layers = (nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    return constant(*layers, nn.Conv2d(4, 2, 1))


@case(tied="0.weight 1.weight 1.bias 4.weight", exempt="0.bias", inputs=vectors(4, 3, 6, 6))
def cnn_constant_instance_norm():
    layers = (nn.Conv2d(3, 4, 3), nn.InstanceNorm2d(4, affine=True), nn.ReLU())
    return constant(*layers, nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1))


@case(harmless="scale")
def rms_norm_of_one_plus_weight():
    """Gemma's norm computes with `1 + scale`, so zero is its neutral start."""
    return Wrap(
        lambda m, x: m.head(F.rms_norm(m.body(x), (6,)) * (1 + m.scale)),
        body=nn.Linear(5, 6),
        scale=zeros(6),
        head=nn.Linear(6, 3),
    )


#
# Convolutions
#


def cnn(channels: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, channels, 3), nn.Tanh(), nn.Conv2d(channels, 4, 3), nn.Tanh(), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip


@case(tied="0.weight 0.bias 2.weight 2.bias 5.weight", inputs=vectors(4, 3, 6, 6))
def cnn_constant():
    return fill(cnn(), 0.1)


@case(dead="0.weight 0.bias 2.weight 2.bias 5.weight", inputs=vectors(4, 3, 6, 6))
def cnn_zeros():
    return fill(cnn(), 0.0)


@case(tied="0.weight 0.bias 2.weight", inputs=vectors(4, 3, 6, 6))
def cnn_planted_pair():
    model = cnn()
    copy_unit(model[0], model[2], source=0, target=3)
    return model


@case(harmless="2.weight", inputs=vectors(4, 3, 6, 6))
def depthwise_constant_after_random():
    """A box filter on channels that differ."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.Tanh(),
        fill(nn.Conv2d(4, 4, 3, groups=4), 0.1),
        nn.Tanh(),
        nn.Conv2d(4, 2, 4),
    )


@case(tied="0.weight 0.bias 2.weight 2.bias 4.weight", inputs=vectors(4, 3, 6, 6))
def depthwise_constant_between_constants():
    layers = (nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=4), nn.Tanh())
    return constant(*layers, nn.Conv2d(4, 2, 4), value=0.1)


@case(tied="0.weight 0.bias 2.weight", inputs=vectors(4, 3, 5, 5))
def grouped_convolution_pair_in_one_group():
    """Channels 0 and 1 are copies, and so are the weights of group 0 that read them."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=2), nn.Tanh(), nn.Conv2d(4, 2, 3)
    )
    with torch.no_grad():
        model[0].weight[1] = model[0].weight[0]
        model[0].bias[1] = model[0].bias[0]
        model[2].weight[:2, 1] = model[2].weight[:2, 0]
    return model


@case(tied="0.weight 0.bias 2.weight", inputs=vectors(4, 3, 4, 4))
def transposed_convolution_pair():
    """Outputs of a transposed convolution lie along axis 1."""
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.Tanh(), nn.Conv2d(4, 2, 3))
    with torch.no_grad():
        model[0].weight[:, 3] = model[0].weight[:, 1]
        model[0].bias.zero_()
        model[2].weight[:, 3] = model[2].weight[:, 1]
    return model


@case(tied="0.weight 0.bias 2.weight", inputs=vectors(4, 3, 4, 4))
def transposed_convolution_constant():
    return constant(nn.ConvTranspose2d(3, 4, 2, stride=2), nn.Tanh(), nn.Conv2d(4, 2, 3))


@case(harmless="1.weight", inputs=vectors(4, 3, 4, 4))
def transposed_convolution_zero():
    return nn.Sequential(nn.Conv2d(3, 4, 1), fill(nn.ConvTranspose2d(4, 2, 2, stride=2), 0.0))


@case(dead="0.weight", inputs=vectors(4, 4, 5, 5))
def dirac_to_more_channels_relu():
    """Four of eight channels are zero and behind relu: they never start."""
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(8, 2, 3))
    nn.init.dirac_(model[0].weight)
    return model


@case(harmless="0.weight", inputs=vectors(4, 4, 5, 5))
def dirac_to_more_channels_tanh():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, bias=False), nn.Tanh(), nn.Conv2d(8, 2, 3))
    nn.init.dirac_(model[0].weight)
    return model


@case(harmless="0.weight", inputs=vectors(4, 3, 4, 4))
def icnr_before_pixel_shuffle():
    """Four equal kernels, each for another pixel."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(2, 2, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(2, 3, 3, 3).repeat_interleave(4, 0))
        model[0].bias.zero_()
    return model


@case(inputs=vectors(4, 3, 4, 4))
def bilinear_upsampling():
    """An fcn head: each class is upsampled by the same kernel."""
    up = nn.ConvTranspose2d(3, 3, 4, stride=2, padding=1, bias=False)
    taps = torch.tensor([0.25, 0.75, 0.75, 0.25])
    with torch.no_grad():
        up.weight.zero_()
        up.weight[range(3), range(3)] = torch.outer(taps, taps)
    return nn.Sequential(nn.Conv2d(3, 3, 1), up)


@case(harmless="into.weight out.weight", inputs=vectors(4, 3, 4, 4))
def control_net():
    """Zero convolutions into and out of a copied branch; the way out opens first."""
    base = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh())
    return Wrap(
        lambda m, x: m.head(m.base(x) + m.out(m.control(x + m.into(x.flip(-1))))),
        base=base.requires_grad_(False),
        control=copy.deepcopy(base).requires_grad_(True),
        into=fill(nn.Conv2d(3, 3, 1), 0.0),
        out=fill(nn.Conv2d(4, 4, 1), 0.0),
        head=nn.Conv2d(4, 2, 1),
    )


class Fixup(nn.Module):
    """One residual branch of Fixup: scalar biases, a scale, and a zero last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.conv2 = fill(nn.Conv2d(4, 4, 3, padding=1, bias=False), 0.0)
        self.bias1a, self.bias1b, self.bias2a, self.bias2b = (zeros(1) for _ in range(4))
        self.scale = ones(1)
        self.head = fill(nn.Linear(4, 3), 0.0)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv1(x + self.bias1a) + self.bias1b)
        h = self.conv2(h + self.bias2a) * self.scale + self.bias2b
        return self.head(torch.relu(x + h).mean((2, 3)))


@case(harmless="conv2.weight head.weight", inputs=vectors(4, 4, 5, 5))
def fixup():
    return Fixup()


@case(harmless="squeeze.weight", inputs=vectors(4, 4, 5, 5))
def squeeze_excite_zero_gate():
    return Wrap(
        lambda m, x: m.head((x * m.squeeze(x.mean((2, 3), keepdim=True)).sigmoid()).flatten(1)),
        squeeze=fill(nn.Conv2d(4, 4, 1), 0.0),
        head=nn.Linear(100, 3),
    )


@case(tied="0.weight 0.bias 2.weight", inputs=vectors(4, 3, 12))
def conv1d_constant():
    return constant(nn.Conv1d(3, 4, 3), nn.Tanh(), nn.Conv1d(4, 2, 3))


@case(tied="0.weight 0.bias 2.weight", inputs=vectors(2, 2, 4, 4, 4))
def conv3d_constant():
    return constant(nn.Conv3d(2, 3, 2), nn.Tanh(), nn.Conv3d(3, 2, 2))


#
# Residual branches, gates and products
#


class Gated(nn.Module):
    """`head(x + gate * last(relu(first(x))))`."""

    def __init__(self, gate: nn.Parameter, *, zero_last: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.last = nn.Linear(6, 5)
        self.gate = gate
        self.head = nn.Linear(5, 3)
        if zero_last:
            fill(self.last, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.gate * self.last(torch.relu(self.first(x))))


@case(harmless="gate")
def rezero():
    return Gated(zeros(1))


@case(harmless="gate")
def skip_init_scalar():
    return Gated(zeros())


@case(harmless="last.weight")
def residual_zero_last():
    return Gated(ones(1), zero_last=True)


@case(dead="gate last.weight last.bias first.weight first.bias")
def gate_zero_at_both_ends():
    return Gated(zeros(1), zero_last=True)


@case(dead="gate last.weight last.bias first.weight first.bias")
def vector_gate_zero_at_both_ends():
    return Gated(zeros(5), zero_last=True)


@case()
def layer_scale():
    return Gated(ones(5, value=1e-6))


@case(harmless="last.weight")
def layer_scale_and_zero_last():
    return Gated(ones(5, value=1e-5), zero_last=True)


@case(dead="inner.0.weight inner.0.bias inner.1.weight")
def two_zero_layers_in_a_branch():
    inner = nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 5))
    return Wrap(lambda m, x: m.head(x + m.inner(x)), inner=fill(inner, 0.0), head=nn.Linear(5, 3))


@case(dead="a b")
def product_of_two_zero_vectors():
    return Wrap(
        lambda m, x: m.head(x + m.a * m.b * x), a=zeros(5), b=zeros(5), head=nn.Linear(5, 3)
    )


@case(harmless="a")
def product_of_a_zero_vector():
    return Wrap(lambda m, x: m.head(x + m.a * m.b * x), a=zeros(5), b=ones(5), head=nn.Linear(5, 3))


@case(dead="a b")
def low_rank_adapter_both_zero():
    return Wrap(
        lambda m, x: m.base(x) + F.linear(F.linear(x, m.a), m.b),
        base=nn.Linear(5, 4).requires_grad_(False),
        a=zeros(2, 5),
        b=zeros(4, 2),
    )


@case(harmless="b")
def low_rank_adapter():
    return Wrap(
        lambda m, x: m.base(x) + F.linear(F.linear(x, m.a), m.b),
        base=nn.Linear(5, 4).requires_grad_(False),
        a=normal(2, 5),
        b=zeros(4, 2),
    )


@case(tied="a b")
def low_rank_adapter_constant_zero():
    """Rank four in name, rank one in fact."""
    return Wrap(
        lambda m, x: m.base(x) + F.linear(F.linear(x, m.a), m.b),
        base=nn.Linear(5, 4).requires_grad_(False),
        a=ones(4, 5, value=0.1),
        b=zeros(4, 4),
    )


@case(harmless="a")
def low_rank_adapter_constant_random():
    return Wrap(
        lambda m, x: F.linear(F.linear(x, m.a), m.b), a=ones(4, 5, value=0.1), b=normal(4, 4)
    )


@case(dead="value.weight value.bias gate.weight gate.bias head.weight")
def glu_both_zero():
    """0 * silu(0): each side waits for the other."""
    return _glu(value=0.0, gate=0.0)


def _glu(*, value: float | None, gate: float | None) -> nn.Module:
    parts = {"value": nn.Linear(5, 6), "gate": nn.Linear(5, 6)}
    for name, number in (("value", value), ("gate", gate)):
        if number is not None:
            fill(parts[name], number)
    return Wrap(lambda m, x: m.head(m.value(x) * F.silu(m.gate(x))), head=nn.Linear(6, 3), **parts)


@case(harmless="gate.weight")
def glu_zero_gate():
    return _glu(value=None, gate=0.0)


@case(tied="value.weight value.bias gate.weight gate.bias head.weight")
def glu_constant():
    model = _glu(value=0.2, gate=0.3)
    fill(model.head, 0.2)
    return model


@case(harmless="mod.weight last.weight gate_in.weight")
def adaln_zero():
    """DiT's start: head zero, modulation zero; three steps until the inside moves."""
    return Wrap(
        _adaln,
        body=nn.Linear(5, 6),
        mod=fill(nn.Linear(5, 12), 0.0),
        inner=nn.Linear(6, 6),
        gate_in=fill(nn.Linear(5, 6), 0.0),
        last=fill(nn.Linear(6, 3), 0.0),
    )


def _adaln(m: nn.Module, x: Tensor) -> Tensor:
    shift, gate = m.mod(F.silu(x)).chunk(2, -1)
    h = m.body(x)
    h = h + gate * m.inner(F.layer_norm(h, (6,)) + shift)
    scale = m.gate_in(F.silu(x))
    return m.last(F.layer_norm(h, (6,)) * (1 + scale))


@case(harmless="mod.weight last.weight inner.weight")
def constant_inside_adaln_zero():
    """The rows inside part only at step 3: head, then gate, then they."""
    return Wrap(
        lambda m, x: m.last(m.body(x) + m.mod(x) * torch.tanh(m.inner(x))),
        body=nn.Linear(5, 6),
        mod=fill(nn.Linear(5, 6), 0.0),
        inner=fill(nn.Linear(5, 6), 0.3),
        last=fill(nn.Linear(6, 3), 0.0),
    )


@case(tied="0.weight 0.bias 3.weight")
def stochastic_depth_does_not_break():
    """A mask per sample is the same for all units."""
    return constant(nn.Linear(5, 6), nn.Tanh(), DropPath(), nn.Linear(6, 3))


#
# Attention and tokens
#


class Attention(nn.Module):
    """Self-attention on `(batch, sequence, 8)`, two heads, separate projections."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        h = F.scaled_dot_product_attention(q, k, v)
        return self.out(h.transpose(1, 2).flatten(2))


SEQUENCE = vectors(3, 5, 8)


@case(inputs=SEQUENCE, exempt="k.bias")
def attention():
    return Attention()


@case(inputs=SEQUENCE, exempt="k.bias", harmless="out.weight")
def attention_zero_out():
    model = Attention()
    fill(model.out, 0.0)
    return model


@case(inputs=SEQUENCE, dead="q.weight q.bias k.weight", exempt="k.bias")
def attention_zero_query_and_key():
    model = Attention()
    fill(model.q, 0.0)
    fill(model.k, 0.0)
    return model


@case(inputs=SEQUENCE, harmless="q.weight", exempt="k.bias")
def attention_zero_query():
    model = Attention()
    fill(model.q, 0.0)
    return model


@case(
    inputs=SEQUENCE,
    tied="q.weight q.bias k.weight v.weight v.bias out.weight",
    exempt="k.bias",
)
def attention_copied_heads():
    """The second head is a copy of the first."""
    model = Attention()
    with torch.no_grad():
        for part in (model.q, model.k, model.v):
            part.weight[4:] = part.weight[:4]
            part.bias[4:] = part.bias[:4]
        model.out.weight[:, 4:] = model.out.weight[:, :4]
    return model


@case(inputs=SEQUENCE, harmless="q.weight k.weight v.weight", exempt="k.bias")
def attention_copied_heads_other_outputs():
    model = Attention()
    with torch.no_grad():
        for part in (model.q, model.k, model.v):
            part.weight[4:] = part.weight[:4]
            part.bias[4:] = part.bias[:4]
    return model


@case(inputs=SEQUENCE, tied="q.weight q.bias k.weight v.weight v.bias out.weight", exempt="k.bias")
def attention_constant():
    return fill(Attention(), 0.2)


class Packed(nn.Module):
    """`nn.MultiheadAttention` on itself."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@case(inputs=SEQUENCE, exempt="attention.in_proj_bias")
def packed_attention():
    return Packed()


@case(inputs=SEQUENCE, dead="attention.in_proj_weight attention.in_proj_bias")
def packed_attention_zero_query_and_key():
    model = Packed()
    with torch.no_grad():
        model.attention.in_proj_weight[:16] = 0
    return model


@case(
    inputs=SEQUENCE,
    tied="attention.in_proj_weight attention.in_proj_bias attention.out_proj.weight",
    exempt="attention.in_proj_bias",
)
def packed_attention_copied_heads():
    model = Packed()
    with torch.no_grad():
        packed = model.attention.in_proj_weight.view(3, 2, 4, 8)
        packed[:, 1] = packed[:, 0]
        out = model.attention.out_proj.weight.view(8, 2, 4)
        out[:, 1] = out[:, 0]
    return model


class Tokens(nn.Module):
    """Learned tokens before a sequence, one attention, the mean of all."""

    def __init__(self, token: nn.Parameter, position: nn.Parameter | None = None) -> None:
        super().__init__()
        self.token = token
        self.position = position
        self.mix = Attention()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        if self.position is not None:
            h = h + self.position
        return self.head(torch.tanh(h + self.mix(h)).mean(1))


@case(inputs=SEQUENCE, tied="token", exempt="mix.k.bias")
def zero_tokens():
    """Without positions nothing tells the tokens apart."""
    return Tokens(zeros(1, 3, 8))


@case(inputs=SEQUENCE, tied="token", exempt="mix.k.bias")
def constant_tokens():
    return Tokens(ones(1, 3, 8, value=0.02))


@case(inputs=SEQUENCE, exempt="mix.k.bias")
def random_tokens():
    return Tokens(normal(1, 3, 8))


@case(inputs=SEQUENCE, harmless="token", exempt="mix.k.bias")
def zero_tokens_with_positions():
    return Tokens(zeros(1, 3, 8), normal(1, 8, 8))


@case(inputs=SEQUENCE, harmless="position", exempt="mix.k.bias")
def zero_positions():
    return Tokens(normal(1, 1, 8), zeros(1, 6, 8))


@case(inputs=SEQUENCE, exempt="mix.k.bias")
def one_zero_token():
    """A class token has nobody to be confused with."""
    return Tokens(zeros(1, 1, 8))


@case(inputs=SEQUENCE, exempt="mask mix.k.bias")
def unused_mask_token():
    model = Tokens(zeros(1, 1, 8))
    model.mask = zeros(1, 1, 8)
    return model


@case(inputs=SEQUENCE, harmless="table")
def zero_relative_position_table():
    """Each offset and each head is met by other scores."""
    index = torch.arange(5)[:, None] - torch.arange(5)[None] + 4

    def run(m: nn.Module, x: Tensor) -> Tensor:
        q, v = (part(x).unflatten(-1, (2, 4)).transpose(1, 2) for part in (m.q, m.v))
        scores = (q @ q.mT + m.table[index].permute(2, 0, 1)).softmax(-1)
        return m.out((scores @ v).transpose(1, 2).flatten(2))

    return Wrap(
        run,
        q=nn.Linear(8, 8, bias=False),
        v=nn.Linear(8, 8, bias=False),
        out=nn.Linear(8, 3),
        table=zeros(9, 2),
    )


@case(
    inputs=SEQUENCE,
    harmless="layers.0",
    exempt="layers.0.self_attn.in_proj_bias layers.1.self_attn.in_proj_bias",
)
def encoder_of_copied_layers():
    """`nn.TransformerEncoder` deep-copies its layer; in series they meet other signals."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@case(inputs=SEQUENCE, tied="queries", exempt="mix.k.bias")
def equal_object_queries():
    """DETR with zero queries and no query positions."""
    return Wrap(
        lambda m, x: m.head(
            m.mix(torch.cat([m.queries.expand(len(x), -1, -1), x], 1))[:, :4].mean(1)
        ),
        queries=zeros(1, 4, 8),
        mix=Attention(),
        head=nn.Linear(8, 3),
    )


#
# Recurrence
#

STEPS = vectors(3, 6, 5)


class Recurrent(nn.Module):
    """A recurrent core of four units and a linear head on its last state."""

    def __init__(self, core: nn.Module) -> None:
        super().__init__()
        self.core = core
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.core(x)[0][:, -1])


CORE = "core.weight_ih_l0 core.weight_hh_l0 core.bias_ih_l0 core.bias_hh_l0"


@case(inputs=STEPS, tied=f"{CORE} head.weight")
def rnn_constant():
    return fill(Recurrent(nn.RNN(5, 4, batch_first=True)), 0.2)


@case(inputs=STEPS, tied=f"{CORE} head.weight")
def rnn_identity_recurrence():
    """IRNN's identity keeps the units apart only if something else does."""
    model = fill(Recurrent(nn.RNN(5, 4, batch_first=True)), 0.2)
    nn.init.eye_(model.core.weight_hh_l0)
    return model


@case(inputs=STEPS)
def irnn():
    model = Recurrent(nn.RNN(5, 4, nonlinearity="relu", batch_first=True))
    nn.init.eye_(model.core.weight_hh_l0)
    return model


@case(inputs=STEPS, tied=f"{CORE} head.weight")
def lstm_constant():
    return fill(Recurrent(nn.LSTM(5, 4, batch_first=True)), 0.2)


@case(inputs=STEPS, dead=f"{CORE} head.weight")
def lstm_zeros():
    """The cell is zero for ever: no input gets past tanh(0), no gradient past the head."""
    return fill(Recurrent(nn.LSTM(5, 4, batch_first=True)), 0.0)


@case(inputs=STEPS, harmless="core.weight_ih_l0 core.weight_hh_l0")
def lstm_zero_core_random_head():
    model = Recurrent(nn.LSTM(5, 4, batch_first=True))
    fill(model.core, 0.0)
    return model


@case(inputs=STEPS, harmless="core.weight_hh_l0")
def lstm_zero_recurrence():
    model = Recurrent(nn.LSTM(5, 4, batch_first=True))
    nn.init.zeros_(model.core.weight_hh_l0)
    return model


@case(inputs=STEPS, harmless="core.weight_ih_l0 core.weight_hh_l0")
def gru_zero_core_random_head():
    model = Recurrent(nn.GRU(5, 4, batch_first=True))
    fill(model.core, 0.0)
    return model


@case(inputs=STEPS, tied=f"{CORE} head.weight")
def gru_planted_pair():
    """Two hidden units are copies in every gate, in the recurrence and for the head."""
    model = Recurrent(nn.GRU(5, 4, batch_first=True))
    core = model.core
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            gates = getattr(core, name).view(3, 4, -1)
            gates[:, 3] = gates[:, 1]
        core.weight_hh_l0[:, 3] = core.weight_hh_l0[:, 1]
        model.head.weight[:, 3] = model.head.weight[:, 1]
    return model


#
# Experts and ensembles
#


def _dense_mixture(m: nn.Module, x: Tensor) -> Tensor:
    gates = m.router(x).softmax(-1)
    outputs = torch.stack([expert(x) for expert in m.experts], -1)
    return (outputs * gates[:, None]).sum(-1)


def _experts(*, copies: bool) -> nn.ModuleList:
    first = mlp(nn.Tanh())
    return nn.ModuleList(copy.deepcopy(first) if copies else mlp(nn.Tanh()) for _ in range(3))


@case(tied="experts.0", follows="router.weight router.bias")
def copied_experts_zero_router():
    """Sparse upcycling without noise: one expert three times."""
    return Wrap(_dense_mixture, experts=_experts(copies=True), router=fill(nn.Linear(5, 3), 0.0))


@case(harmless="experts.0")
def copied_experts_random_router():
    return Wrap(_dense_mixture, experts=_experts(copies=True), router=nn.Linear(5, 3))


@case(harmless="router.weight")
def random_experts_zero_router():
    return Wrap(_dense_mixture, experts=_experts(copies=False), router=fill(nn.Linear(5, 3), 0.0))


def _top_mixture(m: nn.Module, x: Tensor) -> Tensor:
    weights, chosen = m.router(x).softmax(-1).topk(1, -1)
    outputs = torch.stack([expert(x) for expert in m.experts], 1)
    return outputs[torch.arange(len(x)), chosen[:, 0]] * weights


@case(harmless="experts.0 router.weight")
def copied_experts_zero_router_top_one():
    """Picking one of equals is itself what tells them apart."""
    return Wrap(_top_mixture, experts=_experts(copies=True), router=fill(nn.Linear(5, 3), 0.0))


def _stacked(m: nn.Module, x: Tensor) -> Tensor:
    h = torch.einsum("bi,eio->beo", x, m.up).tanh()
    y = torch.einsum("beo,eoc->bec", h, m.down)
    return (y * m.router(x).softmax(-1)[..., None]).sum(1)


@case(tied="up down", follows="router.weight router.bias")
def stacked_copied_experts_zero_router():
    up, down = normal(1, 5, 6), normal(1, 6, 3)
    return Wrap(
        _stacked,
        up=nn.Parameter(up.detach().repeat(3, 1, 1)),
        down=nn.Parameter(down.detach().repeat(3, 1, 1)),
        router=fill(nn.Linear(5, 3), 0.0),
    )


@case(tied="up down")
def stacked_experts_one_constant():
    """Units of the second expert are equal; the other experts are fine."""
    up, down = normal(3, 5, 6), normal(3, 6, 3)
    with torch.no_grad():
        up[1] = 0.2
        down[1] = 0.2
    return Wrap(_stacked, up=up, down=down, router=nn.Linear(5, 3))


@case(tied="members.0")
def ensemble_of_copies_averaged():
    return Wrap(
        lambda m, x: torch.stack([member(x) for member in m.members]).mean(0),
        members=_experts(copies=True),
    )


@case(tied="members.0", loss=lambda y: (y - y.detach().mean() - 1).pow(2).mean())
def ensemble_of_copies_stacked_with_one_target():
    return Wrap(
        lambda m, x: torch.stack([member(x) for member in m.members]),
        members=_experts(copies=True),
    )


@case()
def ensemble_of_strangers():
    return Wrap(
        lambda m, x: torch.stack([member(x) for member in m.members]).mean(0),
        members=_experts(copies=False),
    )


@case(tied="q1", loss=lambda y: sum((part - 1).pow(2).mean() for part in y))
def twin_critics():
    """The second critic was deep-copied from the first and learns the same targets."""
    critic = mlp(nn.Tanh(), out=1)
    return Wrap(lambda m, x: (m.q1(x), m.q2(x)), q1=critic, q2=copy.deepcopy(critic))


@case()
def target_network():
    """A frozen copy is what a target network is meant to be."""
    critic = mlp(nn.Tanh(), out=1)
    return Wrap(
        lambda m, x: m.q(x) - m.target(x).detach(),
        q=critic,
        target=copy.deepcopy(critic).requires_grad_(False),
    )


@case(harmless="left")
def copied_branches_random_head():
    branch = mlp(nn.Tanh(), out=4)
    return Wrap(
        lambda m, x: m.head(torch.cat([m.left(x), m.right(x)], -1).tanh()),
        left=branch,
        right=copy.deepcopy(branch),
        head=nn.Linear(8, 3),
    )


@case(harmless="left")
def copied_branches_with_dropout():
    branch = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3))
    return Wrap(lambda m, x: m.left(x) + m.right(x), left=branch, right=copy.deepcopy(branch))


@case(harmless="left")
def copied_branches_on_two_inputs():
    branch = mlp(nn.Tanh(), out=4)
    return Wrap(
        lambda m, x: m.left(x) + m.right(x.flip(-1)), left=branch, right=copy.deepcopy(branch)
    )


def _batch_ensemble(m: nn.Module, x: Tensor) -> Tensor:
    h = x[None] * m.r[:, None]
    return (F.linear(h, m.shared) * m.s[:, None]).tanh().mean(0)


@case(tied="r s")
def batch_ensemble_of_ones():
    """Fast weights of ones make every member the same."""
    return Wrap(_batch_ensemble, r=ones(3, 5), s=ones(3, 4), shared=normal(4, 5))


@case()
def batch_ensemble_of_signs():
    return Wrap(_batch_ensemble, r=_signs(3, 5), s=_signs(3, 4), shared=normal(4, 5))


def _signs(*shape: int) -> nn.Parameter:
    generator = torch.Generator().manual_seed(3)
    return nn.Parameter(torch.randn(*shape, generator=generator).sign())


#
# Embeddings and factorisations
#


@case(harmless="table.weight", inputs=tokens(6, (9, 4)))
def embedding_constant_random_head():
    return Wrap(
        lambda m, i: m.head(m.table(i).mean(1).tanh()),
        table=fill(nn.Embedding(6, 5), 0.1),
        head=nn.Linear(5, 3),
    )


@case(tied="table.weight head.weight", inputs=tokens(6, (9, 4)))
def embedding_constant_constant_head():
    """Words part, the dimensions do not."""
    return Wrap(
        lambda m, i: m.head(m.table(i).mean(1).tanh()),
        table=fill(nn.Embedding(6, 5), 0.1),
        head=fill(nn.Linear(5, 3), 0.1),
    )


@case(dead="table.weight head.weight", inputs=tokens(6, (9, 4)))
def embedding_zero_zero_head():
    return Wrap(
        lambda m, i: m.head(m.table(i).mean(1)),
        table=fill(nn.Embedding(6, 5), 0.0),
        head=fill(nn.Linear(5, 3), 0.0),
    )


@case(harmless="table.weight", exempt="table.weight", inputs=tokens(6, (9, 4)))
def embedding_with_rows_never_seen():
    """Rows 6 to 11 never occur in the data."""
    return Wrap(
        lambda m, i: m.head(m.table(i).mean(1).tanh()),
        table=fill(nn.Embedding(12, 5), 0.0),
        head=nn.Linear(5, 3),
    )


@case(harmless="table.weight", exempt="table.weight", inputs=tokens(6, (9, 4)))
def embedding_padding_row():
    return Wrap(
        lambda m, i: m.head(m.table(i).mean(1)),
        table=nn.Embedding(6, 5, padding_idx=0),
        head=nn.Linear(5, 3),
    )


def _factors(user: float | None, item: float | None) -> nn.Module:
    users, items = nn.Embedding(6, 4), nn.Embedding(6, 4)
    for table, value in ((users, user), (items, item)):
        if value is not None:
            fill(table, value)
    return Wrap(lambda m, u, i: (m.users(u) * m.items(i)).sum(-1), users=users, items=items)


PAIRS = tokens(6, (20,), (20,))


@case(dead="users.weight items.weight", inputs=PAIRS)
def factorisation_both_zero():
    return _factors(0.0, 0.0)


@case(harmless="users.weight", inputs=PAIRS)
def factorisation_zero_random():
    return _factors(0.0, None)


@case(tied="users.weight items.weight", inputs=PAIRS)
def factorisation_both_constant():
    return _factors(0.1, 0.1)


@case(tied="users.weight items.weight", inputs=PAIRS)
def factorisation_zero_constant():
    return _factors(0.0, 0.1)


#
# Parametrised, shared and raw weights
#


@case(tied="0.weight 0.bias 2.weight")
def weight_norm_constant():
    model = constant(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.weight_norm(model[2])
    return model


@case()
def weight_norm_random():
    model = mlp(nn.Tanh())
    nn.utils.parametrizations.weight_norm(model[0])
    return model


@case(harmless="2.weight")
def weight_norm_zero_magnitude():
    """Glow and others start the last magnitude at zero."""
    model = mlp(nn.Tanh())
    nn.utils.parametrizations.weight_norm(model[2])
    nn.init.zeros_(model[2].parametrizations.weight.original0)
    return model


@case(tied="encoder")
def shared_autoencoder_constant():
    """One matrix on the way in and, transposed, on the way out."""
    return Wrap(
        lambda m, x: F.linear(F.linear(x, m.encoder).tanh(), m.encoder.mT),
        encoder=ones(4, 5, value=0.2),
    )


@case()
def shared_autoencoder():
    return Wrap(
        lambda m, x: F.linear(F.linear(x, m.encoder).tanh(), m.encoder.mT), encoder=normal(4, 5)
    )


@case(tied="up down bias")
def raw_matrices_constant():
    return Wrap(
        lambda m, x: torch.tanh(x @ m.up + m.bias) @ m.down,
        up=ones(5, 6, value=0.2),
        bias=zeros(6),
        down=ones(6, 3, value=0.2),
    )


@case(tied="up down")
def raw_matrices_planted_pair():
    up, down = normal(5, 6), normal(6, 3)
    with torch.no_grad():
        up[:, 4] = up[:, 1]
        down[4] = down[1]
    return Wrap(lambda m, x: torch.tanh(x @ m.up) @ m.down, up=up, down=down)


@case(tied="0.weight 0.bias 2.weight", inputs=vectors(8, 5))
def bilinear_constant():
    class Square(nn.Bilinear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x, x)

    return constant(Square(5, 5, 4), nn.Tanh(), nn.Linear(4, 3))


@case(harmless="a_log", inputs=STEPS)
def state_space_model():
    """Mamba's A: every channel starts with the same decays, and the channels differ."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        u = m.into(x)
        decay = torch.exp(-torch.exp(m.a_log))
        state = torch.zeros(len(x), 6, 4, dtype=x.dtype, device=x.device)
        for time in range(x.shape[1]):
            state = state * decay + u[:, time, :, None] * m.b
        return m.out((state.sum(-1) + m.d * u[:, -1]).tanh())

    return Wrap(
        run,
        into=nn.Linear(5, 6),
        a_log=nn.Parameter(torch.arange(1.0, 5.0).log().repeat(6, 1)),
        b=normal(4),
        d=ones(6),
        out=nn.Linear(6, 3),
    )


@case(tied="w v")
def hidden_layer_of_raw_vectors():
    """One input channel fans out into equal units that are summed again."""
    return Wrap(
        lambda m, x: (torch.tanh(x.mean(-1, keepdim=True) * m.w) * m.v).sum(-1),
        w=ones(6, value=0.5),
        v=ones(6, value=0.5),
    )


@case(benign="0.bias")
def redundant_biases():
    """A plain sum gives every bias the same gradient from any start; one would do."""
    return nn.Sequential(_with_bias(nn.Linear(5, 6), 0.0), Sum())


#
# Stranger things
#


@case(tied="0.weight 0.bias 2.weight")
def one_output():
    """The head's matrix is a vector."""
    return constant(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1))


@case(tied="0.weight 0.bias 2.weight", inputs=vectors(8, 1))
def one_input():
    return constant(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 3))


@case(tied="hidden.weight hidden.bias head.weight")
def dictionary_output():
    return Wrap(
        lambda m, x: {"logits": m.head(m.hidden(x).sigmoid())},
        hidden=fill(nn.Linear(5, 6), 0.2),
        head=fill(nn.Linear(6, 3), 0.2),
    )


@case(
    inputs=SEQUENCE,
    exempt="block.k.bias",
    harmless="head.weight",
    follows="layers.4.bias layers.5.bias head.weight",
)
def deep_relu_net_zero_head():
    """Units that are off by chance are not dead by their start."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        h = m.block(x)
        for layer in m.layers:
            h = torch.relu(layer(h))
        return m.head(h)

    layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return Wrap(run, block=Attention(), layers=layers, head=fill(nn.Linear(8, 3), 0.0))


class Block(nn.Module):
    """A pre-norm transformer block, width 8."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.mix = Attention()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Two blocks on tokens, with positions and a norm before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(6, 8)
        self.positions = nn.Parameter(0.1 * torch.randn(5, 8))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 6, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.tokens(ids) + self.positions
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


IDS = tokens(6, (4, 5))


@case(inputs=IDS, exempt="blocks.0.mix.k.bias blocks.1.mix.k.bias")
def transformer():
    return Transformer()


@case(
    inputs=IDS,
    exempt="blocks.0.mix.k.bias blocks.1.mix.k.bias",
    harmless="blocks.0.mix.out.weight blocks.0.down.weight head.weight",
)
def transformer_zero_residuals_and_head():
    model = Transformer()
    fill(model.head, 0.0)
    for block in model.blocks:
        fill(block.mix.out, 0.0)
        fill(block.down, 0.0)
    return model


@case(
    inputs=IDS,
    exempt="blocks.0.mix.k.bias blocks.1.mix.k.bias",
    tied="blocks.1.up.weight blocks.1.up.bias blocks.1.down.weight",
)
def transformer_planted_pair():
    """Two hidden units of one feed-forward layer are copies."""
    model = Transformer()
    copy_unit(model.blocks[1].up, model.blocks[1].down, 2, 11)
    return model


@case(
    inputs=IDS,
    exempt="blocks.0.mix.k.bias",
    dead="blocks.0.up.weight blocks.0.up.bias blocks.0.down.weight "
    "blocks.0.norm2.weight blocks.0.norm2.bias",
)
def transformer_zero_mlp():
    model = Transformer()
    del model.blocks[1]
    fill(model.blocks[0].up, 0.0)
    fill(model.blocks[0].down, 0.0)
    return model


@case(tied="tokens.weight head.weight", inputs=IDS)
def tied_embedding_constant_columns():
    """Two dimensions of a language model are copies throughout."""

    def run(m: nn.Module, ids: Tensor) -> Tensor:
        return m.head(torch.tanh(m.tokens(ids).cumsum(1)))

    model = Wrap(run, tokens=nn.Embedding(6, 8), head=nn.Linear(8, 6, bias=False))
    with torch.no_grad():
        model.tokens.weight[:, 5] = model.tokens.weight[:, 2]
        model.head.weight[:, 5] = model.head.weight[:, 2]
    return model


@case(dead="tokens.weight", inputs=IDS)
def shared_embedding_and_head_zero():
    return Wrap(
        lambda m, ids: m.tokens(ids).cumsum(1) @ m.tokens.weight.mT,
        tokens=fill(nn.Embedding(6, 8), 0.0),
    )


@case(inputs=vectors(4, 4, 5, 5), tied="conv1.weight norm1.weight norm1.bias conv2.weight")
def resnet_constant():
    """Channels of the input stay apart on the skip, but nothing tells the branch's units apart."""
    return fill(Residual(), 0.1)


@case(dead="encode.weight encode.bias mu.weight mu.bias decode.weight")
def autoencoder_zero():
    return Wrap(
        lambda m, x: m.decode(m.mu(torch.tanh(m.encode(x)))),
        encode=fill(nn.Linear(5, 6), 0.0),
        mu=fill(nn.Linear(6, 2), 0.0),
        decode=fill(nn.Linear(2, 5), 0.0),
    )


@case(harmless="mu.weight log_var.weight")
def variational_autoencoder_zero_latent_heads():
    """The noise of the latent code feeds the decoder before anything else does."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        h = torch.tanh(m.encode(x))
        mu, log_var = m.mu(h), m.log_var(h)
        return m.decode(mu + torch.randn_like(mu) * (log_var / 2).exp())

    return Wrap(
        run,
        encode=nn.Linear(5, 6),
        mu=fill(nn.Linear(6, 2), 0.0),
        log_var=fill(nn.Linear(6, 2), 0.0),
        decode=nn.Linear(2, 5),
    )


@case(tied="0.weight 0.bias 2.weight")
def planted_triple_of_copies():
    model = mlp(nn.Tanh(), hidden=8)
    copy_unit(model[0], model[2], 0, 3)
    copy_unit(model[0], model[2], 0, 6)
    return model


@case(tied="0.weight 0.bias 2.weight")
def copy_and_mirror_image():
    """One unit, a copy and a negative of it: one unit in fact."""
    model = mlp(nn.Tanh(), hidden=8)
    copy_unit(model[0], model[2], 0, 3)
    copy_unit(model[0], model[2], 0, 6, sign=-1.0)
    return model


@case(harmless="0.weight 3.weight")
def constant_hidden_with_noise_on_units():
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.1 * torch.randn_like(x)

    return constant(nn.Linear(5, 6), nn.Tanh(), Noise(), nn.Linear(6, 3))


@case(tied="0.weight 0.bias 3.weight")
def constant_hidden_with_common_noise():
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.1 * torch.randn_like(x[:, :1])

    return constant(nn.Linear(5, 6), nn.Tanh(), Noise(), nn.Linear(6, 3))


@case(tied="film.weight film.bias")
def equal_modulations():
    """Scale and shift come from equal rows, channel by channel, and feed a sum."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        scale, shift = m.film(x).chunk(2, -1)
        return (torch.tanh(x.mean(-1, keepdim=True) * scale) + shift).sum(-1)

    return Wrap(run, film=fill(nn.Linear(5, 12), 0.1))


@case(tied="latents head.weight", inputs=SEQUENCE, exempt="mix.k.bias")
def perceiver_zero_latents():
    def run(m: nn.Module, x: Tensor) -> Tensor:
        h = torch.cat([m.latents.expand(len(x), -1, -1), x], 1)
        return m.head(m.mix(h)[:, :3].flatten(1))

    return Wrap(run, latents=zeros(3, 8), mix=Attention(), head=_equal_thirds())


def _equal_thirds() -> nn.Linear:
    head = nn.Linear(24, 3)
    with torch.no_grad():
        head.weight.copy_(head.weight[:, :8].repeat(1, 3))
    return head


@case(harmless="latents", inputs=SEQUENCE, exempt="mix.k.bias")
def perceiver_zero_latents_read_apart():
    """The head reads each latent with weights of its own."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        h = torch.cat([m.latents.expand(len(x), -1, -1), x], 1)
        return m.head(m.mix(h)[:, :3].flatten(1))

    return Wrap(run, latents=zeros(3, 8), mix=Attention(), head=nn.Linear(24, 3))


@case(dead="u v")
def low_rank_weight_both_zero():
    return Wrap(
        lambda m, x: m.head(torch.tanh(F.linear(x, m.base + m.u @ m.v))),
        base=normal(4, 5),
        u=zeros(4, 2),
        v=zeros(2, 5),
        head=nn.Linear(4, 3),
    )


@case(harmless="theta.weight")
def spatial_transformer_identity():
    """A zero layer with a bias that says "do nothing"."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        theta = m.theta(x).view(-1, 2, 3)
        ones_ = torch.ones_like(x[:, :1])
        return m.head(torch.tanh((theta @ torch.cat([x[:, :2], ones_], 1)[..., None])[..., 0]))

    theta = fill(nn.Linear(5, 6), 0.0)
    with torch.no_grad():
        theta.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))
    return Wrap(run, theta=theta, head=nn.Linear(2, 3))


@case(harmless="log_scale last.weight")
def normalising_flow_zero_coupling():
    """Glow's couplings start at the identity."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        a, b = x[:, :2], x[:, 2:]
        scale, shift = (m.last(torch.tanh(m.first(a))) * torch.exp(3 * m.log_scale)).chunk(2, -1)
        return torch.cat([a, b * torch.exp(torch.tanh(scale)) + shift], 1)

    return Wrap(run, first=nn.Linear(2, 8), last=fill(nn.Linear(8, 6), 0.0), log_scale=zeros(6))


@case(harmless="codes", inputs=vectors(20, 5))
def codebook_of_zeros():
    """The first of equal codes is chosen, moves away, and leaves room for the next."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        h = m.into(x)
        chosen = torch.cdist(h, m.codes).argmin(-1)
        return m.codes[chosen] + h - h.detach()

    return Wrap(run, into=nn.Linear(5, 3), codes=zeros(6, 3))


@case(
    harmless="gcn2.weight",
    inputs=lambda g: (
        torch.randn(6, 5, generator=g),
        torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]]),
    ),
)
def graph_network_zero_last():
    def run(m: nn.Module, x: Tensor, edges: Tensor) -> Tensor:
        h = torch.tanh(m.gcn1(x))
        h = h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])
        return m.gcn2(h)

    return Wrap(run, gcn1=nn.Linear(5, 6), gcn2=fill(nn.Linear(6, 2), 0.0))


@case(harmless="up.weight", inputs=vectors(4, 3, 4, 4))
def zero_pixel_shuffle_upsampler():
    return Wrap(
        lambda m, x: F.pixel_shuffle(m.up(x), 2), up=fill(nn.Conv2d(3, 8, 3, padding=1), 0.0)
    )


@case(tied="s")
def soft_mixing_of_copies():
    """Equal mixing logits over one and the same feature."""
    return Wrap(lambda m, x: m.head(x) * m.s.sigmoid().mean(0), s=zeros(4, 3), head=nn.Linear(5, 3))


@case(tied="w", inputs=vectors(8, 5))
def complex_weights_constant():
    def run(m: nn.Module, x: Tensor) -> Tensor:
        return torch.tanh((x.to(m.w.dtype) @ m.w).abs()).sum(-1)

    return Wrap(run, w=nn.Parameter(torch.full((5, 4), 0.3 + 0.1j, dtype=torch.complex64)))


@case(exempt="unused.weight unused.bias", harmless="unused.weight")
def unused_zero_layer():
    return Wrap(lambda m, x: m.head(x), head=nn.Linear(5, 3), unused=fill(nn.Linear(5, 3), 0.0))


@case(dead="gates inner.weight inner.bias")
def relu_of_zero_gates():
    """relu'(0) is 0: the gates never open."""
    return Wrap(
        lambda m, x: m.head(x + torch.relu(m.gates) * m.inner(x)),
        gates=zeros(5),
        inner=nn.Linear(5, 5),
        head=nn.Linear(5, 3),
    )


#
# As users write them
#


@case(harmless="layers.0 layers.1 layers.2")
def raw_layers_of_zeros_with_random_biases():
    """Opens from the head down; units with nearly equal slopes part slowly."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        for weight, bias in zip(m.layers[:2], m.biases, strict=True):
            x = torch.tanh(F.linear(x, weight, bias))
        return F.linear(x, m.layers[2])

    sizes = (5, 6, 6, 3)
    layers = [zeros(o, i) for i, o in itertools.pairwise(sizes)]
    biases = [nn.Parameter(torch.rand(6)) for _ in range(2)]
    return Wrap(run, layers=nn.ParameterList(layers), biases=nn.ParameterList(biases))


@case(tied="0.weight 0.bias 1.weight 2.weight")
def slopes_of_their_own_but_equal():
    return constant(nn.Linear(5, 6), nn.PReLU(6), nn.Linear(6, 3))


@case(harmless="0.weight 2.weight")
def slopes_that_differ():
    model = constant(nn.Linear(5, 6), nn.PReLU(6), nn.Linear(6, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(0.1, 0.6, 6))
    return model


@case(tied="pieces.weight pieces.bias")
def maxout_with_equal_pieces():
    """The random head tells units apart, but nothing the two pieces of each."""
    return Wrap(
        lambda m, x: m.head(m.pieces(x).unflatten(-1, (6, 2)).amax(-1)),
        pieces=fill(nn.Linear(5, 12), 0.2),
        head=nn.Linear(6, 3),
    )


@case(harmless="first.weight second.weight")
def constant_layers_that_are_read_twice():
    """The columns of the second layer part only because the rows of the first have."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        h = torch.tanh(m.first(x))
        return m.head(torch.cat([h, torch.tanh(m.second(h))], -1))

    first, second = fill(nn.Linear(5, 6), 0.1), fill(nn.Linear(6, 4), 0.1)
    return Wrap(run, first=first, second=second, head=nn.Linear(10, 3))


@case(tied="trunk.weight trunk.bias heads.0.weight heads.1.weight")
def two_tasks_on_a_constant_trunk():
    heads = nn.ModuleList(fill(nn.Linear(6, 2), 0.0) for _ in range(2))
    return Wrap(
        lambda m, x: [head(torch.tanh(m.trunk(x))) for head in m.heads],
        trunk=fill(nn.Linear(5, 6), 0.1),
        heads=heads,
    )


def _wider() -> nn.Sequential:
    """Repeat two units, and halve what they feed: Net2Net."""
    model = mlp(hidden=8)
    with torch.no_grad():
        model[0].weight[6:] = model[0].weight[:2]
        model[0].bias[6:] = model[0].bias[:2]
        model[2].weight[:, :2] /= 2
        model[2].weight[:, 6:] = model[2].weight[:, :2]
    return model


@case(tied="0.weight 0.bias 2.weight")
def net_to_wider_net():
    return _wider()


@case(harmless="0.weight")
def net_to_wider_net_with_noise():
    model = _wider()
    with torch.no_grad():
        model[2].weight[:, 6:] += 0.01 * torch.randn(3, 2)
    return model


@case(inputs=STEPS, dead=f"{CORE} head.weight")
def gru_zeros():
    return fill(Recurrent(nn.GRU(5, 4, batch_first=True)), 0.0)


@case(inputs=SEQUENCE, tied="q k")
def attention_constant_query_and_key():
    """A product of two equal maps has rank one; values do not care."""
    return Wrap(
        lambda m, x: (x @ m.q @ (x @ m.k).mT).softmax(-1) @ x @ m.v,
        q=ones(8, 4, value=0.1),
        k=ones(8, 4, value=0.1),
        v=normal(8, 3),
    )


def _stacked_heads(m: nn.Module, x: Tensor) -> Tensor:
    q, k, v = (torch.einsum("bnd,hde->bhne", x, part) for part in (m.q, m.k, m.v))
    return torch.einsum("bhne,hed->bnd", (q @ k.mT).softmax(-1) @ v, m.out)


def _two_copies(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.4 * torch.randn(1, *shape).repeat(2, 1, 1))


@case(inputs=SEQUENCE, tied="q k v out")
def stacked_heads_that_are_copies():
    q, k, v = (_two_copies(8, 4) for _ in range(3))
    return Wrap(_stacked_heads, q=q, k=k, v=v, out=_two_copies(4, 8))


@case(inputs=SEQUENCE, harmless="q k v")
def stacked_heads_that_are_copies_with_outputs_of_their_own():
    q, k, v = (_two_copies(8, 4) for _ in range(3))
    return Wrap(_stacked_heads, q=q, k=k, v=v, out=normal(2, 4, 8))


def _additive(hidden: nn.Module) -> nn.Module:
    return Wrap(
        lambda m, x: m.head((x * (torch.tanh(m.hidden(x)) @ m.score).softmax(1)[..., None]).sum(1)),
        hidden=hidden,
        score=zeros(6),
        head=nn.Linear(8, 2),
    )


@case(inputs=SEQUENCE, harmless="score")
def additive_attention_zero_score():
    return _additive(nn.Linear(8, 6))


@case(inputs=SEQUENCE, dead="hidden.weight hidden.bias score")
def additive_attention_all_zero():
    return _additive(fill(nn.Linear(8, 6), 0.0))


@case(inputs=SEQUENCE, tied="slots", follows="q.weight k.weight")
def equal_slots():
    """Equal slots share every input evenly, whatever the keys and queries."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        slots = m.slots.expand(len(x), -1, -1)
        shares = (m.k(x) @ m.q(slots).mT).softmax(-1)
        return m.head(torch.tanh(slots + shares.mT @ m.v(x))).sum(1)

    q, k, v = (nn.Linear(8, 8, bias=False) for _ in range(3))
    return Wrap(run, slots=zeros(1, 3, 8), q=q, k=k, v=v, head=nn.Linear(8, 2))


def _memory(m: nn.Module, x: Tensor) -> Tensor:
    return m.head((x @ m.keys.mT).softmax(-1) @ m.values)


@case(harmless="keys")
def memory_with_zero_keys():
    return Wrap(_memory, keys=zeros(6, 5), values=normal(6, 4), head=nn.Linear(4, 2))


@case(tied="values", follows="keys")
def memory_of_equal_slots():
    """Equal values make every key right."""
    return Wrap(_memory, keys=zeros(6, 5), values=ones(6, 4, value=0.1), head=nn.Linear(4, 2))


@case(
    dead="time.weight time.bias modulation.weight final.weight",
    harmless="out.weight",
    inputs=lambda g: (torch.randn(6, 5, generator=g), torch.randn(6, 4, generator=g)),
)
def diffusion_transformer_that_never_hears_the_time():
    """Behind a zero time embedding the zero modulations learn their biases only."""

    def run(m: nn.Module, x: Tensor, t: Tensor) -> Tensor:
        c, h = F.silu(m.time(t)), m.body(x)
        h = h + m.modulation(c) * torch.tanh(m.inner(h))
        return m.out(F.layer_norm(h, (6,)) * (1 + m.final(c)))

    return Wrap(
        run,
        time=fill(nn.Linear(4, 6), 0.0),
        body=nn.Linear(5, 6),
        inner=nn.Linear(6, 6),
        modulation=fill(nn.Linear(6, 6), 0.0),
        final=fill(nn.Linear(6, 6), 0.0),
        out=fill(nn.Linear(6, 3), 0.0),
    )


@case(tied="down.weight down.bias up.weight")
def adapter_of_two_zero_layers_and_a_sigmoid():
    """sigmoid(0) opens what relu or gelu would leave shut, to one unit."""
    return Wrap(
        lambda m, x: m.base(x) + m.up(torch.sigmoid(m.down(x))),
        base=nn.Linear(5, 3).requires_grad_(False),
        down=fill(nn.Linear(5, 2), 0.0),
        up=fill(nn.Linear(2, 3), 0.0),
    )


@case(harmless="last.weight gamma")
def zero_layer_scale_before_a_zero_layer_with_a_bias():
    """The bias is what opens the scale."""
    last = nn.Linear(6, 5)
    nn.init.zeros_(last.weight)
    return Wrap(
        lambda m, x: m.head(x + m.gamma * m.last(F.gelu(m.first(x)))),
        first=nn.Linear(5, 6),
        last=last,
        gamma=zeros(5),
        head=nn.Linear(5, 3),
    )


def _machine(m: nn.Module, x: Tensor) -> Tensor:
    crossed = (x @ m.factors).square() - x.square() @ m.factors.square()
    return m.linear(x)[:, 0] + crossed.sum(1) / 2


@case(dead="factors", harmless="linear.weight")
def factorisation_machine_zero():
    return Wrap(_machine, linear=fill(nn.Linear(5, 1), 0.0), factors=zeros(5, 4))


@case(tied="factors", harmless="linear.weight")
def factorisation_machine_constant():
    return Wrap(_machine, linear=fill(nn.Linear(5, 1), 0.0), factors=ones(5, 4, value=0.1))


@case(tied="left.weight left.bias right.weight right.bias")
def two_towers_constant():
    """Their outputs meet in a product, which treats all dimensions alike."""
    return Wrap(
        lambda m, x: (m.left(x) * m.right(x.flip(-1))).sum(-1),
        left=fill(nn.Linear(5, 4), 0.1),
        right=fill(nn.Linear(5, 4), 0.2),
    )


@case(tied="first middle")
def tensor_train_of_ones():
    return Wrap(
        lambda m, x: torch.einsum("bi,ir,rhs,so->bho", x, m.first, m.middle, m.last),
        first=ones(5, 3, value=0.3),
        middle=ones(3, 4, 3, value=0.3),
        last=normal(3, 2),
    )


@case(tied="bases mixing")
def equal_bases_of_relations():
    """Every relation mixes the same three matrices; one would do."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        here, there = torch.einsum("rb,bio->rio", m.mixing, m.bases)
        return m.head(torch.tanh(x @ here + x.roll(1, 0) @ there))

    bases = nn.Parameter(0.4 * torch.randn(1, 5, 6).repeat(3, 1, 1))
    return Wrap(run, mixing=ones(2, 3), bases=bases, head=nn.Linear(6, 2))


@case(tied="centres widths head.weight")
def equal_radial_functions():
    return Wrap(
        lambda m, x: m.head(torch.exp(-(x[:, None] - m.centres).square().sum(-1) * m.widths.exp())),
        centres=zeros(6, 5),
        widths=zeros(6),
        head=fill(nn.Linear(6, 2), 0.0),
    )


@case(tied="means", follows="shares")
def mixture_of_equal_components():
    """The classic of clustering: all means start in one place."""
    return Wrap(
        lambda m, x: (m.shares.log_softmax(0) - (x[:, None] - m.means).square().sum(-1)).logsumexp(
            -1
        ),
        means=zeros(4, 5),
        shares=zeros(4),
    )


@case(tied="leaves", follows="splits.weight splits.bias")
def soft_tree_of_zeros():
    """Equal leaves make every split idle."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        a, b, c = m.splits(x).sigmoid().unbind(-1)
        shares = torch.stack([a * b, a * (1 - b), (1 - a) * c, (1 - a) * (1 - c)], -1)
        return shares @ m.leaves

    return Wrap(run, splits=fill(nn.Linear(5, 3), 0.0), leaves=zeros(4, 2))


def _top_two(m: nn.Module, x: Tensor) -> Tensor:
    weights, chosen = m.router(x).topk(2, -1)
    shares = x.new_zeros(len(x), len(m.experts)).scatter(1, chosen, weights.softmax(-1))
    y = x.new_zeros(len(x), 3)
    for expert, share in zip(m.experts, shares.T, strict=True):
        rows = share.nonzero().flatten()
        if len(rows):
            y = y.index_add(0, rows, expert(x[rows]) * share[rows, None])
    return y


@case(
    tied="experts.0",
    dead="router.weight experts.2.0.weight experts.2.0.bias experts.2.2.weight experts.2.2.bias",
)
def copied_experts_zero_router_top_two():
    """The two that are chosen stay one; the third is never asked."""
    router = fill(nn.Linear(5, 3, bias=False), 0.0)
    return Wrap(_top_two, experts=_experts(copies=True), router=router)


@case(harmless="experts.0")
def copied_experts_random_router_top_two():
    return Wrap(_top_two, experts=_experts(copies=True), router=nn.Linear(5, 3, bias=False))
