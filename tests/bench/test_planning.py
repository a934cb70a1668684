"""Planning against what it spares: a forward pass for real."""

import pytest
import torch

from tests.bench.ratios import ratio
from torch_initpolicy import plan_policy

pytestmark = pytest.mark.bench


def test_two_thousand_sites():
    """A plan for 2,000 sites, trace included, takes at most half a forward pass at batch 1."""
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_small_patch16_224", depth=166).eval()
    image = torch.zeros(1, 3, 224, 224)
    assert sum(1 for _ in model.parameters()) == 2000

    @torch.no_grad()
    def forward():
        model(image)

    found = ratio(
        "plan of 2,000 sites over a forward pass", lambda: plan_policy(model), forward, 0.5, 5
    )

    assert found <= 0.5
