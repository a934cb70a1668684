"""What the factors of a product take out: scores of attention, however they are scaled."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torch_initpolicy import apply_policy, plan_policy
from torch_initpolicy.trace.facts import ForwardMultiplier

WIDTH = 256


class Attention(nn.Module):
    """Attention whose scores are scaled by a constant, written in one of several ways."""

    def __init__(self, write: Callable[..., Tensor], c: float, heads: int = 4) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.write, self.c, self.heads = write, c, heads

    def scores(self, x: Tensor) -> Tensor:
        """Return what softmax reads."""
        q, k = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k))
        return self.write(q, k.mT, self.c)

    def forward(self, x: Tensor) -> Tensor:
        v = self.v(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return self.scores(x).softmax(-1) @ v


@pytest.mark.parametrize(
    "write",
    [
        lambda q, k, c: q @ k * c,
        lambda q, k, c: (c * q) @ k,
        lambda q, k, c: q @ (c * k),
        lambda q, k, c: torch.einsum("bhqd,bhdk->bhqk", q, k) / (1 / c),
        lambda q, k, c: (q * c**0.5) @ (k * c**0.5),
        lambda q, k, c: torch.baddbmm(
            torch.zeros(1, 16, 16), q.flatten(0, 1), k.flatten(0, 1), alpha=c
        ).unflatten(0, q.shape[:2]),
        lambda q, k, c: (q[..., None] * k[:, :, None]).sum(-2) * c,
    ],
)
@pytest.mark.parametrize("c", [1.0, 1 / 8, 1 / 64])
def test_scores_of_attention_have_the_variance_of_one_query_times_one_key(write, c):
    """A missing `1 / sqrt(d)`, or one too many, is shared by queries and keys."""
    x = torch.randn(4, 16, WIDTH, generator=torch.Generator().manual_seed(0))
    model = Attention(write, c)
    apply_policy(model, seed=0, example_inputs=x)

    assert 0.6 < model.scores(x).std().item() < 1.6
    assert model.q.weight.std().item() == pytest.approx(model.k.weight.std().item(), rel=0.02)
    assert model.v.weight.std().item() == pytest.approx(WIDTH**-0.5, rel=0.02)


class Packed(nn.Module):
    """Attention whose queries, keys and values are packed; without a scale it divides by 8."""

    def __init__(self, scale: float | None = None) -> None:
        super().__init__()
        self.qkv, self.out, self.scale = nn.Linear(64, 192), nn.Linear(64, 64), scale

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v, scale=self.scale))


def test_usual_attention_is_left_alone():
    """With `1 / sqrt(d)` there is nothing to make up for, packed or not."""
    plan = plan_policy(Packed(), example_inputs=torch.randn(2, 5, 64))

    assert "taken out" not in str(plan)


@pytest.mark.parametrize("scale", [None, 1.0, 1 / 64])
def test_queries_of_a_packed_projection_leave_the_values_alone(scale):
    """What queries and keys take out is not left over for what reads the values."""
    plan = plan_policy(Packed(scale), example_inputs=torch.randn(2, 5, 64))
    blocks = plan["qkv.weight"].facts.blocks
    expected = 1.0 if scale is None else (scale * 8) ** 0.5

    assert plan["out.weight"].facts.multiplier == ForwardMultiplier()
    assert [block.multiplier.total for block in blocks] == pytest.approx([expected, expected, 1.0])


class Fused(nn.Module):
    """Fused attention with constants on queries and keys, and a mask that a layer makes."""

    def __init__(self, query: float, key: float) -> None:
        super().__init__()
        self.q, self.k, self.v, self.mask = (nn.Linear(64, 64) for _ in range(4))
        self.query, self.key = query, key

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query * self.q(x), self.key * self.k(x), self.v(x)
        mask = self.mask(x) @ torch.ones(64, x.shape[1])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


@pytest.mark.parametrize(("query", "key"), [(9.0, 1.0), (1.0, 9.0), (4.0, 1.0)])
def test_fused_attention(query, key):
    """Queries and keys take out the same, whichever a constant is written to; values nothing."""
    plan = plan_policy(Fused(query, key), example_inputs=torch.randn(2, 5, 64))
    names = ("q", "k", "v", "mask")
    found = {name: plan[f"{name}.weight"].facts.multiplier.total for name in names}

    shared = (query * key) ** 0.5
    assert found == {"q": pytest.approx(shared), "k": pytest.approx(shared), "v": 1.0, "mask": 1.0}


def test_a_product_that_nothing_reads():
    """Nobody can say how large similarities should be that are the model's output."""

    class Similar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x) @ self.other(x).mT

    plan = plan_policy(Similar(), example_inputs=torch.randn(5, 64))

    assert {step.facts.multiplier.total for step in plan} == {1.0}


def test_scores_that_share_a_bias_of_position():
    """A bias that an earlier layer has added to its scores makes those of later ones no branch."""

    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Embedding(5, 5)
            self.q, self.k, self.v = (
                nn.ModuleList(nn.Linear(16, 16) for _ in range(2)) for _ in range(3)
            )

        def forward(self, x: Tensor) -> Tensor:
            bias = self.bias(torch.arange(5))
            for q, k, v in zip(self.q, self.k, self.v, strict=True):
                x = x + (q(x) @ k(x).mT + bias).softmax(-1) @ v(x)
            return x

    plan = plan_policy(Biased(), example_inputs=torch.randn(2, 5, 16))
    found = [plan[f"{name}.{layer}.weight"] for name in "qk" for layer in range(2)]

    assert [step.facts.multiplier.total for step in found] == pytest.approx([2.0] * 4)
