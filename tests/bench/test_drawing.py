"""Drawing alone: the engine's blocks and threads against torch's own loops over parameters."""

import pytest
import torch
from torch import nn

from tests.bench.ratios import peak, ratio
from tests.writing.helpers import pairs
from torch_initpolicy.tensors.initializers import (
    Normal,
    Ones,
    Orthogonal,
    TruncatedNormal,
    Zeros,
    he_normal,
)
from torch_initpolicy.writing.apply import apply_steps
from torch_initpolicy.writing.drawing import Drawing

pytestmark = pytest.mark.bench

BLOCK_OF_VIT_L = ((3072, 1024), (1024, 1024), (4096, 1024), (1024, 4096))
BLOCK_OF_VIT_B = ((2304, 768), (768, 768), (3072, 768), (768, 3072))


def matrices(shapes, times):
    """A model of matrices alone."""
    model = nn.Module()
    for number in range(times):
        for index, shape in enumerate(shapes):
            model.register_parameter(f"{number}_{index}", nn.Parameter(torch.empty(shape)))
    return model


def loop(model, function):
    """Call a function on every parameter, as one would write it."""

    @torch.no_grad()
    def run():
        for parameter in model.parameters():
            function(parameter)

    return run


def ours(model, initializer):
    """Apply one initializer to every parameter, on two threads."""
    chosen = pairs(model, lambda site: initializer)
    return lambda: apply_steps(chosen, Drawing(0, threads=2))


def test_normal():
    """Two threads take at most 0.6 of what `p.normal_()` takes on its one."""
    model = matrices(BLOCK_OF_VIT_L, 6)
    theirs = loop(model, torch.Tensor.normal_)

    assert ratio("normal, a quarter of ViT-L", ours(model, Normal(0.02)), theirs, 0.6) <= 0.6


def test_truncated():
    """A truncated normal takes at most 0.35 of torch's."""
    model = matrices(((4096, 4096),), 1)
    theirs = loop(model, lambda p: nn.init.trunc_normal_(p, std=0.02, a=-0.04, b=0.04))

    assert ratio("truncated, 16 M", ours(model, TruncatedNormal(0.02)), theirs, 0.35) <= 0.35


def test_orthogonal():
    """Orthogonal matrices take at most 0.8 of torch's."""
    model = matrices(BLOCK_OF_VIT_B, 3)
    theirs = loop(model, nn.init.orthogonal_)
    found = ratio("orthogonal, a quarter of ViT-B", ours(model, Orthogonal()), theirs, 0.8, 3)

    assert found <= 0.8


def test_many_small_tensors():
    """A ResNet-50 has 161 tensors, most of them tiny; they cost microseconds each."""
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet50()
    initializers = {"weight": he_normal(), "norm_weight": Ones()}
    chosen = pairs(model, lambda site: initializers.get(site.role, Zeros()))
    theirs = loop(model, lambda p: p.normal_() if p.ndim > 1 else p.zero_())
    found = ratio("ResNet-50, he", lambda: apply_steps(chosen, Drawing(0, threads=2)), theirs, 0.75)

    assert found <= 0.75


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("threads", [2, 4])
def test_memory(dtype, threads):
    """Drawing takes a few blocks for each thread and no more, whatever the model."""
    model = matrices(BLOCK_OF_VIT_L, 6).to(dtype)
    loop(model, torch.Tensor.zero_)()
    chosen = pairs(model, lambda site: he_normal())
    what = f"memory, {dtype}, {threads} threads"

    assert peak(what, lambda: apply_steps(chosen, Drawing(0, threads=threads)), 32) <= 32
