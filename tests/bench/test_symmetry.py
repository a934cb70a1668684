"""What it costs to look for symmetric starts, and to watch a training."""

import pytest
import torch
from torch import nn
from torch.optim import optimizer as torch_optimizer

from tests.bench.ratios import peak, ratio
from torch_initpolicy import warn_on_symmetry
from torch_initpolicy.sites import sites
from torch_initpolicy.symmetry.scan import suspects

pytestmark = pytest.mark.bench


@pytest.fixture(scope="module")
def large() -> nn.Module:
    """Build ViT-L/16: 304 million random weights."""
    return pytest.importorskip("timm").create_model("vit_large_patch16_224")


def test_scan(large):
    """Scanning all weights of ViT-L costs at most 2.5 times as much as summing them."""

    @torch.no_grad()
    def total() -> None:
        for parameter in large.parameters():
            parameter.sum()

    found = ratio(
        "scan for symmetry over summing all weights, ViT-L",
        lambda: suspects(large, sites(large)),
        total,
        2.5,
        rounds=21,
    )

    assert found <= 2.5


def test_scan_copies_no_weights(large):
    """The scan of 1.2 GB of weights needs a few MiB."""
    found = peak("scan for symmetry, ViT-L", lambda: suspects(large, sites(large)), 16)

    assert found <= 16


def test_watch():
    """The watch's dearest step costs at most 3 % of a training step, and later ones nothing.

    A ResNet-50 whose residual branches start at zero, eight images: the scan, and the comparison of
    the gradients of what it suspects, against forward, backward and SGD.
    """
    model = pytest.importorskip("torchvision").models.resnet50(zero_init_residual=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images = torch.randn(8, 3, 224, 224)
    labels = torch.arange(8)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    def watched() -> None:
        with warn_on_symmetry(model) as watch:
            watch._before_step(optimizer, (), {})

    found = ratio(
        "watching a step over the step, ResNet-50, batch 8", watched, step, 0.03, rounds=5
    )

    assert found <= 0.03
    assert not torch_optimizer._global_optimizer_pre_hooks
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
