"""Random streams: the bits of a block depend on seed, name, block and salt, and on nothing else."""

import itertools

import pytest
import torch

from torch_initpolicy.errors import ApplyError
from torch_initpolicy.writing import streams
from torch_initpolicy.writing.streams import draws_on, key, seeker

CPU = torch.device("cpu")


class TestKey:
    """`keys` are a stable hash."""

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            pytest.param((0, "weight", 0, 0), 0x8CEADAE111ED76DF, id="plain"),
            pytest.param((0, "weight", 1, 0), 0xB0F13F1825FF35BF, id="block"),
            pytest.param((0, "weight", 0, 1), 0x84B7810A681C834F, id="salt"),
            pytest.param((1, "weight", 0, 0), 0x9EA4EA12651C8E57, id="seed"),
            pytest.param((-1, "weight", 0, 0), 0xC04A2D9CC9FBFC5E, id="negative seed"),
            pytest.param((2**64 - 1, "weight", 0, 0), 0xC04A2D9CC9FBFC5E, id="its unsigned twin"),
            pytest.param((0, "größe", 0, 0), 0xFBA70833BD49DA6, id="not ascii"),
        ],
    )
    def test_golden(self, arguments, expected):
        """Contract v1 is frozen: a changed key changes every weight of every user."""
        seed, name, block, salt = arguments

        assert expected == key(seed, name, block, salt=salt)

    def test_unambiguous(self):
        """No two different inputs among 4,000 near ones share a key."""
        inputs = itertools.product(
            [0, 1, 256, 2**32, 2**63], ["", "a", "aa", "a\0", "\0a", "b"], range(12), range(11)
        )
        found = [key(seed, name, block, salt=salt) for seed, name, block, salt in inputs]

        assert len(found) == len(set(found))


class TestStream:
    """A key's stream on the CPU has all 64 bits of the key."""

    def test_golden(self):
        """The first bits after a key are frozen."""
        words = torch.empty(4, dtype=torch.int32).random_(generator=seeker(CPU)(7))

        assert words.tolist() == [1058766073, 1587053646, 265180827, 1528256197]

    @pytest.mark.parametrize("bit", [0, 31, 32, 63])
    def test_every_bit_counts(self, bit):
        """Keys that differ in one bit, the upper half included, have different streams."""
        seek = seeker(CPU)
        first = torch.rand(64, generator=seek(12345))

        assert not torch.equal(first, torch.rand(64, generator=seek(12345 ^ 1 << bit)))

    @pytest.mark.parametrize(
        ("one", "other"), [(0, 1 << 32), (5 << 32 | 9, 9 << 32 | 5)], ids=["high", "swapped"]
    )
    def test_halves(self, one, other):
        """Keys with a zero half, or with swapped halves, are as good as any."""
        seek = seeker(CPU)
        first = torch.randn(4096, generator=seek(one))
        second = torch.randn(4096, generator=seek(other))

        assert first.std() == pytest.approx(1, abs=0.08)
        assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.08

    def test_restarts(self):
        """A stream starts at its beginning whatever the generator did before."""
        seek = seeker(CPU)
        expected = torch.randn(5, generator=seek(3))
        torch.randn(7, generator=seek(4))  # leaves half a Box-Muller pair behind

        assert torch.equal(expected, torch.randn(5, generator=seek(3)))

    def test_one_generator(self):
        """Seeking reuses one generator, and two seekers have one each."""
        seek = seeker(CPU)

        assert seek(1) is seek(2)
        assert seek(1) is not seeker(CPU)(1)

    def test_unknown_layout(self, monkeypatch):
        """A torch that lays its state out differently is found out, in words."""
        streams._check_layout.cache_clear()
        monkeypatch.setattr(streams, "_FIRST", 2)

        with pytest.raises(ApplyError, match="layout"):
            seeker(CPU)

        monkeypatch.undo()
        streams._check_layout()

    @pytest.mark.parametrize(
        ("device", "expected"), [("cpu", "cpu"), ("cuda", "cuda"), ("mps", "cpu")]
    )
    def test_where(self, device, expected):
        """Numbers are drawn on the device where its generator keeps 64 bits of a seed."""
        assert draws_on(torch.device(device)) == torch.device(expected)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_cuda(self):
        """On CUDA the generator itself keeps all 64 bits."""
        seek = seeker(torch.device("cuda"))
        first = torch.rand(64, device="cuda", generator=seek(1))

        assert not torch.equal(first, torch.rand(64, device="cuda", generator=seek(1 + 2**32)))
