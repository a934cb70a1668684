"""Equal distributions pass, unequal ones are found, and words name what was drawn."""

import math

import pytest
import torch
from torch import nn

from torch_initpolicy.compare.statistics import contrasts, in_words, is_orthogonal

LIMIT = 1e-6
"""Far below what one of a few hundred tests may come to by chance."""


def normal(*shape, std=1.0, seed=0):
    """Draw normals."""
    return std * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape, std=1.0, seed=0):
    """Draw uniforms of a standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    return std * math.sqrt(12) * (torch.rand(*shape, generator=generator) - 0.5)


def cut(*shape, seed=0):
    """Draw normals cut at two standard deviations, scaled back to a standard deviation of 1."""
    values = normal(8 * math.prod(shape), seed=seed)
    return values[values.abs() < 2][: math.prod(shape)].view(*shape) / 0.879625661


def found(a, b):
    """Return what differs, the least probable first."""
    failed = [c for c in contrasts(a, b) if c.probability < LIMIT]
    return [c.what for c in sorted(failed, key=lambda c: c.probability)]


def with_row(values, row, value):
    """Set one row."""
    values = values.clone()
    values[row] = value
    return values


@pytest.mark.parametrize(
    ("mine", "reference", "what"),
    [
        (normal(128, 128), normal(128, 128, std=1.08, seed=1), "scale"),
        (normal(128, 128), normal(128, 128, seed=1) + 0.1, "mean"),
        (normal(64, 64), uniform(64, 64, seed=1), "bound"),
        (normal(128, 128), cut(128, 128, seed=1), "bound"),
        (normal(64, 64), torch.zeros(64, 64), "constant"),
        (torch.ones(8), torch.full((8,), 1e-5), "constant"),
        (torch.zeros(4, 4), torch.full((4, 4), math.nan), "finite"),
        (with_row(normal(64, 16), 3, 0.0), normal(64, 16, seed=1), "zero slices along axis 0"),
        (normal(16, 16).repeat(4, 1), normal(64, 16, seed=1), "copied rows"),
        (nn.init.orthogonal_(torch.empty(64, 64)), normal(64, 64, std=0.125), "orthogonality"),
        (nn.init.sparse_(torch.empty(64, 64), 0.5), normal(64, 64, std=0.01), "zeros"),
        (
            torch.cat([normal(64, 64, std=2.0), normal(128, 64)]),
            torch.cat([normal(128, 64, seed=2), normal(64, 64, std=2.0, seed=3)]),
            "scale of part",
        ),
        (
            torch.tensor([0.0] * 30 + [1.0] * 30 + [0.0] * 60),
            torch.zeros(120),
            "constant",
        ),
        (normal(64, 64).to(torch.complex64), normal(64, 64, std=2).to(torch.complex64), "scale"),
    ],
)
def test_differences_are_found(mine, reference, what):
    """Each kind of difference has a test that sees it, and says what it is."""
    assert any(what in name for name in found(mine, reference))


@pytest.mark.parametrize(
    "draw",
    [
        normal,
        uniform,
        cut,
        lambda *shape, seed: nn.init.orthogonal_(normal(*shape, seed=seed)),
        lambda *shape, seed: normal(*shape, seed=seed).repeat(3, 1),
        lambda *shape, seed: with_row(normal(*shape, seed=seed), 0, 0.0),
        lambda *shape, seed: normal(*shape, seed=seed).bfloat16(),
        lambda *shape, seed: normal(*shape, seed=seed).exp(),
        lambda *shape, seed: torch.full(shape, 0.5),
        lambda *shape, seed: normal(0, *shape),
        lambda *shape, seed: normal(4, seed=seed),
    ],
)
def test_equal_distributions_pass(draw):
    """Two draws of one distribution never differ, whatever its kind."""
    pairs = [(draw(24, 20, seed=2 * n), draw(24, 20, seed=2 * n + 1)) for n in range(40)]

    assert [found(a, b) for a, b in pairs] == [[]] * 40


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (torch.zeros(4), "zeros"),
        (torch.full((2,), 1e-5), "constant 1e-05"),
        (torch.empty(0), "no elements"),
        (torch.tensor([1.0, math.inf]), "1 values not finite"),
        (normal(4096), "normal, std"),
        (uniform(4096), "uniform in ["),
        (cut(4096), "normal cut at 2 std"),
        (normal(4096) + 3, ", mean 2.99"),
    ],
)
def test_words(values, expected):
    """A distribution is named by its family and its figures."""
    assert expected in in_words(values)


@pytest.mark.parametrize("shape", [(8, 8), (4, 8), (8, 4), (8, 4, 3, 3)])
def test_orthogonal(shape):
    """Orthogonal matrices of every shape are known as such, normal ones are not."""
    assert is_orthogonal(nn.init.orthogonal_(torch.empty(*shape)))
    assert not is_orthogonal(normal(*shape))
