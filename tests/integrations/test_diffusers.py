"""What models of diffusers are conditioned on."""

import pytest
from torch import nn

from torch_initpolicy.integrations.diffusers import declared_inputs, known_arguments
from torch_initpolicy.trace.trees import Call

diffusers = pytest.importorskip("diffusers")


def test_a_text_has_the_width_of_the_configuration():
    """Captions have their own width where a model maps them to another first."""
    model = diffusers.SanaTransformer2DModel(
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=16,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=24,
        sample_size=8,
        in_channels=4,
        out_channels=4,
    )
    (text,) = known_arguments(model, Call())["encoder_hidden_states"]

    assert text.shape[-1] == 24


def test_other_models_are_left_alone():
    """A layer of torch is not known here."""
    assert known_arguments(nn.Linear(2, 3), Call()) == {}
    assert list(declared_inputs(nn.Linear(2, 3))) == []
