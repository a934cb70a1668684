"""Building a model and initialising it, against building it alone and against others' initialisers.

Everything is called as a user would call it, planning and reading of the data flow included.
"""

import pytest
import torch
from torch import nn

from tests.bench.ratios import ratio
from torch_initpolicy import apply_policy, materialize, skip_init

pytestmark = pytest.mark.bench

timm = pytest.importorskip("timm")

MODELS = {
    "vit_large_patch16_224": (0.45, 3),
    "convnext_base": (0.75, 5),
    "swin_base_patch4_window7_224": (0.75, 5),
    "resnet50": (1.0, 9),
}
"""Ratios to reach, and how many rounds it takes to see them."""

CASES = [(name, *row) for name, row in MODELS.items()]


@pytest.mark.parametrize(("name", "reach", "rounds"), CASES, ids=MODELS)
class TestConstruction:
    """An initialised model, sooner than a constructor alone has it."""

    def test_skip_init(self, name, reach, rounds):
        """`skip_init`, the constructor and `apply_policy` against the constructor."""

        def ours():
            with skip_init():
                model = timm.create_model(name)
            apply_policy(model, "auto", seed=0)

        def theirs():
            timm.create_model(name)

        assert ratio(f"skip_init + {name} + apply_policy", ours, theirs, reach, rounds) <= reach

    def test_meta(self, name, reach, rounds):
        """A constructor on meta, without draws, and `materialize` against the constructor."""
        what = f"meta + skip_init + {name} + materialize"

        def ours():
            with torch.device("meta"), skip_init():
                model = timm.create_model(name)
            materialize(model, "auto", seed=0)

        def theirs():
            timm.create_model(name)

        assert ratio(what, ours, theirs, reach, rounds) <= reach


def he_by_hand(module):
    """The function that everybody has written once."""
    if isinstance(module, (nn.Linear, nn.Conv2d)):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def test_by_hand():
    """`apply_policy("he")` against a hand-written `model.apply`, ViT-L, tracing included."""
    model = timm.create_model("vit_large_patch16_224")
    found = ratio(
        "apply_policy('he') over model.apply(kaiming_normal_), ViT-L",
        lambda: apply_policy(model, "he", seed=0),
        lambda: model.apply(he_by_hand),
        0.72,
        5,
    )

    assert found <= 0.72


def test_timm():
    """The preset of timm's ViT against timm's own function."""
    model = timm.create_model("vit_base_patch16_224")
    found = ratio(
        "apply_policy('timm_vit') over timm's init_weights, ViT-B",
        lambda: apply_policy(model, "timm_vit", seed=0),
        model.init_weights,
        1.0,
        3,
    )

    assert found <= 1.0


def test_transformers():
    """The preset of GPT-2 against transformers' own functions."""
    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config())
    tokens = torch.zeros(1, 8, dtype=torch.int64, device="meta")

    def theirs():
        for parameter in model.parameters():
            vars(parameter).pop("_is_hf_initialized", None)
        for module in model.modules():
            model._init_weights(module)

    found = ratio(
        "apply_policy('gpt2') over transformers' _init_weights, GPT-2",
        lambda: apply_policy(model, "gpt2", seed=0, example_inputs=(tokens,)),
        theirs,
        1.0,
        3,
    )

    assert found <= 1.0


def test_mmengine():
    """He normal against MMEngine's `initialize`, where it is installed."""
    mmengine = pytest.importorskip("mmengine.model")
    model = timm.create_model("resnet50")
    configuration = {"type": "Kaiming", "layer": ["Conv2d", "Linear"]}
    found = ratio(
        "apply_policy('he') over MMEngine's initialize, ResNet-50",
        lambda: apply_policy(model, "he", seed=0),
        lambda: mmengine.initialize(model, configuration),
        1.0,
    )

    assert found <= 1.0
