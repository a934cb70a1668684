"""Contract v1 of the random numbers: which bits a site gets, and on what they do not depend."""

import math
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.writing.helpers import EACH, fill, layer, pairs, same, state
from torch_initpolicy.tensors.initializers import (
    Identity,
    Normal,
    Orthogonal,
    TruncatedNormal,
    he_normal,
)
from torch_initpolicy.writing import apply as applying
from torch_initpolicy.writing.apply import apply_steps
from torch_initpolicy.writing.drawing import Drawing
from torch_initpolicy.writing.shards import _made_piece
from torch_initpolicy.writing.streams import BLOCK, keys, seeker


class TestContract:
    """Contract v1, seen from outside: which bits, and on what they do not depend."""

    def test_blocks_by_hand(self):
        """Each block of 2^16 elements is what a generator at the block's key draws."""
        model = layer()
        fill(model, Normal(1.0))
        seek, key = seeker(torch.device("cpu")), keys(0, "weight")
        first = torch.randn(BLOCK, generator=seek(key(0)))
        second = torch.randn(300 * 400 - BLOCK, generator=seek(key(1)))

        assert torch.equal(torch.cat([first, second]), model.weight.detach().flatten())

    @pytest.mark.parametrize(
        ("initializer", "shape"),
        [
            (Normal(1.0), (300, 700)),
            (TruncatedNormal(1.0), (7, 90, 400)),
            (he_normal(), (70, 50, 6, 6)),
            (Orthogonal(), (300, 700)),
        ],
        ids=str,
    )
    def test_parts(self, monkeypatch, initializer, shape):
        """Whatever box of a tensor a process holds, it draws what the whole has there."""
        rng = random.Random(0)
        expected, held = nn.Module(), nn.Module()
        expected.weight = nn.Parameter(torch.empty(shape))
        held.weight = nn.Parameter(torch.empty(shape))
        fill(expected, initializer)
        for _ in range(6):
            cuts = [sorted(rng.sample(range(size + 1), 2)) for size in shape]
            axis = rng.randrange(len(shape))
            box = tuple(
                range(*cut) if number in (axis, 0) else range(size)
                for number, (cut, size) in enumerate(zip(cuts, shape, strict=True))
            )
            local = torch.empty([len(side) for side in box])
            part = _made_piece(local, shape, box)
            monkeypatch.setattr(applying, "pieces", lambda _, part=part: (part,))
            fill(held, initializer)

            assert torch.equal(
                local, expected.weight.detach()[tuple(slice(s.start, s.stop) for s in box)]
            )

    @EACH
    @pytest.mark.parametrize("threads", [2, 3, 7])
    def test_threads(self, initializer, threads):
        """Any number of threads draws the same bits."""
        models = [nn.Sequential(*(layer(600, 600) for _ in range(2))) for _ in range(2)]
        fill(models[0], initializer, threads=1)
        fill(models[1], initializer, threads=threads)

        assert same(state(models[0]), state(models[1]))

    @EACH
    def test_alone(self, initializer):
        """A site has the same values whether others are written or not."""
        models = [nn.ModuleDict({"a": layer(60, 70), "b": layer(60, 70)}) for _ in range(2)]
        fill(models[0], initializer)
        fill(models[1], initializer, "b.weight")

        assert torch.equal(models[0]["b"].weight, models[1]["b"].weight)

    @EACH
    def test_order(self, initializer):
        """The order in which sites are given changes nothing."""
        models = [nn.ModuleDict({"a": layer(60, 70), "b": layer(60, 70)}) for _ in range(2)]
        given = [pairs(model, lambda site: initializer) for model in models]
        apply_steps(given[0], Drawing(0))
        apply_steps(given[1][::-1], Drawing(0))

        assert same(state(models[0]), state(models[1]))

    @EACH
    @pytest.mark.parametrize(
        ("dtype", "digits"), [(torch.bfloat16, 8), (torch.float16, 11)], ids=str
    )
    def test_rounded(self, initializer, dtype, digits):
        """A narrow dtype holds the rounded values of float32."""
        wide, narrow = layer(60, 70), layer(60, 70, dtype=dtype)
        fill(wide, initializer)
        fill(narrow, initializer)

        assert torch.equal(wide.weight.to(dtype), narrow.weight)
        torch.testing.assert_close(wide.weight, narrow.weight.float(), rtol=2.0**-digits, atol=1e-6)

    @EACH
    def test_memory_format(self, initializer):
        """A transposed tensor holds the values of its logical shape and stays transposed."""
        model, transposed = layer(60, 70), layer(60, 70)
        transposed.weight = nn.Parameter(torch.empty(70, 60).t())
        fill(model, initializer)
        fill(transposed, initializer)

        assert torch.equal(model.weight, transposed.weight)
        assert transposed.weight.stride() == (1, 60)

    @EACH
    def test_seeds(self, initializer):
        """Another seed draws other values, except where nothing is drawn."""
        models = [layer(60, 70) for _ in range(3)]
        for model, seed in zip(models, (0, 0, 1), strict=True):
            fill(model, initializer, seed=seed)

        assert torch.equal(models[0].weight, models[1].weight)
        assert torch.equal(models[0].weight, models[2].weight) == isinstance(initializer, Identity)

    def test_processes(self):
        """Another process, with another hash seed, draws the same bits."""
        code = (
            "from tests.writing.test_blocks import *; model = layer(); fill(model, he_normal());"
            "print(model.weight.detach().view(torch.int32).sum().item())"
        )
        ran = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            check=True,
            text=True,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PYTHONHASHSEED": "7"},
        )
        model = layer()
        fill(model, he_normal())

        assert model.weight.detach().view(torch.int32).sum().item() == int(ran.stdout)

    def test_names_matter(self):
        """Two layers alike but for their names are drawn independently."""
        model = nn.Sequential(layer(300, 300), layer(300, 300))
        fill(model, Normal(1.0))
        rows = torch.stack([model[0].weight.flatten(), model[1].weight.flatten()])

        assert abs(torch.corrcoef(rows)[0, 1]) < 5 / math.sqrt(90_000)

    def test_blocks_differ(self):
        """No two of 40 blocks share a value's place: the keys of blocks are independent."""
        model = layer(40, BLOCK)
        fill(model, Normal(1.0))

        assert torch.corrcoef(model.weight).fill_diagonal_(0).abs().max() < 6 / math.sqrt(BLOCK)

    @pytest.mark.parametrize(
        "initializer", [Normal(1.0), TruncatedNormal(1.0), Orthogonal()], ids=repr
    )
    def test_float64(self, initializer):
        """float64 parameters are drawn in float64: their low bits are not zeros."""
        model = layer(60, 70, dtype=torch.float64)
        fill(model, initializer)

        assert (model.weight != model.weight.float()).float().mean() > 0.99

    def test_complex(self):
        """A complex standard deviation is split between both parts."""
        model = layer(400, 400, dtype=torch.complex64)
        fill(model, Normal(1.0))
        parts = torch.view_as_real(model.weight.detach())

        assert parts.square().mean().item() == pytest.approx(0.5, rel=0.02)
        assert model.weight.abs().square().mean().item() == pytest.approx(1.0, rel=0.02)

    def test_none(self):
        """`seed=None` takes one number from torch's global generator and says which."""
        models = [layer(3, 4) for _ in range(2)]
        torch.manual_seed(3)
        written = fill(models[0], Normal(1.0), seed=None)
        after = torch.random.get_rng_state()
        torch.manual_seed(3)
        torch.empty((), dtype=torch.int64).random_()
        fill(models[1], Normal(1.0), seed=written.seed)

        assert torch.equal(after, torch.random.get_rng_state())
        assert same(state(models[0]), state(models[1]))
