"""Models of timm say what images they take."""

from types import SimpleNamespace

import timm
import torch
from torch import nn

from torch_initpolicy.integrations.timm import declared_inputs, known_arguments
from torch_initpolicy.trace.trees import Call


def test_the_size_of_the_configuration():
    """An image of the declared size, without memory, with which the model runs on meta."""
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", img_size=96)
    model.pretrained_cfg = {**model.pretrained_cfg, "input_size": (3, 96, 96)}
    call = next(declared_inputs(model))

    assert [tuple(x.shape) for x in call.args] == [(2, 3, 96, 96)]
    assert model(*call.args).shape == (2, 1000)


def test_a_configuration_may_be_an_object():
    """Mappings and objects are read alike; a model without one declares nothing."""
    model = nn.Identity()
    assert list(declared_inputs(model)) == []
    model.default_cfg = SimpleNamespace(input_size=(1, 8, 8))

    assert next(declared_inputs(model)).args[0].shape == (2, 1, 8, 8)
    assert known_arguments(model, Call()) == {}
