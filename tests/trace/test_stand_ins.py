"""What a model runs with in place of its tensors is like them, and always the same."""

import pytest
import torch
from torch import nn

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.stand_ins import (
    batch_size,
    copied,
    drawn_for,
    is_image,
    is_index,
    lazily_copied,
    leaf_like,
    plain_meta,
    random_call,
    vocabulary_size,
)
from torch_initpolicy.trace.trees import Call


@pytest.mark.parametrize("copy", [copied, lazily_copied])
def test_copies_share_nothing(copy):
    """A copy is a leaf of its own: what is written to it, or its gradient, is not the model's."""
    weight = nn.Parameter(torch.ones(3))
    made = copy(weight)
    (made * 2).sum().backward()
    with torch.no_grad():
        made.zero_()

    assert (weight.tolist(), weight.grad, made.is_leaf) == ([1, 1, 1], None, True)
    assert copy(torch.ones(3)).requires_grad is False


def test_meta_tensors_are_contiguous():
    """Only shape and dtype are taken over."""
    made = plain_meta(torch.zeros(2, 3, dtype=torch.float16).t())

    assert (made.device.type, made.dtype, made.stride()) == ("meta", torch.float16, (2, 1))
    assert leaf_like(nn.Parameter(torch.zeros(2)), torch.ones(2)).requires_grad


class TestDrawnWeights:
    def test_they_depend_on_nothing_that_a_model_holds(self):
        """Two models of one architecture run with the same numbers, on meta as well."""

        def drawn(device: str) -> list[torch.Tensor]:
            with torch.device(device):
                model = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Linear(32, 8))
            return list(drawn_for(sites(model)).values())

        pairs = list(zip(drawn("cpu"), drawn("meta"), strict=True))

        assert len(pairs) == 6
        assert all(torch.equal(*pair) for pair in pairs)

    def test_signals_keep_their_size(self):
        """Weights have variance 1 / fan-in, norms are the identity, biases zero."""
        model = nn.Sequential(nn.Linear(400, 300), nn.LayerNorm(300))
        weight, bias, scale, shift = drawn_for(sites(model)).values()

        assert weight.std().item() == pytest.approx(400**-0.5, rel=0.02)
        assert (bias.any(), shift.any(), bool((scale == 1).all())) == (False, False, True)

    def test_constants_of_a_constructor_stay(self):
        """A vector of one number, a temperature say, is part of what the model computes."""
        model = nn.Module()
        model.temperature = nn.Parameter(torch.tensor([5.0]))

        assert [t.tolist() for t in drawn_for(sites(model)).values()] == [[5.0]]


class TestRandomCall:
    def test_as_many_samples_and_pixels_as_allowed(self):
        """Only what has the length of the batch changes it; images are cropped, grids are not."""
        call = Call((torch.empty(2, 3, 224, 224), torch.empty(2, 64, 96, 96), torch.empty(7, 2)))
        made = random_call(call, 10, batch=5, edge=32).args

        assert [tuple(t.shape) for t in made] == [(5, 3, 32, 32), (5, 64, 96, 96), (7, 2)]

    def test_kinds(self):
        """Floats are standard normals, masks ones, large indices valid; small ones stay."""
        like = (torch.empty(4000, device="meta"), torch.empty(9, dtype=torch.bool, device="meta"))
        ids, positions = torch.empty(2, 50, dtype=torch.long, device="meta"), torch.tensor([3, 99])
        floats, mask, drawn, kept = random_call(Call((*like, ids, positions)), 10).args

        assert floats.std().item() == pytest.approx(1, rel=0.1)
        assert bool(mask.all())
        assert 0 <= drawn.min() <= drawn.max() < 10
        assert kept.tolist() == [3, 99]

    def test_seeds(self):
        """One seed draws one call."""
        call = Call((torch.empty(3, device="meta"),))

        assert torch.equal(random_call(call, 2).args[0], random_call(call, 2).args[0])
        assert not torch.equal(random_call(call, 2).args[0], random_call(call, 2, seed=1).args[0])


def test_what_a_call_holds():
    """The batch is the first axis of the first tensor; grids of few channels are images."""
    assert batch_size(Call((torch.tensor(1.0),), {"x": [torch.zeros(6, 2)]})) == 6
    assert batch_size(Call(("text",))) == 1
    assert (is_image((1, 4, 8, 8)), is_image((1, 5, 8, 8)), is_image((4, 8, 8))) == (
        True,
        False,
        False,
    )
    assert is_index(torch.tensor([1]))
    assert not is_index(torch.ones(1))
    assert not is_index(torch.ones(1, dtype=torch.long, device="meta"))


def test_indices_that_all_tables_hold():
    """Tables of a few types do not count where there is one of words."""
    tables = nn.ModuleList([nn.Embedding(2, 4), nn.Embedding(100, 4), nn.Embedding(64, 4)])

    assert (
        vocabulary_size(tables),
        vocabulary_size(tables[:1]),
        vocabulary_size(nn.Linear(2, 2)),
    ) == (64, 2, 2)
