"""Which weights are several matrices packed into one, against networks written for the purpose."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.axes import block_fans
from torch_initpolicy.trace.read import read


class Packed(nn.Module):
    """Calls `run(network, x)` on layers by name; `packed` is the weight in question."""

    def __init__(self, packed, run, *, size=(2, 6, 16), **layers):
        super().__init__()
        self.packed = packed
        self.layers = nn.ModuleDict(layers)
        self.run, self.size = run, size

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def blocks(network):
    """Read a network and say how its weight `packed` is packed."""
    axes = read(network, sites(network), torch.zeros(network.size)).facts["packed.weight"].axes
    return axes.blocks, axes.repeats


def heads_in_front(net, x):
    """q, k and v are copied with the heads beside the samples before they are taken apart."""
    qkv = net.packed(x).view(2, 6, 3, 4, 4).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.reshape(3, 8, 6, 4).unbind(0)
    return ((q @ k.transpose(1, 2)).softmax(-1) @ v).mean(1)


def windows(net, x):
    """Keys and values of each head are copied into overlapping windows before they part."""
    kv = F.pad(net.packed(x), [1, 1, 1, 1]).unfold(2, 4, 2).unfold(3, 4, 2)
    k, v = kv.reshape(2 * 2, 8, 4, -1).permute(0, 2, 3, 1).split([3, 5], -1)
    q = net.layers["q"](x).reshape(4, 3, 4, 4).permute(0, 2, 3, 1)
    return (q @ k.transpose(2, 3)).softmax(-1) @ v


def pooled(net, x):
    """Each of q, k and v goes through a weight of its own first."""
    parts = net.packed(x).chunk(3, -1)
    q, k, v = (layer(part) for layer, part in zip(net.layers.values(), parts, strict=True))
    return F.scaled_dot_product_attention(q, k, v)


def written_into(net, x):
    """All tokens of q but the first are added to the attended values where they lie, by head."""
    q, k, v = net.packed(x).view(2, 6, 3, 2, 8).transpose(1, 3).unbind(2)
    attended = (q @ k.transpose(2, 3)).softmax(-1) @ v
    attended[:, :, 1:] += F.layer_norm(q, (8,))[:, :, 1:]
    return attended.transpose(1, 2).reshape(2, 6, 16)


def differential(net, x):
    """Halves of q and k, alternating by head, attend apart: they are still one q and one k."""
    q, k, v = net.packed(x).chunk(3, -1)
    q1, q2 = q.reshape(2, 6, 4, 4).transpose(1, 2).reshape(2, 2, 2, 6, 4).unbind(2)
    k1, k2 = k.reshape(2, 6, 4, 4).transpose(1, 2).reshape(2, 2, 2, 6, 4).unbind(2)
    v = v.reshape(2, 6, 2, 8).transpose(1, 2)
    attend = F.scaled_dot_product_attention
    return attend(q1, k1, v) - 0.3 * attend(q2, k2, v)


def nested(net, x):
    """First q is taken off, then k and v, of another size than q."""
    q, kv = net.packed(x).split([8, 16], -1)
    k, v = kv[..., :8], kv[..., 8:]
    return F.scaled_dot_product_attention(q, k, v)


def partly_rotated(net, x):
    """A part of q and k is rotated by signals; the pieces of q never meet one another."""
    q, k, v = net.packed(x).chunk(3, -1)
    angle = net.layers["angle"](x)
    turned = [torch.cat((y[..., :4] * angle.cos(), y[..., 4:]), -1) for y in (q, k)]
    return F.scaled_dot_product_attention(*turned, v)


def halves_rotated(net, x):
    """The halves of q and k are rotated into one another by signals."""
    q, k, v = net.packed(x).chunk(3, -1)
    cos, sin = net.layers["angle"](x).cos(), net.layers["angle"](x).sin()
    q1, q2 = q.chunk(2, -1)
    q = torch.cat((q1 * cos - q2 * sin, q2 * cos + q1 * sin), -1)
    return F.scaled_dot_product_attention(q, k, v)


def modulated(net, x):
    """A modulation scales and shifts, and later gates what becomes of that."""
    scale, shift, gate = net.packed(x.mean(1)).unsqueeze(1).chunk(3, -1)
    branch = F.layer_norm(x, (16,)) * (1 + scale) + shift
    return x + gate * net.layers["branch"](branch)


def modulated_twice(net, x):
    """One weight modulates two branches, each with a shift, a scale and a gate."""
    parts = net.packed(x.mean(1)).unsqueeze(1).chunk(6, -1)
    for layer, (shift, scale, gate) in zip(
        net.layers.values(), (parts[:3], parts[3:]), strict=True
    ):
        x = x + gate * layer(F.layer_norm(x, (16,)) * (1 + scale) + shift)
    return x


def scale_and_shift(net, x):
    """The last layer of a modulated network scales and shifts alone."""
    shift, scale = net.packed(x.mean(1)).chunk(2, -1)
    x = F.layer_norm(x, (16,)) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
    return net.layers["head"](x)


def convolved(net, x):
    """The two halves of a convolution without a batch multiply."""
    value, gate = net.packed(x).chunk(2, 0)
    return value * gate.sigmoid()


def boxes(net, x):
    """Four coordinates of each class are added to those of a proposal, in its width and height."""
    codes, proposals = net.packed(x[:, 0]), net.layers["proposal"](x[:, 0])
    x1, y1, x2, y2 = proposals.unbind(1)
    width, height = (x2 - x1).unsqueeze(1), (y2 - y1).unsqueeze(1)
    dx, dy, dw, dh = (codes[:, i::4] for i in range(4))
    middle_x, middle_y = dx * width + x1.unsqueeze(1), dy * height + y1.unsqueeze(1)
    half_width, half_height = 0.5 * dw.exp() * width, 0.5 * dh.exp() * height
    return torch.stack(
        (middle_x - half_width, middle_y - half_height, middle_x + half_width,
         middle_y + half_height), 2,
    )  # fmt: skip


def side_by_side(net, x):
    """The pieces go through layers of their own and are joined again."""
    first, second = net.packed(x).chunk(2, -1)
    x = torch.cat((net.layers["one"](first).relu(), second), -1)
    return x * net.layers["two"](x).sigmoid()


def hierarchical(net, x):
    """Each piece is added to what the layer before it made: they meet in sums alone."""
    pieces = net.packed(x).chunk(3, -1)
    first = net.layers["one"](pieces[0])
    return torch.cat((first, net.layers["two"](first + pieces[1]), pieces[2]), -1)


def squeezed(net, x):
    """The whole output is gated by what follows from the whole output."""
    x = net.packed(x)
    return x * net.layers["gate"](x.mean(1, keepdim=True)).sigmoid()


def added_to_another(net, x):
    """One piece is added to what became of the other; the sum depends on both."""
    first, second = net.packed(x).chunk(2, -1)
    both = second + net.layers["one"](first)
    return both * net.layers["two"](both)


LINEAR = nn.Linear

PACKED = {
    heads_in_front: (lambda: Packed(LINEAR(16, 48), heads_in_front), (16, 16, 16), 1),
    windows: (
        lambda: Packed(
            nn.Conv2d(6, 16, 1), windows, size=(2, 6, 4, 4), q=nn.Conv2d(6, 6, 1)
        ),
        (3, 5), 2,
    ),
    pooled: (
        lambda: Packed(
            LINEAR(16, 24), pooled, q=LINEAR(8, 8), k=LINEAR(8, 8), v=LINEAR(8, 8)
        ),
        (8, 8, 8), 1,
    ),
    written_into: (lambda: Packed(LINEAR(16, 48), written_into), (16, 16, 16), 1),
    differential: (lambda: Packed(LINEAR(16, 48), differential), (16, 16, 16), 1),
    nested: (lambda: Packed(LINEAR(16, 24), nested), (8, 8, 8), 1),
    partly_rotated: (
        lambda: Packed(LINEAR(16, 24), partly_rotated, angle=LINEAR(16, 4)), (8, 8, 8), 1,
    ),
    halves_rotated: (
        lambda: Packed(LINEAR(16, 24), halves_rotated, angle=LINEAR(16, 4)), (8, 8, 8), 1,
    ),
    modulated: (
        lambda: Packed(LINEAR(16, 48), modulated, branch=LINEAR(16, 16)), (16, 16, 16), 1,
    ),
    modulated_twice: (
        lambda: Packed(
            LINEAR(16, 96), modulated_twice, one=LINEAR(16, 16), two=LINEAR(16, 16)
        ),
        (16,) * 6, 1,
    ),
    scale_and_shift: (
        lambda: Packed(LINEAR(16, 32), scale_and_shift, head=LINEAR(16, 4)), (16, 16), 1,
    ),
    convolved: (lambda: Packed(nn.Conv2d(3, 8, 1), convolved, size=(3, 5, 5)), (4, 4), 1),
}  # fmt: skip
"""Networks whose weight is packed, with the sizes of its blocks and how often they recur."""

WHOLE = {
    boxes: lambda: Packed(LINEAR(16, 12), boxes, proposal=LINEAR(16, 4)),
    side_by_side: lambda: Packed(
        LINEAR(16, 32), side_by_side, one=LINEAR(16, 16), two=LINEAR(32, 32)
    ),
    hierarchical: lambda: Packed(LINEAR(16, 24), hierarchical, one=LINEAR(8, 8), two=LINEAR(8, 8)),
    squeezed: lambda: Packed(LINEAR(16, 16), squeezed, gate=LINEAR(16, 16)),
    added_to_another: lambda: Packed(
        LINEAR(16, 32), added_to_another, one=LINEAR(16, 16), two=LINEAR(16, 16)
    ),
}
"""Networks whose weight is one matrix, although its output may be cut."""


@pytest.mark.parametrize("run", PACKED, ids=lambda run: run.__name__)
def test_packed(run):
    """A weight whose pieces meet has blocks of their sizes."""
    make, sizes, repeats = PACKED[run]

    assert blocks(make()) == (sizes, repeats)


@pytest.mark.parametrize("run", WHOLE, ids=lambda run: run.__name__)
def test_whole(run):
    """A weight whose pieces only lie side by side, or meet in sums, has no blocks."""
    assert blocks(WHOLE[run]()) == ((), 1)


def gated_first(net, x):
    """The first half goes through an activation, the second is multiplied to it."""
    gate, value = net.packed(x).chunk(2, -1)
    return net.layers["down"](F.silu(gate) * value)


def gated_last(net, x):
    """The halves of each head alternate, the gates behind; behind the product comes a tanh."""
    value, gate = net.packed(x).view(2, 6, 4, 2, 4).unbind(3)
    return net.layers["down"]((value * gate.sigmoid()).flatten(2).tanh())


def fused(net, x):
    """A fused operator takes the halves apart."""
    return net.layers["down"](F.glu(net.packed(x)).relu())


def fused_across(net, x):
    """A fused operator gates each of two blocks by the other."""
    first, second = net.packed(x).chunk(2, -1)
    return F.glu(torch.cat((first, second), -1)) * F.glu(torch.cat((second, first), -1))


def activated_before(net, x):
    """All goes through one activation before it is cut, the gate through a second one."""
    value, gate = net.packed(x).relu().chunk(2, -1)
    return net.layers["down"](value * gate.sigmoid())


def answered(net, x):
    """Values of attention go straight to the model's output."""
    return F.scaled_dot_product_attention(*net.packed(x).chunk(3, -1))


MET = {
    gated_first: (lambda: Packed(LINEAR(16, 32), gated_first, down=LINEAR(16, 4)), ("silu", None)),
    gated_last: (
        lambda: Packed(LINEAR(16, 32), gated_last, down=LINEAR(16, 4)), ("tanh", "sigmoid"),
    ),
    fused: (lambda: Packed(LINEAR(16, 32), fused, down=LINEAR(16, 4)), ("relu", "sigmoid")),
    fused_across: (lambda: Packed(LINEAR(16, 32), fused_across), ()),
    activated_before: (lambda: Packed(LINEAR(16, 32), activated_before, down=LINEAR(16, 4)), ()),
    answered: (lambda: Packed(LINEAR(16, 24), answered), ("softmax", "softmax", None)),
    convolved: (lambda: Packed(nn.Conv2d(3, 8, 1), convolved, size=(3, 5, 5)), (None, "sigmoid")),
}  # fmt: skip
"""Networks with a packed weight, and what its blocks meet; nothing where all meet the same."""


def packed_facts(run):
    """Read a network and return the facts of its weight `packed`."""
    network = MET[run][0]()
    return read(network, sites(network), torch.zeros(network.size)).facts["packed.weight"]


@pytest.mark.parametrize("run", MET, ids=lambda run: run.__name__)
def test_blocks_meet_what_is_theirs(run):
    """Each block meets what its own units go through, not what the others do."""
    met = [block.meets for block in packed_facts(run).blocks]

    assert tuple(activation and activation.name for activation in met) == MET[run][1]


def test_blocks_that_are_a_head():
    """Of queries, keys and values only the values are the model's own output."""
    assert [block.feeds_output for block in packed_facts(answered).blocks] == [False, False, True]


def test_blocks_of_attention():
    """Values packed into the projection of `nn.MultiheadAttention` meet no softmax."""
    network = nn.TransformerEncoderLayer(16, 2, 32)
    known = read(network, sites(network), torch.zeros(2, 3, 16)).facts
    met = [block.meets for block in known["self_attn.in_proj_weight"].blocks]

    assert [activation and activation.name for activation in met] == ["softmax", "softmax", None]


def test_views_of_long_sequences_are_followed():
    """A value of any size is followed through views, for which no memory is taken."""

    def attention(net, x):
        q, k, v = net.packed(x).view(2, -1, 3, 4, 64).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(q, k, v)

    with torch.device("meta"):
        network = Packed(nn.Linear(16, 768), attention, size=(2, 2**15, 16))
        found = blocks(network)

    assert found == ((256, 256, 256), 1)


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend in one head, or in several side by side."""
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v


LAYOUTS = {
    "beside the outputs": ((16, 24), lambda x, w: attended(*(x @ w).chunk(3, -1))),
    "in front": ((3, 16, 8), lambda x, w: attended(*torch.einsum("btd,cde->cbte", x, w))),
    "with heads": (
        (16, 3, 2, 4), lambda x, w: attended(*torch.einsum("btd,dche->cbhte", x, w)),
    ),
    "within heads": (
        (2, 12, 16), lambda x, w: attended(*torch.einsum("btd,hfd->bhtf", x, w).chunk(3, -1)),
    ),
    "heads in front": (
        (2, 16, 3, 4), lambda x, w: attended(*torch.einsum("...td,hdce->c...hte", x, w)),
    ),
    "tensordot": ((16, 3, 8), lambda x, w: attended(*torch.tensordot(x, w, 1).unbind(-2))),
}  # fmt: skip
"""Shapes of a weight that holds queries, keys and values, and how it is used."""


@pytest.mark.parametrize(("shape", "use"), LAYOUTS.values(), ids=LAYOUTS)
def test_one_weight_in_many_layouts(shape, use):
    """However queries, keys and values lie in a weight, they are three matrices of equal fans."""
    model = nn.Module()
    model.w, model.forward = nn.Parameter(torch.zeros(shape)), lambda x: use(x, model.w)
    facts = read(model, sites(model), torch.zeros(2, 6, 16)).facts["w"]

    assert block_fans(shape, facts.axes) == ((16, 8),) * 3
    assert [block.meets and block.meets.name for block in facts.blocks] == ["softmax"] * 2 + [None]
