"""What operators keep to themselves comes out as in their own arithmetic."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from torch_initpolicy.signal.hidden import scores
from torch_initpolicy.signal.run import audit_signal


def numbers(*shape: int) -> torch.Tensor:
    """Draw standard normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("causal", [False, True])
def test_scores_give_the_attention(causal):
    """A softmax of the scores, applied to the values, is what the operator returns."""
    q, k, v = numbers(2, 4, 6, 8), numbers(2, 2, 6, 8), numbers(2, 2, 6, 8)
    rows, allowed = scores("scaled_dot_product_attention", (q, k, v), {"is_causal": causal})
    if allowed is not None:
        rows = rows.masked_fill(~allowed, -torch.inf)

    made = rows.softmax(-1) @ v[0].repeat_interleave(2, 0)

    expected = F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)[0]
    assert torch.allclose(made, expected, atol=1e-5)


def test_scores_of_a_module():
    """Those of `nn.MultiheadAttention` have its weights for a softmax."""
    layer, x = nn.MultiheadAttention(8, 2, batch_first=True), numbers(3, 5, 8)
    given = {
        "query": x.transpose(0, 1), "key": x.transpose(0, 1), "num_heads": 2,
        "in_proj_weight": layer.in_proj_weight, "in_proj_bias": layer.in_proj_bias,
    }  # fmt: skip
    found = scores("multi_head_attention_forward", (), given)

    _, expected = layer(x, x, x, average_attn_weights=False)

    assert torch.allclose(found[0].softmax(-1), expected[0], atol=1e-5)


@pytest.mark.parametrize("allowed", [True, False], ids=["of truth values", "to add"])
def test_a_mask_for_all_heads_is_for_each(allowed):
    """A mask of two axes, longer than there are heads, leaves of the scores what it allows."""
    q, causal = numbers(2, 3, 6, 8), torch.ones(6, 6, dtype=torch.bool).tril()
    mask = causal if allowed else torch.zeros(6, 6).masked_fill(~causal, -torch.inf)

    rows, kept = scores("scaled_dot_product_attention", (q, q, q, mask), {})
    rows = rows if kept is None else rows.masked_fill(~kept, -torch.inf)

    made = rows.softmax(-1) @ q[0]
    assert torch.allclose(made, F.scaled_dot_product_attention(q, q, q, mask)[0], atol=1e-5)


def test_a_causal_encoder_is_audited():
    """Torch's own layers take their masks along."""
    layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(12)

    assert audit_signal(layer, {"src": numbers(4, 12, 16), "src_mask": mask}).ok


@pytest.mark.parametrize(("factor", "ok"), [(1.0, True), (40.0, False)])
def test_an_argmax_saturates(factor, ok):
    """Attention that gives each query to one key is told, as is one inside torch's module."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
            self.head = nn.Linear(32, 4)

        def forward(self, x):
            return self.head(self.attention(x, x, x, need_weights=False)[0])

    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.attention.in_proj_weight[:64].mul_(factor)

    signal = audit_signal(net, numbers(4, 12, 32))

    assert ("saturates" not in [verdict.kind for verdict in signal.verdicts]) is ok
