"""Fingerprints: the same for the same bits however they lie, and others for any other bits."""

import random

import pytest
import torch
from torch import nn

from tests.writing.helpers import fill, layer
from torch_initpolicy import apply_policy
from torch_initpolicy.errors import VerifyError
from torch_initpolicy.planning.plan import Receipt
from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.initializers import Normal
from torch_initpolicy.writing.fingerprint import _piece_sum, fingerprints
from torch_initpolicy.writing.shards import _made_piece, whole

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64]


def prints(tensor):
    """The fingerprint of one parameter."""
    model = nn.Module()
    model.weight = nn.Parameter(tensor)
    return fingerprints(sites(model))["weight"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_does_not_matter(dtype):
    """Transposed, strided and contiguous memory of the same numbers have one hash."""
    tensor = torch.randn(300, 260, dtype=dtype)

    assert prints(tensor) == prints(tensor.t().contiguous().t())
    assert prints(tensor) == prints(torch.stack((tensor, tensor), -1)[..., 0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_shards_add_up(dtype):
    """Any cut of a tensor into boxes adds up to the sum of the whole."""
    rng = random.Random(0)
    tensor = torch.randn(41, 70, 33, dtype=dtype)
    for _ in range(10):
        axis = rng.randrange(3)
        cut = sorted(rng.sample(range(tensor.shape[axis] + 1), 2))
        total = 0
        for start, stop in zip([0, *cut], [*cut, tensor.shape[axis]], strict=True):
            box = [range(size) for size in tensor.shape]
            box[axis] = range(start, stop)
            part = tensor.narrow(axis, start, stop - start)
            total += _piece_sum(_made_piece(part, tuple(tensor.shape), tuple(box)))

        assert (total - _piece_sum(whole(tensor))) % 2**64 == 0


def test_every_change_is_seen():
    """One bit of one element, two elements exchanged, another shape, dtype or sign of zero."""
    rng = random.Random(0)
    tensor = torch.randn(500, 300)
    known = prints(tensor)
    for _ in range(50):
        other = tensor.clone()
        index = rng.randrange(other.numel())
        other.view(torch.int32).view(-1)[index] ^= 1 << rng.randrange(31)
        assert prints(other) != known
        other = tensor.clone().view(-1)
        first, second = rng.sample(range(other.numel()), 2)
        other[[first, second]] = other[[second, first]]
        assert prints(other.view(500, 300)) != known
    assert prints(tensor.view(300, 500)) != known
    assert prints(tensor.bfloat16()) != prints(tensor.bfloat16().float())
    assert prints(torch.zeros(3)) != prints(-torch.zeros(3))


def test_receipts():
    """A receipt knows the bits it left, through JSON too, and names the tensor that changed."""
    model = nn.Sequential(layer(30, 40), nn.BatchNorm1d(40), layer(40, 3))
    receipt = apply_policy(model, "he", seed=0)
    again = Receipt.from_json(receipt.to_json())
    again.check_bits(model)

    assert again.fingerprint == receipt.fingerprint
    assert len(receipt.fingerprints) == 4
    with torch.no_grad():
        model[2].weight[1, 1] += 1e-6
    with pytest.raises(VerifyError, match=r"'2\.weight'"):
        again.check_bits(model)


def test_threads_and_seeds():
    """Threads leave the hash as it is; another seed does not."""
    found = []
    for seed, threads in ((0, 1), (0, 3), (1, 1)):
        model = layer(900, 900)
        fill(model, Normal(1.0), seed=seed, threads=threads)
        found.append(fingerprints(sites(model)))

    assert found[0] == found[1]
    assert found[0]["weight"] != found[2]["weight"]
