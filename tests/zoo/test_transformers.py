"""Architectures of transformers, from their default configurations with two layers, are read whole.

They are built on meta, and no inputs are given.
"""

import pytest
import torch

from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.zoo

READ = (
    "ASTModel ArceeModel BeitModel CLIPTextModel CohereAsrModel Exaone4Model FlaubertModel "
    "GlmAsrEncoder Glm4vMoeVisionModel LevitModel Mamba2Model OmniASRAudioModel Olmo3Model "
    "Qwen3NextModel SEWModel Speech2TextModel TextNetModel UMT5Model UniSpeechModel ViTMSNModel "
    "XGLMModel"
).split()
"""A model of each kind: text, images, patches with grids, spectra, waves, pairs of sequences."""

_DEPTHS = ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "n_layers")


def shallow(config):
    """Cut a configuration to two layers, and whatever it says of each layer likewise."""
    for name in _DEPTHS:
        depth = getattr(config, name, None)
        if isinstance(depth, int) and depth > 2:
            setattr(config, name, 2)
            for other, value in list(vars(config).items()):
                if isinstance(value, list) and len(value) == depth:
                    setattr(config, other, value[-2:])
    return config


@pytest.mark.parametrize("name", READ)
@pytest.mark.filterwarnings("ignore")  # what transformers says of itself
def test_every_parameter_is_seen(name):
    """The forward pass is traced with inputs that are found, and uses every parameter."""
    architecture = getattr(transformers, name, None)
    if architecture is None:
        pytest.skip(f"this version of transformers has no {name}")
    with torch.device("meta"):
        model = architecture(shallow(architecture.config_class()))
    found = read(model, sites(model))

    assert (found.evidence, found.unused - {"masked_spec_embed"}) == ("traced", set())
    assert all(facts.role != "unknown" for facts in found.facts.values())
