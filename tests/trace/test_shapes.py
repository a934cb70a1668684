"""Shape rules give the shapes that the operators give, and refuse what they refuse."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_initpolicy.trace.shapes import SHAPE_RULES


def tensor(*shape: int) -> Tensor:
    """Return a tensor of ones."""
    return torch.ones(shape)


CALLS = {
    "linear": (F.linear, (tensor(2, 3, 4), tensor(5, 4), tensor(5))),
    "linear_vector": (F.linear, (tensor(2, 4), tensor(4))),
    "gelu": (F.gelu, (tensor(2, 3),)),
    "softmax": (F.softmax, (tensor(2, 3), -1)),
    "softmax_of_a_scalar": (torch.softmax, (tensor(), 0)),
    "softmax_in_double": (torch.softmax, (tensor(2, 3), 1, torch.float64)),
    "softmax_in_half": (F.softmax, (tensor(2, 3), 1, 3, torch.float16)),
    "layer_norm": (F.layer_norm, (tensor(2, 3, 4), (3, 4), tensor(3, 4))),
    "batch_norm": (F.batch_norm, (tensor(2, 3, 4), tensor(3), tensor(3), tensor(3), tensor(3))),
    "attention": (
        F.scaled_dot_product_attention, (tensor(2, 3, 8), tensor(2, 5, 8), tensor(2, 5, 6)),
    ),
}  # fmt: skip
"""Calls of operators that have a rule."""

MISFITS = {
    "linear": (F.linear, (tensor(2, 3), tensor(5, 4))),
    "layer_norm": (F.layer_norm, (tensor(2, 3), (4,))),
    "softmax": (F.softmax, (tensor(2, 3), 2)),
    "batch_norm": (F.batch_norm, (tensor(2, 3, 4), tensor(4), tensor(4))),
    "attention": (
        F.scaled_dot_product_attention, (tensor(2, 3, 8), tensor(2, 5, 6), tensor(2, 5, 6)),
    ),
}  # fmt: skip
"""Calls that the operators refuse."""


@pytest.mark.parametrize("name", CALLS)
def test_shapes_are_those_of_the_operator(name):
    """A rule returns what the operator returns, as far as shape and dtype go."""
    function, args = CALLS[name]
    by_rule, real = SHAPE_RULES[function.__name__](*args), function(*args)

    assert (by_rule.shape, by_rule.dtype) == (real.shape, real.dtype)


@pytest.mark.parametrize("name", MISFITS)
def test_misfits_are_refused(name):
    """What the operator refuses, its rule refuses: a search for inputs depends on it."""
    function, args = MISFITS[name]
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        function(*args)

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        SHAPE_RULES[function.__name__](*args)


def on_meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a tensor without numbers."""
    return torch.empty(shape, dtype=dtype, device="meta")


SUMS = {
    "alike": (on_meta(2, 3), on_meta(2, 3)),
    "of_one_image": (on_meta(1, 5, 1), on_meta(1, 5, 1)),
    "scalars": (on_meta(), on_meta()),
    "broadcast": (on_meta(2, 3), on_meta(3)),
    "broadcast_to_the_right": (on_meta(3, 1), on_meta(2, 3, 4)),
    "broadcast_both_ways": (on_meta(2, 1, 4), on_meta(3, 1)),
    "nothing": (on_meta(0, 3), on_meta(3)),
    "an_integer": (on_meta(2, 3, dtype=torch.float16), 2),
    "integers": (on_meta(2, 3, dtype=torch.int64), on_meta(2, 3, dtype=torch.int64)),
    "integers_and_a_number": (on_meta(2, 3, dtype=torch.int64), 1.5),
    "integers_and_a_truth": (on_meta(2, 3, dtype=torch.int64), True),
    "promoted": (on_meta(2, 3), on_meta(2, 3, dtype=torch.float64)),
    "a_number": (on_meta(2, 3), 1.5),
    "transposed": (on_meta(3, 2).T, on_meta(3, 2).T),
    "one_transposed": (on_meta(3, 2).T, on_meta(2, 3)),
    "expanded": (on_meta(1, 3).expand(2, 3), on_meta(2, 3)),
    "channels_last": (on_meta(2, 4, 4, 3).permute(0, 3, 1, 2),) * 2,
    "strides_that_two_layouts_share": (on_meta(2, 5, 1, 1).permute(0, 2, 3, 1),) * 2,
}
"""Two operands, those that a rule answers for and those that it leaves to torch."""


@torch.no_grad()
@pytest.mark.parametrize("operator", [torch.add, torch.sub, torch.mul, torch.div])
@pytest.mark.parametrize("case", SUMS)
def test_arithmetic_is_that_of_the_operator(case, operator):
    """The rule of a sum or product returns what torch returns, strides and dtype included."""
    if case == "integers_and_a_truth" and operator is torch.sub:
        pytest.skip("torch subtracts no truth values")
    by_rule, own = SHAPE_RULES[operator.__name__](*SUMS[case]), operator(*SUMS[case])

    assert (by_rule.shape, by_rule.dtype) == (own.shape, own.dtype)
    assert by_rule.stride() == own.stride()
    assert by_rule.is_meta


@torch.no_grad()
@pytest.mark.parametrize("case", SUMS)
def test_activations_lie_as_those_of_the_operator(case):
    """What an activation returns lies in memory as torch's own kernel lays it."""
    value = SUMS[case][0]

    assert SHAPE_RULES["gelu"](value).stride() == torch.empty_like(value).stride()


def test_sums_that_do_not_fit_are_refused():
    """What cannot be added is refused, as torch does."""
    with pytest.raises(RuntimeError, match=r"size|broadcast"):
        SHAPE_RULES["add"](on_meta(2, 3), on_meta(2, 4))


def test_a_scaled_sum_is_left_to_torch():
    """Further arguments of a sum are torch's: `out=` is written to, and shapes are its own."""
    out = on_meta(0)
    torch_result = SHAPE_RULES["add"](on_meta(2, 3), on_meta(2, 3), alpha=2, out=out)

    assert torch_result is out
    assert out.shape == (2, 3)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}],
    ids=["plain", "stacked", "batch_first"],
)
def test_recurrent_shapes_are_those_of_the_layer(kind, options, packed, monkeypatch):
    """Every output of a recurrent layer has the shape that the layer gives it."""
    layer = kind(3, 4, **options)
    x = torch.ones(5, 5, 3)
    given = nn.utils.rnn.pack_padded_sequence(x, torch.full((5,), 5)) if packed else x
    real = layer(given)
    name = {nn.LSTM: "lstm", nn.GRU: "gru", nn.RNN: "rnn_tanh"}[kind]
    calls = []

    def instead(*args: object) -> object:
        calls.append(args)
        return SHAPE_RULES[name](*args)

    monkeypatch.setattr(torch._VF, name, instead, raising=False)
    by_rule = layer(given)

    def shapes(output: object) -> list[torch.Size]:
        flat = torch.utils._pytree.tree_leaves(output)
        return [leaf.shape for leaf in flat if isinstance(leaf, Tensor)]

    assert len(calls) == 1
    assert shapes(by_rule) == shapes(real)
