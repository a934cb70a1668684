"""Architectures of transformers, from their default configurations with two layers, are read whole.

They are built on meta, and no inputs are given.
"""

import re

import pytest
import torch

from torch_initpolicy import skip_init
from torch_initpolicy.sites import sites
from torch_initpolicy.trace.read import read

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.zoo

READ = (
    "ASTModel ArceeModel BeitModel CLIPTextModel CohereAsrModel Exaone4Model FlaubertModel "
    "GlmAsrEncoder Glm4vMoeVisionModel LevitModel LlavaNextModel Mamba2Model Mistral3Model "
    "OmniASRAudioModel Olmo3Model Qwen2_5_VLModel VideoLlavaModel "
    "Qwen3NextModel SEWModel Speech2TextModel TextNetModel UMT5Model UniSpeechModel ViTMSNModel "
    "XGLMModel"
).split()
"""A model of each kind: text, images, patches with grids, spectra, waves, pairs of sequences."""

_DEPTHS = re.compile(r"((num|n)_)?(hidden_|(en|de)coder_)?(num_)?(hidden_)?layers?|depth")
"""What configurations call how many equal layers there are."""

_WHOLE = {"depths", "stage_names"}
"""Marks of configurations that name their layers one by one: these stay as they are."""

_OTHERS = {
    **dict.fromkeys(("attn_layer_period", "expert_layer_period"), 2),
    **dict.fromkeys(("attn_layer_offset", "expert_layer_offset"), 1),
    **dict.fromkeys(("num_experts_per_tok", "n_group", "topk_group"), 1),
    **dict.fromkeys(("image_token_id", "image_token_index", "audio_token_id"), 9),
    "attn_layer_indices": [1],
}
"""What else has to be said of two layers, and what some configurations leave open."""


def shallow(config):
    """Cut a configuration and its parts to two layers, and whatever they say of each layer."""
    own = vars(config)
    for part in own.values():
        if isinstance(part, transformers.PreTrainedConfig):
            shallow(part)
    for name in own.keys() & _OTHERS.keys():
        if (
            own[name] is None
            or name.startswith("attn_layer")
            or name.endswith(("period", "offset"))
        ):
            setattr(config, name, _OTHERS[name])
    if "out_hidden_size" in dir(getattr(config, "vision_config", None)):
        config.vision_config.out_hidden_size = config.get_text_config().hidden_size
    for name in filter(_DEPTHS.fullmatch, list(own)):
        depth = own[name]
        if isinstance(depth, int) and depth > 2 and not own.keys() & _WHOLE:
            setattr(config, name, 2)
            for other, value in list(own.items()):
                if isinstance(value, list) and len(value) == depth:
                    setattr(config, other, value[-2:])
    return config


def built(architecture):
    """Build a model on meta; for real where its layers compute lengths from numbers in buffers."""
    with torch.device("meta"):
        model = architecture(shallow(architecture.config_class()))
    if any(
        name.rpartition(".")[2] in ("stride", "kernel_size") for name, _ in model.named_buffers()
    ):
        with skip_init():
            return architecture(shallow(architecture.config_class()))
    return model


@pytest.mark.parametrize("name", READ)
@pytest.mark.filterwarnings("ignore")  # what transformers says of itself
def test_every_parameter_is_seen(name):
    """The forward pass is traced with inputs that are found, and uses every parameter."""
    architecture = getattr(transformers, name, None)
    if architecture is None:
        pytest.skip(f"this version of transformers has no {name}")
    model = built(architecture)
    found = read(model, sites(model))

    assert (found.evidence, found.unused - {"masked_spec_embed"}) == ("traced", set())
    assert all(facts.role != "unknown" for facts in found.facts.values())
