"""Layouts of layers agree with connections counted by autograd; roles, paddings, buffers."""

import itertools

import pytest
import torch
from torch import nn

from tests.tensors.connections import centre, incoming, make_positive, outgoing
from torch_initpolicy.tensors.axes import Axes, Fans, fans
from torch_initpolicy.tensors.layers import axes_of, buffers_of, padding_of, role_of

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
CHANNELS = {1: (4, 12), 2: (4, 12), 4: (4, 12)}  # by groups; the last is depthwise, multiplier 3


def fans_of(module: nn.Module, name: str = "weight", block: int | None = None) -> Fans:
    """Count fans from what the layer's type says."""
    axes = axes_of(module, name)
    assert axes is not None
    return fans(module.get_parameter(name).shape, axes, block)


def cases(dims: tuple[int, ...], kernels: tuple[int, ...], strides: tuple[int, ...]):
    """Yield the product of the parameters with readable names."""
    for values in itertools.product(dims, CHANNELS, kernels, strides):
        yield pytest.param(*values, id="{}d-groups{}-kernel{}-stride{}".format(*values))


@pytest.mark.parametrize(
    ("dims", "groups", "kernel", "stride"),
    [*cases((1, 2), (1, 2, 3), (1, 2)), *cases((3,), (3,), (1, 2))],
)
class TestConvolutions:
    """Fans of convolutions are connections counted in the middle of a map."""

    def test_ordinary(self, dims, groups, kernel, stride):
        """Outputs of an input are averaged over the positions that the stride tells apart."""
        channels = CHANNELS[groups]
        module = CONVS[dims](*channels, kernel, stride=stride, groups=groups, bias=False)
        values = torch.ones(1, channels[0], *[3 * kernel * stride] * dims)
        make_positive(module)
        units = centre(values.shape, side=stride)

        expected = Fans(
            incoming(lambda: module(values), module.weight, centre(module(values).shape)),
            sum(outgoing(module, values, unit) for unit in units.tolist()) / len(units),
        )

        assert fans_of(module) == pytest.approx(expected, rel=1e-12)

    def test_transposed(self, dims, groups, kernel, stride):
        """Weights into an output are averaged over the positions that the stride tells apart."""
        channels = CHANNELS[groups]
        module = TRANSPOSED[dims](*channels, kernel, stride=stride, groups=groups, bias=False)
        values = torch.ones(1, channels[0], *[3 * kernel] * dims)
        make_positive(module)
        units = centre(module(values).shape, side=stride)

        expected = Fans(
            incoming(lambda: module(values), module.weight, units),
            outgoing(module, values, centre(values.shape).item()),
        )

        assert fans_of(module) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "module",
    [nn.Conv2d(4, 8, 3, padding=2, dilation=2), nn.ConvTranspose2d(4, 8, 3, padding=1, dilation=2)],
    ids=["conv", "transposed"],
)
def test_dilation_and_padding_change_no_fan(module):
    """Holes in a kernel connect nothing; padding is not seen from the middle."""
    values = torch.ones(1, 4, 15, 15)
    make_positive(module)

    expected = Fans(
        incoming(lambda: module(values), module.weight, centre(module(values).shape)),
        outgoing(module, values, centre(values.shape).item()),
    )

    assert fans_of(module) == expected


def test_linear():
    """A Linear's fans are counted by autograd."""
    module, values = nn.Linear(7, 5), torch.ones(7)
    make_positive(module)

    expected = (incoming(lambda: module(values), module.weight, [0]), outgoing(module, values, 0))

    assert expected == fans_of(module)


def test_bilinear():
    """Each output of a Bilinear sums one product per pair of inputs."""
    module, left, right = nn.Bilinear(4, 6, 5), torch.ones(1, 4), torch.ones(1, 6)
    make_positive(module)

    fan_in = incoming(lambda: module(left, right), module.weight, [0])
    fan_out = outgoing(lambda x: module(x, right), left, 0)

    assert (fan_in, fan_out) == fans_of(module)


def test_conv1d_of_transformers():
    """The `(in, out)` layer of GPT-2 is known by its name, without a registration."""
    module = pytest.importorskip("transformers.pytorch_utils").Conv1D(12, 4)
    values = torch.ones(1, 4)
    make_positive(module)

    expected = (incoming(lambda: module(values), module.weight, [0]), outgoing(module, values, 0))

    assert expected == fans_of(module)
    assert role_of(module, "weight") == "weight"
    assert role_of(module, "bias") == "bias"


def test_subclass_of_a_foreign_layer():
    """A subclass of a layer known by name is found through its MRO."""

    class Wider(pytest.importorskip("transformers.pytorch_utils").Conv1D):
        pass

    assert axes_of(Wider(12, 4), "weight") == Axes(inputs=(0,), outputs=(1,))


def test_deformable_convolution():
    """Torchvision's deformable convolution has a convolution's layout."""
    ops = pytest.importorskip("torchvision.ops")

    assert fans_of(ops.DeformConv2d(8, 32, 3, groups=4)) == (2 * 9, 8 * 9)


@pytest.mark.parametrize("kind", [nn.Embedding, nn.EmbeddingBag], ids=lambda kind: kind.__name__)
def test_embedding(kind):
    """One number of a row is one weight; a token reaches every number of its row."""
    module = kind(9, 5)
    tokens = torch.tensor([[4]])
    make_positive(module)

    fan_in = incoming(lambda: module(tokens), module.weight, [0])

    assert (fan_in, module(tokens).numel()) == fans_of(module)


def run(module: nn.RNNBase, values: torch.Tensor) -> torch.Tensor:
    """Run a recurrent layer on one sequence, from a state that opens the way through every gate."""
    state = torch.ones(2 if module.bidirectional else 1, module.hidden_size)
    return module(values, (state, state) if module.mode == "LSTM" else state)[0]


RECURRENT = {
    "lstm": (nn.LSTM, 4),
    "gru": (nn.GRU, 3),
    "rnn": (nn.RNN, 1),
}


@pytest.mark.parametrize(("kind", "gates"), RECURRENT.values(), ids=RECURRENT)
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
class TestRecurrent:
    """Recurrent layers pack one matrix per gate."""

    def test_fans_of_input_weights(self, kind, gates, bidirectional):
        """All gates of a unit together have `gates * fan_in` weights; a gate reaches all units."""
        module = kind(5, 7, bidirectional=bidirectional)
        values = torch.ones(1, 5)
        make_positive(module)

        total = incoming(lambda: run(module, values), module.weight_ih_l0, [0])
        reached = outgoing(lambda x: run(module, x)[:, :7], values, 0)

        assert (total / gates, reached) == fans_of(module, "weight_ih_l0")

    def test_fans_of_recurrent_weights(self, kind, gates, bidirectional):
        """All gates of a unit together have `gates * fan_in` weights from the state."""
        module = kind(5, 7, bidirectional=bidirectional)
        make_positive(module)

        total = incoming(lambda: run(module, torch.ones(1, 5)), module.weight_hh_l0, [0])

        assert total / gates == fans_of(module, "weight_hh_l0").fan_in

    def test_every_parameter_is_known(self, kind, gates, bidirectional):
        """All layers and directions have axes and roles, biases included."""
        module = kind(5, 7, num_layers=3, bidirectional=bidirectional)
        shapes = {name: parameter.shape for name, parameter in module.named_parameters()}

        axes = {name: axes_of(module, name) for name in shapes}

        assert all(axes[name].blocks == ((7,) * gates if gates > 1 else ()) for name in shapes)
        assert {role_of(module, name) for name in shapes} == {"weight", "recurrent", "bias"}
        assert all(fans(shapes[name], axes[name]) for name in shapes)


def test_lstm_projection():
    """With `proj_size` recurrent weights are `(4 * hidden, proj)`; `weight_hr` has no gates."""
    module = nn.LSTM(5, 8, num_layers=2, proj_size=3, bidirectional=True)

    assert fans_of(module, "weight_hh_l1_reverse") == (3, 8)
    assert fans_of(module, "weight_ih_l1") == (6, 8)
    assert fans_of(module, "weight_hr_l0") == (8, 3)
    assert role_of(module, "weight_hr_l0") == "weight"


@pytest.mark.parametrize(
    ("cell", "gates"),
    [(nn.RNNCell(5, 7), 1), (nn.GRUCell(5, 7), 3), (nn.LSTMCell(5, 7), 4)],
    ids=["rnn", "gru", "lstm"],
)
def test_cells(cell, gates):
    """Cells pack their gates as the layers do."""
    values = torch.ones(1, 5)
    make_positive(cell)

    state = torch.ones(1, 7)

    def output(x):
        result = cell(x, (state, state) if gates == 4 else state)
        return result[0] if gates == 4 else result

    total = incoming(lambda: output(values), cell.weight_ih, [0])

    assert (total / gates, outgoing(output, values, 0)) == fans_of(cell, "weight_ih")
    assert axes_of(cell, "bias_hh").blocks == ((7,) * gates if gates > 1 else ())
    assert role_of(cell, "weight_hh") == "recurrent"


class TestMultiheadAttention:
    """Packed attention weights are three matrices; separate ones are plain."""

    def test_packed_like_three_linears(self):
        """Each third of `in_proj_weight` has the fans of the Linear it stands for."""
        module = nn.MultiheadAttention(8, 2)

        assert fans_of(module, "in_proj_weight", block=2) == fans_of(nn.Linear(8, 8))
        assert axes_of(module, "in_proj_bias").blocks == (8, 8, 8)

    @pytest.mark.parametrize(
        ("name", "width"), [("q", 8), ("k", 5), ("v", 6)], ids=["query", "key", "value"]
    )
    def test_separate(self, name, width):
        """With `kdim` and `vdim` there are three weights of their own."""
        module = nn.MultiheadAttention(8, 2, kdim=5, vdim=6)

        assert fans_of(module, f"{name}_proj_weight") == (width, 8)

    def test_extra_key_and_value(self):
        """`bias_k` and `bias_v` are tokens, no biases."""
        module = nn.MultiheadAttention(8, 2, add_bias_kv=True)

        assert {role_of(module, "bias_k"), role_of(module, "bias_v")} == {"token"}

    def test_output_projection_is_a_linear(self):
        """The output projection is found through its base class."""
        module = nn.MultiheadAttention(8, 2).out_proj

        assert type(module) is not nn.Linear
        assert fans_of(module) == (8, 8)


NORMS = {
    "batch": nn.BatchNorm2d(4),
    "sync": nn.SyncBatchNorm(4),
    "instance": nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
    "layer": nn.LayerNorm(4),
    "group": nn.GroupNorm(2, 4),
    "rms": nn.RMSNorm(4),
}


@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
class TestNorms:
    """Normalisation layers have roles of their own, and statistics to reset."""

    def test_roles(self, norm):
        """Weight and bias of a norm are no weight and bias of a linear map."""
        roles = {name: role_of(norm, name) for name, _ in norm.named_parameters()}
        expected = {"weight": "norm_weight", "bias": "norm_bias"}

        assert roles == {name: expected[name] for name in roles}
        assert axes_of(norm, "weight") is None

    def test_buffers_are_what_a_new_layer_has(self, norm):
        """Filling the buffers with the named values gives those of a new layer."""
        values = buffers_of(norm)
        fresh = dict(norm.named_buffers())

        assert values.keys() == fresh.keys()
        assert all((fresh[name] == value).all() for name, value in values.items())


@pytest.mark.parametrize(
    ("module", "name", "row"),
    [
        (nn.Embedding(10, 4, padding_idx=-1), "weight", 9),
        (nn.EmbeddingBag(10, 4, padding_idx=3), "weight", 3),
        (nn.Embedding(10, 4), "weight", None),
        (nn.Linear(10, 4), "weight", None),
    ],
    ids=["negative", "bag", "none", "linear"],
)
def test_padding(module, name, row):
    """The padding row is the layer's own, counted from the front."""
    assert padding_of(module, name) == row


@pytest.mark.parametrize(
    "lazy", [nn.LazyLinear(4), nn.LazyConvTranspose2d(4, 3)], ids=["linear", "conv"]
)
def test_lazy_layers_have_no_axes_before_their_first_forward(lazy):
    """A lazy layer has no shape to speak of; once it has, it is an ordinary layer."""
    before = axes_of(lazy, "weight")
    lazy(torch.ones(1, 3, 8, 8))

    assert before is None
    assert axes_of(lazy, "weight") is not None


def test_prelu_scales():
    """The slope of a PReLU multiplies a signal."""
    assert role_of(nn.PReLU(), "weight") == "scale"


class TestUnknown:
    """What the type cannot tell is not guessed."""

    def test_module_of_unknown_type(self):
        """A raw parameter of a user's module has neither axes nor role."""

        class Own(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.zeros(3, 5))

        assert axes_of(Own(), "weight") is None
        assert role_of(Own(), "weight") == "unknown"
        assert padding_of(Own(), "weight") is None
        assert buffers_of(Own()) == {}

    def test_further_parameter_of_a_known_layer(self):
        """A parameter that a subclass adds to a convolution is not taken for its weight."""
        module = nn.Conv2d(3, 4, 1)
        module.gain = nn.Parameter(torch.ones(4, 1, 1, 1))

        assert axes_of(module, "gain") is None
        assert role_of(module, "gain") == "unknown"

    def test_parametrised_layers_are_known(self):
        """Torch's dynamic class of a parametrised Linear is found through its MRO."""
        module = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))

        assert axes_of(module, "weight") == Axes(inputs=(1,), outputs=(0,))
