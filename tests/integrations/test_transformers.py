"""New heads on pretrained models of transformers."""

import pytest
import torch
from torch import nn
from transformers import (
    BeitBackbone,
    BeitConfig,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    SplinterConfig,
    SplinterForPreTraining,
)
from transformers.pytorch_utils import Conv1D

from torch_initpolicy.integrations.transformers import initialize_missing
from torch_initpolicy.sites import sites
from torch_initpolicy.tensors.axes import fans
from torch_initpolicy.tensors.layers import axes_of
from torch_initpolicy.trace.read import read

CONFIG = BertConfig(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=32
)


@pytest.fixture
def checkpoint(tmp_path):
    """A saved body without a head."""
    BertModel(CONFIG).save_pretrained(tmp_path)
    return tmp_path


def test_only_the_head_is_written(checkpoint):
    """The classifier gets the policy's values; every loaded tensor keeps its bits."""
    body = BertModel.from_pretrained(checkpoint)
    model, info = BertForSequenceClassification.from_pretrained(
        checkpoint, output_loading_info=True
    )

    receipt = initialize_missing(model, info, seed=0)

    written = {step.name for step in receipt.plan if not step.keeps}
    assert written == {"classifier.weight", "classifier.bias"}
    assert model.classifier.weight.std() > 0.1
    for name, tensor in body.state_dict().items():
        assert torch.equal(tensor, model.bert.state_dict()[name])


def test_a_head_of_another_size(checkpoint, tmp_path):
    """A parameter whose shape in the checkpoint did not fit is written, too."""
    BertForSequenceClassification(CONFIG).save_pretrained(tmp_path / "two")
    model, info = BertForSequenceClassification.from_pretrained(
        tmp_path / "two", num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )

    receipt = initialize_missing(model, info, seed=0)

    written = {step.name for step in receipt.plan if not step.keeps}
    assert written == {"classifier.weight", "classifier.bias"}


def test_nothing_is_missing(checkpoint):
    """Where the checkpoint held everything, nothing is written."""
    model, info = BertModel.from_pretrained(checkpoint, output_loading_info=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    assert initialize_missing(model, info).written == 0
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_conv1d():
    """A `Conv1D` stores `(in, out)`: the fans follow."""
    layer = Conv1D(nf=48, nx=16)

    assert tuple(fans(layer.weight.shape, axes_of(layer, "weight"))) == (16, 48)
    assert axes_of(layer, "bias") is None


TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}


class Segmenter(nn.Module):
    """Sums up what a head makes of each map of a backbone."""

    def __init__(self, backbone) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Conv2d(16, 2, 1)

    def forward(self, pixel_values):
        first, second = self.backbone(pixel_values).feature_maps
        return self.head(first) + self.head(second)


@pytest.mark.filterwarnings("ignore")  # what transformers says of itself
def test_hooks_that_collect_what_a_backbone_returns_stay():
    """A backbone hands on what its hooks have seen, and a head reads it."""
    config = BeitConfig(**TINY, image_size=32, patch_size=8, out_features=["stage1", "stage2"])
    model = Segmenter(BeitBackbone(config))
    found = read(model, sites(model))

    assert (found.evidence, found.parts) == ("traced", ())
    assert found.facts["head.weight"].used


@pytest.mark.filterwarnings("ignore")
def test_a_text_has_the_tokens_that_an_error_asks_for():
    """A model of questions refuses texts without one."""
    model = SplinterForPreTraining(SplinterConfig(**TINY, vocab_size=128))
    found = read(model, sites(model))

    assert found.unused == set()
    assert found.parts == ()
