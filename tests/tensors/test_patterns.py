"""What tensors hold: every computed kernel is found, and no random draw is taken for one."""

import math

import pytest
import torch
from torch import nn

from torch_initpolicy.tensors.patterns import constant_in, is_unwritten, purpose_in, structure_in


def generator(seed: int = 0) -> torch.Generator:
    """Return a source of random numbers."""
    return torch.Generator().manual_seed(seed)


def noise(*shape: int) -> torch.Tensor:
    """Draw standard normals."""
    return torch.randn(shape, generator=generator())


def bilinear() -> torch.Tensor:
    """Return the kernel that enlarges each of eight channels."""
    line = torch.tensor([0.25, 0.75, 0.75, 0.25])
    return torch.einsum("oi,h,w->oihw", torch.eye(8), line, line)


def sinusoids() -> torch.Tensor:
    """Return the position table of the transformer paper."""
    angles = torch.arange(100.0)[:, None] / 10_000 ** (torch.arange(32.0) / 32)
    return torch.cat([angles.sin(), angles.cos()], 1)


COMPUTED = {
    "identity": torch.eye(16),
    "identity in half precision": torch.eye(16, dtype=torch.bfloat16),
    "scaled identity": 0.5 * torch.eye(5),
    "identity with noise": torch.eye(32) + 0.01 * noise(32, 32),
    "more outputs than inputs": nn.init.eye_(torch.empty(8, 4)),
    "dirac": nn.init.dirac_(torch.empty(16, 8, 3, 3)),
    "dirac in groups": nn.init.dirac_(torch.empty(16, 8, 3, 3), groups=2),
    "bilinear": bilinear(),
    "ring": torch.eye(16).roll(1, 0),
    "haar": torch.tensor([[1.0, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]])[:, None],
    "cosines": torch.tensor(
        [[math.cos(math.pi * (j + 0.5) * i / 16) for j in range(16)] for i in range(16)]
    ),
    "icnr": noise(4, 8, 3, 3).repeat_interleave(4, 0),
    "sinusoids": sinusoids(),
    "sparse": nn.init.sparse_(torch.empty(64, 64), 0.9, generator=generator()),
    "ramp": torch.arange(512.0).reshape(16, 32),
}
"""Kernels that somebody has computed."""


@pytest.mark.parametrize("kernel", COMPUTED.values(), ids=COMPUTED)
def test_computed(kernel):
    """What no random draw leaves behind is found, and is not taken for unwritten memory."""
    assert structure_in(kernel) is not None
    assert not is_unwritten(kernel)


def test_one_kernel_in_all_groups():
    """A wavelet repeated for each channel is found by being repeated, its numbers are like any."""
    wavelet = torch.tensor([0.4829, 0.8365, 0.2241, -0.1294]).repeat(8, 1)[:, None]
    assert structure_in(wavelet, groups=8) == "one kernel in every group"
    assert structure_in(wavelet) is None  # equal units of one layer are a fault


SHAPES = [
    (8,), (2, 4), (3, 3), (4, 4), (8, 8), (16, 4), (9, 16), (64, 64), (64, 300), (4, 1, 3, 3),
    (8, 1, 2, 2), (16, 8, 3, 3), (16, 8, 1), (32, 3, 7, 7),
]  # fmt: skip

DRAWS = {
    "normal": lambda shape, g: torch.empty(shape).normal_(0, 0.3, generator=g),
    "uniform": lambda shape, g: torch.empty(shape).uniform_(-2, 2, generator=g),
    "positive": lambda shape, g: torch.rand(shape, generator=g),
    "truncated": lambda shape, g: nn.init.trunc_normal_(torch.empty(shape), generator=g),
    "bfloat16": lambda shape, g: torch.empty(shape, dtype=torch.bfloat16).uniform_(generator=g),
    "float16": lambda shape, g: torch.empty(shape, dtype=torch.half).normal_(generator=g),
    "cast": lambda shape, g: torch.empty(shape).uniform_(-1, 1, generator=g).bfloat16().float(),
    "scales": lambda shape, g: (
        torch.empty(shape).normal_(generator=g)
        * torch.linspace(0.01, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    ),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random(shape, draw):
    """No draw of any shape, scale or precision is taken for a computed kernel."""
    g = generator()
    found = [structure_in(draw(shape, g), groups=shape[0]) for _ in range(20)]
    assert found == [None] * 20


def test_random_orthogonal():
    """Orthogonal matrices that were drawn are draws."""
    matrices = (nn.init.orthogonal_(torch.empty(n, n), generator=generator(n)) for n in (3, 8, 64))
    assert [structure_in(matrix) for matrix in matrices] == [None] * 3


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 100])
@pytest.mark.parametrize("name", ["normal", "uniform", "truncated", "scales"])
def test_random_bias(name, size):
    """No zero-mean draw is taken for a bias with a purpose, however few its numbers are."""
    g = generator()
    found = [purpose_in(DRAWS[name]((size,), g)) for _ in range(1000)]
    assert found == [None] * 1000


PURPOSES = {
    "prior": torch.full((90,), -4.595),
    "forget gate": torch.full((2,), 1.0),
    "prior of one class": torch.tensor([-math.log(99)]),
    "rare class": torch.tensor([math.log(0.02 / 0.98)]),
    "one gate in four": torch.cat([torch.zeros(16), torch.ones(16), torch.zeros(32)]),
    "one gate among draws": torch.cat([noise(16) * 0.1, torch.ones(16), noise(32) * 0.1]),
    "background": torch.tensor([4.6, 0.0, 0.0]),
    "phases": 2 * math.pi * torch.rand(32, generator=generator()),
    "chrono": torch.log(torch.rand(32, generator=generator()) * 99 + 1),
    "time steps": torch.rand(32, generator=generator()).mul(4.6).sub(6.9),
}


@pytest.mark.parametrize("bias", PURPOSES.values(), ids=PURPOSES)
def test_purpose(bias):
    """Numbers that agree in their sign more than chance allows have a purpose."""
    assert purpose_in(bias) is not None


def test_default_of_one_is_no_purpose():
    """What the layer's own default could have drawn is a draw, however round."""
    assert purpose_in(torch.tensor([1.0]), scale=1.0) is None
    assert purpose_in(torch.tensor([1.0]), scale=0.5) is not None


def test_nothing_of_the_kind():
    """Zero biases, NaN, complex and empty tensors say nothing."""
    for bias in (torch.zeros(5), torch.tensor([math.nan, 1.0]), torch.ones(3) + 0j, torch.ones(0)):
        assert purpose_in(bias) is None
    for weight in (torch.full((8, 8), math.nan), torch.eye(8) + 0j, torch.ones(0, 3)):
        assert structure_in(weight) is None


def test_constant():
    """A constant is found wherever its exception may stand."""
    weight = torch.full((100, 100), 0.5)
    assert constant_in(weight) == 0.5
    weight[57, 3] = 0
    assert constant_in(weight) is None
    assert constant_in(torch.full((3,), math.nan)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bits", [0x7F12_3456_7890, 7], ids=["an address", "a count"])
def test_memory_that_nobody_wrote_to(dtype, bits):
    """Other kinds of numbers show, also among zeros; small and large weights do not."""
    memory = torch.zeros(64, dtype=torch.int64)
    memory[::8] = bits
    assert is_unwritten(memory.view(dtype))
    assert not any(is_unwritten(scale * noise(64).to(dtype)) for scale in (0, 1e-20, 1, 1e10))
